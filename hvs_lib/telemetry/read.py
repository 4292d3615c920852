"""Read telemetry: a whole file, or a few whole racks of it at a time, by the same steps."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as arrow

from hvs_lib import columns as col
from hvs_lib.parallel import side_by_side
from hvs_lib.telemetry.addresses import local_copy
from hvs_lib.telemetry.codes import module_codes, order_of
from hvs_lib.telemetry.conversion import to_frame, zone_styles
from hvs_lib.telemetry.doubts import doubts
from hvs_lib.telemetry.files import READ_ERRORS, readable, refusal
from hvs_lib.telemetry.mapped import open_telemetry
from hvs_lib.telemetry.quality import (
    Finding,
    clear_fill_values,
    clear_zero_modules,
    complete_pnr,
    leave_out_fires,
    name_whole_events,
    spread_pnr,
    zero_columns,
)
from hvs_lib.telemetry.racks import ROW, Racks
from hvs_lib.telemetry.rules import NO_SENSOR, broken_rules, untypical

DEFAULT_SITE = "Site1"
ROWS_TOGETHER = 100_000  # small racks are yielded together, up to about this many rows
_SAMPLED = 1000  # rows sampled from each piece of the file, to see what is typical


def load_telemetry(
    path: str | Path,
    *,
    columns: str | Path = "",
    require_label: bool = True,
    keep_fill_values: bool = False,
) -> pd.DataFrame:
    """Load a telemetry file; if it is not valid, refuse it and name every problem.

    Parameters
    ----------
    path : str or Path
        A `.csv`, `.csv.gz`, `.parquet` or `.zip` file, a folder of them, or an address of
        either such as ``s3://bucket/folder``, see data/README.md.
    columns : str or Path, optional
        A map of the file's columns to ours, see docs/own-data.md.
    require_label : bool, default=True
        False for telemetry that is only scored: the label may then be absent or empty.
    keep_fill_values : bool, default=False
        Treat 327.67, 65535 and the like, which loggers write for an absent sensor, as readings.

    Returns
    -------
    DataFrame of shape (n_samples, n_columns)
        The telemetry, columns in the order of `columns.TELEMETRY`, without rows of burning
        modules. A sensor not in the file is NaN throughout. `attrs["ignored_columns"]` names the
        columns that are not telemetry, `attrs["findings"]` what is doubtful, for `summarize`.

    Raises
    ------
    DataError
        If the file cannot be read or breaks a rule of the table.
    """
    options = {"require_label": require_label, "keep_fill_values": keep_fill_values}
    with local_copy(path) as local:
        reader = _Reader(local, columns, **options)
        return reader.telemetry(reader.file.columns())


def read_racks(
    path: str | Path,
    *,
    columns: str | Path = "",
    require_label: bool = False,
    keep_fill_values: bool = False,
    then: Callable[[int, pd.DataFrame], object] = lambda _, telemetry: telemetry,
    n_jobs: int = 1,
) -> Iterator[tuple[float, object]]:
    """Yield the telemetry of whole racks, or what is made of it, one or a few racks at a time.

    The file is parsed once from start to end. Its rows are sorted into racks, which wait in memory
    or, if there are many rows, in a temporary folder. A file with a map must fit into memory.
    Several racks are validated at a time, see `side_by_side`.

    Parameters
    ----------
    path, columns, require_label, keep_fill_values
        As for `load_telemetry`.
    then : callable
        Called with the number of each table, from 0, and the table, as from `load_telemetry`. By
        default, it returns the table.
    n_jobs : int
        Number of threads. With several, results wait in memory until consumed: let `then` return
        little.

    Yields
    ------
    share, found : float, object
        Share of the file's rows done so far, and what `then` returned.

    Raises
    ------
    DataError
        If the file or one of its racks breaks a rule of the table, or the temporary folder is full.
    """
    options = {"require_label": require_label, "keep_fill_values": keep_fill_values}
    with local_copy(path) as local, TemporaryDirectory(prefix="hvs-racks-") as folder:
        reader = _Reader(local, columns, **options)
        racks = Racks(Path(folder))
        sample = reader.sort_into(racks)
        if sample is None:  # `load_telemetry` says what is wrong, if anything is
            yield 1.0, then(0, load_telemetry(local, columns=columns, **options))
            return
        if problems := untypical(sample):
            raise refusal(reader.file.path, *problems)

        def read(numbered: tuple[int, arrow.Table]) -> tuple[int, object]:
            number, table = numbered
            columns = {name: table[name] for name in reader.file.known}
            telemetry = reader.telemetry(columns, table[ROW].to_numpy(), is_first=number == 0)
            return len(table), then(number, telemetry)

        tables, done = enumerate(racks.complete(ROWS_TOGETHER)), 0
        with closing(side_by_side(read, tables, n_jobs=n_jobs)) as parts:
            for n_rows, found in parts:
                done += n_rows
                yield done / racks.n_rows, found


class _Reader:
    """The steps from a file's columns to telemetry, and what is known only from all of its rows."""

    def __init__(
        self, path: Path, columns: str | Path, *, require_label: bool, keep_fill_values: bool
    ):
        self.file = open_telemetry(path, columns)
        self.require_label = require_label
        self.keep_fill_values = keep_fill_values
        # columns that count as absent if no row has a value, or one other than 0
        self.empty = {col.SITE, *col.SENSORS} | (set() if require_label else {col.LABEL})
        self.zero = set() if keep_fill_values else set(col.SENSORS)

    def sort_into(self, racks: Racks) -> pd.DataFrame | None:
        """Sort the rows into racks; return a sample, None if the whole file breaks a rule."""
        known = self.file.known
        if self.file.problems or not {col.RACK, col.MODULE, col.TIMESTAMP} <= set(known):
            return None
        zones: set[bool] = set()
        sample = []
        try:
            for batch in self.file.batches():
                racks.add(batch)
                self._note(self._some_columns(batch, self.empty | self.zero))
                if len(zones) < 2:
                    zones |= zone_styles(batch[col.TIMESTAMP])
                every = max(len(batch) // _SAMPLED, 1)
                sample.append(batch.take(arrow.array(np.arange(0, len(batch), every))))
            if not racks.n_rows or self._is_silent or len(zones) > 1:
                return None
            shown = {*col.KEYS[:3], *col.SENSORS} - self.zero
            return self._some_columns(arrow.concat_tables(sample), shown)
        except READ_ERRORS:
            return None

    def telemetry(
        self,
        columns: dict[str, arrow.ChunkedArray],
        rows: np.ndarray | None = None,
        *,
        is_first: bool = True,
    ) -> pd.DataFrame:
        """Validate the file, or these rows of whole racks, and type and sort them."""
        file, whole = self.file, rows is None
        with readable(file.path):
            frame, findings = self._to_frame(columns)
        if is_first:
            findings += self.file.findings  # about all rows
        if whole:
            self._note(frame)
        findings += zero_columns(frame, [name for name in frame if name in self.zero])
        frame = frame.drop(columns=(self.empty | self.zero) & set(frame))
        problems = [*file.problems, *untypical(frame)] if whole else []
        problems += broken_rules(
            frame,
            file.names,
            lambda row: file.row_name(row if whole else rows[row]),
            require_label=self.require_label,
        )
        if self._is_silent:
            problems.append(NO_SENSOR)
        if problems:
            raise refusal(file.path, *problems)
        telemetry = _in_order(frame)
        modules = module_codes(telemetry)
        if not self.keep_fill_values:
            findings += clear_zero_modules(telemetry, modules)
        findings += name_whole_events(telemetry, modules)
        spread_pnr(telemetry)
        telemetry, fires = leave_out_fires(telemetry, modules)
        modules = module_codes(telemetry) if fires else modules
        findings += fires
        problems, unlabelled = complete_pnr(telemetry, modules, file.label_until_s)
        if problems:
            raise refusal(file.path, *problems)
        findings += unlabelled
        findings += doubts(telemetry, modules, keep_fill_values=self.keep_fill_values)
        ignored = [name for name in file.names if name not in col.TELEMETRY]
        telemetry.attrs = {"ignored_columns": ignored, "findings": findings}
        return telemetry

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

    def _to_frame(self, columns: dict) -> tuple[pd.DataFrame, list[Finding]]:
        frame = to_frame(columns)
        return frame, [] if self.keep_fill_values else clear_fill_values(frame)

    def _some_columns(self, rows: arrow.Table, names: set[str]) -> pd.DataFrame:
        return self._to_frame({name: rows[name] for name in self.file.known if name in names})[0]


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Give a valid table its types, its order and the columns it lacks."""
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
