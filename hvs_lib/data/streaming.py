"""Read a file a few whole racks at a time, however large it is and however it is ordered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from hvs_lib import columns as col
from hvs_lib.data.conversion import codes_and_words, to_frame
from hvs_lib.data.files import refusal
from hvs_lib.data.loading import load_telemetry, to_telemetry
from hvs_lib.data.reading import READ_ERRORS, RawFile, column_names, read_batches
from hvs_lib.data.schema import untypical

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet

ROWS_IN_MEMORY = 2_000_000  # rows that wait for the end of their rack before they go to the disk
ROWS_TOGETHER = 100_000  # small racks are handed out together up to about so many rows
_SAMPLED = 1000  # rows of each piece of the file that show what is typical
_ROW = "row of the file"


def read_racks(
    path: str | Path, folder: str | Path, *, rows_in_memory: int = ROWS_IN_MEMORY
) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield the telemetry of whole racks, one or a few small ones at a time.

    The file is read once from front to end. Its rows are sorted into racks, which wait in memory
    or, where they are many, in the folder.

    Parameters
    ----------
    path : str or Path
        As for `load_telemetry`; the label may be absent.
    folder : str or Path
        An empty one, for the rows of racks that are not complete yet.
    rows_in_memory : int

    Yields
    ------
    share, telemetry : float, DataFrame
        The share of the file's rows that is handed out with this table, and the table, as from
        `load_telemetry`.

    Raises
    ------
    DataError
        If the file or a rack of it breaks a rule of the table.
    """
    path = Path(path)
    racks = _Racks(Path(folder), rows_in_memory)
    try:
        names = column_names(path)
        known = [name for name in col.TELEMETRY if name in names]
        once = all(names.count(name) == 1 for name in known)
        if not once or not {col.RACK, col.MODULE, col.TIMESTAMP} <= set(known):
            load_telemetry(path, require_label=False)  # says what is wrong
        for batch in read_batches(path, known):
            racks.add(batch)
    except READ_ERRORS as error:
        load_telemetry(path, require_label=False)  # names the line
        raise refusal(path, f"The file must be readable to its end, got: {error}") from error
    if not racks.n_rows:
        load_telemetry(path, require_label=False)
    problems = untypical(to_frame(RawFile(*racks.sample(), str)))
    if problems:
        raise refusal(path, *problems)
    done = 0
    for table in racks.complete():
        done += len(table)
        yield done / racks.n_rows, _to_telemetry(path, table)


def _to_telemetry(path: Path, table: arrow.Table) -> pd.DataFrame:
    number = table[_ROW].to_numpy()
    names = [name for name in table.column_names if name != _ROW]
    raw = RawFile({name: table[name] for name in names}, names, lambda row: f"row {number[row]}")
    return to_telemetry(path, raw, to_frame(raw), require_label=False)


class _Racks:
    """Rows sorted into racks, in memory and in files."""

    def __init__(self, folder: Path, rows_in_memory: int):
        self.n_rows = 0
        self._folder = folder
        self._most = rows_in_memory
        self._waiting: dict[tuple, list[arrow.Table]] = defaultdict(list)
        self._files: dict[tuple, list[Path]] = defaultdict(list)
        self._n_waiting = 0
        self._sample: list[arrow.Table] = []

    def add(self, batch: arrow.Table) -> None:
        """Take rows; `_ROW` counts them from 1, the header of a CSV file not included."""
        numbers = np.arange(self.n_rows + 1, self.n_rows + 1 + len(batch))
        batch = batch.append_column(_ROW, arrow.array(numbers))
        self.n_rows += len(batch)
        every = max(len(batch) // _SAMPLED, 1)
        self._sample.append(batch.take(arrow.array(np.arange(0, len(batch), every))))
        rack, names = _rack_of_row(batch)
        order = np.argsort(rack, kind="stable")
        batch = batch if (np.diff(order) == 1).all() else batch.take(arrow.array(order))
        starts = np.searchsorted(rack[order], np.arange(len(names) + 1))
        for name, start, stop in zip(names, starts[:-1], starts[1:], strict=True):
            self._waiting[name].append(batch.slice(start, stop - start))
        self._n_waiting += len(batch)
        if self._n_waiting > self._most:
            self._flush()

    def sample(self) -> tuple[dict[str, arrow.ChunkedArray], list[str]]:
        """Return the sensor columns of some rows from all over the file, and their names."""
        table = _joined(self._sample)
        names = [name for name in col.SENSORS if name in table.column_names]
        return {name: table[name] for name in names}, names

    def _flush(self) -> None:
        for number, (name, tables) in enumerate(self._waiting.items()):
            path = self._folder / f"{number}_{self.n_rows}.parquet"
            arrow.parquet.write_table(_joined(tables), path, compression="lz4")
            self._files[name].append(path)
        self._waiting.clear()
        self._n_waiting = 0

    def complete(self) -> Iterator[arrow.Table]:
        """Yield the rows of whole racks, and forget them."""
        together: list[arrow.Table] = []
        for name in sorted(self._waiting.keys() | self._files.keys(), key=str):
            files = self._files.pop(name, [])
            together += [arrow.parquet.read_table(path) for path in files]
            together += self._waiting.pop(name, [])
            for path in files:
                path.unlink()
            if sum(map(len, together)) >= ROWS_TOGETHER:
                yield _joined(together)
                together = []
        if together:
            yield _joined(together)


def _joined(tables: list[arrow.Table]) -> arrow.Table:
    return arrow.concat_tables(tables, promote_options="permissive")


def _rack_of_row(batch: arrow.Table) -> tuple[np.ndarray, list[tuple[str, ...]]]:
    """Number the racks of a batch's rows, and name them; a missing id counts as a name."""
    codes, words = np.zeros(len(batch), dtype=np.int64), [()]
    for name in (col.SITE, col.RACK):
        if name in batch.column_names:
            found, ids = codes_and_words(batch[name])
            ids = pd.Categorical(ids.fillna(""), categories=sorted({"", *ids.dropna()}))
            of_row = np.append(ids.codes, 0)[found]  # code -1, missing, counts as ""
            codes = codes * len(ids.categories) + of_row
            words = [(*word, other) for word in words for other in ids.categories]
    used, number = np.unique(codes, return_inverse=True)
    return number, [words[code] for code in used]
