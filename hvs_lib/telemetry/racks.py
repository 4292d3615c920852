"""Sort the rows of a file into racks, in any number and any order."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as arrow

from hvs_lib import columns as col
from hvs_lib.telemetry.conversion import to_frame
from hvs_lib.telemetry.files import refusal

ROW = "row of the file"
ROWS_IN_MEMORY = 500_000  # waiting for the rest of their rack before they go to disk
_ROWS_ON_DISK = 20_000  # written, and read back, together
_COMPRESSED = arrow.ipc.IpcWriteOptions(compression="lz4")


class Racks:
    """Sorts rows by rack: in sorted runs as they come, all but the last on disk, then merged."""

    def __init__(self, folder: Path):
        self.n_rows = 0
        self._folder = folder
        self._waiting: list[arrow.Table] = []
        # for each run: the row count of each rack, and a function (start, length) -> rows
        self._runs: list[tuple[Counter, Callable[[int, int], arrow.Table]]] = []

    def add(self, batch: arrow.Table) -> None:
        """Add rows, and number them from 0 in `ROW`."""
        number = np.arange(self.n_rows, self.n_rows + len(batch), dtype=np.int32)
        self._waiting.append(batch.append_column(ROW, arrow.array(number)))
        self.n_rows += len(batch)
        if sum(map(len, self._waiting)) > ROWS_IN_MEMORY:
            sizes, rows = _sorted(self._waiting)
            path = self._folder / f"{len(self._runs)}.arrow"
            try:
                with arrow.ipc.new_file(str(path), rows.schema, options=_COMPRESSED) as file:
                    # in one chunk, so that all batches but the last have this many rows
                    file.write_table(rows.combine_chunks(), _ROWS_ON_DISK)
            except OSError as error:
                problem = (
                    "It must have room for the rows of racks that are not complete yet, got:"
                    f" {error}; free some, or set TMPDIR to a folder on a larger disk."
                )
                raise refusal(self._folder, problem) from error
            self._runs.append((sizes, partial(_read, path)))
            self._waiting = []

    def complete(self, rows_together: int) -> Iterator[arrow.Table]:
        """Yield the rows of whole racks, small ones together, up to about `rows_together` rows."""
        runs, sizes = self._runs, Counter()
        if self._waiting:
            last, rows = _sorted(self._waiting)
            runs, self._waiting = [*runs, (last, rows.slice)], []
        for of_run, _ in runs:
            sizes.update(of_run)
        starts, racks, n_rows, n_done = [0] * len(runs), [], 0, 0
        for rack in sorted(sizes):
            racks.append(rack)
            n_rows += sizes[rack]
            if n_rows >= rows_together or n_done + n_rows == self.n_rows:
                parts = []
                for k, (of_run, between) in enumerate(runs):
                    length = sum(of_run[rack] for rack in racks)
                    # a copy: a slice would take its whole run along to a worker
                    parts.append(between(starts[k], length).take(np.arange(length)))
                    starts[k] += length
                yield arrow.concat_tables(parts)
                racks, n_rows, n_done = [], 0, n_done + n_rows


def _sorted(tables: list[arrow.Table]) -> tuple[Counter, arrow.Table]:
    """Return the row count of each rack, and the rows sorted by rack."""
    table = arrow.concat_tables(tables).unify_dictionaries()
    ids = {name: table[name] for name in (col.SITE, col.RACK) if name in table.column_names}
    ids = to_frame(ids)
    for name in ids:  # a missing id counts as a name
        ids[name] = ids[name].cat.set_categories(["", *ids[name].cat.categories]).fillna("")
    by_rack = ids.groupby(list(ids), observed=True)
    order = np.argsort(by_rack.ngroup().to_numpy(), kind="stable")
    return Counter(by_rack.size().to_dict()), table.take(arrow.array(order))


def _read(path: Path, start: int, length: int) -> arrow.Table:
    batches = range(start // _ROWS_ON_DISK, -(-(start + length) // _ROWS_ON_DISK))
    with arrow.ipc.open_file(str(path)) as file:
        table = arrow.Table.from_batches([file.get_batch(k) for k in batches], file.schema)
    return table.slice(start % _ROWS_ON_DISK, length)
