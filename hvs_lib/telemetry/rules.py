"""The rules of the telemetry table, and the messages for broken ones."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaError, SchemaErrorReason, SchemaErrors

from hvs_lib import columns as col
from hvs_lib.project import did_you_mean
from hvs_lib.telemetry.codes import module_codes
from hvs_lib.telemetry.conversion import as_numbers, as_times, is_number, is_time, one_zone_style
from hvs_lib.telemetry.files import count_rows
from hvs_lib.telemetry.quality import BURNING_C

# No sensor reads outside these limits, even in a fire: it is a wrong unit, a fill value such as
# -9999 or a shifted column. Generous on purpose; data/README.md states the same numbers.
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

# Limits for most readings of a file, except those of burning modules: a wrong unit or swapped
# columns shift them all, a single rack that is switched off does not.
TYPICAL = {
    col.TEMP_AVG: (-60.0, 200.0, "degC"),
    col.TEMP_MAX: (-60.0, 200.0, "degC"),
    col.VOLTAGE: (0.5, 2000.0, "V"),
    col.SOC: (0.0, 105.0, "%"),
    col.AMBIENT: (-60.0, 200.0, "degC"),
}

_ALWAYS_HOT = 0.95  # share of a module's rows above which it is a wrong unit, not a fire

# check name -> (rule, cure); the value found stands between them
_RULES = {
    "number": ("must be a number", "write decimals with a point; leave a missing reading empty."),
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
    "zone": ("must have a time zone in all rows or in none", "write all alike, best in UTC."),
    "unique": (
        "must be unique within a module",
        "drop rows that are copies (with a map: `repeated: first`), give different modules"
        " different ids, and write local times with their zone or in UTC, since an hour repeats"
        " when daylight saving ends.",
    ),
    "rows": ("The table must have rows, got only a header", "export it again."),
}
NO_SENSOR = (
    f"The table must have at least one sensor column of {', '.join(col.SENSORS)}; rename the"
    " columns of the file, see data/README.md."
)


def _schema(*, require_label: bool) -> pa.DataFrameSchema:
    """Return the rules of the telemetry table, for `validate(..., lazy=True)`."""

    def column(*rules: pa.Check, required: bool = False) -> pa.Column:
        return pa.Column(None, list(rules), nullable=True, required=required)

    present, number = _rule("present", pd.Series.notna), _rule("number", is_number)
    time = (_rule("time", is_time), _rule("zone", one_zone_style))
    finite = _rule("finite", lambda values: ~np.isinf(as_numbers(values)))
    sensors = {
        name: column(number, finite, _rule("plausible", partial(_is_plausible, low=low, high=high)))
        for name, (low, high, _) in PLAUSIBLE.items()
    }
    label = _rule("label", lambda values: as_numbers(values).isin([0, 1]))
    return pa.DataFrameSchema(
        {
            col.TIMESTAMP: column(present, *time, required=True),
            col.SITE: column(present),
            col.RACK: column(present, required=True),
            col.MODULE: column(present, required=True),
            **sensors,
            col.LABEL: column(label, required=require_label),
            col.PNR: column(*time),
        },
        checks=[
            _rule("unique", _is_first_of_instant),
            # other rules report a file without columns
            _rule("rows", lambda frame: len(frame) > 0 or frame.columns.empty),
        ],
    )


def _rule(name: str, keeps: Callable) -> pa.Check:
    """Make a rule from a function that returns True for the rows, or the table, that obey it."""
    # n_failure_cases bounds pandera's own report; `_in_words` counts the rows of check_output
    return pa.Check(keeps, name=name, ignore_na=False, n_failure_cases=1)


def _is_plausible(values: pd.Series, low: float, high: float) -> pd.Series:
    numbers = as_numbers(values)
    # written so that NaN passes, and infinite values are left to their own rule
    return ~((numbers < low) | (numbers > high)) | np.isinf(numbers)


def _is_first_of_instant(frame: pd.DataFrame) -> pd.Series:
    """Refuse a second row of the same module and time."""
    if not {col.RACK, col.MODULE, col.TIMESTAMP} <= set(frame):
        return pd.Series(True, index=frame.index)
    times = as_times(frame[col.TIMESTAMP])
    modules = pd.Series(module_codes(frame), index=frame.index)
    again = pd.concat([modules, times], axis=1).duplicated()
    return ~again | (modules < 0) | times.isna()


def broken_rules(
    frame: pd.DataFrame, names: list[str], row_name: Callable[[int], str], *, require_label: bool
) -> list[str]:
    """Describe every broken rule of a table.

    `names` are all columns of the file, one of which may be a missing one under another name;
    `row_name` names the place in the file of a row of the frame.
    """
    try:
        _schema(require_label=require_label).validate(frame, lazy=True, inplace=True)
    except SchemaErrors as errors:
        return [_in_words(error, frame, names, row_name) for error in errors.schema_errors]
    return []


def _in_words(error: SchemaError, frame: pd.DataFrame, names: list[str], row_name: Callable) -> str:
    if error.reason_code is SchemaErrorReason.COLUMN_NOT_IN_DATAFRAME:
        return _missing_column(str(error.failure_cases), names)
    rule, cure = _RULES[error.check.name]
    if error.check.name == "rows":
        return f"{rule}; {cure}"
    rows = np.flatnonzero(~error.check_output.to_numpy(dtype=bool))
    name = error.schema.name or col.TIMESTAMP
    if error.check.name == "plausible":
        low, high, unit = PLAUSIBLE[name]
        values = as_numbers(frame[name].iloc[rows])
        return (
            f"{name} must lie between {low:g} and {high:g} {unit}, got {values.min():g} to"
            f" {values.max():g} in {count_rows(len(rows))}, the first {values.iloc[0]:g} at"
            f" {row_name(rows[0])}; {cure}"
        )
    found = frame[name].iloc[rows[0]]
    if error.check.name == "unique":
        rack, module = (frame[key].iloc[rows[0]] for key in (col.RACK, col.MODULE))
        found = f"{found} again for module {module} of rack {rack}"
    elif pd.isna(found):
        found = "nothing"
    elif isinstance(found, str):
        found = repr(found)
    else:
        found = f"{found:g}" if float(f"{found:g}") == found else repr(float(found))
    return (
        f"{name} {rule}, got {found} at {row_name(rows[0])}, {count_rows(len(rows))} in all; {cure}"
    )


def _missing_column(name: str, names: list[str]) -> str:
    spare = [other for other in names if other not in col.TELEMETRY]
    shown = ", ".join(names[:15]) + (", ..." if len(names) > 15 else "")
    cure = did_you_mean(name, spare, f"it has {shown}: add it.")
    unless = " (telemetry that is only scored needs no label)" if name == col.LABEL else ""
    return f"{name} must be a column of the file{unless}; {cure}"


def untypical(frame: pd.DataFrame) -> list[str]:
    """Return the problems of a file as a whole, judged by all or many of its rows."""
    frame, problems = _before_fire(frame), []
    for name, (low, high, unit) in TYPICAL.items():
        read = _finite(frame, name)
        if len(read) and not low <= (middle := float(np.median(read))) <= high:
            problems.append(
                f"{name} must lie between {low:g} and {high:g} {unit} in most rows, its median is"
                f" {middle:g}; check the unit, and whether columns are swapped."
            )
    read = _finite(frame, col.SOC)
    low, high = np.quantile(read, [0.01, 0.99]) if len(read) else (0, 0)  # ignores a few odd cells
    if low >= 0 and 0 < high <= 1:
        problems.append(
            f"{col.SOC} must be in percent, it lies between {low:g} and {high:g} in most rows;"
            " multiply a fraction by 100."
        )
    if {col.TEMP_AVG, col.TEMP_MAX} <= set(frame):
        below = int((as_numbers(frame[col.TEMP_MAX]) < as_numbers(frame[col.TEMP_AVG])).sum())
        if below > len(frame) / 2:
            problems.append(
                f"{col.TEMP_MAX} must not be below {col.TEMP_AVG}, got {count_rows(below)} where it"
                " is; the columns may be swapped: rename them."
            )
    return problems


def _before_fire(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop a module's rows from the first burning one on, unless nearly all of them are."""
    hot = np.zeros(len(frame), dtype=bool)
    for name in {col.TEMP_AVG, col.TEMP_MAX} & set(frame):
        hot |= as_numbers(frame[name]).to_numpy() >= BURNING_C
    if not hot.any():
        return frame
    by_module = pd.Series(hot, frame.index).groupby(module_codes(frame))
    return frame[(by_module.cumsum() == 0) | (by_module.transform("mean") > _ALWAYS_HOT)]


def _finite(frame: pd.DataFrame, name: str) -> np.ndarray:
    values = as_numbers(frame[name]).to_numpy() if name in frame else np.empty(0)
    return values[np.isfinite(values)]
