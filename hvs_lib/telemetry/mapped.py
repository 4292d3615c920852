"""A file read through a map, see `mapping`: its columns become ours."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.compute

from hvs_lib import columns as col
from hvs_lib.project import did_you_mean, is_address
from hvs_lib.telemetry.addresses import listing_sha256, local_copy
from hvs_lib.telemetry.codes import module_codes
from hvs_lib.telemetry.conversion import (
    TEXTS,
    as_numbers,
    as_times,
    codes_and_words,
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
from hvs_lib.telemetry.folders import TelemetryFolder, open_files, sha256_of_files
from hvs_lib.telemetry.mapping import Source, load_map, named
from hvs_lib.telemetry.quality import LEFT_OUT, Finding

_CELLS_OF_A_MODULE = 14  # in series, in the simulated modules: the voltage per cell is what counts
_ADVICE_NUMBER = "write decimals with a point, or name the word in `missing`."
_ADVICE_TIME = "add `format` or, for numbers, `elapsed: s` and `start`, or `epoch: s`."
_ADVICE_ZONE = "correct the zone, to UTC if the clock has no daylight saving."


def open_telemetry(
    path: Path, columns: str | Path = ""
) -> "TelemetryFile | TelemetryFolder | MappedFile":
    """Open a telemetry file or a folder of them, through a map if one is given."""
    return MappedFile(path, Path(columns)) if columns else open_files(path)


def telemetry_sha256(path: str | Path, columns: str | Path = "") -> str:
    """Return the SHA-256 of a file or folder, combined with that of its map if there is one."""
    with local_copy(path) as local:
        return _with_map(sha256_of_files(local), columns)


def telemetry_version(path: str | Path, columns: str | Path = "") -> str:
    """Return a digest that changes whenever `telemetry_sha256` does; addresses need not be read."""
    if not is_address(path):
        return telemetry_sha256(path, columns)
    return _with_map(listing_sha256(str(path)), columns)


def _with_map(sha256: str, columns: str | Path) -> str:
    if not columns:
        return sha256
    return hashlib.sha256(f"{sha256} {sha256_of_file(columns)}".encode()).hexdigest()


class MappedFile:
    """The telemetry of a file with a map, held in memory, with the interface of `TelemetryFile`.

    Columns of the file that have our names need no entry in the map.

    Attributes
    ----------
    path, names, known, problems, label_until_s
        As in `TelemetryFile`, for the telemetry; `names` ends with the columns not in the map.
    findings : list of Finding
        What the map has changed besides the values, once the telemetry is made.

    Raises
    ------
    DataError
        If the path does not lead to a telemetry file, the map is invalid or names missing columns.
    """

    def __init__(self, path: Path, columns: Path):
        self.path = path
        self.map = load_map(columns)
        self.problems: list[str] = []
        self.findings: list[Finding] = []
        self.label_until_s = self.map.label_until_s
        self._file = open_files(path)
        self._title = f"{path} cannot be read with the map {columns}"
        runaway = self.map.runaway
        # made from the clock and the runaway, whatever columns the file has
        made = {col.TIMESTAMP} | ({col.LABEL, col.PNR} if runaway else set())
        own = {name: Source("column", (name,)) for name in self._file.known}
        sources = own | self.map.sources
        self._sources = {name: source for name, source in sources.items() if name not in made}
        if runaway and isinstance(runaway, str):
            self._sources[col.LABEL] = Source("column", (runaway,))
        made |= {*self._sources}
        if any(source.how == "each" for source in self._sources.values()):
            made.add(col.MODULE)
        self.known = [name for name in col.TELEMETRY if name in made]
        self._theirs = self._resolve()  # our column -> {module or column: column}
        unused = [name for name in self._file.names if name not in self._file.known]
        self.names = [*self.known, *(name for name in unused if name not in made)]

    def batches(self) -> Iterator[arrow.Table]:
        """Yield the telemetry, in one piece."""
        yield arrow.Table.from_pandas(self._telemetry()[self.known], preserve_index=False)

    def columns(self) -> dict[str, arrow.ChunkedArray]:
        """Return the telemetry by column."""
        (table,) = self.batches()
        return dict(zip(table.column_names, table.columns, strict=True))

    def row_name(self, row: int) -> str:
        """Say where in the user's file a row of the telemetry comes from."""
        return self._file.row_name(self._rows[row])

    # ---- which columns -----------------------------------------------------------------------

    def _resolve(self) -> dict[str, dict[str, str]]:
        """Find the file's columns that the map names, and select them for reading."""
        self._bad, sources = [], self._sources.items()
        theirs = {name: self._found(name, source) for name, source in sources}
        clocks = [*self.map.clock.columns, *(source.time for _, source in sources if source.time)]
        missing = [each for each in clocks if each not in self._file.names]
        self._bad += [self._lacks(col.TIMESTAMP, each) for each in missing]
        for name in [name for name in (col.RACK, col.MODULE) if name not in self.known]:
            self._bad.append(
                f"{name} must come from the file or the map, got neither; add `{name}: COLUMN` or"
                f" `{name}: {{constant: {name[:-3]}1}}`."
            )
        if col.MODULE in self._sources and any(source.how == "each" for _, source in sources):
            self._bad.append(
                f"{col.MODULE} must not be given beside `each`, whose * names the modules; drop it."
            )
        used = {each for found in theirs.values() for each in found.values()}.union(clocks)
        texts = {*clocks}.union(
            *(theirs.get(name, {}).values() for name in (*TEXTS, col.LABEL, col.PNR))
        )
        names = [name for name in dict.fromkeys(self._file.names) if name in used]
        self._file.select(names, dict.fromkeys(used - texts, arrow.float64()))
        self._bad += self._file.problems
        self._refuse_bad()
        return theirs

    def _found(self, name: str, source: Source) -> dict[str, str]:
        """Return the columns of a source by module: what `*` stands for, or a number from 1."""
        found: dict[str, str] = {}
        for number, each in enumerate(source.columns * (source.how != "constant"), start=1):
            matches = named(each, self._file.names)
            if not matches:
                self._bad.append(self._lacks(name, each))
            for match in matches:
                module = "_".join(match.groups()) or str(number)
                key = module if source.how == "each" else match[0]
                if key in found:
                    what = f"{found[key]!r} and {match[0]!r}"
                    self._bad.append(f"{name} must take a column once, got {what}; drop one.")
                found[key] = match[0]
        if source.how == "column" and len(found) > 1:
            cure = "name one" + ", or say `mean`, `max`, `sum` or `each`" * (name in col.SENSORS)
            self._bad.append(f"{name} must be made of one column, got {', '.join(found)}; {cure}.")
        return found

    def _lacks(self, name: str, wanted: str) -> str:
        cure = did_you_mean(wanted, self._file.names, "`hvs map` shows those it has.")
        return f"{name} must name a column of the file, got {wanted!r}; {cure}"

    def _refuse_bad(self) -> None:
        if self._bad:
            raise DataError(self._title, list(dict.fromkeys(self._bad)))

    # ---- the telemetry -----------------------------------------------------------------------

    def _telemetry(self) -> pd.DataFrame:
        """Make the telemetry, and note the row of the file that each of its rows comes from."""
        self._read, self._bad = self._file.columns(), list(self._file.problems)
        rows = pd.RangeIndex(len(next(iter(self._read.values()))))
        table = pd.DataFrame(index=rows)
        for name in [name for name in TEXTS if name in self._sources]:
            for theirs in self._theirs[name].values():
                table[name] = to_frame({name: self._read[theirs]})[name]
            if self._sources[name].how == "constant":
                word = pd.Index(self._sources[name].columns, dtype="str")
                table[name] = pd.Categorical.from_codes(np.zeros(len(rows), np.int8), word)
        self._modules = module_codes(table)
        table[col.TIMESTAMP] = times = self._times(self.map.clock.columns)
        if col.PNR in self._sources:
            table[col.PNR] = self._times(tuple(self._theirs[col.PNR].values()))
        wide = {}
        for name, source in self._sources.items():
            if name in (*TEXTS, col.PNR):
                continue
            values = self._values(name, source, rows)
            if source.time:
                clock = self._times((source.time,))
                values = values.apply(self._on_clock, args=(clock, times, source.within))
            if source.how == "each":
                wide[name] = values
            else:
                table[name] = values.iloc[:, 0]
        if len(rows) and not times.notna().any() and not self._bad:
            theirs = " ".join(self.map.clock.columns)
            self._bad = [f"{col.TIMESTAMP} must be in {theirs!r}, got no time; name another."]
        self._refuse_bad()
        self._read = {}
        if wide:  # to one row per module: its values and what all modules share
            long = pd.concat(wide, axis=1).stack(future_stack=True)  # noqa: PD013
            modules = pd.Categorical(long.index.get_level_values(1).astype("str"))
            table = table.join(long.droplevel(1).assign(**{col.MODULE: modules}))
        timed = table[col.TIMESTAMP].notna()
        self._tell("without a value", int((~timed).sum()))
        table = self._once_each(table[timed])
        if self.map.runaway:
            table = self._labelled(table)
        self._rows = table.index.to_numpy()
        return table

    def _tell(self, what: str, rows: int) -> None:
        if rows:
            self.findings.append(Finding(col.TIMESTAMP, f"{what}; {LEFT_OUT}", rows))

    def _values(self, name: str, source: Source, rows: pd.Index) -> pd.DataFrame:
        """Return the values of a source: one column per module, or a single one."""
        missing = (*self.map.missing, *source.missing)
        if source.how == "constant":
            values = pd.DataFrame({name: float(source.columns[0])}, index=rows)
        else:
            read = {
                key: self._numbers(name, self._read[theirs], theirs, missing)
                for key, theirs in self._theirs[name].items()
            }
            values = pd.DataFrame(read, copy=False)
        if source.how == "sum":  # a missing cell would change the voltage
            values = values.sum(axis=1, skipna=False).to_frame()
        elif source.how in ("mean", "max"):
            values = values.agg(source.how, axis=1).to_frame()
        values = values * source.factor + source.offset
        if name == col.VOLTAGE and self.map.cells_in_series:
            values *= _CELLS_OF_A_MODULE / self.map.cells_in_series
        return values

    def _numbers(
        self, name: str, array: arrow.ChunkedArray, theirs: str, missing: tuple
    ) -> pd.Series:
        if arrow.types.is_integer(array.type) or arrow.types.is_floating(array.type):
            values = pd.Series(array.to_numpy().astype(np.float64))
        else:
            rule, known = f"{name} must be a number", (*MISSING_NUMBERS, *missing)
            parse = _as_flags if name == col.LABEL else as_numbers
            values = self._parsed(array, theirs, parse, known, rule, _ADVICE_NUMBER)
        fills = as_numbers(pd.Series([*map(str, missing)], dtype="str")).dropna().tolist()
        return values.mask(values.isin(fills)) if fills else values

    def _parsed(
        self, array: arrow.ChunkedArray, theirs: str, parse: Callable, missing: Iterable,
        rule: str, cure: str,
    ) -> pd.Series:  # fmt: skip
        """Return the parsed words of a column; note those that do not parse."""
        codes, words = codes_and_words(array)
        words = words.mask(words.isin([str(each) for each in missing]))
        values = parse(words)
        if (values.isna() & words.notna()).any():
            self._note(values.reindex(codes), words.reindex(codes), rule, theirs, cure)
        return values.reindex(codes).reset_index(drop=True)

    def _note(self, values: pd.Series, words: pd.Series, rule: str, theirs: str, cure: str) -> None:
        """Note the rows with a word but no value, if any, as one problem."""
        rows = np.flatnonzero(values.isna() & words.notna())
        if len(rows):
            place = f"{theirs!r} at {self._file.row_name(rows[0])}, {count_rows(len(rows))} in all"
            self._bad.append(f"{rule}, got '{words.iloc[rows[0]]}' in {place}; {cure}")

    # ---- times -------------------------------------------------------------------------------

    def _times(self, columns: tuple[str, ...]) -> pd.Series:
        """Return times in UTC, NaT where there is none."""
        clock, theirs = self.map.clock, " ".join(columns)
        array = self._read[columns[0]]
        if len(columns) > 1:
            texts = [self._read[each].cast(arrow.string()) for each in columns]
            array = arrow.compute.binary_join_element_wise(*texts, " ")
        if unit := clock.epoch or clock.elapsed:
            numbers = self._numbers(col.TIMESTAMP, array, theirs, self.map.missing)
            past = pd.to_timedelta(numbers, unit=unit, errors="coerce")
            rule = f"{col.TIMESTAMP} must lie within 292 years"
            self._note(past, numbers, rule, theirs, "correct the unit.")
            return clock.zero + past.astype("timedelta64[us]")
        if arrow.types.is_timestamp(array.type) or arrow.types.is_date(array.type):
            times = to_frame({col.TIMESTAMP: array})[col.TIMESTAMP]
            has_zone = getattr(array.type, "tz", None) is not None
        else:
            has_zone, parse, cure = "%z" in clock.format, as_times, _ADVICE_TIME
            if clock.format:
                parse = partial(as_times, format=clock.format)
                cure = f"correct the format {clock.format!r}, or these cells."
            elif styles := zone_styles(array):
                has_zone = True in styles
                if len(styles) > 1:
                    rule = f"{theirs!r} must have a time zone in all rows or in none"
                    self._bad.append(f"{rule}, got both; write all times alike.")
            rule = f"{col.TIMESTAMP} must be a time"
            times = self._parsed(array, theirs, parse, self.map.missing, rule, cure)
        return times if has_zone or not clock.zone else self._from_local(times, theirs)

    def _from_local(self, times: pd.Series, theirs: str) -> pd.Series:
        """Convert local times to UTC; in an hour that repeats, the order of the rows decides."""
        zone = self.map.clock.zone
        utc, winter = (
            times.dt.tz_localize(zone, np.full(len(times), is_summer), "NaT").dt.tz_convert(None)
            for is_summer in (True, False)
        )
        rule = f"{col.TIMESTAMP} must exist in {zone}"
        self._note(utc, times, rule, theirs, _ADVICE_ZONE)
        twice = (utc != winter) & utc.notna()
        if twice.any():  # the second time round starts where a module's clock steps back
            hours = [self._modules, times.dt.floor("D")]
            back = (times.groupby(self._modules).diff() < pd.Timedelta(0)) & twice
            utc = utc.where(~twice | (back.groupby(hours).cumsum() == 0), winter)
        return utc

    def _on_clock(
        self, values: pd.Series, clock: pd.Series, times: pd.Series, within: float
    ) -> pd.Series:
        """Give each row the latest reading of another clock, unless it is too old."""
        readings = pd.DataFrame({"module": self._modules, "time": clock, "value": values})
        rows = pd.DataFrame({"module": self._modules, "time": times, "row": times.index})
        found = pd.merge_asof(
            rows.dropna().sort_values("time"),
            readings.dropna().sort_values("time", kind="stable"),
            on="time", by="module", tolerance=pd.Timedelta(seconds=within),
        )  # fmt: skip
        return found.set_index("row")["value"].reindex(times.index)

    # ---- rows --------------------------------------------------------------------------------

    def _once_each(self, table: pd.DataFrame) -> pd.DataFrame:
        """Keep one row per module and time, as the map says; otherwise the rules refuse repeats."""
        keys = [name for name in col.KEYS if name in table]
        again = int(table.duplicated(keys).sum())
        if self.map.repeated and again:
            self._tell(f"repeated for the same module, the {self.map.repeated} is taken", again)
            names = [name for name in table if name in col.SENSORS]
            of_time = table.groupby(keys, observed=True)[names]
            table = table.assign(**of_time.transform(self.map.repeated))
            kept = "last" if self.map.repeated == "last" else "first"  # its label, its event
            table = table.drop_duplicates(keys, keep=kept)
        return table

    def _labelled(self, table: pd.DataFrame) -> pd.DataFrame:
        """Label the time before the runaway, and drop the rows after that, labelled or not."""
        times, pnr = table[col.TIMESTAMP], self.map.runaway
        if isinstance(pnr, str):
            true = times.where(table[col.LABEL] == 1)
            pnr = true.groupby(module_codes(table)).transform("min")
        pnr = pd.Series(pnr, table.index)
        label = times >= pnr - pd.Timedelta(minutes=self.map.label_from_min)
        late = times > pnr - pd.Timedelta(seconds=self.map.label_until_s)
        self._tell(f"later than {self.map.label_until_s:g} s before the runaway", int(late.sum()))
        return table.assign(**{col.LABEL: label.astype(np.int8), col.PNR: pnr})[~late]


def _as_flags(words: pd.Series) -> pd.Series:
    return as_numbers(words.str.lower().replace({"true": "1", "false": "0"}))
