"""Telemetry files: read their columns piece by piece, locate a row, write a file."""

import csv
import gzip
import hashlib
import io
import stat
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow as arrow
import pyarrow.csv
import pyarrow.parquet

from hvs_lib import columns as col
from hvs_lib.project import HvsError, did_you_mean, whole_file

SUFFIXES = (".csv", ".csv.gz", ".parquet")
_READABLE = (*SUFFIXES, ".zip")
# how an empty cell may be written
MISSING = ["", "nan", "NaN", "null", "NULL", "None", "NaT", "<NA>"]
MISSING_NUMBERS = [*MISSING, "NA", "N/A", "n/a", "#N/A", "-nan", "-NaN"]
READ_ERRORS = (arrow.ArrowException, OSError, EOFError, UnicodeError)
READ_ERRORS += (csv.Error, zipfile.BadZipFile, zlib.error)
WORDS = arrow.dictionary(arrow.int32(), arrow.string())  # the type of a text column
_BLOCK = 2**23  # bytes parsed at a time; a line or cell must fit into them
_EMPTY = "The file must hold telemetry, got an empty file; export it again."


class DataError(HvsError, ValueError):
    """Telemetry that cannot be used: a title, and a sentence per problem with rule, value, cure."""

    def __init__(self, title: str, problems: list[str]):
        super().__init__(title, problems)
        self.title = title
        self.problems = list(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"{self.title}: {self.problems[0]}"
        lines = [f"  {number}. {text}" for number, text in enumerate(self.problems, start=1)]
        return "\n".join([f"{self.title}, {len(lines)} problems:", *lines])


def refusal(path: Path | str, *problems: str) -> DataError:
    """Return the error of a file that cannot be loaded."""
    return DataError(f"{path} cannot be used", list(problems))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Refuse a file if reading it raises one of `READ_ERRORS`."""
    try:
        yield
    except READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200].rstrip(". ")
        raise refusal(
            path,
            f"The file must be readable as {'Parquet' if _is_parquet(path) else 'CSV'}, got:"
            f" {reason}; it may be truncated, damaged, protected or not of the format that its name"
            " says: copy or export it again.",
        ) from error


def count_rows(rows: int) -> str:
    """Return "1 row", "2 rows"."""
    return f"{rows:,} row{'s' if rows > 1 else ''}"


def sha256_of_file(path: str | Path) -> str:
    """Return the SHA-256 of a whole file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TelemetryFile:
    """The telemetry columns of a CSV or Parquet file, and the place of each row in it.

    Attributes
    ----------
    names, known : list of str
        All columns of the file, and those to read (default: those in `columns.TELEMETRY`).
    types : dict of str to DataType
        Types of the columns of a Parquet file; empty for CSV.
    is_text : bool
        Whether a CSV file has a bad cell, so that `columns` returns its cells as written.
    problems : list of str
        Problems of the file's columns and rows, regardless of what the cells hold.
    findings : list of Finding
        What the map has changed, for a mapped file.
    label_until_s : float
        Time from the end of the labels to the point of no return [s].

    Raises
    ------
    DataError
        If the path does not lead to a telemetry file.
    """

    def __init__(self, path: Path):
        _check_path(path)
        self.path = path
        with readable(path):
            schema = arrow.parquet.read_schema(path) if _is_parquet(path) else None
            self.names = _csv_header(path) if schema is None else schema.names
        self.types = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
        self.is_text = False
        self.findings: list = []
        self.label_until_s = col.LABEL_UNTIL_S
        self._skipped: list[int] = []  # rows of the wrong length, the header being row 1
        numbers = dict.fromkeys(col.SENSORS, arrow.float32()) | {col.LABEL: arrow.float64()}
        self.select([name for name in col.TELEMETRY if name in self.names], numbers)

    def select(self, names: Sequence[str], numbers: dict[str, arrow.DataType]) -> None:
        """Choose the columns to read, and the types of those that hold numbers in a CSV file."""
        self.known, self._numbers = list(names), numbers
        self.problems = [
            f"{name} must appear once, got {self.names.count(name)} columns of this name; rename or"
            " drop the others."
            for name in self.known
            if self.names.count(name) > 1
        ]

    def batches(self) -> Iterator[arrow.Table]:
        """Yield the known columns piece by piece; a bad cell of a CSV file raises ArrowInvalid."""
        if _is_parquet(self.path):
            with arrow.parquet.ParquetFile(self.path) as file:
                if not file.metadata.num_rows:
                    yield file.read(columns=self.known)
                for batch in file.iter_batches(columns=self.known):
                    yield _as_text(arrow.Table.from_batches([batch]), arrow.types.is_string_view)
        elif self.known:
            yield from self._csv_batches(as_text=False)

    def columns(self) -> dict[str, arrow.ChunkedArray]:
        """Return the known columns whole, all as text if a CSV file has a bad cell."""
        with readable(self.path):
            try:
                batches = [] if self.is_text else list(self.batches())
            except arrow.ArrowInvalid:
                if _is_parquet(self.path):
                    raise
                self.is_text = True
            if self.is_text:
                # Rare and slower, but then each bad cell can be named.
                _check_lines(self.path)
                lines = array("q", _first_lines(self.path))  # refuses an unclosed quote
                batches = list(self._csv_batches(as_text=True))
                if self._skipped:
                    self.problems.append(
                        f"Every row must have the {len(self.names)} columns of the header,"
                        f" {count_rows(len(self._skipped))} not, the first at line"
                        f" {lines[self._skipped[0] - 1]}; the file is cut off or a cell contains an"
                        " unquoted comma: export it again."
                    )
        table = arrow.concat_tables(batches) if batches else arrow.table({})
        return dict(zip(table.column_names, table.columns, strict=True))

    def row_name(self, row: int) -> str:
        """Name the place of a row, counted from 0 without the header."""
        if _is_parquet(self.path):
            return f"row {row} (the first is 0)"
        left_out = {1, *self._skipped}
        numbered = enumerate(_first_lines(self.path), start=1)
        lines = (line for number, line in numbered if number not in left_out)
        try:
            return f"line {next(islice(lines, row, None))}"
        except OSError:  # a Dask worker may be on a machine without the file
            return f"row {row} (the first is 0)"

    def _csv_batches(self, *, as_text: bool) -> Iterator[arrow.Table]:
        """Read the known columns; as text, rows of the wrong length are skipped and noted."""

        def skip(row: arrow.csv.InvalidRow) -> str:
            self._skipped.append(row.number)
            return "skip"

        types = dict.fromkeys(self.known, WORDS) | ({} if as_text else self._numbers)
        with (
            _stream(self.path) as stream,
            arrow.csv.open_csv(
                stream,
                arrow.csv.ReadOptions(use_threads=not as_text, block_size=_BLOCK),
                arrow.csv.ParseOptions(
                    invalid_row_handler=skip if as_text else None, newlines_in_values=True
                ),
                arrow.csv.ConvertOptions(
                    column_types=types, include_columns=self.known, null_values=MISSING_NUMBERS
                ),
            ) as reader,
        ):
            n_rows = 0
            for batch in reader:
                n_rows += len(batch)
                if len(batch):  # none in a block of blank lines
                    yield arrow.Table.from_batches([batch])
            if not n_rows:
                yield reader.schema.empty_table()
        if not as_text:
            _check_quotes(self.path, n_rows)


def _compression(path: Path) -> str | None:
    return "gzip" if path.suffix.lower() == ".gz" else None


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _check_path(path: Path) -> None:
    """Refuse what is not a telemetry file before anything is opened."""
    problem = ""
    try:
        found = path.stat()
    except FileNotFoundError:
        present = []
        with suppress(OSError):
            present = [other.name for other in path.parent.iterdir()]
        cure = did_you_mean(path.name, present, "check the path.")
        problem = f"The file must exist, got a path to nothing; {cure}"
    except (OSError, ValueError) as error:  # a link to itself, a zero byte, a forbidden folder
        reason = getattr(error, "strerror", None) or str(error)
        problem = f"The path must lead to a file, got: {reason}; check it."
    else:
        if stat.S_ISDIR(found.st_mode):
            problem = "A folder must hold only files, got a folder; name it, or move its files up."
        elif not stat.S_ISREG(found.st_mode):
            problem = "The path must name a regular file, got a pipe or device; save it."
        elif not path.name.lower().endswith(_READABLE):
            problem = (
                f"The format must be one of {', '.join(_READABLE)}, got"
                f" {path.suffix or 'no suffix'!r}; convert the file, or rename it if it is one of"
                " these."
            )
        elif found.st_size == 0:
            problem = _EMPTY
    if problem:
        raise refusal(path, problem)


def _as_text(table: arrow.Table, is_kind: Callable[[arrow.DataType], bool]) -> arrow.Table:
    """Convert columns of a kind that not every Arrow function takes into plain strings."""
    types = [arrow.string() if is_kind(field.type) else field.type for field in table.schema]
    return table.cast(arrow.schema(zip(table.column_names, types, strict=True)))


def _is_zip(path: Path) -> bool:
    return path.suffix.lower() == ".zip"


def _open(path: Path):
    if not _is_zip(path):
        return gzip.open(path, "rb") if _compression(path) else open(path, "rb")
    archive = zipfile.ZipFile(path)
    files = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    if len(files) != 1 or not files[0].lower().endswith(".csv"):
        shown = ", ".join(files[:5]) or "none"
        problem = f"The zip must hold one file, a .csv, got {shown}; unpack it and name one file."
        raise refusal(path, problem)
    try:
        return archive.open(files[0])
    except (RuntimeError, NotImplementedError) as error:  # a password, an unusual compression
        raise refusal(path, f"The zip must open, got: {error}; unpack it first.") from error


def _stream(path: Path) -> arrow.NativeFile:
    if _is_zip(path):
        return arrow.PythonFile(_open(path), mode="r")
    return arrow.input_stream(str(path), compression=_compression(path))


def _csv_header(path: Path) -> list[str]:
    """Return the column names of a CSV file."""
    with _open(path) as file:
        lines = iter(partial(file.readline, _BLOCK), b"")
        line = next((line for line in lines if line.strip()), b"")
    header, problem = line.rstrip(b"\r\n"), ""
    if not line:
        problem = _EMPTY
    elif b"\0" in header:
        problem = "The text must be UTF-8, got UTF-16 or binary data; save the file as 'CSV UTF-8'."
    elif b"\r" in header:
        problem = "Lines must end in LF or CR LF, got CR alone; save the file as 'CSV UTF-8'."
    elif len(header) == _BLOCK:
        problem = "The first line must name the columns, got one of 8 MB or more; add names."
    if problem:
        raise refusal(path, problem)
    names = next(csv.reader([_decoded(path, header, 1).removeprefix("\ufeff")]))
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        problem = (
            f"Columns must be separated by commas, the header is {names[0][:60]!r};"
            " save it with commas between columns and points in decimals."
        )
    elif header == line:
        problem = "The table must have rows, got only a header; export it again."
    if problem:
        raise refusal(path, problem)
    return names


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
            _decoded(path, line, number)


def _decoded(path: Path, line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = (
            f"The text must be UTF-8, got the byte 0x{line[error.start]:02x} at line {number};"
            " save the file as 'CSV UTF-8'."
        )
        raise refusal(path, problem) from error


def _check_quotes(path: Path, n_rows: int) -> None:
    """Refuse an unclosed quote: the parser takes the rows up to the next quote as one cell."""
    n_lines, n_quotes, end = 0, 0, b"\n"
    with _open(path) as file:
        for block in iter(partial(file.read, _BLOCK), b""):
            n_lines += block.count(b"\n")
            n_quotes += block.count(b'"')
            end = block[-1:]
    n_lines += end != b"\n"
    if n_quotes and n_lines != 1 + n_rows:  # some cell or blank line makes more lines than rows
        for _ in _first_lines(path):
            pass


def _first_lines(path: Path) -> Iterator[int]:
    """Yield the number of each row's first line; a quoted cell may span several lines.

    Raises
    ------
    DataError
        If a quote is not closed, or not at the end of its cell.
    """
    csv.field_size_limit(_BLOCK)  # never reset: other threads may be reading
    ended = 0
    try:
        # Arrow also ends a line at a CR alone; the bytes of a line do not matter here.
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


def save_telemetry(telemetry: pd.DataFrame, path: str | Path) -> None:
    """Write telemetry to a new file that `load_telemetry` reads back unchanged.

    The file appears when complete. An existing file is never overwritten.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
    path : str or Path
        Must end in `.csv`, `.csv.gz` or `.parquet`.

    Raises
    ------
    DataError
        If the file exists, its folder does not, or the format is unknown.
    """
    path = Path(path)
    check_output(path)
    write(telemetry, path, {})


def check_output(
    path: Path, suffixes: tuple[str, ...] = SUFFIXES, *, not_over: Path | None = None
) -> None:
    """Raise a DataError if an output cannot be written; it may overwrite only with `not_over`.

    Parameters
    ----------
    path : Path
    suffixes : tuple of str
        Allowed endings of the name.
    not_over : Path, optional
        Any regular file but this one may be overwritten; by default none may be.
    """
    problem = ""
    if path.is_dir():
        problem = "The output must name a file, got a directory; add a name."
    elif not path.name.lower().endswith(suffixes):
        known = " or ".join(suffixes)
        problem = f"The output's name must end in {known}, got {path.name!r}; rename it."
    elif not path.parent.is_dir():
        problem = f"The folder must exist, {path.parent} does not; create it."
    elif not_over is not None and not_over.is_dir() and path.parent.samefile(not_over):
        problem = "The output must not lie among the files of telemetry; name another folder."
    elif not path.exists():
        return
    elif not_over is None:
        problem = "The file must be new, but it exists; choose another name."
    elif not path.is_file():
        problem = "The output must be a regular file, got a pipe or device; name another."
    elif not_over.exists() and path.samefile(not_over):
        problem = "The output must not be the telemetry itself; name another."
    elif not path.stat().st_mode & stat.S_IWUSR:
        problem = "The output must not be a read-only file; name another."
    if problem:
        raise DataError(f"{path} cannot be written", [problem])


def write(telemetry: pd.DataFrame, path: Path, stamps: dict[bytes, bytes]) -> None:
    """Write a file so that a reader sees either the old one or the whole new one."""
    table = arrow.Table.from_pandas(telemetry, preserve_index=False)
    readings = [name for name in col.SENSORS if name in table.column_names]
    with whole_file(path) as unfinished:
        if _is_parquet(path):
            arrow.parquet.write_table(
                table.replace_schema_metadata(table.schema.metadata | stamps),
                unfinished,
                compression="zstd",
                row_group_size=131_072,  # so that cores can share the reading
                write_page_checksum=True,
                # noisy readings seldom repeat: this is a third smaller, and faster to read
                use_dictionary=[name for name in table.column_names if name not in readings],
                column_encoding=dict.fromkeys(readings, "BYTE_STREAM_SPLIT"),
            )
        else:
            table = _as_text(table, arrow.types.is_dictionary)
            with arrow.output_stream(str(unfinished), compression=_compression(path)) as stream:
                options = arrow.csv.WriteOptions(quoting_style="needed")
                arrow.csv.write_csv(table, stream, options)
