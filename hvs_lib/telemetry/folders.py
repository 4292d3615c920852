"""A folder of telemetry files, read as if they were one."""

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import pyarrow as arrow

from hvs_lib import columns as col
from hvs_lib.telemetry.files import WORDS, TelemetryFile, readable, refusal, sha256_of_file


def open_files(path: Path) -> "TelemetryFile | TelemetryFolder":
    """Open a telemetry file, or a folder of them."""
    return TelemetryFolder(path) if os.path.isdir(path) else TelemetryFile(path)


def is_hidden(name: str) -> bool:
    """Tell whether a name is of a file that systems leave in folders, such as ``.DS_Store``."""
    return name.startswith((".", "_"))


def sha256_of_files(path: Path) -> str:
    """Return the SHA-256 of a file or, for a folder, that of its files' digests and names."""
    if not os.path.isdir(path):
        return sha256_of_file(path)
    lines = "".join(f"{sha256_of_file(each)}  {each.name}\n" for each in _files(path))
    return hashlib.sha256(lines.encode()).hexdigest()


class TelemetryFolder:
    """The telemetry of the files in a folder, concatenated, with the interface of `TelemetryFile`.

    All are CSV or all Parquet, with the same columns in any order. A rack may span several files.

    Raises
    ------
    DataError
        If the folder has no files, one that is not a telemetry file, or files that do not match.
    """

    def __init__(self, path: Path):
        self.path = path
        self._files = [TelemetryFile(each) for each in _files(path)]
        if not self._files:
            raise refusal(path, "The folder must hold telemetry files, got none; check the path.")
        self._check_alike()
        self.names, self.known = self._files[0].names, self._files[0].known
        self.findings: list = []
        self.label_until_s = col.LABEL_UNTIL_S
        self._schema = self._common_schema()

    @property
    def problems(self) -> list[str]:
        """List each problem with the first file that has it."""
        found = {problem: file for file in self._files[::-1] for problem in file.problems[::-1]}
        return [f"{file.path.name}: {problem}" for problem, file in reversed(found.items())]

    def select(self, names: Sequence[str], numbers: dict[str, arrow.DataType]) -> None:
        """Choose the columns to read, as for `TelemetryFile`."""
        for file in self._files:
            file.select(names, numbers)
        self.known = list(names)
        self._schema = self._common_schema()

    def batches(self) -> Iterator[arrow.Table]:
        """Yield the known columns piece by piece; a bad cell of a CSV file raises ArrowInvalid."""
        self._starts, rows = [], 0
        for file in self._files:
            self._starts.append(rows)
            for batch in file.batches():
                rows += len(batch)
                yield self._alike(batch)

    def columns(self) -> dict[str, arrow.ChunkedArray]:
        """Return the known columns whole, all as text if one CSV file has a bad cell."""
        parts = [file.columns() for file in self._files]
        if any(file.is_text for file in self._files):
            for number, file in enumerate(self._files):
                if not file.is_text:
                    file.is_text = True
                    parts[number] = file.columns()
        with readable(self.path):
            tables = [self._alike(arrow.table(part)) for part in parts]
        self._starts = [*accumulate(map(len, tables), initial=0)]
        table = arrow.concat_tables(tables)
        return dict(zip(table.column_names, table.columns, strict=True))

    def row_name(self, row: int) -> str:
        """Name the place of a row, counted from 0 over all files."""
        number = bisect_right(self._starts, row) - 1
        file = self._files[number]
        return f"{file.row_name(int(row) - self._starts[number])} of {file.path.name}"

    def _check_alike(self) -> None:
        """Refuse files of two kinds, or with different columns."""
        first = self._files[0]
        for file in self._files[1:]:
            pair = f"{first.path.name} and {file.path.name}"
            if bool(first.types) != bool(file.types):
                problem = f"be all CSV or all Parquet, got {pair}; keep one kind in it."
            elif odd := ", ".join(sorted(set(first.names) ^ set(file.names))[:5]):
                problem = (
                    f"have the same columns, got {odd} in only one of {pair}; drop these"
                    " columns, or add them to the other as empty ones."
                )
            else:
                continue
            raise refusal(self.path, f"The files of a folder must {problem}")

    def _common_schema(self) -> arrow.Schema | None:
        """Find types that can hold those of all Parquet files, some of which may lack values."""
        if not self._files[0].types:
            return None
        schema = arrow.schema([])
        for file in self._files:
            own = arrow.schema([(name, _plain(file.types[name])) for name in self.known])
            try:
                schema = arrow.unify_schemas([schema, own], promote_options="permissive")
            except arrow.ArrowException as error:
                rule = f"A column must be of one type in all files of the folder, got: {error}"
                raise refusal(file.path, f"{rule}; write it as in the files before.") from error
        return schema

    def _alike(self, table: arrow.Table) -> arrow.Table:
        return table.select(self._schema.names).cast(self._schema) if self._schema else table


def _files(path: Path) -> list[Path]:
    try:
        return sorted(path / name for name in os.listdir(path) if not is_hidden(name))
    except OSError as error:
        problem = f"The folder must be readable, got: {error.strerror}; check it."
        raise refusal(path, problem) from error


def _plain(kind: arrow.DataType) -> arrow.DataType:
    """Return one type for text, however a Parquet file stores it."""
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    return WORDS if str(kind) in ("string", "large_string", "string_view") else kind
