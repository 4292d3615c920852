"""A file read through a map, see `mapping`: its columns become ours."""

import difflib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import module_codes
from hvs_lib.telemetry.conversion import (
    TEXTS,
    as_numbers,
    as_times,
    codes_and_words,
    is_number,
    to_frame,
    zone_styles,
)
from hvs_lib.telemetry.files import (
    MISSING_NUMBERS,
    DataError,
    TelemetryFile,
    count_rows,
    sha256_of_file,
)
from hvs_lib.telemetry.mapping import SECONDS, Source, load_map, named
from hvs_lib.telemetry.quality import LEFT_OUT, Finding

_ADVICE = {
    col.TIMESTAMP: "add `Timestamp: COLUMN`",
    col.RACK: "add `Rack_ID: COLUMN` or `Rack_ID: {constant: Rack1}`",
    col.MODULE: "add `Module_ID: COLUMN` or `Module_ID: {constant: Module1}`",
}
_ADVICE_NUMBER = "write decimals with a point, or name the word in `missing`."
_ADVICE_TIME = "add `format` or, for numbers, `elapsed: s` and `start`, or `epoch: s`."
_NEVER = np.datetime64("NaT")


def open_telemetry(path: Path, columns: str | Path = "") -> "TelemetryFile | MappedFile":
    """Open a telemetry file, through a map where one is given."""
    return MappedFile(path, Path(columns)) if columns else TelemetryFile(path)


def telemetry_sha256(path: str | Path, columns: str | Path = "") -> str:
    """Return the SHA-256 of a file or, where there is a map, of both."""
    sha256 = sha256_of_file(path)
    if not columns:
        return sha256
    return hashlib.sha256(f"{sha256} {sha256_of_file(columns)}".encode()).hexdigest()


class MappedFile:
    """The telemetry of a file and a map, held in memory, with what `TelemetryFile` offers.

    Columns of the file that have our names need no entry in the map.

    Attributes
    ----------
    path, names, known, problems
        As those of `TelemetryFile`, of the telemetry; `names` ends with what the map leaves out.
    attrs : dict
        What the map says of the file: ``label_until_s`` and ``cells_in_series``.
    findings : list of Finding
        What the map has changed beside the values, once the telemetry is made.

    Raises
    ------
    DataError
        If the path leads to no telemetry file, the map is not sound or names what is not there.
    """

    def __init__(self, path: Path, columns: Path):
        self.path = path
        self.map = load_map(columns)
        self.problems: list[str] = []
        self.findings: list[Finding] = []
        cells = self.map.cells_in_series
        self.attrs = {} if cells is None else {"cells_in_series": cells}
        self.attrs["label_until_s"] = self.map.label_until_s
        self._file = TelemetryFile(path)
        self._title = f"{path} cannot be read with the map {columns}"
        own = {name: Source("column", (name,)) for name in self._file.known}
        self._sources = {**own, **self.map.sources}
        self._sources.pop(col.TIMESTAMP, None)
        made = {col.LABEL, col.PNR} if self.map.runaway is not None else set()
        for name in made:
            self._sources.pop(name, None)
        if isinstance(self.map.runaway, str):
            self._sources[col.LABEL] = Source("column", (self.map.runaway,))
        self._resolve()
        made |= {col.TIMESTAMP, *self._sources} | ({col.MODULE} if self._is_wide else set())
        self.known = [name for name in col.TELEMETRY if name in made]
        unused = [name for name in self._file.names if name not in self._file.known]
        self.names = [*self.known, *(name for name in unused if name not in made)]

    def batches(self) -> Iterator[arrow.Table]:
        """Yield the telemetry, in one piece."""
        yield self._telemetry()

    def columns(self) -> dict[str, arrow.ChunkedArray]:
        """Return the telemetry by column."""
        table = self._telemetry()
        return dict(zip(table.column_names, table.columns, strict=True))

    def row_name(self, row: int) -> str:
        """Say where in the user's file a row of the telemetry comes from."""
        return self._file.row_name(self._rows[row])

    # ---- which columns -----------------------------------------------------------------------

    @property
    def _is_wide(self) -> bool:
        return any(source.how == "each" for source in self._sources.values())

    def _resolve(self) -> None:
        """Find the columns that the map names in the file, and choose them to be read."""
        problems: list[str] = []
        clock, self._theirs = self.map.clock, {}  # of ours: {module or number: column}
        for name, source in self._sources.items():
            if source.how != "constant":
                self._theirs[name] = self._found(name, source, problems)
        times = {source.time for source in self._sources.values() if source.time}
        for each in (*clock.columns, *times):
            if each not in self._file.names:
                problems.append(self._lacks(col.TIMESTAMP, each))
        have = {col.TIMESTAMP, *self._sources} | ({col.MODULE} if self._is_wide else set())
        problems += [
            f"{name} must come from the file or the map, got neither; {cure}."
            for name, cure in _ADVICE.items()
            if name not in have
        ]
        if self._is_wide and col.MODULE in self._sources:
            problems.append(
                f"{col.MODULE} must not be given beside `each`, whose * names the modules; drop it."
            )
        read = {n: set(found.values()) for n, found in self._theirs.items()}
        numbers = set().union(*(read[name] for name in read if name not in TEXTS))
        numbers -= {*clock.columns, *times}.union(*(read.get(n, ()) for n in (col.LABEL, col.PNR)))
        used = {*clock.columns, *times}.union(*read.values())
        names = [name for name in dict.fromkeys(self._file.names) if name in used]
        self._file.select(names, dict.fromkeys(numbers, arrow.float64()))
        self._refuse(problems + self._file.problems)

    def _found(self, name: str, source: Source, problems: list[str]) -> dict[str, str]:
        """Return the columns of a source by module: what `*` stands for, or a number from 1."""
        found: dict[str, str] = {}
        for number, each in enumerate(source.columns, start=1):
            matches = named(each, self._file.names)
            if not matches:
                problems.append(self._lacks(name, each))
            for match in matches:
                module = "_".join(match.groups()) or str(number)
                key = module if source.how == "each" else match[0]
                if key in found:
                    what = f"{found[key]!r} and {match[0]!r}"
                    problems.append(f"{name} must take a column once, got {what}; drop one.")
                found[key] = match[0]
        if source.how == "column" and len(found) > 1:
            several = ", ".join(found)
            cure = "name one, or say `mean`, `max`, `sum` or `each`"
            problems.append(f"{name} must be made of one column, got {several}; {cure}.")
        return found

    def _lacks(self, name: str, wanted: str) -> str:
        near = difflib.get_close_matches(wanted, self._file.names, n=1, cutoff=0.4)
        cure = f"did you mean {near[0]!r}?" if near else "`hvs map` shows those it has."
        return f"{name} must name a column of the file, got {wanted!r}; {cure}"

    def _refuse(self, problems: list[str]) -> None:
        if problems:
            raise DataError(self._title, list(dict.fromkeys(problems)))

    # ---- the telemetry -----------------------------------------------------------------------

    def _telemetry(self) -> arrow.Table:
        """Make the telemetry; its rows know those of the file."""
        self._read = self._file.columns()
        self._bad = list(self._file.problems)
        n_rows = len(next(iter(self._read.values())))
        table = {}
        for name in [name for name in TEXTS if name in self._sources]:
            if self._sources[name].how == "constant":
                word = pd.Index(self._sources[name].columns, dtype="str")
                table[name] = pd.Categorical.from_codes(np.zeros(n_rows, np.int8), word)
            else:
                (theirs,) = self._theirs[name].values()
                table[name] = to_frame({name: self._read[theirs]})[name]
        self._modules = module_codes(pd.DataFrame(table)) if table else np.zeros(n_rows, np.int32)
        table[col.TIMESTAMP] = times = self._times(self.map.clock.columns)
        if col.PNR in self._sources:
            table[col.PNR] = self._times(tuple(self._theirs[col.PNR]))
        wide = {}
        for name in [name for name in self._sources if name not in (*TEXTS, col.PNR)]:
            source = self._sources[name]
            values = self._values(name, source, n_rows)
            if source.time:
                values = {k: self._on_clock(v, source, times) for k, v in values.items()}
            (wide if source.how == "each" else table)[name] = values
        table |= {name: values[""] for name, values in table.items() if isinstance(values, dict)}
        self._refuse(self._bad)
        self._read = {}
        telemetry = _long(pd.DataFrame(table, copy=False), wide)
        timed = telemetry[col.TIMESTAMP].notna()
        if len(timed) and not timed.any():
            theirs = " ".join(self.map.clock.columns)
            self._refuse([f"{col.TIMESTAMP} must be in {theirs!r}, got nothing; name another."])
        telemetry = telemetry[timed]
        self._tell("without a value", int((~timed).sum()))
        telemetry = self._once_each(telemetry)
        if self.map.runaway is not None:
            telemetry = self._labelled(telemetry)
        self._rows = telemetry.index.to_numpy()
        return arrow.Table.from_pandas(telemetry[self.known], preserve_index=False)

    def _tell(self, what: str, rows: int) -> None:
        if rows:
            self.findings.append([col.TIMESTAMP, f"{what}; {LEFT_OUT}", rows])

    def _values(self, name: str, source: Source, n_rows: int) -> dict[str, np.ndarray]:
        """Return the values of each module, of "" where the columns are not those of modules."""
        if source.how == "constant":
            value = float(as_numbers(pd.Series(source.columns, dtype="str"))[0])
            if np.isnan(value):
                self._bad.append(f"{name} must be a number, got {source.columns[0]!r}; correct it.")
            return {"": np.full(n_rows, value)}
        missing = (*self.map.missing, *source.missing)
        read = {k: self._numbers(name, each, missing) for k, each in self._theirs[name].items()}
        if source.how != "each":
            together = pd.DataFrame(read, copy=False)
            if source.how == "sum":  # without one cell it would be another voltage
                together = together.sum(axis=1, skipna=False)
            elif source.how == "column":
                together = together.iloc[:, 0]
            else:
                together = together.agg(source.how, axis=1)
            read = {"": together.to_numpy()}
        return {k: values * source.factor + source.offset for k, values in read.items()}

    def _numbers(self, name: str, theirs: str, missing: tuple) -> np.ndarray:
        array = self._read[theirs]
        if arrow.types.is_integer(array.type) or arrow.types.is_floating(array.type):
            values = array.to_numpy().astype(np.float64)
        else:
            codes, words = codes_and_words(array)
            words = words.mask(words.isin([*MISSING_NUMBERS, *map(str, missing)]))
            if name == col.LABEL:
                words = words.replace({r"(?i)true": "1", r"(?i)false": "0"}, regex=True)
            bad = ~is_number(words)
            self._note(bad, codes, words, f"{name} must be a number", theirs, _ADVICE_NUMBER)
            values = np.append(as_numbers(words).to_numpy(np.float64), np.nan)[codes]
        fill = [each for each in missing if isinstance(each, int | float)]
        return np.where(np.isin(values, fill), np.nan, values) if fill else values

    def _note(
        self, bad: pd.Series, codes: np.ndarray, words: pd.Series, rule: str, theirs: str, cure: str
    ) -> None:
        """Note the cells of bad words as one problem."""
        rows = np.flatnonzero(np.append(bad.to_numpy(bool), False)[codes])
        told = f"{words[codes[rows[0]]]!r} in {theirs!r}" if len(rows) else ""
        self._note_rows(rows, rule, told, cure)

    def _note_rows(self, rows: np.ndarray, rule: str, found: pd.Series | str, cure: str) -> None:
        """Note rows, if there are any, with what is found in the first, as one problem."""
        if len(rows):
            told = found if isinstance(found, str) else found[rows[0]]
            place = self._file.row_name(rows[0])
            self._bad.append(
                f"{rule}, got {told} at {place}, {count_rows(len(rows))} in all; {cure}"
            )

    # ---- times -------------------------------------------------------------------------------

    def _times(self, columns: tuple[str, ...]) -> pd.Series:
        """Return times in UTC, NaT where there is none."""
        clock, theirs = self.map.clock, " ".join(columns)
        if unit := clock.epoch or clock.elapsed:
            numbers = pd.Series(self._numbers(col.TIMESTAMP, columns[0], self.map.missing))
            if clock.epoch:
                times = pd.to_datetime(numbers, unit=unit, errors="coerce")
            else:
                times = self._start() + _elapsed(numbers, unit)
            self._note_rows(
                np.flatnonzero(times.isna() & numbers.notna()),
                f"{col.TIMESTAMP} must lie between the years 1678 and 2262",
                numbers,
                "correct the unit.",
            )
            return times.astype("datetime64[us]")
        array = self._read[columns[0]]
        for other in columns[1:]:
            texts = [each.cast(arrow.string()) for each in (array, self._read[other])]
            array = arrow.compute.binary_join_element_wise(*texts, " ")
        if arrow.types.is_timestamp(array.type) or arrow.types.is_date(array.type):
            times = to_frame({col.TIMESTAMP: array})[col.TIMESTAMP]
            has_zone = getattr(array.type, "tz", None) is not None
        else:
            codes, words = codes_and_words(array)
            words = words.mask(words.isin([str(each) for each in self.map.missing]))
            if clock.format:
                read = pd.to_datetime(words, format=clock.format, errors="coerce", utc=True)
                read, has_zone = read.dt.tz_localize(None), "%z" in clock.format
                cure = f"correct the format {clock.format!r}, or these cells."
            else:
                read, styles, cure = as_times(words), zone_styles(array), _ADVICE_TIME
                has_zone = True in styles
                if len(styles) > 1:
                    rule = f"{theirs!r} must have a time zone in all rows or in none"
                    self._bad.append(f"{rule}, got both; write all times alike.")
            bad = read.isna() & words.notna()
            self._note(bad, codes, words, f"{col.TIMESTAMP} must be a time", theirs, cure)
            times = pd.Series(np.append(read.to_numpy("datetime64[us]"), _NEVER)[codes])
        return times if has_zone or not clock.zone else self._from_local(times)

    def _start(self) -> pd.Timestamp:
        return self._utc(self.map.clock.start)

    def _utc(self, time: pd.Timestamp) -> pd.Timestamp:
        """Return a time of the map in UTC, without a zone."""
        zoned = time if time.tz else time.tz_localize(self.map.clock.zone or "UTC")
        return zoned.tz_convert(None)

    def _from_local(self, times: pd.Series) -> pd.Series:
        """Return local times in UTC; in an hour that repeats, the order of rows tells."""
        zone = self.map.clock.zone
        utc, winter = (
            times.dt.tz_localize(
                zone, ambiguous=np.full(len(times), is_summer), nonexistent="NaT"
            ).dt.tz_convert(None)
            for is_summer in (True, False)
        )
        lost = np.flatnonzero(utc.isna() & times.notna())
        cure = "correct the zone, to UTC if the clock has no daylight saving."
        self._note_rows(lost, f"{col.TIMESTAMP} must exist in {zone}", times, cure)
        twice = (utc != winter) & utc.notna()
        if twice.any():  # the second time round starts where a module's clock steps back
            hours = [self._modules, times.dt.floor("D")]
            back = (times.groupby(self._modules).diff() < pd.Timedelta(0)) & twice
            utc = utc.where(~twice | (back.groupby(hours).cumsum() == 0), winter)
        return utc

    def _on_clock(self, values: np.ndarray, source: Source, times: pd.Series) -> np.ndarray:
        """Give each row the latest reading of another clock, unless it is too old."""

        def in_order(times: pd.Series, values: np.ndarray) -> pd.DataFrame:
            table = pd.DataFrame({"module": self._modules, "time": times, "value": values})
            return table.dropna().sort_values("time", kind="stable")

        rows = in_order(times, np.arange(len(values)))
        readings = in_order(self._times((source.time,)), values)
        found = pd.merge_asof(
            rows, readings, on="time", by="module", suffixes=("", "_read"),
            tolerance=pd.Timedelta(seconds=source.within),
        )  # fmt: skip
        merged = np.full(len(values), np.nan)
        merged[found["value"]] = found["value_read"]
        return merged

    # ---- rows --------------------------------------------------------------------------------

    def _once_each(self, telemetry: pd.DataFrame) -> pd.DataFrame:
        """Keep one row of each module and time, as the map says; else the rules refuse them."""
        keys = [name for name in col.KEYS if name in telemetry]
        again = telemetry.duplicated(keys, keep="last" if self.map.repeated == "last" else "first")
        if not self.map.repeated or not again.any():
            return telemetry
        self._tell(f"again for the same module, the {self.map.repeated} is taken", int(again.sum()))
        kept = telemetry[~again].copy()
        if self.map.repeated == "mean":
            names = [name for name in telemetry if name in col.SENSORS]
            mean = telemetry.groupby(keys, observed=True, dropna=False)[names].transform("mean")
            kept[names] = mean[~again.to_numpy()]
        return kept

    def _labelled(self, telemetry: pd.DataFrame) -> pd.DataFrame:
        """Label the time before the runaway, and leave out what comes after."""
        at, times = self.map.runaway, telemetry[col.TIMESTAMP]
        if isinstance(at, str):
            true = times.where(telemetry[col.LABEL] == 1)
            pnr = true.groupby(module_codes(telemetry)).transform("min")
        else:
            is_time = isinstance(at, pd.Timestamp)
            pnr = self._utc(at) if is_time else self._start() + _elapsed(at, self.map.clock.elapsed)
            pnr = pd.Series(pnr, telemetry.index)
        label = times >= pnr - pd.Timedelta(minutes=self.map.label_from_min)
        late = times > pnr - pd.Timedelta(seconds=self.map.label_until_s)
        what = f"later than {self.map.label_until_s:g} s before the runaway"
        self._tell(what, int(late.sum()))
        return telemetry.assign(**{col.LABEL: label.astype(np.int8), col.PNR: pnr})[~late]


def _elapsed(numbers: pd.Series | float, unit: str) -> pd.Series | pd.Timedelta:
    return pd.to_timedelta(numbers * SECONDS[unit], unit="s", errors="coerce")


def _long(table: pd.DataFrame, wide: dict[str, dict[str, np.ndarray]]) -> pd.DataFrame:
    """Make a row for each module of what is wide, its values and what all modules share."""
    if not wide:
        return table
    modules = list(dict.fromkeys(module for values in wide.values() for module in values))
    parts = [
        table.assign(**{name: values.get(module, np.nan) for name, values in wide.items()})
        for module in modules
    ]
    codes = np.repeat(np.arange(len(modules)), len(table))
    ids = pd.Categorical.from_codes(codes, pd.Index(modules, dtype="str"))
    return pd.concat(parts).assign(**{col.MODULE: ids})
