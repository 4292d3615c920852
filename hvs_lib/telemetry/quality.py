"""Suspicious readings: each is reported, and treated as missing where it cannot be a reading.

So are events of which only some rows have their Event_ID; the others are given it.

A finding is `[column, what, rows]`, so that those of a file's racks can be added up.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import module_codes, rack_codes

Finding = list  # [column, what, rows]

# What loggers write for a sensor that is not there: the largest numbers of 8, 16 and 32 bits,
# scaled and shifted as buses do (0.01, 0.1, 0.4 and 0.5 to the bit; minus 40 degC), and nines.
# 10 and 12 bits are left out, since a gas sensor at the end of its range reports them, too.
_ANYWHERE = (32767.0, -32768.0, 65535.0, 6553.5, 3276.7, 4294967295.0, -999.0, -9999.0)
_HUNDREDTHS = (*_ANYWHERE, 655.35, 327.67, -327.68, -3276.8, 9999.0)
_DEGREES = (*_HUNDREDTHS, 215.0, 255.0, 999.0, -127.0)
FILL_VALUES = {
    col.TEMP_AVG: _DEGREES,
    col.TEMP_MAX: _DEGREES,
    col.AMBIENT: _DEGREES,
    col.VOLTAGE: _HUNDREDTHS,
    col.CURRENT: _HUNDREDTHS,
    col.SOC: (*_HUNDREDTHS, 102.0, 127.5, 255.0),
    col.CO: _ANYWHERE,
    col.H2: _ANYWHERE,
    col.VOC: _ANYWHERE,
}
LEFT_OUT = "left out"  # ends what is found of rows that the telemetry lacks
_MISSING = "treated as missing (keep_fill_values takes it as a reading)"

# A module whose other readings come up to such a share of the fill value has read it.
_REACHED = dict.fromkeys(col.SENSORS, 0.5)
_REACHED |= {col.SOC: 0.985} | dict.fromkeys([col.CO, col.H2, col.VOC], 0.05)

# A module in service never reads 0 in these for so many rows; a frosty rack may for a few.
NEVER_ZERO = (col.TEMP_AVG, col.TEMP_MAX, col.VOLTAGE, col.SOC, col.AMBIENT)
_ROWS_OF_ZERO = 60

_CURRENT_OVER_S = 300.0  # compared with the change of charge over so long
_AGAINST = -0.5  # cosine between the two below which the sign is doubtful


def sampling_interval_s(telemetry: pd.DataFrame) -> float:
    """Return the usual time between two rows of a module [s], 0 if no module has two."""
    steps = np.diff(telemetry[col.TIMESTAMP].to_numpy())
    steps = steps[np.diff(module_codes(telemetry)) == 0]
    return float(np.median(steps / np.timedelta64(1, "s"))) if len(steps) else 0.0


def clear_fill_values(frame: pd.DataFrame) -> list[Finding]:
    """Replace fill values by NaN, in place; a sensor column that is text stays as it is."""
    found = []
    for name, codes in FILL_VALUES.items():
        if name not in frame or not pd.api.types.is_float_dtype(frame[name]):
            continue
        values = frame[name].to_numpy()
        low, high = np.nanmin(values, initial=np.inf), np.nanmax(values, initial=-np.inf)
        near = [code for code in codes if low <= values.dtype.type(code) <= high]
        written = np.isin(values, np.array(near, values.dtype))
        if not written.any():
            continue
        others = pd.Series(np.abs(values)).mask(written, 0.0)
        largest = others.groupby(module_codes(frame)).transform("max").to_numpy()
        missing = np.zeros(len(frame), dtype=bool)
        for code in near:
            rows = (values == values.dtype.type(code)) & (largest < _REACHED[name] * abs(code))
            if rows.any():
                missing |= rows
                what = f"{code:.10g}, as absent sensors report; {_MISSING}"
                found.append([name, what, int(rows.sum())])
        frame[name] = frame[name].mask(missing)
    return found


def zero_columns(frame: pd.DataFrame, names: Iterable[str]) -> list[Finding]:
    """Report the sensors named, which are 0 in all rows of a file, for some rows of it."""
    rows = {name: int((frame[name] == 0).sum()) for name in names}
    return [[name, f"0 throughout; {_MISSING}", n] for name, n in rows.items() if n]


def clear_zero_modules(telemetry: pd.DataFrame, modules: np.ndarray) -> list[Finding]:
    """Replace readings of `NEVER_ZERO` that are 0 in all rows of a module by NaN, in place."""
    found = []
    for name in NEVER_ZERO:
        values = telemetry[name].to_numpy()
        zero = values == 0
        read = np.bincount(modules, ~zero & ~np.isnan(values)) > 0
        dead = (~read & (np.bincount(modules, zero) >= _ROWS_OF_ZERO))[modules] & zero
        if dead.any():
            telemetry[name] = telemetry[name].mask(dead)
            found.append([name, f"0 throughout; {_MISSING}", int(dead.sum())])
    return found


def name_whole_events(telemetry: pd.DataFrame, modules: np.ndarray) -> list[Finding]:
    """Give labelled rows without Event_ID that of their stretch of labels, in place.

    Left as they are, they would be an event of their own, and one fire would count twice.
    """
    if not {col.LABEL, col.EVENT_ID} <= set(telemetry):
        return []
    labelled, named = telemetry[col.LABEL] == 1, telemetry[col.EVENT_ID].notna()
    if not (labelled & ~named).any():
        return []
    stretch = ((np.diff(modules, prepend=-1) != 0) | ~labelled).cumsum()
    row = pd.Series(np.arange(len(telemetry)), telemetry.index).where(named & labelled)
    nearest = row.groupby(stretch).bfill().fillna(row.groupby(stretch).ffill())
    filled = labelled & ~named & nearest.notna()
    source = np.where(filled, nearest, np.arange(len(telemetry))).astype(np.int64)
    for name in {col.EVENT_ID, col.EVENT_TYPE} & set(telemetry):
        telemetry[name] = telemetry[name].array[source]
    what = "missing, but given in other rows of the same stretch of labels; taken from those"
    return [[col.EVENT_ID, what, int(filled.sum())]] if filled.any() else []


def doubtful_current(telemetry: pd.DataFrame, modules: np.ndarray) -> list[Finding]:
    """Find racks whose current has a sign that contradicts the state of charge."""
    interval_s = sampling_interval_s(telemetry)
    lag = max(1, round(_CURRENT_OVER_S / interval_s)) if interval_s else len(telemetry)
    if lag >= len(telemetry):
        return []
    charge = np.cumsum(np.nan_to_num(telemetry[col.CURRENT].to_numpy(np.float64)))
    soc = telemetry[col.SOC].to_numpy(np.float64)
    moved, rise = charge[lag:] - charge[:-lag], soc[lag:] - soc[:-lag]
    times = telemetry[col.TIMESTAMP].to_numpy()
    limit = np.timedelta64(round(2 * _CURRENT_OVER_S), "s")
    whole = times[lag:] - times[:-lag] <= limit  # charge that moves in a gap is not seen
    kept = (modules[lag:] == modules[:-lag]) & ~np.isnan(rise) & whole
    moved, rise = moved[kept], rise[kept]
    racks = rack_codes(telemetry)

    def added_up(values: np.ndarray) -> np.ndarray:
        return np.bincount(racks[lag:][kept], values, minlength=racks.max() + 1)

    size = np.sqrt(added_up(moved**2) * added_up(rise**2))
    against = (size > 0) & (added_up(moved * rise) <= _AGAINST * size)
    rows = int(against[racks].sum())
    what = "positive while the state of charge falls; flip its sign: charging is positive"
    return [[col.CURRENT, what, rows]] if rows else []


def describe(findings: Iterable[Finding], n_rows: int) -> list[str]:
    """Say what was found in telemetry of so many rows; equal findings, of several racks, add up."""
    rows: Counter = Counter()
    for name, what, count in findings:
        rows[name, what] += count
    return [
        f"{name} in {count:,} rows{'' if what.endswith(LEFT_OUT) else f' ({count / n_rows:.2%})'}:"
        f" {what}"
        for (name, what), count in sorted(rows.items())
    ]
