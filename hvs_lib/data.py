"""Telemetry files: read, validate and summarise them; simulate the fleet when there is none.

Every function that returns telemetry returns the same table: sorted by site, rack, module and
time, ids as categories, sensors as float32, the label as int8, time in UTC without a zone.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import os
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hvs_lib import __version__
from hvs_lib import columns as col

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pyarrow as arrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from filelock import FileLock
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

SUFFIXES = (".csv", ".csv.gz", ".parquet")
DEFAULT_SITE = "Site1"
SIMULATED_HOURS = 6.0
_FINGERPRINT = b"hvs_simulator_sha256"

# Readings outside these limits come from no sensor, whatever burns: a wrong unit, a fill value such
# as -9999, a shifted column. Generous on purpose; data/README.md states the same numbers.
PLAUSIBLE = {
    col.TEMP_AVG: (-60.0, 1500.0, "degC"),
    col.TEMP_MAX: (-60.0, 1500.0, "degC"),
    col.VOLTAGE: (-100.0, 2000.0, "V"),
    col.CURRENT: (-5000.0, 5000.0, "A"),
    col.SOC: (-20.0, 150.0, "%"),
    col.CO: (-500.0, 1e6, "ppm"),
    col.H2: (-500.0, 1e6, "ppm"),
    col.VOC: (-500.0, 1e6, "ppm"),
    col.AMBIENT: (-60.0, 1500.0, "degC"),
}

_IDS = [col.SITE, col.RACK, col.MODULE]
_TEXTS = [*_IDS, col.EVENT_ID, col.EVENT_TYPE]
_MISSING = ["", "nan", "NaN", "null", "NULL", "None", "NaT", "<NA>"]
_MISSING_NUMBERS = [*_MISSING, "NA", "N/A", "n/a", "#N/A", "-nan", "-NaN"]
_DATE = r"^\s*\d{4}-?\d{2}-?\d{2}"  # pandas alone would also accept "now" and "2025"
_ZONE = r"\d[Tt ]\d{2}[\d:.]*\s*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)\s*$"
_EMPTY = "The file must hold telemetry, got an empty file; export it again."
_READ_ERRORS = (arrow.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeError)


class DataError(ValueError):
    """Telemetry that cannot be used, with every reason at once.

    Parameters
    ----------
    title : str
        What cannot be done, with the name of the file where there is one.
    problems : list of str
        One sentence per problem: the rule, the value found, the cure.
    """

    def __init__(self, title: str, problems: list[str]):
        super().__init__(title, problems)
        self.title = title
        self.problems = list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.title}: {self.problems[0]}"
        lines = [f"  {number}. {text}" for number, text in enumerate(self.problems, start=1)]
        return "\n".join([f"{self.title}, {len(lines)} problems:", *lines])


def project_root() -> Path:
    """Return the folder that holds data/, runs/ and the tracking store.

    Returns
    -------
    Path
        `HVS_PROJECT_ROOT` if that is set, else the folder above the package.
    """
    chosen = os.environ.get("HVS_PROJECT_ROOT")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[1]


def load_telemetry(path: str | Path, *, require_label: bool = True) -> pd.DataFrame:
    """Load a telemetry file and refuse it with every problem named if it is not sound.

    Parameters
    ----------
    path : str or Path
        A `.csv`, `.csv.gz` or `.parquet` file, see data/README.md.
    require_label : bool, default=True
        False for telemetry that is only scored: the label may then be absent or empty.

    Returns
    -------
    DataFrame of shape (n_samples, n_columns)
        The telemetry, columns in the order of `columns.TELEMETRY`. A sensor that the file lacks is
        NaN throughout. `attrs["ignored_columns"]` names the columns that are not telemetry.

    Raises
    ------
    DataError
        If the file cannot be read or breaks a rule of the table.
    """
    path = Path(path)
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_csv
    try:
        _check_file(path)
        raw = read(path)
        frame = _to_frame(raw)
    except _READ_ERRORS as error:
        raise _refusal(path, _unreadable(path, error)) from error
    if not require_label and col.LABEL in frame and frame[col.LABEL].isna().all():
        frame = frame.drop(columns=col.LABEL)
    problems = raw.problems + _validate(frame, raw, require_label=require_label)
    if problems:
        raise _refusal(path, *problems)
    return _finish(frame, raw)


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a whole file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading ------------------------------------------------------------------------------------


@dataclass
class _Raw:
    """What a file holds before validation, and how to tell a user where a row is."""

    columns: dict[str, arrow.ChunkedArray]
    names: list[str]  # every column name in the file
    row_name: Callable[[int], str]
    problems: list[str] = field(default_factory=list)


def _refusal(path: Path, *problems: str) -> DataError:
    return DataError(f"{path} cannot be used", list(problems))


def _check_file(path: Path) -> None:
    """Refuse what is not a telemetry file before anything is opened."""
    if path.is_dir():
        raise _refusal(path, "The path must name a file, got a directory; name one file in it.")
    if not path.exists():
        raise _refusal(path, f"The file must exist, got a path to nothing; {_other_file(path)}")
    if not path.name.lower().endswith(SUFFIXES):
        raise _refusal(path, _unknown_format(path))
    if path.stat().st_size == 0:
        raise _refusal(path, _EMPTY)


def _unknown_format(path: Path) -> str:
    return (
        f"The format must be one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'!r};"
        " convert the file, or rename it if it is one of these."
    )


def _other_file(path: Path) -> str:
    present = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, present, n=1)
    return f"did you mean {near[0]}?" if near else "check the path."


def _unreadable(path: Path, error: BaseException) -> str:
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
    reason = " ".join(str(error).split())[:200].rstrip(". ")
    return (
        f"The file must be readable as {kind}, got: {reason}; it may be truncated,"
        " damaged, protected or not of the format that its name says: copy or export it again."
    )


def _read_parquet(path: Path) -> _Raw:
    with arrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        table = file.read(columns=[name for name in col.TELEMETRY if name in names])
    row_name = "row {} (the first is 0)".format
    return _Raw(_by_name(table), names, row_name, _repeated(names))


def _read_csv(path: Path) -> _Raw:
    names = _csv_header(path)
    known = [name for name in col.TELEMETRY if name in names]
    problems = _repeated(names)
    skipped: list[int] = []
    if known:
        try:
            table = _csv_table(path, known, as_text=False)
        except arrow.ArrowInvalid:
            # Rare and slower: read everything as text, so that each bad cell can be named.
            _check_encoding(path)
            table = _csv_table(path, known, as_text=True, skipped=skipped)
            problems += _uneven(path, skipped, len(names))
    else:
        table = arrow.table({})
    return _Raw(_by_name(table), names, partial(_line_name, path, set(skipped)), problems)


def _by_name(table: arrow.Table) -> dict[str, arrow.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _open(path: Path):
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV file."""
    with _open(path) as file:
        line = next((line for line in file if line.strip()), b"")
    if not line:
        raise _refusal(path, _EMPTY)
    line = line.rstrip(b"\r\n")
    if b"\0" in line:
        problem = "The text must be UTF-8, got UTF-16 or binary data; save the file as 'CSV UTF-8'."
        raise _refusal(path, problem)
    if b"\r" in line:
        problem = "Lines must end in LF or CR LF, got CR alone; save the file as 'CSV UTF-8'."
        raise _refusal(path, problem)
    try:
        names = next(csv.reader([line.decode("utf-8-sig")]))
    except UnicodeDecodeError as error:
        raise _refusal(path, _not_utf8(line, error, 1)) from error
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise _refusal(
            path,
            f"Columns must be separated by commas, the header is {names[0][:60]!r};"
            " save it with commas between columns and points in decimals.",
        )
    return names


def _csv_table(
    path: Path, known: list[str], *, as_text: bool, skipped: list[int] | None = None
) -> arrow.Table:
    """Read the known columns; as text, rows of the wrong length are skipped and noted."""
    text = arrow.dictionary(arrow.int32(), arrow.string())
    types = {name: text for name in known}
    if not as_text:
        types |= {name: arrow.float32() for name in known if name in [*col.SENSORS, col.LABEL]}

    def skip(row: arrow.csv.InvalidRow) -> str:
        skipped.append(row.number)
        return "skip"

    compression = "gzip" if path.suffix.lower() == ".gz" else None
    with arrow.input_stream(str(path), compression=compression) as stream:
        return arrow.csv.read_csv(
            stream,
            read_options=arrow.csv.ReadOptions(use_threads=not as_text),
            parse_options=arrow.csv.ParseOptions(invalid_row_handler=skip if as_text else None),
            convert_options=arrow.csv.ConvertOptions(
                column_types=types, include_columns=known, null_values=_MISSING_NUMBERS
            ),
        )


def _repeated(names: list[str]) -> list[str]:
    return [
        f"{name} must appear once, got {names.count(name)} columns of this name; rename or drop the"
        " others."
        for name in col.TELEMETRY
        if names.count(name) > 1
    ]


def _check_encoding(path: Path) -> None:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _refusal(path, _not_utf8(line, error, number)) from error


def _not_utf8(line: bytes, error: UnicodeDecodeError, number: int) -> str:
    byte = line[error.start] if error.start < len(line) else 0
    return (
        f"The text must be UTF-8, got the byte 0x{byte:02x} at line {number};"
        " save the file as 'CSV UTF-8'."
    )


def _uneven(path: Path, skipped: list[int], expected: int) -> list[str]:
    if not skipped:
        return []
    line = _data_lines(path, set())[skipped[0] - 2]
    return [
        f"Every row must have the {expected} columns of the header, {_count(len(skipped))} not, the"
        f" first at line {line}; the file is cut off or a cell holds an unquoted comma: export it"
        " again."
    ]


def _line_name(path: Path, skipped: set[int], row: int) -> str:
    return f"line {_data_lines(path, skipped)[row]}"


def _data_lines(path: Path, skipped: set[int]) -> list[int]:
    """Return the line number, as an editor counts, of every row read from a CSV file."""
    with _open(path) as file:
        filled = [number for number, line in enumerate(file, start=1) if line.strip(b"\r\n")]
    return [line for row, line in enumerate(filled, start=1) if row > 1 and row not in skipped]


# --- conversion ---------------------------------------------------------------------------------
# A column that converts as a whole gets its type here. One that does not stays text, and the
# schema refuses it with the cells that are wrong.


def _to_frame(raw: _Raw) -> pd.DataFrame:
    columns = {}
    for name in list(raw.columns):
        array = raw.columns.pop(name)  # so that the file's copy of the column is freed at once
        if name == col.TIMESTAMP:
            columns[name] = _to_times(array)
        elif name in _TEXTS:
            columns[name] = _to_category(array)
        else:
            columns[name] = _to_numbers(array)
    arrow.default_memory_pool().release_unused()  # else a second copy of the file stays behind
    return pd.DataFrame(columns, copy=False)


def _encoded(array: arrow.ChunkedArray) -> arrow.DictionaryArray:
    """Return a text column as one dictionary-encoded array."""
    if not arrow.types.is_dictionary(array.type):
        array = _text(array).dictionary_encode()
    array = array.unify_dictionaries().combine_chunks()
    return array.chunk(0) if isinstance(array, arrow.ChunkedArray) else array


def _text(array: arrow.ChunkedArray) -> arrow.ChunkedArray:
    try:
        return array.cast(arrow.string())
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):  # lists, structs, blobs
        return arrow.chunked_array([[None if v is None else str(v) for v in array.to_pylist()]])


def _codes_and_words(array: arrow.ChunkedArray) -> tuple[np.ndarray, pd.Series]:
    """Return int codes (-1 = missing) and the words, trimmed, of a text column."""
    encoded = _encoded(array)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    words = pd.Series(encoded.dictionary.to_pylist(), dtype="str").str.strip()
    used = np.zeros(len(words), dtype=bool)  # a category may be without rows
    used[codes[codes >= 0]] = True
    return codes, words.where(used & ~words.isin(_MISSING))


def _to_category(array: arrow.ChunkedArray) -> pd.Categorical:
    codes, words = _codes_and_words(array)
    sorted_words = pd.Index(sorted(words.dropna().unique()), dtype="str")
    # one more entry, so that code -1 (missing) maps to itself
    renamed = np.append(sorted_words.get_indexer(words), -1).astype(np.int32)
    return pd.Categorical.from_codes(renamed[codes], categories=sorted_words)


def _to_times(array: arrow.ChunkedArray) -> pd.Series:
    if arrow.types.is_timestamp(array.type) or arrow.types.is_date(array.type):
        # a zoned Arrow timestamp counts from the epoch in UTC already
        zone = getattr(array.type, "tz", None)
        return pd.Series(array.cast(arrow.timestamp("us", tz=zone), safe=False).to_numpy())
    codes, words = _codes_and_words(array)
    if _is_time(words).all() and _one_zone_style(words).all():
        return pd.Series(np.append(_times(words).to_numpy(), np.datetime64("NaT"))[codes])
    return pd.Series(np.append(words.to_numpy(object), None)[codes], dtype="str")


def _times(words: pd.Series) -> pd.Series:
    """Return text as UTC times, NaT where it is not ISO 8601."""
    iso = words.where(words.str.contains(_DATE, na=False))
    parsed = pd.to_datetime(iso, format="ISO8601", errors="coerce", utc=True)
    return parsed.dt.tz_localize(None).astype("datetime64[us]")


def _to_numbers(array: arrow.ChunkedArray) -> np.ndarray | pd.Series:
    kind = array.type
    if arrow.types.is_integer(kind) or arrow.types.is_floating(kind):
        return array.to_numpy().astype(np.float32, copy=False)
    if arrow.types.is_decimal(kind) or arrow.types.is_null(kind):
        return array.cast(arrow.float64()).to_numpy().astype(np.float32)
    codes, words = _codes_and_words(array)
    words = words.mask(words.isin(_MISSING_NUMBERS))
    if _is_number(words).all():
        return np.append(_numbers(words).to_numpy(np.float32), np.float32("nan"))[codes]
    return pd.Series(np.append(words.to_numpy(object), None)[codes], dtype="str")


def _numbers(values: pd.Series) -> pd.Series:
    """Return the values as numbers, NaN where they are text."""
    if pd.api.types.is_numeric_dtype(values):
        return values
    return pd.to_numeric(values.astype(object), errors="coerce").astype("float64")


# --- validation ---------------------------------------------------------------------------------
# Each rule returns True for the rows (or the table) that keep it.


def _is_number(values: pd.Series) -> pd.Series:
    return _numbers(values).notna() | values.isna()


def _is_finite(values: pd.Series) -> pd.Series:
    return ~np.isinf(_numbers(values))


def _is_plausible(values: pd.Series, low: float, high: float) -> pd.Series:
    numbers = _numbers(values)
    # written so that NaN passes, and what is infinite is told by its own rule
    return ~((numbers < low) | (numbers > high)) | np.isinf(numbers)


def _is_label(values: pd.Series) -> pd.Series:
    return _numbers(values).isin([0, 1])


def _is_present(values: pd.Series) -> pd.Series:
    return values.notna()


def _is_time(values: pd.Series) -> pd.Series:
    return values.isna() | (values if _is_datetime(values) else _times(values)).notna()


def _one_zone_style(values: pd.Series) -> pd.Series:
    """Refuse times with a zone among times without one; the rarer kind is at fault."""
    if _is_datetime(values):
        return pd.Series(True, index=values.index)
    zoned = values.str.contains(_ZONE, na=False)
    bare = ~zoned & values.notna()
    odd = zoned if zoned.sum() <= bare.sum() else bare
    return ~odd | (not (zoned.any() and bare.any()))


def _is_datetime(values: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values)


def _is_first_of_instant(frame: pd.DataFrame) -> pd.Series:
    """Refuse a second row of the same module and time."""
    unique = np.ones(len(frame), dtype=bool)
    if {col.RACK, col.MODULE, col.TIMESTAMP} <= set(frame.columns):
        times = frame[col.TIMESTAMP]
        times = (times if _is_datetime(times) else _times(times)).to_numpy()
        modules = module_codes(frame)
        order = _order(modules, times)
        modules, times = (modules, times) if order is None else (modules[order], times[order])
        again = (modules[1:] == modules[:-1]) & (times[1:] == times[:-1]) & (modules[1:] >= 0)
        unique[np.arange(1, len(frame))[again] if order is None else order[1:][again]] = False
    return pd.Series(unique, index=frame.index)


def _has_rows(frame: pd.DataFrame) -> bool:
    return len(frame) > 0 or frame.columns.empty  # no column at all is told by other rules


def _has_sensor(frame: pd.DataFrame) -> bool:
    sensors = [name for name in col.SENSORS if name in frame]
    return any(len(frame) == 0 or frame[name].notna().any() for name in sensors)


# check name -> (rule, cure); the value found stands between them
_RULES = {
    "number": (
        "must be a number",
        "write decimals with a point and leave a missing reading empty.",
    ),
    "finite": ("must be finite", "leave a missing reading empty."),
    "plausible": ("", "check the sensor's unit and fill values, or leave such a reading empty."),
    "label": (
        "must be 0 or 1",
        "write 1 from 20 min to 30 s before the point of no return, 0 elsewhere.",
    ),
    "present": ("must not be missing", "fill it in, or drop these rows."),
    "time": (
        "must be an ISO 8601 time such as 2025-06-01T12:00:00 or 2025-06-01T12:00:00+02:00",
        "convert it with pandas.to_datetime before saving.",
    ),
    "zone": (
        "must have a time zone in all rows or in none",
        "write all times alike, best in UTC.",
    ),
    "unique": (
        "must be unique within a module",
        "drop the repeated rows, or give different modules different ids.",
    ),
    "rows": ("The table must have rows, got a header alone", "export it again."),
    "sensor": (
        f"The table must have at least one sensor column of {', '.join(col.SENSORS)}",
        "rename the columns of the file, see data/README.md.",
    ),
}


def _rule(name: str, keeps: Callable, **limits: float) -> pa.Check:
    # n_failure_cases bounds pandera's own report; ours counts the rows of check_output
    return pa.Check(partial(keeps, **limits), name=name, ignore_na=False, n_failure_cases=1)


def telemetry_schema(*, require_label: bool = True) -> pa.DataFrameSchema:
    """Return the rules of the telemetry table as a pandera schema.

    Parameters
    ----------
    require_label : bool, default=True
        Whether the label column must be there.

    Returns
    -------
    DataFrameSchema
        To be used with `lazy=True`; it changes no value.
    """

    def column(rules: list[pa.Check], *, required: bool = False) -> pa.Column:
        return pa.Column(None, rules, nullable=True, required=required)

    present = _rule("present", _is_present)
    time = [present, _rule("time", _is_time), _rule("zone", _one_zone_style)]
    sensors = {
        name: column(
            [
                _rule("number", _is_number),
                _rule("finite", _is_finite),
                _rule("plausible", _is_plausible, low=low, high=high),
            ]
        )
        for name, (low, high, _) in PLAUSIBLE.items()
    }
    return pa.DataFrameSchema(
        {
            col.TIMESTAMP: column(time, required=True),
            col.SITE: column([present]),
            col.RACK: column([present], required=True),
            col.MODULE: column([present], required=True),
            **sensors,
            col.LABEL: column([_rule("label", _is_label)], required=require_label),
        },
        checks=[
            _rule("unique", _is_first_of_instant),
            _rule("rows", _has_rows),
            _rule("sensor", _has_sensor),
        ],
    )


def _validate(frame: pd.DataFrame, raw: _Raw, *, require_label: bool) -> list[str]:
    """Return every problem of a table in words."""
    if col.SITE in frame and frame[col.SITE].isna().all():
        frame = frame.drop(columns=col.SITE)  # an empty column counts as absent
    try:
        telemetry_schema(require_label=require_label).validate(frame, lazy=True, inplace=True)
    except SchemaErrors as errors:
        return [_problem(error, frame, raw) for error in errors.schema_errors]
    return []


def _problem(error: SchemaError, frame: pd.DataFrame, raw: _Raw) -> str:
    if error.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
        return _missing_column(str(error.failure_cases), raw.names)
    if not isinstance(error.check, pa.Check) or error.check.name not in _RULES:
        raise error  # a defect of the schema, not of the file
    rule, cure = _RULES[error.check.name]
    if isinstance(error.check_output, bool | np.bool_):
        return f"{rule}; {cure}"
    rows = np.flatnonzero(~error.check_output.to_numpy(dtype=bool))
    name = error.schema.name or col.TIMESTAMP
    if error.check.name == "plausible":
        return f"{_implausible(name, frame, rows, raw)}; {cure}"
    value = _found(error.check.name, name, frame, rows[0])
    return (
        f"{name} {rule}, got {value} at {raw.row_name(rows[0])}, {_count(len(rows))} in all; {cure}"
    )


def _found(rule: str, name: str, frame: pd.DataFrame, row: int) -> str:
    value = frame[name].iloc[row]
    if rule == "unique":
        rack, module = frame[col.RACK].iloc[row], frame[col.MODULE].iloc[row]
        return f"{value} again for module {module} of rack {rack}"
    if pd.isna(value):
        return "nothing"
    return repr(value) if isinstance(value, str) else f"{value:g}"


def _implausible(name: str, frame: pd.DataFrame, rows: np.ndarray, raw: _Raw) -> str:
    low, high, unit = PLAUSIBLE[name]
    values = _numbers(frame[name].iloc[rows])
    return (
        f"{name} must lie between {low:g} and {high:g} {unit}, got {values.min():g} to"
        f" {values.max():g} in {_count(len(rows))}, the first {values.iloc[0]:g} at"
        f" {raw.row_name(rows[0])}"
    )


def _missing_column(name: str, names: list[str]) -> str:
    spare = {other.lower(): other for other in names if other not in col.TELEMETRY}
    near = difflib.get_close_matches(name.lower(), spare, n=1)
    found = f"the nearest is {spare[near[0]]!r}; rename it" if near else _has_instead(names)
    other_cure = " (telemetry that is only scored needs no label)" if name == col.LABEL else ""
    return f"{name} must be a column of the file, {found}{other_cure}."


def _has_instead(names: list[str]) -> str:
    shown = ", ".join(names[:15]) + (", ..." if len(names) > 15 else "")
    return f"it has {shown}; add it"


def _count(rows: int) -> str:
    return f"{rows:,} row{'s' if rows > 1 else ''}"


def _finish(frame: pd.DataFrame, raw: _Raw) -> pd.DataFrame:
    """Give a sound table its types, its order and the columns it lacks."""
    n = len(frame)
    columns = {name: frame[name] for name in col.TELEMETRY if name in frame}
    if col.SITE not in frame or frame[col.SITE].isna().all():
        site = pd.Index([DEFAULT_SITE], dtype="str")
        columns[col.SITE] = pd.Categorical.from_codes(np.zeros(n, np.int8), categories=site)
    for name in col.SENSORS:
        columns.setdefault(name, np.full(n, np.nan, dtype=np.float32))
    if col.LABEL in columns:
        columns[col.LABEL] = columns[col.LABEL].astype(np.int8)
    result = pd.DataFrame({name: columns[name] for name in col.TELEMETRY if name in columns})
    order = _order(module_codes(result), result[col.TIMESTAMP].to_numpy())
    if order is not None:
        result = result.take(order).reset_index(drop=True)
    result.attrs["ignored_columns"] = [name for name in raw.names if name not in col.TELEMETRY]
    return result


def _order(modules: np.ndarray, times: np.ndarray) -> np.ndarray | None:
    """Return the rows in the order of module and time, None if they are so already."""
    step, later = np.diff(modules), times[1:] >= times[:-1]
    if np.all((step > 0) | ((step == 0) & later)):
        return None
    return np.lexsort((times, modules))


# --- who, and which event -----------------------------------------------------------------------


def rack_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the racks, a rack being a Rack_ID of a site.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)

    Returns
    -------
    ndarray of shape (n_samples,), int32
        0 to n_racks - 1 in the order of the ids, -1 where an id is missing.
    """
    return _numbered(telemetry, [col.SITE, col.RACK])


def module_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the modules, a module being a Module_ID of a rack of a site.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)

    Returns
    -------
    ndarray of shape (n_samples,), int32
        0 to n_modules - 1 in the order of the ids, -1 where an id is missing.
    """
    return _numbered(telemetry, [col.SITE, col.RACK, col.MODULE])


def _numbered(telemetry: pd.DataFrame, keys: list[str]) -> np.ndarray:
    combined = np.zeros(len(telemetry), dtype=np.int64)
    missing = np.zeros(len(telemetry), dtype=bool)
    for key in [key for key in keys if key in telemetry]:
        codes, n_codes = _category_codes(telemetry[key])
        missing |= codes < 0
        combined = combined * n_codes + codes
    combined[missing] = -1
    return pd.factorize(combined, sort=True, use_na_sentinel=False)[0].astype(np.int32) - (
        np.int32(1) if missing.any() else np.int32(0)
    )


def _category_codes(values: pd.Series) -> tuple[np.ndarray, int]:
    if not isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype("category")
    return values.cat.codes.to_numpy(), max(len(values.cat.categories), 1)


def event_codes(telemetry: pd.DataFrame) -> np.ndarray:
    """Number the events.

    An event is the rows of one module with label 1 and the same Event_ID or, where there is no
    Event_ID, one unbroken stretch of label 1.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
        Sorted by module and time, with the label.

    Returns
    -------
    ndarray of shape (n_samples,), int32
        0 to n_events - 1 on the rows with label 1, in the order of the rows; -1 elsewhere.
    """
    codes = np.full(len(telemetry), -1, dtype=np.int32)
    rows = np.flatnonzero(telemetry[col.LABEL].to_numpy() == 1)
    modules = module_codes(telemetry)[rows]
    broken = (np.diff(rows, prepend=-2) > 1) | (np.diff(modules, prepend=-1) != 0)
    name = np.cumsum(broken)
    if col.EVENT_ID in telemetry:
        event_id = _category_codes(telemetry[col.EVENT_ID])[0][rows].astype(np.int64)
        name = np.where(event_id >= 0, -1 - event_id, name)  # below zero: never a stretch's number
    pairs = pd.MultiIndex.from_arrays([modules, name])
    codes[rows] = pd.factorize(pairs)[0]
    return codes


# --- summary ------------------------------------------------------------------------------------


def summarize(telemetry: pd.DataFrame) -> dict:
    """Describe telemetry in numbers.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
        As `load_telemetry` returns it.

    Returns
    -------
    dict
        `rows, sites, racks, modules, start, end, hours, interval_s, module_days, missing` (share
        of rows per sensor), `sensors_absent, ignored_columns`; with a label also `events,
        event_racks, labelled_rows, prevalence`; with Event_ID also `look_alikes`: the ids without
        a labelled row; with Event_Type also `event_types`: ids per type.
    """
    times = telemetry[col.TIMESTAMP]
    interval_s = _interval_s(telemetry)
    span_s = (times.max() - times.min()).total_seconds() + interval_s
    missing = telemetry[col.SENSORS].isna().mean()
    return {
        "rows": len(telemetry),
        "sites": telemetry[col.SITE].nunique(),
        "racks": int(rack_codes(telemetry).max()) + 1,
        "modules": int(module_codes(telemetry).max()) + 1,
        "start": times.min().isoformat(),
        "end": times.max().isoformat(),
        "hours": span_s / 3600,
        "interval_s": interval_s,
        "module_days": len(telemetry) * interval_s / 86400,
        "missing": {name: float(share) for name, share in missing.items()},
        "sensors_absent": [name for name, share in missing.items() if share == 1],
        "ignored_columns": list(telemetry.attrs.get("ignored_columns", [])),
        **_event_summary(telemetry),
    }


def _interval_s(telemetry: pd.DataFrame) -> float:
    """Return the usual time between two rows of a module [s], 0 if no module has two."""
    steps = np.diff(telemetry[col.TIMESTAMP].to_numpy())
    steps = steps[np.diff(module_codes(telemetry)) == 0]
    return float(np.median(steps / np.timedelta64(1, "s"))) if len(steps) else 0.0


def _event_summary(telemetry: pd.DataFrame) -> dict:
    if col.LABEL not in telemetry:
        return {}
    codes = event_codes(telemetry)
    labelled = codes >= 0
    summary = {
        "events": int(codes.max(initial=-1)) + 1,
        "event_racks": len(np.unique(rack_codes(telemetry)[labelled])),
        "labelled_rows": int(labelled.sum()),
        "prevalence": float(labelled.mean()),
    }
    if col.EVENT_ID in telemetry:
        ids = telemetry[col.EVENT_ID]
        hazards = set(ids[labelled].dropna().unique())
        summary["look_alikes"] = len(set(ids.dropna().unique()) - hazards)
    if {col.EVENT_ID, col.EVENT_TYPE} <= set(telemetry.columns):
        named = telemetry[[col.EVENT_TYPE, col.EVENT_ID]].dropna().drop_duplicates()
        counts = named[col.EVENT_TYPE].astype("str").value_counts()
        summary["event_types"] = {str(kind): int(n) for kind, n in sorted(counts.items())}
    return summary


def format_summary(summary: dict) -> str:
    """Lay out what `summarize` returns for a terminal.

    Parameters
    ----------
    summary : dict

    Returns
    -------
    str
        One line per fact, no line break at the end.
    """
    return "\n".join(f"{name:<17}{value}" for name, value in _summary_lines(summary))


def _summary_lines(summary: dict) -> Iterator[tuple[str, str]]:
    yield "rows", f"{summary['rows']:,}"
    yield "sites", f"{summary['sites']:,}"
    yield "racks", f"{summary['racks']:,}"
    yield "modules", f"{summary['modules']:,}"
    yield "time", f"{summary['start']} to {summary['end']} UTC, {summary['hours']:.2f} h"
    yield "interval", f"{summary['interval_s']:g} s"
    if "events" in summary:
        yield "events", f"{summary['events']:,} in {summary['event_racks']:,} racks"
        rows, share = summary["labelled_rows"], summary["prevalence"]
        yield "prevalence", f"{share:.3%} ({rows:,} rows with label 1)"
    else:
        yield "events", "unknown, the file has no label"
    if "look_alikes" in summary:
        yield "look-alikes", f"{summary['look_alikes']:,} (event ids without a labelled row)"
    if summary.get("event_types"):
        kinds = summary["event_types"].items()
        yield "event types", ", ".join(f"{kind} {n}" for kind, n in kinds)
    yield from _missing_lines(summary)


def _missing_lines(summary: dict) -> Iterator[tuple[str, str]]:
    absent = summary["sensors_absent"]
    for name, share in summary["missing"].items():
        if share > 0 and name not in absent:
            yield "missing", f"{name} {share:.2%}"
    for name in absent:
        near = difflib.get_close_matches(name, summary["ignored_columns"], n=1)
        yield "absent", name + (f" (did you mean {near[0]!r} for it?)" if near else "")
    if summary["ignored_columns"]:
        yield "ignored columns", ", ".join(summary["ignored_columns"])


# --- writing ------------------------------------------------------------------------------------


def save_telemetry(telemetry: pd.DataFrame, path: str | Path) -> None:
    """Write telemetry to a new file that `load_telemetry` reads back unchanged.

    The file appears when it is complete. One that is there already is never written over.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
    path : str or Path
        Ends in `.csv`, `.csv.gz` or `.parquet`.

    Raises
    ------
    DataError
        If the file exists, its folder does not, or the format is unknown.
    """
    path = Path(path)
    if not path.name.lower().endswith(SUFFIXES):
        raise _unwritable(path, _unknown_format(path))
    if not path.parent.is_dir():
        raise _unwritable(path, f"The folder must exist, {path.parent} does not; create it.")
    if path.exists():
        raise _unwritable(path, "The file must be new, it exists; choose another name.")
    _write(telemetry, path, {})


def _unwritable(path: Path, problem: str) -> DataError:
    return DataError(f"{path} cannot be written", [problem])


def _write(telemetry: pd.DataFrame, path: Path, stamps: dict[bytes, bytes]) -> None:
    """Write a file such that a reader sees the old one or the whole new one."""
    table = arrow.Table.from_pandas(telemetry, preserve_index=False)
    unfinished = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        if path.suffix.lower() == ".parquet":
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **stamps})
            _write_parquet(table, unfinished)
        else:
            _write_csv(table, unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_parquet(table: arrow.Table, path: Path) -> None:
    readings = [name for name in col.SENSORS if name in table.column_names]
    arrow.parquet.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=131_072,  # so that the cores share the reading
        # noisy readings seldom repeat: a third smaller so, and quicker, than with a dictionary
        use_dictionary=[name for name in table.column_names if name not in readings],
        column_encoding=dict.fromkeys(readings, "BYTE_STREAM_SPLIT"),
    )


def _write_csv(table: arrow.Table, path: Path) -> None:
    plain = [
        array.cast(arrow.string()) if arrow.types.is_dictionary(array.type) else array
        for array in table.columns
    ]
    table = arrow.Table.from_arrays(plain, names=table.column_names)
    compression = "gzip" if path.suffix.lower() == ".gz" else None
    with arrow.output_stream(str(path), compression=compression) as stream:
        arrow.csv.write_csv(table, stream, arrow.csv.WriteOptions(quoting_style="needed"))


# --- the simulated fleet ------------------------------------------------------------------------


def simulated_fleet_path(sites: int, seed: int) -> Path:
    """Return the file of a simulated fleet, simulating it first if there is none.

    The file is written again when the simulator's source has changed since.

    Parameters
    ----------
    sites : int
        Number of sites of 64 modules.
    seed : int
        Seed of the fleet, not negative.

    Returns
    -------
    Path
        `data/raw/fleet_{sites}sites_seed{seed}.parquet` below the project root, 6 h of telemetry.

    Raises
    ------
    ValueError
        If `sites` or `seed` is out of range.
    """
    if sites < 1:
        raise ValueError(f"sites must be at least 1, got {sites}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    path = project_root() / "data" / "raw" / f"fleet_{sites}sites_seed{seed}.parquet"
    stamp = simulator_fingerprint()
    if _stamp_of(path) != stamp:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # notebooks that start together simulate once
            if _stamp_of(path) != stamp:
                _simulate_to(path, sites, seed, stamp)
    return path


def _simulate_to(path: Path, sites: int, seed: int, stamp: str) -> None:
    # here, not at the top: it brings in numba, which reading a file does not need
    from hvs_lib.simulator import simulate_fleet

    telemetry, _ = simulate_fleet(sites, SIMULATED_HOURS, seed)
    stamps = {b"hvs_workbook_version": __version__.encode(), _FINGERPRINT: stamp.encode()}
    _write(telemetry, path, stamps)


def simulator_fingerprint() -> str:
    """Return the SHA-256 of the source that decides what the simulator writes.

    Returns
    -------
    str
        Over the simulator's files and `columns.py`, which holds the label window.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in [*sorted((package / "simulator").rglob("*.py")), package / "columns.py"]:
        digest.update(source.relative_to(package).as_posix().encode())
        digest.update(source.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def _stamp_of(path: Path) -> str | None:
    try:
        stamps = arrow.parquet.read_schema(path).metadata or {}
    except _READ_ERRORS:
        return None  # absent or damaged
    return stamps.get(_FINGERPRINT, b"").decode()
