"""The rules of the telemetry table, and what a broken one is called."""

import difflib
from collections.abc import Callable
from functools import partial

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import module_codes, order_of
from hvs_lib.telemetry.conversion import as_numbers, as_times, is_number, is_time, one_zone_style
from hvs_lib.telemetry.files import count_rows
from hvs_lib.telemetry.reading import RawFile

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

# Readings outside these limits come from no sensor, whatever burns: a wrong unit, a fill value such
# as -9999, a shifted column. Generous on purpose; data/README.md states the same numbers.
PLAUSIBLE = {
    col.TEMP_AVG: (-60.0, 1500.0, "degC"),
    col.TEMP_MAX: (-60.0, 1500.0, "degC"),
    col.VOLTAGE: (-100.0, 2000.0, "V"),
    col.CURRENT: (-5000.0, 5000.0, "A"),
    col.SOC: (-20.0, 150.0, "%"),
    col.CO: (-500.0, 1e6, "ppm"),
    col.H2: (-500.0, 1e6, "ppm"),
    col.VOC: (-500.0, 1e6, "ppm"),
    col.AMBIENT: (-60.0, 1500.0, "degC"),
}

# What most readings of a file lie between: a wrong unit or swapped columns move them all, where
# one rack that burns, or is switched off, does not.
TYPICAL = {
    col.TEMP_AVG: (-60.0, 200.0, "degC"),
    col.TEMP_MAX: (-60.0, 200.0, "degC"),
    col.VOLTAGE: (0.5, 2000.0, "V"),
    col.SOC: (0.0, 105.0, "%"),
    col.AMBIENT: (-60.0, 200.0, "degC"),
}

# check name -> (rule, cure); the value found stands between them
_RULES = {
    "number": (
        "must be a number",
        "write decimals with a point and leave a missing reading empty.",
    ),
    "finite": ("must be finite", "leave a missing reading empty."),
    "plausible": ("", "check the sensor's unit and fill values, or leave such a reading empty."),
    "label": (
        "must be 0 or 1",
        "write 1 from 20 min to 30 s before the point of no return, 0 elsewhere.",
    ),
    "present": ("must not be missing", "fill it in, or drop these rows."),
    "time": (
        "must be an ISO 8601 time such as 2025-06-01T12:00:00 or 2025-06-01T12:00:00+02:00",
        "convert it with pandas.to_datetime before saving.",
    ),
    "zone": (
        "must have a time zone in all rows or in none",
        "write all times alike, best in UTC.",
    ),
    "unique": (
        "must be unique within a module",
        "drop rows that are copies, give different modules different ids, and write local times, of"
        " which an hour repeats as daylight saving ends, with their zone or in UTC.",
    ),
    "rows": ("The table must have rows, got a header alone", "export it again."),
    "sensor": (
        f"The table must have at least one sensor column of {', '.join(col.SENSORS)}",
        "rename the columns of the file, see data/README.md.",
    ),
}


def telemetry_schema(
    *, require_label: bool = True, require_sensor: bool = True
) -> pa.DataFrameSchema:
    """Return the rules of the telemetry table as a pandera schema.

    Parameters
    ----------
    require_label : bool, default=True
        Whether the label column must be there.
    require_sensor : bool, default=True
        Whether a sensor must have readings.

    Returns
    -------
    DataFrameSchema
        To be used with `lazy=True`; it changes no value.
    """

    def column(rules: list[pa.Check], *, required: bool = False) -> pa.Column:
        return pa.Column(None, rules, nullable=True, required=required)

    present = _rule("present", pd.Series.notna)
    time = [present, _rule("time", is_time), _rule("zone", one_zone_style)]
    sensors = {
        name: column(
            [
                _rule("number", is_number),
                _rule("finite", _is_finite),
                _rule("plausible", _is_plausible, low=low, high=high),
            ]
        )
        for name, (low, high, _) in PLAUSIBLE.items()
    }
    return pa.DataFrameSchema(
        {
            col.TIMESTAMP: column(time, required=True),
            col.SITE: column([present]),
            col.RACK: column([present], required=True),
            col.MODULE: column([present], required=True),
            **sensors,
            col.LABEL: column([_rule("label", _is_label)], required=require_label),
        },
        checks=[
            _rule("unique", _is_first_of_instant),
            _rule("rows", _has_rows),
            *([_rule("sensor", _has_sensor)] if require_sensor else []),
        ],
    )


def _rule(name: str, keeps: Callable, **limits: float) -> pa.Check:
    # n_failure_cases bounds pandera's own report; ours counts the rows of check_output
    return pa.Check(partial(keeps, **limits), name=name, ignore_na=False, n_failure_cases=1)


# Each rule returns True for the rows (or the table) that keep it.


def _is_finite(values: pd.Series) -> pd.Series:
    return ~np.isinf(as_numbers(values))


def _is_plausible(values: pd.Series, low: float, high: float) -> pd.Series:
    numbers = as_numbers(values)
    # written so that NaN passes, and the infinite is reported by its own rule
    return ~((numbers < low) | (numbers > high)) | np.isinf(numbers)


def _is_label(values: pd.Series) -> pd.Series:
    return as_numbers(values).isin([0, 1])


def _is_first_of_instant(frame: pd.DataFrame) -> pd.Series:
    """Refuse a second row of the same module and time."""
    unique = np.ones(len(frame), dtype=bool)
    if {col.RACK, col.MODULE, col.TIMESTAMP} <= set(frame.columns):
        times = as_times(frame[col.TIMESTAMP]).to_numpy()
        modules = module_codes(frame)
        order = order_of(modules, times)
        modules, times = (modules, times) if order is None else (modules[order], times[order])
        again = (modules[1:] == modules[:-1]) & (times[1:] == times[:-1]) & (modules[1:] >= 0)
        unique[np.arange(1, len(frame))[again] if order is None else order[1:][again]] = False
    return pd.Series(unique, index=frame.index)


def _has_rows(frame: pd.DataFrame) -> bool:
    return len(frame) > 0 or frame.columns.empty  # other rules report a file without columns


def _has_sensor(frame: pd.DataFrame) -> bool:
    sensors = [name for name in col.SENSORS if name in frame]
    return any(len(frame) == 0 or frame[name].notna().any() for name in sensors)


def validate(frame: pd.DataFrame, raw: RawFile, *, require_label: bool) -> list[str]:
    """Return every problem of a table in words."""
    schema = telemetry_schema(require_label=require_label, require_sensor=raw.whole)
    try:
        schema.validate(frame, lazy=True, inplace=True)
    except SchemaErrors as errors:
        return [_problem(error, frame, raw) for error in errors.schema_errors]
    return []


def untypical(frame: pd.DataFrame) -> list[str]:
    """Return what is wrong with a file as a whole, seen on all or many of its rows.

    Parameters
    ----------
    frame : DataFrame of shape (n_samples, n_columns)
        Its columns may hold text, which `validate` refuses.
    """
    problems = [_untypical_level(frame, name) for name in TYPICAL]
    problems += [_fraction(frame), _swapped(frame, col.TEMP_AVG, col.TEMP_MAX)]
    return [problem for problem in problems if problem]


def _untypical_level(frame: pd.DataFrame, name: str) -> str:
    low, high, unit = TYPICAL[name]
    read = _finite(frame, name)
    if not len(read) or low <= (middle := float(np.median(read))) <= high:
        return ""
    return (
        f"{name} must lie between {low:g} and {high:g} {unit} in most rows, its median is"
        f" {middle:g}; check the unit, and whether columns are swapped."
    )


def _fraction(frame: pd.DataFrame) -> str:
    read = _finite(frame, col.SOC)
    if not len(read):
        return ""
    low, high = np.quantile(read, [0.01, 0.99])  # a few odd cells make no percent
    if low < 0 or not 0 < high <= 1:
        return ""
    return (
        f"{col.SOC} must be in percent, it lies between {low:g} and {high:g} in most rows;"
        " multiply a fraction by 100."
    )


def _swapped(frame: pd.DataFrame, lower: str, upper: str) -> str:
    if not {lower, upper} <= set(frame):
        return ""
    below = as_numbers(frame[upper]) < as_numbers(frame[lower])  # False where one is missing
    if below.sum() <= len(frame) / 2:
        return ""
    return (
        f"{upper} must not be below {lower}, got {count_rows(int(below.sum()))} where it is; the"
        " columns may be swapped: rename them."
    )


def _finite(frame: pd.DataFrame, name: str) -> np.ndarray:
    values = as_numbers(frame[name]).to_numpy() if name in frame else np.empty(0)
    return values[np.isfinite(values)]


def _problem(error: SchemaError, frame: pd.DataFrame, raw: RawFile) -> str:
    if error.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
        return _missing_column(str(error.failure_cases), raw.names)
    if not isinstance(error.check, pa.Check) or error.check.name not in _RULES:
        raise error  # a defect of the schema, not of the file
    rule, cure = _RULES[error.check.name]
    if isinstance(error.check_output, bool | np.bool_):
        return f"{rule}; {cure}"
    rows = np.flatnonzero(~error.check_output.to_numpy(dtype=bool))
    name = error.schema.name or col.TIMESTAMP
    if error.check.name == "plausible":
        return f"{_implausible(name, frame, rows, raw)}; {cure}"
    value = _found(error.check.name, name, frame, rows[0])
    return (
        f"{name} {rule}, got {value} at {raw.row_name(rows[0])}, {count_rows(len(rows))} in all;"
        f" {cure}"
    )


def _found(rule: str, name: str, frame: pd.DataFrame, row: int) -> str:
    value = frame[name].iloc[row]
    if rule == "unique":
        rack, module = frame[col.RACK].iloc[row], frame[col.MODULE].iloc[row]
        return f"{value} again for module {module} of rack {rack}"
    if pd.isna(value):
        return "nothing"
    if isinstance(value, str):
        return repr(value)
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _implausible(name: str, frame: pd.DataFrame, rows: np.ndarray, raw: RawFile) -> str:
    low, high, unit = PLAUSIBLE[name]
    values = as_numbers(frame[name].iloc[rows])
    return (
        f"{name} must lie between {low:g} and {high:g} {unit}, got {values.min():g} to"
        f" {values.max():g} in {count_rows(len(rows))}, the first {values.iloc[0]:g} at"
        f" {raw.row_name(rows[0])}"
    )


def _missing_column(name: str, names: list[str]) -> str:
    spare = {other.lower(): other for other in names if other not in col.TELEMETRY}
    near = difflib.get_close_matches(name.lower(), spare, n=1)
    shown = ", ".join(names[:15]) + (", ..." if len(names) > 15 else "")
    found = f"the nearest is {spare[near[0]]!r}; rename it" if near else f"it has {shown}; add it"
    other_cure = " (telemetry that is only scored needs no label)" if name == col.LABEL else ""
    return f"{name} must be a column of the file, {found}{other_cure}."
