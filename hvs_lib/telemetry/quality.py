"""Suspicious readings: each is reported, and treated as missing if it cannot be a reading.

Events with an Event_ID in only some of their rows are reported, too; the other rows are given it.

Rows of burning modules are left out. Doubtful readings that are kept are in `doubts`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes


class Finding(NamedTuple):
    """What is doubtful in a column, or was done about it; those of a file's racks are added up."""

    column: str
    what: str
    rows: int
    names: tuple[str, ...] = ()  # of events or modules


# What loggers write for an absent sensor: the largest numbers of 8, 16 and 32 bits, scaled and
# shifted as buses do (0.01, 0.1, 0.4 and 0.5 per bit; minus 40 degC), and nines. Those of 9 to 12
# bits are not fill values for gas, whose sensors report them at the end of their range.
_ANYWHERE = (32767.0, -32768.0, 65535.0, 6553.5, 3276.7, 4294967295.0, -999.0, -9999.0)
_BITS = (511.0, 1023.0, 2047.0, 4095.0)
_HUNDREDTHS = (*_ANYWHERE, *_BITS, 655.35, 327.67, -327.68, -3276.8, 9999.0)
_DEGREES = (*_HUNDREDTHS, 215.0, 255.0, 999.0, -127.0)
FILL_VALUES = dict.fromkeys([col.TEMP_AVG, col.TEMP_MAX, col.AMBIENT], _DEGREES)
FILL_VALUES |= dict.fromkeys([col.VOLTAGE, col.CURRENT], _HUNDREDTHS)
FILL_VALUES |= {col.SOC: (*_HUNDREDTHS, 102.0, 127.5, 255.0)}
FILL_VALUES |= dict.fromkeys([col.CO, col.H2, col.VOC], _ANYWHERE)
LEFT_OUT = "left out"  # marks findings about rows that the telemetry lacks
_MISSING = "treated as missing (keep_fill_values takes it as a reading)"

# If a module's other readings reach this share of a fill value, it is a real reading.
_REACHED = dict.fromkeys(col.SENSORS, 0.5)
_REACHED |= {col.SOC: 0.985} | dict.fromkeys([col.CO, col.H2, col.VOC], 0.05)

# A module in service never reads 0 here for this many rows; a rack in frost may for a few.
NEVER_ZERO = (col.TEMP_AVG, col.TEMP_MAX, col.VOLTAGE, col.SOC, col.AMBIENT)
_ROWS_OF_ZERO = 60

# A cell's point of no return is 140 degC, and a module's surface stays below that; once it burns,
# simulated surfaces rise to the end of their range, 200 degC.
BURNING_C = 150.0
_ROWS_OF_FIRE = 6  # in a row: a loose wire reads this hot for one or two
_REPLACED_AFTER = np.timedelta64(1, "D")  # without telemetry, by a sound module
_FIRE = (
    f"from {BURNING_C:g} degC on a module counts as burning, and its rows are left out; if none"
    " burnt, leave such readings empty"
)
_AFTER_LABEL = (
    "rows after the last label of a module, which then burns, are left out; label only events that"
    " end in fire"
)

_SHOWN = 3  # names per finding


def sampling_interval_s(telemetry: pd.DataFrame) -> float:
    """Return the usual time between two rows of a module [s], 0 if no module has two."""
    steps = np.diff(telemetry[col.TIMESTAMP].to_numpy())
    steps = steps[np.diff(module_codes(telemetry)) == 0]
    return float(np.median(steps / np.timedelta64(1, "s"))) if len(steps) else 0.0


def module_intervals_s(telemetry: pd.DataFrame) -> np.ndarray:
    """Return the usual time between two rows of each module [s], shape (n_modules,).

    In the order of `module_codes`, by which the telemetry is sorted. A module with one row gets
    the usual time of all modules, or 1 s if there is none.

    Examples
    --------
    >>> module_intervals_s(telemetry)
    array([10., 10., 10., 10., 10., 10., 10., 10.])
    """
    codes = module_codes(telemetry)
    bounds = np.searchsorted(codes, np.arange(codes.max() + 2))
    times_us = telemetry[col.TIMESTAMP].to_numpy("datetime64[us]").astype(np.int64)
    usual = median_steps(times_us, bounds) / 1e6
    if (single := np.isnan(usual)).any():
        usual[single] = sampling_interval_s(telemetry) or 1.0
    return usual


def median_steps(times: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Return the median step between the times of each module, NaN where it has one row.

    Module i has the rows ``bounds[i]`` to ``bounds[i + 1]``.
    """
    steps = (np.diff(times[first:end]) for first, end in pairwise(bounds))
    return np.array([np.median(step) if len(step) else np.nan for step in steps])


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
                found.append(Finding(name, what, int(rows.sum())))
        frame[name] = frame[name].mask(missing)
    return found


def zero_columns(frame: pd.DataFrame, names: Iterable[str]) -> list[Finding]:
    """Report sensors that are 0 throughout a file, with the number of rows in this part of it."""
    rows = {name: int((frame[name] == 0).sum()) for name in names}
    return [Finding(name, f"0 throughout; {_MISSING}", n) for name, n in rows.items() if n]


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
            found.append(Finding(name, f"0 throughout; {_MISSING}", int(dead.sum())))
    return found


def name_whole_events(telemetry: pd.DataFrame, modules: np.ndarray) -> list[Finding]:
    """Give labelled rows without Event_ID the one of their stretch of labels, in place.

    Otherwise they would form an event of their own, and one fire would count twice.
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
    return [Finding(col.EVENT_ID, what, int(filled.sum()))] if filled.any() else []


def spread_pnr(telemetry: pd.DataFrame) -> None:
    """Give all rows of an Event_ID the PNR that one of them has, in place; that row may burn."""
    if {col.PNR, col.EVENT_ID} <= set(telemetry):
        ids = telemetry[col.EVENT_ID].cat.codes
        of_event = telemetry.groupby([rack_codes(telemetry), ids])[col.PNR].transform("max")
        telemetry[col.PNR] = telemetry[col.PNR].fillna(of_event.where(ids >= 0))


def complete_pnr(
    telemetry: pd.DataFrame, modules: np.ndarray, label_until_s: float
) -> tuple[list[str], list[Finding]]:
    """Give the rows of each event, and no others, its point of no return (PNR), in place.

    It is the one in the telemetry, else `label_until_s` after the last label. Telemetry
    without any, whose labels end at the usual time, is left as it is, see `codes.pnr_of`.

    Returns
    -------
    problems, findings : list of str, list of Finding
        PNR that contradict each other or the labels; events with a PNR but without a label.
    """
    usual = col.PNR not in telemetry and label_until_s == col.LABEL_UNTIL_S
    if usual or col.LABEL not in telemetry:
        return [], []
    codes, pnr = event_codes(telemetry), telemetry.get(col.PNR, pd.Series(pd.NaT, telemetry.index))
    rows = (codes >= 0) | pnr.notna().to_numpy()
    if col.EVENT_ID in telemetry:
        rows |= telemetry[col.EVENT_ID].notna().to_numpy()
    some, modules, pnr = telemetry[rows], modules[rows], pnr[rows].astype("datetime64[us]")
    event, labelled = pd.Series(codes[rows], some.index), codes[rows] >= 0
    where, what = modules, -1 - pd.factorize(pnr)[0]  # for rows without Event_ID
    if col.EVENT_ID in telemetry:
        ids = some[col.EVENT_ID].cat.codes
        event = event.where(ids < 0, event.groupby([modules, ids]).transform("max"))
        where, what = np.where(ids < 0, [where, what], [rack_codes(some), ids])
    event = event.where(event >= 0)
    by_event = pnr.groupby(event)
    times, told = some[col.TIMESTAMP], by_event.transform("max")
    last = times.where(labelled).groupby(event).transform("max")
    problems = []
    for bad, rule, cure in (
        (told > by_event.transform("min"), "be one time for an event, got several", "keep one."),
        (told < last, "not lie before a labelled row, but does", "correct it or the label."),
    ):
        if bad.any():
            names = [*dict.fromkeys(event_names(some, np.flatnonzero(bad & labelled)))]
            shown = ", ".join(names[:_SHOWN])
            problems.append(f"{col.PNR} must {rule} ({len(names):,}: {shown}); {cure}")
    pnr_of_event = told.fillna(last + pd.Timedelta(seconds=label_until_s))
    telemetry[col.PNR] = pnr_of_event.reindex(telemetry.index)
    # a row without Event_ID belongs to the event of its module that has the same PNR
    same = [modules, pd.factorize(told.fillna(pnr))[0]]
    groups = [[where, what], same]
    has_label = np.any([pd.Series(labelled).groupby(g).transform("any") for g in groups], axis=0)
    lost = np.flatnonzero(pnr.notna() & ~has_label)
    if not len(lost):
        return problems, []
    names = dict.fromkeys(event_names(some, lost))
    what = "of events without a row of label 1, which are ignored; label the rows before the PNR"
    return problems, [Finding(col.PNR, what, len(lost), tuple(names))]


def event_names(telemetry: pd.DataFrame, rows: np.ndarray) -> list[str]:
    """Name the events of some rows: by their Event_ID, else by their module."""
    names = telemetry[col.MODULE].iloc[rows].astype(object)
    if col.EVENT_ID in telemetry:
        names = telemetry[col.EVENT_ID].iloc[rows].astype(object).fillna(names)
    return list(map(str, names))


def leave_out_fires(
    telemetry: pd.DataFrame, modules: np.ndarray
) -> tuple[pd.DataFrame, list[Finding]]:
    """Return the telemetry without the rows of burning modules.

    These run from the last label of a module, or from readings that only a fire gives, to the end
    of its telemetry or to a day without any. A module this hot from its first row on is kept: its
    unit may be wrong.
    """
    temperature = np.fmax(telemetry[col.TEMP_AVG].to_numpy(), telemetry[col.TEMP_MAX].to_numpy())
    hot = temperature >= BURNING_C
    labelled = np.zeros(len(hot), dtype=bool)
    if col.LABEL in telemetry:
        labelled = telemetry[col.LABEL].to_numpy() == 1
    if not (hot.any() or labelled.any()):
        return telemetry, []
    first = np.diff(modules, prepend=-1) != 0
    first[1:] |= np.diff(telemetry[col.TIMESTAMP].to_numpy()) > _REPLACED_AFTER
    starts, stay, row = np.flatnonzero(first), np.cumsum(first) - 1, np.arange(len(hot))
    fire = _fires(temperature, hot, starts, stay)
    last = np.maximum.reduceat(np.where(labelled, row, -1), starts)
    after = np.where(last >= 0, last + 1, len(hot))
    left_out = row >= np.minimum(fire, after)[stay]
    found = []
    for name, what, here in (
        (col.TEMP_MAX, _FIRE, fire <= after),
        (col.LABEL, _AFTER_LABEL, fire > after),
    ):
        rows = left_out & here[stay]
        if rows.any():
            _, first_rows = np.unique(modules[rows], return_index=True)
            names = telemetry[col.MODULE].array[rows][first_rows]
            found.append(Finding(name, what, int(rows.sum()), tuple(map(str, names))))
    if (lost := left_out & labelled).any():
        what = "1 while the module already burns; end the label 30 s before the point of no return"
        found.append(Finding(col.LABEL, what, int(lost.sum())))
    return telemetry[~left_out].reset_index(drop=True) if found else telemetry, found


def _fires(
    temperature: np.ndarray, hot: np.ndarray, starts: np.ndarray, stay: np.ndarray
) -> np.ndarray:
    """Return the row where each module's stay in service ends in fire, n_rows if it does not.

    A broken sensor jumps to the end of its range; a fire passes through readings on the way.
    """
    fire, rows, more = np.full(len(starts), len(hot)), np.flatnonzero(hot), _ROWS_OF_FIRE - 1
    if len(rows) <= more:
        return fire
    begin, end = rows[:-more], rows[more:]
    begin = begin[(end - begin == more) & (stay[end] == stay[begin])]
    np.minimum.at(fire, stay[begin], begin)
    cool = np.append(0, np.cumsum(temperature < BURNING_C))
    warm = np.where(temperature >= BURNING_C / 2, temperature, np.nan)
    passes = np.fmax.reduceat(warm, starts) > np.fmin.reduceat(warm, starts)
    return np.where(passes & (cool[fire] > cool[starts]), fire, len(hot))


def describe(findings: Iterable[Finding], n_rows: int) -> list[str]:
    """Describe the findings in `n_rows` rows; equal findings, of several racks, add up."""
    rows: Counter = Counter()
    named: defaultdict = defaultdict(list)
    for name, what, count, names in findings:
        rows[name, what] += count
        named[name, what] += names
    n_rows += sum(count for (_, what), count in rows.items() if LEFT_OUT in what)
    lines = []
    for (name, what), count in sorted(rows.items()):
        names = named[name, what]
        shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
        listed = f" ({len(names):,}: {shown})" if names else ""
        lines.append(f"{name} in {count:,} rows ({count / n_rows:.2%}): {what}{listed}")
    return lines
