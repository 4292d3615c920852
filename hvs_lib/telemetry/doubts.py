"""Readings and labels that may not mean what they say: reported, and left as they are.

Each check judges racks or modules separately, so that reading a file rack by rack gives the same.
"""

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import rack_codes
from hvs_lib.telemetry.quality import Finding, event_names, sampling_interval_s

_THROUGHOUT = 0.95  # share of a module's readings: a few odd ones do not hide a wrong unit

_TEMPERATURES = (col.TEMP_AVG, col.TEMP_MAX, col.AMBIENT)
_CURRENT_OVER_S = 300.0  # compared with the change of charge over this time
_AGAINST = -0.5  # below this cosine between the two, the sign is doubtful

# No cooled rack is this warm for this long, and no module at rest this far above its air; simulated
# ones stay below 35 degC and 5 K in most rows.
_NEVER_COOL_C = 45.0
_OVER_AIR_K = 20.0
_NEVER_COOL_S = 3600.0

_CELL_V = (2.0, 4.4)  # lithium-ion, empty to overcharged
_PACK_V = 150.0  # modules usually stay below 60 V, which is safe to touch

# Constant current repeats itself, and a full module reads 100 %.
_MAY_BE_FILLED = [name for name in col.SENSORS if name not in (col.CURRENT, col.SOC)]
_REPEATED = 10  # rows
_FAR = 3.0  # times the range of the other readings


def doubts(
    telemetry: pd.DataFrame, modules: np.ndarray, *, keep_fill_values: bool = False
) -> list[Finding]:
    """Return what is doubtful in valid, sorted telemetry, given its `module_codes`."""
    starts, racks = _first_rows(modules), rack_codes(telemetry)
    found = doubtful_current(telemetry, modules, racks)
    found += unlike_modules(telemetry, starts)
    found += whole_degrees(telemetry, starts)
    found += [] if keep_fill_values else far_and_repeated(telemetry, racks)
    if col.LABEL in telemetry and (telemetry[col.LABEL].to_numpy() == 1).any():
        found += labels_from_the_first_row(telemetry, starts)
        found += several_events_of_one_id(telemetry, modules, racks)
    return found


def doubtful_current(
    telemetry: pd.DataFrame, modules: np.ndarray, racks: np.ndarray
) -> list[Finding]:
    """Find racks where the sign of the current contradicts the state of charge."""
    interval_s = sampling_interval_s(telemetry)
    lag = max(1, round(_CURRENT_OVER_S / interval_s)) if interval_s else len(telemetry)
    if lag >= len(telemetry):
        return []
    charge = np.cumsum(np.nan_to_num(telemetry[col.CURRENT].to_numpy(np.float64)))
    soc = telemetry[col.SOC].to_numpy(np.float64)
    moved, rise = charge[lag:] - charge[:-lag], soc[lag:] - soc[:-lag]
    times = telemetry[col.TIMESTAMP].to_numpy()
    gap = times[lag:] - times[:-lag] > np.timedelta64(round(2 * _CURRENT_OVER_S), "s")
    unknown = (modules[lag:] != modules[:-lag]) | np.isnan(rise) | gap  # not observed there
    moved[unknown] = rise[unknown] = 0.0
    starts = _first_rows(racks[lag:])

    def added_up(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts)

    size = np.sqrt(added_up(moved**2) * added_up(rise**2))
    against = (size > 0) & (added_up(moved * rise) <= _AGAINST * size)
    rows = int(np.isin(racks, racks[lag:][starts[against]]).sum())
    what = "positive while the state of charge falls; flip its sign: charging is positive"
    return [Finding(col.CURRENT, what, rows)] if rows else []


def unlike_modules(telemetry: pd.DataFrame, starts: np.ndarray) -> list[Finding]:
    """Find modules with nearly all readings too hot, or of the wrong voltage, for any module."""
    times, (low, high) = telemetry[col.TIMESTAMP].to_numpy(), _CELL_V
    lasts = times[np.append(starts[1:], len(times)) - 1] - times[starts]
    long = lasts >= np.timedelta64(round(_NEVER_COOL_S), "s")
    air, volts = telemetry[col.AMBIENT].to_numpy(), telemetry[col.VOLTAGE].to_numpy()
    hot = (
        f"above {_NEVER_COOL_C:g} degC, or {_OVER_AIR_K:g} K above the rack's air, throughout;"
        " check the unit: some buses send degC + 40, others degF"
    )
    cell = f"{low:g} to {high:g} V, as of a cell; give the module's, the sum of cells in series"
    pack = f"above {_PACK_V:g} V, as of a pack or string; divide it by the modules in series"
    found = []
    for name in _TEMPERATURES:
        values = telemetry[name].to_numpy()
        over = values - air
        is_hot = _mostly(values > _NEVER_COOL_C, values, starts)
        is_hot |= _mostly(over > _OVER_AIR_K, over, starts)
        found += _finding(name, hot, values, starts, is_hot & long)
    is_cell = _mostly((volts >= low) & (volts <= high), volts, starts)
    found += _finding(col.VOLTAGE, cell, volts, starts, is_cell)
    is_pack = _mostly(volts > _PACK_V, volts, starts)
    return found + _finding(col.VOLTAGE, pack, volts, starts, is_pack)


def whole_degrees(telemetry: pd.DataFrame, starts: np.ndarray) -> list[Finding]:
    """Find modules whose temperatures vary by several degrees, but only in whole degrees."""
    found = []
    what = "in whole degrees, so that changes per minute are coarse; log tenths if the sensor can"
    for name in _TEMPERATURES:
        values = telemetry[name].to_numpy()
        whole = np.logical_and.reduceat((values == np.rint(values)) | np.isnan(values), starts)
        if whole.any():
            whole &= np.fmax.reduceat(values, starts) - np.fmin.reduceat(values, starts) >= 2
            found += _finding(name, what, values, starts, whole)
    return found


def far_and_repeated(telemetry: pd.DataFrame, racks: np.ndarray) -> list[Finding]:
    """Find racks where the largest or smallest reading repeats, far outside all others."""
    starts = _first_rows(racks)
    sizes = np.diff(starts, append=len(racks))
    found = []
    for name in _MAY_BE_FILLED:
        values = telemetry[name].to_numpy()
        for furthest in (np.fmax, np.fmin):
            end = furthest.reduceat(values, starts)
            there = values == np.repeat(end, sizes)
            often = (np.add.reduceat(there, starts, dtype=np.int64) >= _REPEATED) & (end != 0)
            if not often.any():
                continue
            others = np.where(there, np.nan, values)
            high, low = np.fmax.reduceat(others, starts), np.fmin.reduceat(others, starts)
            gap = np.fmax(end - high, low - end)
            far = (gap > _FAR * (high - low)) & (high > low)
            far &= gap > np.fmax(np.abs(high), np.abs(low)) / 2  # 30 among 24 and 25 is not far
            for rack in np.flatnonzero(often & far):
                what = (
                    f"{end[rack]:.7g} again and again, far from all other readings; if it marks a"
                    " missing reading, leave those cells empty"
                )
                found.append(Finding(name, what, int(there[racks == rack].sum())))
    return found


def labels_from_the_first_row(telemetry: pd.DataFrame, starts: np.ndarray) -> list[Finding]:
    """Find modules whose telemetry begins within the label window of an event."""
    labelled = telemetry[col.LABEL].to_numpy() == 1
    cut = np.flatnonzero(labelled[starts])
    if not len(cut):
        return []
    ends = np.append(starts[1:], len(labelled))
    rows = [int(np.argmin(np.append(labelled[starts[k] : ends[k]], False))) for k in cut]
    names = event_names(telemetry, starts[cut])
    what = "1 from a module's first row on, so that lead times are cut; add the rows before"
    return [Finding(col.LABEL, what, sum(rows), tuple(names))]


def several_events_of_one_id(
    telemetry: pd.DataFrame, modules: np.ndarray, racks: np.ndarray
) -> list[Finding]:
    """Find an Event_ID with labels in two modules of a rack, or in two label windows."""
    if col.EVENT_ID not in telemetry:
        return []
    rows = np.flatnonzero((telemetry[col.LABEL] == 1) & telemetry[col.EVENT_ID].notna())
    by_event = [racks[rows], telemetry[col.EVENT_ID].cat.codes.to_numpy()[rows]]
    times = telemetry[col.TIMESTAMP].to_numpy()[rows]
    table = pd.DataFrame({"row": rows, "module": modules[rows], "time": times})
    step, window = table.groupby(by_event).diff(), pd.Timedelta(minutes=col.LABEL_FROM_MIN)
    table["again"] = (step["module"] > 0) | (step["time"] > window)
    events = table.groupby(by_event).agg({"row": ["first", "size"], "again": "any"})
    events = events[events["again", "any"]]
    if events.empty:
        return []
    names = event_names(telemetry, events["row", "first"].to_numpy())
    what = "labelled in two modules, or twice in one; give each event an id of its own"
    return [Finding(col.EVENT_ID, what, int(events["row", "size"].sum()), tuple(names))]


def _first_rows(codes: np.ndarray) -> np.ndarray:
    """Return the first row of each stretch of equal numbers."""
    return np.flatnonzero(np.diff(codes, prepend=-1))


def _mostly(is_so: np.ndarray, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return for each module whether nearly all of its readings are true in `is_so`."""
    read = np.add.reduceat(~np.isnan(values), starts, dtype=np.int64)
    return np.add.reduceat(is_so, starts, dtype=np.int64) > _THROUGHOUT * read


def _finding(
    name: str, what: str, values: np.ndarray, starts: np.ndarray, found: np.ndarray
) -> list[Finding]:
    if not found.any():
        return []
    rows = np.add.reduceat(~np.isnan(values), starts, dtype=np.int64)
    return [Finding(name, what, int(rows[found].sum()))]
