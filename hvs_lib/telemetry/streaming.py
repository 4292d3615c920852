"""Read a file a few whole racks at a time, however large it is and however it is ordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hvs_lib import columns as col
from hvs_lib.telemetry.conversion import codes_and_words, to_frame, zone_styles
from hvs_lib.telemetry.files import DataError, refusal
from hvs_lib.telemetry.loading import load_telemetry, to_telemetry
from hvs_lib.telemetry.quality import clear_zero_columns
from hvs_lib.telemetry.reading import READ_ERRORS, RawFile, column_names, read_batches
from hvs_lib.telemetry.schema import untypical

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet

ROWS_IN_MEMORY = 2_000_000  # rows that wait for the end of their rack before they go to the disk
ROWS_TOGETHER = 100_000  # small racks are handed out together up to about so many rows
_SAMPLED = 1000  # rows of each piece of the file that show what is typical
_ROW = "row of the file"


def read_racks(
    path: str | Path,
    folder: str | Path,
    *,
    rows_in_memory: int = ROWS_IN_MEMORY,
    keep_fill_values: bool = False,
) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield the telemetry of whole racks, one or a few small ones at a time.

    The file is parsed once from front to end. Its rows are sorted into racks, which wait in memory
    or, where they are many, in the folder.

    Parameters
    ----------
    path : str or Path
        As for `load_telemetry`; the label may be absent.
    folder : str or Path
        An empty one, for the rows of racks that are not complete yet.
    rows_in_memory : int
    keep_fill_values : bool
        As for `load_telemetry`.

    Yields
    ------
    share, telemetry : float, DataFrame
        The share of the file's rows that is handed out with this table, and the table, as from
        `load_telemetry`.

    Raises
    ------
    DataError
        If the file or a rack of it breaks a rule of the table, or the folder has no room.
    """
    path = Path(path)
    racks = _Racks(Path(folder), rows_in_memory, keep_fill_values=keep_fill_values)
    if not _sorted_into(racks, path):
        # says what is wrong, if anything is
        yield 1.0, load_telemetry(path, require_label=False, keep_fill_values=keep_fill_values)
        return
    sample = RawFile(*racks.sample(), str, keep_fill_values=keep_fill_values)
    problems = untypical(to_frame(sample))
    if problems:
        raise refusal(path, *problems)
    done = 0
    for table in racks.complete():
        done += len(table)
        yield done / racks.n_rows, _to_telemetry(path, table, racks)


def _sorted_into(racks: _Racks, path: Path) -> bool:
    """Sort the rows of a file into racks, and return whether they keep the rules of a whole one."""
    try:
        names = column_names(path)
        known = [name for name in col.TELEMETRY if name in names]
        once = all(names.count(name) == 1 for name in known)
        if not once or not {col.RACK, col.MODULE, col.TIMESTAMP} <= set(known):
            return False
        for batch in read_batches(path, known):
            racks.add(batch)
    except READ_ERRORS:
        return False
    return racks.n_rows > 0 and racks.of_one_kind()


def _to_telemetry(path: Path, table: arrow.Table, racks: _Racks) -> pd.DataFrame:
    number = table[_ROW].to_numpy()
    names = [name for name in table.column_names if name != _ROW and name not in racks.empty]
    raw = RawFile(
        {name: table[name] for name in names},
        names,
        lambda row: f"row {number[row]}",
        whole=False,
        keep_fill_values=racks.keep_fill_values,
    )
    frame = to_frame(raw)
    if not racks.keep_fill_values:
        raw.findings += clear_zero_columns(frame[list(racks.zero & set(names))])
        frame = frame.drop(columns=racks.zero & set(names))
    return to_telemetry(path, raw, frame, require_label=False)


class _Rows(NamedTuple):
    """Rows of one rack within a table."""

    table: arrow.Table
    start: int
    stop: int


class _Racks:
    """Rows sorted into racks, in memory and in files."""

    def __init__(self, folder: Path, rows_in_memory: int, *, keep_fill_values: bool):
        self.n_rows = 0
        self.keep_fill_values = keep_fill_values
        self.empty = {col.SITE, col.LABEL, *col.SENSORS}  # columns without a value so far
        self.zero = set(col.SENSORS)  # sensors without a value, or with none but 0
        self._zone_styles: set[bool] = set()
        self._folder = folder
        self._most = rows_in_memory
        self._waiting: dict[tuple, list[_Rows]] = defaultdict(list)
        self._files: dict[tuple, list[Path]] = defaultdict(list)
        self._n_waiting = 0
        self._sample: list[arrow.Table] = []

    def add(self, batch: arrow.Table) -> None:
        """Take rows; `_ROW` counts them from 1, the header of a CSV file not included."""
        numbers = np.arange(self.n_rows + 1, self.n_rows + 1 + len(batch))
        batch = batch.append_column(_ROW, arrow.array(numbers))
        self.n_rows += len(batch)
        self._note(batch)
        every = max(len(batch) // _SAMPLED, 1)
        self._sample.append(batch.take(arrow.array(np.arange(0, len(batch), every))))
        rack, names = _rack_of_row(batch)
        order = np.argsort(rack, kind="stable")
        batch = batch if (np.diff(order) == 1).all() else batch.take(arrow.array(order))
        starts = np.searchsorted(rack[order], np.arange(len(names) + 1))
        for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True):
            self._waiting[name].append(_Rows(batch, start, stop))
        self._n_waiting += len(batch)
        if self._n_waiting > self._most:
            self._flush()

    def _note(self, batch: arrow.Table) -> None:
        """Note what the rules of a whole file need, and no rack alone tells."""
        names = [name for name in batch.column_names if name in self.empty | self.zero]
        raw = RawFile({name: batch[name] for name in names}, names, str)
        raw.keep_fill_values = self.keep_fill_values
        frame = to_frame(raw)
        found = frame.notna()
        self.empty -= set(found.columns[found.any()])
        self.zero -= set(found.columns[(found & (frame != 0)).any()])
        if len(self._zone_styles) < 2:
            self._zone_styles |= zone_styles(batch[col.TIMESTAMP])

    def of_one_kind(self) -> bool:
        """Return whether any sensor has readings, and all times have a zone or none has."""
        silent = self.empty if self.keep_fill_values else self.empty | self.zero
        return not silent.issuperset(col.SENSORS) and len(self._zone_styles) < 2

    def sample(self) -> tuple[dict[str, arrow.ChunkedArray], list[str]]:
        """Return the ids and the sensors of some rows from all over the file, and their names."""
        table = _concatenated(self._sample)
        silent = set() if self.keep_fill_values else self.zero
        names = [*col.KEYS[:3], *(name for name in col.SENSORS if name not in silent)]
        names = [name for name in names if name in table.column_names]
        return {name: table[name] for name in names}, names

    def _flush(self) -> None:
        for number, (name, rows) in enumerate(self._waiting.items()):
            path = self._folder / f"{number}_{self.n_rows}.parquet"
            _write(_joined(rows), path)
            self._files[name].append(path)
        self._waiting.clear()
        self._n_waiting = 0

    def complete(self) -> Iterator[arrow.Table]:
        """Yield the rows of whole racks, and forget them."""
        together: list[_Rows] = []
        n_together = 0
        for name in sorted(self._waiting.keys() | self._files.keys()):
            files = self._files.pop(name, [])
            tables = [arrow.parquet.read_table(path) for path in files]
            rows = [_Rows(table, 0, len(table)) for table in tables]
            rows += self._waiting.pop(name, [])
            for path in files:
                path.unlink()
            together += rows
            n_together += sum(stop - start for _, start, stop in rows)
            if n_together >= ROWS_TOGETHER:
                yield _joined(together)
                together, n_together = [], 0
        if together:
            yield _joined(together)


def _write(table: arrow.Table, path: Path) -> None:
    try:
        arrow.parquet.write_table(table, path, compression="lz4")
    except OSError as error:
        problem = (
            f"The rows of racks that are not complete yet must find room there, got: {error};"
            " free some, or set TMPDIR to a folder on a larger disk."
        )
        raise DataError(f"{path.parent} cannot be used", [problem]) from error


def _joined(rows: list[_Rows]) -> arrow.Table:
    """Return rows as one table of few chunks, since each brings a dictionary of its own."""
    of_table = defaultdict(list)
    for piece in rows:
        of_table[id(piece.table)].append(piece)
    return _concatenated([_taken(pieces) for pieces in of_table.values()])


def _taken(pieces: list[_Rows]) -> arrow.Table:
    """Return the rows of pieces of one table, in the order that they have in it."""
    table, first, last = pieces[0].table, pieces[0].start, pieces[-1].stop
    if sum(stop - start for _, start, stop in pieces) == last - first:
        return table.slice(first, last - first)  # without a copy
    return table.take(np.concatenate([np.arange(start, stop) for _, start, stop in pieces]))


def _concatenated(tables: list[arrow.Table]) -> arrow.Table:
    return arrow.concat_tables(tables, promote_options="permissive")


def _rack_of_row(batch: arrow.Table) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Number the racks of a batch's rows, and name them; a missing id counts as a name."""
    codes, words = np.zeros(len(batch), dtype=np.int64), []
    for name in (col.SITE, col.RACK):
        if name in batch.column_names:
            found, ids = codes_and_words(batch[name])
            ids = pd.Categorical(ids.fillna(""), categories=sorted({"", *ids.dropna()}))
            of_row = np.append(ids.codes, 0)[found]  # code -1, missing, counts as ""
            codes = codes * len(ids.categories) + of_row
            words.append(ids.categories.to_numpy(object))
    used, number = np.unique(codes, return_inverse=True)
    places = np.unravel_index(used, [len(ids) for ids in words])
    ids = [of_key[place] for of_key, place in zip(words, places, strict=True)]
    return number, list(zip(*ids, strict=True))
