"""Read telemetry: a whole file, or a few whole racks of it at a time, by the same steps."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as arrow

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import module_codes, order_of
from hvs_lib.telemetry.conversion import to_frame, zone_styles
from hvs_lib.telemetry.files import READ_ERRORS, TelemetryFile, refusal, unreadable
from hvs_lib.telemetry.quality import (
    Finding,
    clear_fill_values,
    clear_zero_modules,
    doubtful_current,
    name_whole_events,
    zero_columns,
)
from hvs_lib.telemetry.racks import ROW, Racks, concatenated
from hvs_lib.telemetry.rules import NO_SENSOR, broken_rules, untypical

DEFAULT_SITE = "Site1"
ROWS_TOGETHER = 100_000  # small racks are handed out together up to about so many rows
_SAMPLED = 1000  # rows of each piece of the file that show what is typical


def load_telemetry(
    path: str | Path, *, require_label: bool = True, keep_fill_values: bool = False
) -> pd.DataFrame:
    """Load a telemetry file and refuse it with every problem named if it is not sound.

    Parameters
    ----------
    path : str or Path
        A `.csv`, `.csv.gz` or `.parquet` file, see data/README.md.
    require_label : bool, default=True
        False for telemetry that is only scored: the label may then be absent or empty.
    keep_fill_values : bool, default=False
        Take 327.67, 65535 and the like, which loggers write for an absent sensor, as readings.

    Returns
    -------
    DataFrame of shape (n_samples, n_columns)
        The telemetry, columns in the order of `columns.TELEMETRY`. A sensor that the file lacks is
        NaN throughout. `attrs["ignored_columns"]` names the columns that are not telemetry,
        `attrs["findings"]` what is doubtful, for `summarize`.

    Raises
    ------
    DataError
        If the file cannot be read or breaks a rule of the table.
    """
    file = TelemetryFile(Path(path))
    reader = _Reader(file, require_label=require_label, keep_fill_values=keep_fill_values)
    try:
        columns = file.columns()
    except READ_ERRORS as error:
        raise unreadable(file.path, error) from error
    return reader.telemetry(columns, file.row_name, all_rows=True)


def read_racks(
    path: str | Path,
    *,
    require_label: bool = False,
    rows_in_memory: int = 2_000_000,
    keep_fill_values: bool = False,
) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield the telemetry of whole racks, one or a few small ones at a time.

    The file is parsed once from front to end. Its rows are sorted into racks, which wait in memory
    or, where they are many, in a temporary folder.

    Parameters
    ----------
    path : str or Path
        As for `load_telemetry`.
    require_label : bool, default=False
        As for `load_telemetry`.
    rows_in_memory : int, default=2_000_000
        Rows that wait for the end of their rack before they go to the disk.
    keep_fill_values : bool
        As for `load_telemetry`.

    Yields
    ------
    share, telemetry : float, DataFrame
        The share of the file's rows that is handed out once this table is, and the table, as from
        `load_telemetry`.

    Raises
    ------
    DataError
        If the file or a rack of it breaks a rule of the table, or the folder has no room.
    """
    file = TelemetryFile(Path(path))
    options = {"require_label": require_label, "keep_fill_values": keep_fill_values}
    reader = _Reader(file, **options)
    with TemporaryDirectory(prefix="hvs-racks-") as folder:
        racks = Racks(Path(folder), rows_in_memory)
        sample = reader.sort_into(racks)
        if sample is None:  # `load_telemetry` says what is wrong, if anything is
            yield 1.0, load_telemetry(path, **options)
            return
        if problems := untypical(sample):
            raise refusal(file.path, *problems)
        done = 0
        for table in racks.complete(ROWS_TOGETHER):
            done += len(table)
            columns = {name: table[name] for name in file.known}
            row_name = partial(_row_name, file, table[ROW].to_numpy())
            yield done / racks.n_rows, reader.telemetry(columns, row_name)


def _row_name(file: TelemetryFile, numbers: np.ndarray, row: int) -> str:
    return file.row_name(numbers[row])


class _Reader:
    """The steps from a file's columns to telemetry, and what only all of its rows tell.

    Attributes
    ----------
    empty : set of str
        Columns without a value so far that count as absent if that is all.
    zero : set of str
        Sensors without a value so far, or with none but 0, which stand for an absent one, too.
    """

    def __init__(self, file: TelemetryFile, *, require_label: bool, keep_fill_values: bool):
        self.file = file
        self.require_label = require_label
        self.keep_fill_values = keep_fill_values
        self.empty = {col.SITE, *col.SENSORS} | (set() if require_label else {col.LABEL})
        self.zero = set() if keep_fill_values else set(col.SENSORS)

    def sort_into(self, racks: Racks) -> pd.DataFrame | None:
        """Sort the rows into racks; return some of them, None if the whole file breaks a rule."""
        known = self.file.known
        if self.file.problems or not {col.RACK, col.MODULE, col.TIMESTAMP} <= set(known):
            return None
        zones: set[bool] = set()
        sample = []
        try:
            for batch in self.file.batches():
                racks.add(batch)
                undecided = [name for name in known if name in self.empty | self.zero]
                self._note(self._to_frame({name: batch[name] for name in undecided})[0])
                if len(zones) < 2:
                    zones |= zone_styles(batch[col.TIMESTAMP])
                every = max(len(batch) // _SAMPLED, 1)
                sample.append(batch.take(arrow.array(np.arange(0, len(batch), every))))
            if not racks.n_rows or self._is_silent or len(zones) > 1:
                return None
            rows = concatenated(sample)
            shown = {*col.KEYS[:3], *col.SENSORS} - self.zero
            return self._to_frame({name: rows[name] for name in known if name in shown})[0]
        except READ_ERRORS:
            return None

    @property
    def _is_silent(self) -> bool:
        return (self.empty | self.zero).issuperset(col.SENSORS)

    def _note(self, frame: pd.DataFrame) -> None:
        """Note which columns have values in these rows."""
        for name in (self.empty | self.zero) & set(frame):
            values = frame[name].dropna()
            if len(values) or frame.empty:
                self.empty.discard(name)
            if (values != 0).any() or frame.empty:
                self.zero.discard(name)

    def _to_frame(
        self, columns: dict[str, arrow.ChunkedArray]
    ) -> tuple[pd.DataFrame, list[Finding]]:
        frame = to_frame(columns)
        return frame, [] if self.keep_fill_values else clear_fill_values(frame)

    def telemetry(
        self,
        columns: dict[str, arrow.ChunkedArray],
        row_name: Callable[[int], str],
        *,
        all_rows: bool = False,
    ) -> pd.DataFrame:
        """Validate the rows of whole racks, or of the file, and give them types and order."""
        try:
            frame, findings = self._to_frame(columns)
        except READ_ERRORS as error:
            raise unreadable(self.file.path, error) from error
        if all_rows:
            self._note(frame)
        zero = [name for name in col.SENSORS if name in self.zero & set(frame)]
        findings += zero_columns(frame, zero)
        frame = frame.drop(columns=(self.empty | self.zero) & set(frame))
        problems = [*self.file.problems, *untypical(frame)] if all_rows else []
        names, require_label = self.file.names, self.require_label
        problems += broken_rules(frame, names, row_name, require_label=require_label)
        if self._is_silent:
            problems.append(NO_SENSOR)
        if problems:
            raise refusal(self.file.path, *problems)
        telemetry = _in_order(frame)
        modules = module_codes(telemetry)
        if not self.keep_fill_values:
            findings += clear_zero_modules(telemetry, modules)
        findings += name_whole_events(telemetry, modules)
        findings += doubtful_current(telemetry, modules)
        ignored = [name for name in names if name not in col.TELEMETRY]
        telemetry.attrs = {"ignored_columns": ignored, "findings": findings}
        return telemetry


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Give a sound table its types, its order and the columns it lacks."""
    columns = {name: frame[name] for name in frame}
    if col.SITE not in frame:
        site = pd.Index([DEFAULT_SITE], dtype="str")
        columns[col.SITE] = pd.Categorical.from_codes(np.zeros(len(frame), np.int8), site)
    for name in col.SENSORS:
        columns.setdefault(name, np.full(len(frame), np.nan, dtype=np.float32))
    if col.LABEL in columns:
        columns[col.LABEL] = columns[col.LABEL].astype(np.int8)
    result = pd.DataFrame({name: columns[name] for name in col.TELEMETRY if name in columns})
    order = order_of(module_codes(result), result[col.TIMESTAMP].to_numpy())
    return result if order is None else result.take(order).reset_index(drop=True)
