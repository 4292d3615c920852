"""From a file to its columns, with every word as it was written."""

import csv
import difflib
import gzip
import io
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hvs_lib import columns as col
from hvs_lib.telemetry.files import SUFFIXES, count_rows, refusal, unknown_format
from hvs_lib.telemetry.quality import Finding

import pyarrow as arrow
import pyarrow.csv
import pyarrow.parquet

# what a cell may hold where it holds nothing
MISSING = ["", "nan", "NaN", "null", "NULL", "None", "NaT", "<NA>"]
MISSING_NUMBERS = [*MISSING, "NA", "N/A", "n/a", "#N/A", "-nan", "-NaN"]
READ_ERRORS = (arrow.ArrowException, OSError, EOFError, zlib.error, csv.Error, UnicodeError)
_BLOCK = 2**23  # bytes that the parser takes at a time, and that a line or a cell must fit into
_EMPTY = "The file must hold telemetry, got an empty file; export it again."


@dataclass
class RawFile:
    """What a file holds before validation, and how to tell a user where a row is."""

    columns: dict[str, arrow.ChunkedArray]
    names: list[str]  # every column name in the file
    row_name: Callable[[int], str]
    problems: list[str] = field(default_factory=list)
    whole: bool = True  # False for a piece of a file, which may lack what the file has
    keep_fill_values: bool = False
    findings: list[Finding] = field(default_factory=list)


def read_file(path: Path) -> RawFile:
    """Read the telemetry columns of a file; a damaged CSV file is all text."""
    _check_file(path)
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)


def _check_file(path: Path) -> None:
    """Refuse what is not a telemetry file before anything is opened."""
    if path.is_dir():
        raise refusal(path, "The path must name a file, got a directory; name one file in it.")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        problem = f"The file must exist, got a path to nothing; {_other_file(path)}"
        raise refusal(path, problem) from None
    except (OSError, ValueError) as error:  # a link to itself, a zero byte, a forbidden folder
        reason = getattr(error, "strerror", None) or str(error)
        raise refusal(path, f"The path must lead to a file, got: {reason}; check it.") from error
    if not path.is_file():
        raise refusal(path, "The path must name a regular file, got a pipe or device; save it.")
    if not path.name.lower().endswith(SUFFIXES):
        raise refusal(path, unknown_format(path))
    if size == 0:
        raise refusal(path, _EMPTY)


def _other_file(path: Path) -> str:
    try:
        present = [other.name for other in path.parent.iterdir()]
    except OSError:
        present = []
    near = difflib.get_close_matches(path.name, present, n=1)
    return f"did you mean {near[0]}?" if near else "check the path."


def _read_parquet(path: Path) -> RawFile:
    with arrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        table = file.read(columns=[name for name in col.TELEMETRY if name in names])
    row_name = "row {} (the first is 0)".format
    return RawFile(_by_name(_plain(table)), names, row_name, _repeated(names))


def _plain(table: arrow.Table) -> arrow.Table:
    """Turn string views, which few Arrow functions take, into strings."""
    for place, column in enumerate(table.schema):
        if arrow.types.is_string_view(column.type):
            text = table.column(place).cast(arrow.string())
            table = table.set_column(place, column.name, text)
    return table


def _read_csv(path: Path) -> RawFile:
    names = _csv_header(path)
    known = [name for name in col.TELEMETRY if name in names]
    problems = _repeated(names)
    skipped: list[int] = []
    if known:
        try:
            table = _csv_table(path, known, as_text=False)
            _check_quotes(path, len(table))
        except arrow.ArrowInvalid:
            # Rare and slower: read everything as text, so that each bad cell can be named.
            _check_lines(path)
            deque(_first_lines(path), maxlen=0)  # refuses a quote that is not closed
            table = _csv_table(path, known, as_text=True, skipped=skipped)
            problems += _uneven(path, skipped, len(names))
    else:
        table = arrow.table({})

    def row_name(row: int) -> str:
        return f"line {_data_lines(path, skipped)[row]}"

    return RawFile(_by_name(table), names, row_name, problems)


def _by_name(table: arrow.Table) -> dict[str, arrow.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


def _open(path: Path):
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb")


def _csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV file."""
    with _open(path) as file:
        lines = iter(partial(file.readline, _BLOCK), b"")
        line = next((line for line in lines if line.strip()), b"")
    if not line:
        raise refusal(path, _EMPTY)
    ends = line.endswith((b"\n", b"\r"))
    line = line.rstrip(b"\r\n")
    if b"\0" in line:
        problem = "The text must be UTF-8, got UTF-16 or binary data; save the file as 'CSV UTF-8'."
        raise refusal(path, problem)
    if b"\r" in line:
        problem = "Lines must end in LF or CR LF, got CR alone; save the file as 'CSV UTF-8'."
        raise refusal(path, problem)
    if len(line) == _BLOCK:
        problem = "The first line must name the columns, got one of 8 MB or more; add names."
        raise refusal(path, problem)
    try:
        names = next(csv.reader([line.decode("utf-8-sig")]))
    except UnicodeDecodeError as error:
        raise refusal(path, _not_utf8(line, error, 1)) from error
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise refusal(
            path,
            f"Columns must be separated by commas, the header is {names[0][:60]!r};"
            " save it with commas between columns and points in decimals.",
        )
    if not ends:
        problem = "The table must have rows, got a header alone; export it again."
        raise refusal(path, problem)
    return names


def _csv_table(
    path: Path, known: list[str], *, as_text: bool, skipped: list[int] | None = None
) -> arrow.Table:
    """Read the known columns; as text, rows of the wrong length are skipped and noted."""

    def skip(row: arrow.csv.InvalidRow) -> str:
        skipped.append(row.number)
        return "skip"

    compression = "gzip" if path.suffix.lower() == ".gz" else None
    with arrow.input_stream(str(path), compression=compression) as stream:
        return arrow.csv.read_csv(
            stream,
            read_options=arrow.csv.ReadOptions(use_threads=not as_text, block_size=_BLOCK),
            parse_options=arrow.csv.ParseOptions(
                invalid_row_handler=skip if as_text else None, newlines_in_values=True
            ),
            convert_options=_csv_conversion(known, as_text=as_text),
        )


def _csv_conversion(known: list[str], *, as_text: bool) -> arrow.csv.ConvertOptions:
    text = arrow.dictionary(arrow.int32(), arrow.string())
    types = {name: text for name in known}
    if not as_text:
        types |= {name: arrow.float32() for name in known if name in col.SENSORS}
        types |= {name: arrow.float64() for name in known if name == col.LABEL}
    return arrow.csv.ConvertOptions(
        column_types=types, include_columns=known, null_values=MISSING_NUMBERS
    )


def column_names(path: Path) -> list[str]:
    """Return the column names of a file, which is refused if it is no telemetry file."""
    _check_file(path)
    if path.suffix.lower() == ".parquet":
        return arrow.parquet.read_schema(path).names
    return _csv_header(path)


def read_batches(path: Path, known: list[str]) -> Iterator[arrow.Table]:
    """Read the known columns piece by piece; a bad cell of a CSV file raises an Arrow error."""
    if path.suffix.lower() == ".parquet":
        with arrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=known):
                yield _plain(arrow.Table.from_batches([batch]))
        return
    compression = "gzip" if path.suffix.lower() == ".gz" else None
    with arrow.input_stream(str(path), compression=compression) as stream:
        reader = arrow.csv.open_csv(
            stream,
            read_options=arrow.csv.ReadOptions(block_size=_BLOCK),
            parse_options=arrow.csv.ParseOptions(newlines_in_values=True),
            convert_options=_csv_conversion(known, as_text=False),
        )
        n_rows = 0
        with reader:
            for batch in reader:
                n_rows += len(batch)
                yield arrow.Table.from_batches([batch])
    _check_quotes(path, n_rows)


def _repeated(names: list[str]) -> list[str]:
    return [
        f"{name} must appear once, got {names.count(name)} columns of this name; rename or drop the"
        " others."
        for name in col.TELEMETRY
        if names.count(name) > 1
    ]


def _check_lines(path: Path) -> None:
    """Refuse a line that is not UTF-8, or longer than the parser takes."""
    with _open(path) as file:
        for number, line in enumerate(iter(partial(file.readline, _BLOCK), b""), start=1):
            if len(line) == _BLOCK:
                problem = (
                    f"A row must be shorter than 8 MB, got a longer one at line {number};"
                    " drop the column that holds so much, or export the file again."
                )
                raise refusal(path, problem)
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise refusal(path, _not_utf8(line, error, number)) from error


def _not_utf8(line: bytes, error: UnicodeDecodeError, number: int) -> str:
    byte = line[error.start] if error.start < len(line) else 0
    return (
        f"The text must be UTF-8, got the byte 0x{byte:02x} at line {number};"
        " save the file as 'CSV UTF-8'."
    )


def _uneven(path: Path, skipped: list[int], expected: int) -> list[str]:
    if not skipped:
        return []
    line = _data_lines(path, [])[skipped[0] - 2]
    return [
        f"Every row must have the {expected} columns of the header, {count_rows(len(skipped))} not,"
        f" the first at line {line}; the file is cut off or a cell holds an unquoted comma: export"
        " it again."
    ]


def _data_lines(path: Path, skipped: list[int]) -> list[int]:
    """Return the line number, as an editor counts, of every row read from a CSV file."""
    left_out = {1, *skipped}  # 1: the header
    return [line for row, line in enumerate(_first_lines(path), start=1) if row not in left_out]


def _check_quotes(path: Path, n_rows: int) -> None:
    """Refuse a quote that is not closed: the parser takes the rows up to the next one as a cell."""
    n_lines, n_quotes, end = 0, 0, b"\n"
    with _open(path) as file:
        for block in iter(partial(file.read, _BLOCK), b""):
            n_lines += block.count(b"\n")
            n_quotes += block.count(b'"')
            end = block[-1:]
    n_lines += end != b"\n"
    if n_quotes and n_lines != 1 + n_rows:  # some cell or blank line makes more lines than rows
        deque(_first_lines(path), maxlen=0)


def _first_lines(path: Path) -> Iterator[int]:
    """Yield the number of each row's first line; a quoted cell may hold further ones.

    Raises
    ------
    DataError
        Where a quote is not closed, or not at the end of its cell.
    """
    limit, ended = csv.field_size_limit(_BLOCK), 0
    try:
        # Arrow ends a line at a CR alone, too; which bytes a line holds does not matter here.
        with _open(path) as file, io.TextIOWrapper(file, encoding="latin-1") as text:
            rows = csv.reader(text, strict=True)
            for row in rows:
                if row:
                    yield ended + 1
                ended = rows.line_num
    except csv.Error as error:
        problem = (
            "A quoted cell must end with its quote within 8 MB, got one that does not in the row at"
            f" line {ended + 1}; close it, or export the file again."
        )
        raise refusal(path, problem) from error
    finally:
        csv.field_size_limit(limit)
