"""Sort the rows of a file into racks, however many they are and however they are ordered."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet

from hvs_lib import columns as col
from hvs_lib.telemetry.conversion import codes_and_words
from hvs_lib.telemetry.files import DataError

ROW = "row of the file"
_ROWS_ON_DISK = 20_000  # of racks that are written, and read again, together


class _Run(NamedTuple):
    """Rows in the order of their racks, in memory or on the disk."""

    rows: "arrow.Table | _RowsOnDisk"
    racks: list[tuple[str, ...]]
    starts: list[int]  # where the rows of each rack begin, and where the last ones end

    def between(self, first: tuple[str, ...], last: tuple[str, ...]) -> arrow.Table:
        """Return the rows of the racks from one to another."""
        start = self.starts[bisect_left(self.racks, first)]
        return self.rows.slice(start, self.starts[bisect_right(self.racks, last)] - start)


class _RowsOnDisk(NamedTuple):
    """The rows of a Parquet file, of which some are read at a time."""

    path: Path

    def slice(self, start: int, length: int) -> arrow.Table:
        with arrow.parquet.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            starts = np.cumsum([0, *sizes])
            first = np.searchsorted(starts, start, side="right") - 1
            groups = range(first, np.searchsorted(starts, start + length))
            return file.read_row_groups(list(groups)).slice(start - starts[first], length)


class Racks:
    """Sorts rows by rack: in sorted runs as they come, which are merged at the end."""

    def __init__(self, folder: Path, rows_in_memory: int):
        self.n_rows = 0
        self._folder = folder
        self._most = rows_in_memory
        self._on_disk: list[_Run] = []
        self._in_memory: list[_Run] = []
        self._n_in_memory = 0

    def add(self, batch: arrow.Table) -> None:
        """Take rows, and number them from 0 in `ROW`."""
        number = np.arange(self.n_rows, self.n_rows + len(batch), dtype=np.int32)
        self._in_memory.append(_sorted(batch.append_column(ROW, arrow.array(number))))
        self.n_rows += len(batch)
        self._n_in_memory += len(batch)
        if self._n_in_memory > self._most:
            self._write()

    def complete(self, rows_together: int) -> Iterator[arrow.Table]:
        """Yield the rows of whole racks, small ones together up to about so many rows."""
        runs, self._on_disk, self._in_memory = [*self._on_disk, *self._in_memory], [], []
        return _merged(runs, rows_together)

    def _write(self) -> None:
        """Merge the runs in memory to one on the disk."""
        path = self._folder / f"{self.n_rows}.parquet"
        written = _Run(_RowsOnDisk(path), [], [0])
        writer = None
        try:
            for table in _merged(self._in_memory, _ROWS_ON_DISK):
                table, racks, starts = _sorted(table)
                writer = writer or arrow.parquet.ParquetWriter(
                    path, table.schema, compression="lz4"
                )
                writer.write_table(table, row_group_size=len(table))
                written.racks.extend(racks)
                written.starts.extend((written.starts[-1] + np.array(starts[1:])).tolist())
            writer.close()
        except OSError as error:
            problem = (
                f"The rows of racks that are not complete yet must find room there, got: {error};"
                " free some, or set TMPDIR to a folder on a larger disk."
            )
            raise DataError(f"{self._folder} cannot be used", [problem]) from error
        self._on_disk.append(written)
        self._in_memory, self._n_in_memory = [], 0


def _sorted(table: arrow.Table) -> _Run:
    codes, names = _rack_of_row(table)
    order = np.argsort(codes, kind="stable")
    if not (np.diff(order) == 1).all():
        table = table.take(arrow.array(order))
    starts = np.searchsorted(codes[order], np.arange(len(names) + 1))
    return _Run(table, names, starts.tolist())


def _merged(runs: list[_Run], rows_together: int) -> Iterator[arrow.Table]:
    """Yield the rows of one rack after the other, small ones together up to so many rows."""
    sizes: Counter = Counter()
    for run in runs:
        sizes.update(dict(zip(run.racks, np.diff(run.starts).tolist(), strict=True)))
    racks = sorted(sizes)
    first, n_rows = 0, 0
    for last, rack in enumerate(racks):
        n_rows += sizes[rack]
        if n_rows >= rows_together or last == len(racks) - 1:
            yield concatenated([run.between(racks[first], rack) for run in runs])
            first, n_rows = last + 1, 0
            runs = [run for run in runs if run.racks[-1] > rack]  # frees the others


def concatenated(tables: list[arrow.Table]) -> arrow.Table:
    """Join tables of the same columns; the disk may have changed the unit of their times."""
    return arrow.concat_tables(tables, promote_options="permissive")


def _rack_of_row(table: arrow.Table) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Number the racks of a table's rows, and name them; a missing id counts as a name."""
    codes, words = np.zeros(len(table), dtype=np.int64), []
    for name in (col.SITE, col.RACK):
        if name in table.column_names:
            found, ids = codes_and_words(table[name])
            ids = pd.Categorical(ids.fillna(""), categories=sorted({"", *ids.dropna()}))
            of_row = np.append(ids.codes, 0)[found]  # code -1, missing, counts as ""
            codes = codes * len(ids.categories) + of_row
            words.append(ids.categories.to_numpy(object))
    used, number = np.unique(codes, return_inverse=True)
    places = np.unravel_index(used, [len(ids) for ids in words])
    ids = [of_key[place] for of_key, place in zip(words, places, strict=True)]
    return number, list(zip(*ids, strict=True))
