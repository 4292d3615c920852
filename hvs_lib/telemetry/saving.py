"""Write telemetry to a file."""

from pathlib import Path

from hvs_lib import columns as col
from hvs_lib.project import whole_file
from hvs_lib.telemetry.files import SUFFIXES, DataError, unknown_format

import pandas as pd
import pyarrow as arrow
import pyarrow.csv
import pyarrow.parquet


def save_telemetry(telemetry: pd.DataFrame, path: str | Path) -> None:
    """Write telemetry to a new file that `load_telemetry` reads back unchanged.

    The file appears when it is complete. One that is there already is never written over.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
    path : str or Path
        Ends in `.csv`, `.csv.gz` or `.parquet`.

    Raises
    ------
    DataError
        If the file exists, its folder does not, or the format is unknown.
    """
    path = Path(path)
    check_new(path)
    write(telemetry, path, {})


def check_new(path: Path) -> None:
    """Refuse, with a DataError, what `save_telemetry` could not write."""
    if not path.name.lower().endswith(SUFFIXES):
        raise _unwritable(path, unknown_format(path))
    if not path.parent.is_dir():
        raise _unwritable(path, f"The folder must exist, {path.parent} does not; create it.")
    if path.exists():
        raise _unwritable(path, "The file must be new, it exists; choose another name.")


def _unwritable(path: Path, problem: str) -> DataError:
    return DataError(f"{path} cannot be written", [problem])


def write(telemetry: pd.DataFrame, path: Path, stamps: dict[bytes, bytes]) -> None:
    """Write a file such that a reader sees the old one or the whole new one."""
    table = arrow.Table.from_pandas(telemetry, preserve_index=False)
    with whole_file(path) as unfinished:
        if path.suffix.lower() == ".parquet":
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), **stamps})
            _write_parquet(table, unfinished)
        else:
            _write_csv(table, unfinished)


def _write_parquet(table: arrow.Table, path: Path) -> None:
    readings = [name for name in col.SENSORS if name in table.column_names]
    arrow.parquet.write_table(
        table,
        path,
        compression="zstd",
        row_group_size=131_072,  # so that the cores share the reading
        # noisy readings seldom repeat: a third smaller so, and quicker, than with a dictionary
        use_dictionary=[name for name in table.column_names if name not in readings],
        column_encoding=dict.fromkeys(readings, "BYTE_STREAM_SPLIT"),
    )


def _write_csv(table: arrow.Table, path: Path) -> None:
    plain = [
        array.cast(arrow.string()) if arrow.types.is_dictionary(array.type) else array
        for array in table.columns
    ]
    table = arrow.Table.from_arrays(plain, names=table.column_names)
    compression = "gzip" if path.suffix.lower() == ".gz" else None
    with arrow.output_stream(str(path), compression=compression) as stream:
        arrow.csv.write_csv(table, stream, arrow.csv.WriteOptions(quoting_style="needed"))
