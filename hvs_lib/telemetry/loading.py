"""Load telemetry from a file, or refuse it."""

from pathlib import Path

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import module_codes, order_of
from hvs_lib.telemetry.conversion import to_frame
from hvs_lib.telemetry.files import refusal
from hvs_lib.telemetry.quality import clear_zero_columns, clear_zero_modules, doubtful_current
from hvs_lib.telemetry.reading import READ_ERRORS, RawFile, read_file
from hvs_lib.telemetry.schema import untypical, validate

import numpy as np
import pandas as pd

DEFAULT_SITE = "Site1"


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
    path = Path(path)
    try:
        raw = read_file(path)
        raw.keep_fill_values = keep_fill_values
        frame = to_frame(raw)
    except READ_ERRORS as error:
        raise refusal(path, _unreadable(path, error)) from error
    if not keep_fill_values:
        raw.findings += clear_zero_columns(frame)
    raw.problems += untypical(frame)
    return to_telemetry(path, raw, frame, require_label=require_label)


def to_telemetry(
    path: Path, raw: RawFile, frame: pd.DataFrame, *, require_label: bool
) -> pd.DataFrame:
    """Validate the columns of a file, or of a piece of it, and give them types and order."""
    if raw.whole:
        frame = _without_empty(frame, [col.SITE] if require_label else [col.SITE, col.LABEL])
    problems = raw.problems + validate(frame, raw, require_label=require_label)
    if problems:
        raise refusal(path, *problems)
    return _finish(frame, raw)


def _without_empty(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Leave out what counts as absent where it is empty throughout the file."""
    return frame.drop(columns=[name for name in names if name in frame and _is_empty(frame[name])])


def _is_empty(values: pd.Series) -> bool:
    return bool(values.isna().all())


def _unreadable(path: Path, error: Exception) -> str:
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "CSV"
    reason = " ".join(str(error).split())[:200].rstrip(". ")
    return (
        f"The file must be readable as {kind}, got: {reason}; it may be truncated,"
        " damaged, protected or not of the format that its name says: copy or export it again."
    )


def _finish(frame: pd.DataFrame, raw: RawFile) -> pd.DataFrame:
    """Give a sound table its types, its order and the columns it lacks."""
    n = len(frame)
    columns = {name: frame[name] for name in col.TELEMETRY if name in frame}
    if col.SITE not in frame:
        site = pd.Index([DEFAULT_SITE], dtype="str")
        columns[col.SITE] = pd.Categorical.from_codes(np.zeros(n, np.int8), categories=site)
    for name in col.SENSORS:
        columns.setdefault(name, np.full(n, np.nan, dtype=np.float32))
    if col.LABEL in columns:
        columns[col.LABEL] = columns[col.LABEL].astype(np.int8)
    result = pd.DataFrame({name: columns[name] for name in col.TELEMETRY if name in columns})
    order = order_of(module_codes(result), result[col.TIMESTAMP].to_numpy())
    if order is not None:
        result = result.take(order).reset_index(drop=True)
    modules = module_codes(result)
    if not raw.keep_fill_values:
        raw.findings += clear_zero_modules(result, modules)
    raw.findings += doubtful_current(result, modules)
    result.attrs["ignored_columns"] = [name for name in raw.names if name not in col.TELEMETRY]
    result.attrs["findings"] = raw.findings
    return result
