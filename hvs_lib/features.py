"""Causal features of the telemetry: a module's own past, and how it differs from its rack.

A row uses itself and earlier rows of its rack. Nothing is fitted, filled backwards or clipped, so
a live stream and a whole file give the same numbers, to the bit.

There are two compiled passes. The first walks each rack through time and derives the signals:
missing readings are held for `CARRY_S`, temperatures are compared with each other, and modules with
their siblings. The second walks each module and summarizes the signals over time windows.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd
from numba import njit

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import module_codes, rack_codes
from hvs_lib.telemetry.files import DataError
from hvs_lib.telemetry.fleet import Fleet
from hvs_lib.telemetry.quality import sampling_interval_s

WINDOWS_MIN = (1, 5, 10)
CARRY_S = 60.0  # a missing reading repeats the last one for this long, then is NaN
ROWS_IN_PARTS = 100_000  # rows whose features are in memory at a time
MIN_SPAN = 0.4  # share of a window that a slope's readings must span; 30 s data span half of 1 min

# What is computed: the signals, then the statistics kept for each. Edit here.
DIFFERENCES = {
    f"{col.TEMP_AVG}__minus_air": (col.TEMP_AVG, col.AMBIENT),
    f"{col.TEMP_MAX}__minus_air": (col.TEMP_MAX, col.AMBIENT),
    f"{col.TEMP_MAX}__minus_avg": (col.TEMP_MAX, col.TEMP_AVG),
}
VS_RACK = {f"{c}__vs_rack": c for c in (col.TEMP_AVG, col.TEMP_MAX, col.VOLTAGE, col.SOC)}
SIGNALS = [*col.SENSORS, *DIFFERENCES, *VS_RACK]
STATISTICS = [f"{s}_{w}min" for w in WINDOWS_MIN for s in ("mean", "std", "slope")]
KEPT = {
    **dict.fromkeys(col.SENSORS, STATISTICS),
    **dict.fromkeys(DIFFERENCES, ()),
    **dict.fromkeys(VS_RACK, ("mean_5min", "mean_10min", "slope_5min", "slope_10min")),
}

# Kinds of sensor that a site may lack, and what the names of their features contain.
SENSOR_KINDS = {
    "gas": (col.CO, col.H2, col.VOC),
    "current and charge": (col.CURRENT, col.SOC),
    "voltage": (col.VOLTAGE,),
    "siblings": ("__vs_rack",),
    "room air": (col.AMBIENT, "__minus_air"),
}

# Sets of sensors by the kinds they lack: each kind alone, a car's pack, a test of a few cells.
SENSOR_SETS = {
    "all sensors": (),
    **{f"no {kind}": (kind,) for kind in SENSOR_KINDS},
    "no gas, no room air, no siblings": ("gas", "room air", "siblings"),
    "temperature and gas": ("current and charge", "voltage", "room air", "siblings"),
    "temperature and siblings": ("gas", "current and charge", "voltage", "room air"),
    "temperature and voltage": ("gas", "current and charge", "room air", "siblings"),
    "temperature alone": tuple(SENSOR_KINDS),
}
NO_SET = "no temperature"  # nothing can be scored
NEEDED = (
    f"It must have readings of both {col.TEMP_AVG} and {col.TEMP_MAX}, got one or none; with a"
    " single probe, give its readings for both."
)

# The same as numbers. The compiled code is cached until this file changes, so its constants are
# defined here, and what depends on another file is an argument.
_LANES = 16  # room for the signals, a multiple of 8 that the compiler can vectorise
_WINDOWS_US = np.array([w * 60_000_000 for w in WINDOWS_MIN])
_MIN_SPANS_S = np.array([w * 60.0 * MIN_SPAN for w in WINDOWS_MIN])
_CARRY_US = int(CARRY_S * 1_000_000)
_NEVER = np.iinfo(np.int64).max


def feature_names() -> list[str]:
    """List the columns of `build_features`, in order: each signal followed by its statistics."""
    return [name for s in SIGNALS for name in (s, *(f"{s}__{kept}" for kept in KEPT[s]))]


def build_features(telemetry: pd.DataFrame) -> pd.DataFrame:
    """Turn each row of telemetry into causal features.

    The window of w minutes at time t holds the readings of (t - w, t]. Mean and standard deviation
    (n - 1 in the denominator) use the readings present; a held reading is not counted again.
    The slope is that of the least-squares line, per minute [degC/min, V/min, ...], and NaN where
    the readings span less than `MIN_SPAN` of the window. The difference from the rack is from
    the median of the other modules' latest readings, held like the module's own.

    Parameters
    ----------
    telemetry : DataFrame of shape (n_samples, n_columns)
        As `load_telemetry` returns it: modules and racks contiguous, time increasing within a
        module. An absent sensor column counts as missing throughout.

    Returns
    -------
    DataFrame of shape (n_samples, n_features)
        float32, one C-ordered block; columns `feature_names()`, the index of `telemetry`.

    Raises
    ------
    ValueError
        If a key column is missing or the rows are not sorted as telemetry is.
    DataError
        If the rows are so far apart that no window holds two.

    Examples
    --------
    >>> build_features(telemetry).shape
    (5768, 113)
    """
    missing = [name for name in col.KEYS if name not in telemetry]
    if missing:
        raise ValueError(
            f"Telemetry must have the columns {col.KEYS}, got none named {missing}: read it with "
            "load_telemetry."
        )
    check_interval(sampling_interval_s(telemetry))
    (features,) = features_in_parts(telemetry, rows=len(telemetry))
    return features


def features_of(fleet: Fleet, rows: np.ndarray, *, n_jobs: int = -1) -> pd.DataFrame:
    """Compute the features of some rows of a fleet, given their ascending numbers, shape (n_rows,).

    As from `build_features`, with the row numbers as index. `n_jobs` partitions are processed at a
    time, in threads; -1: one per core.

    Examples
    --------
    >>> features_of(fleet, np.array([0, 50, 100])).shape
    (3, 113)
    """
    wanted = np.zeros(len(fleet.rows), bool)
    wanted[rows] = True

    def part(partition: int, own: np.ndarray) -> pd.DataFrame:
        return build_features(fleet.telemetry(partition)).iloc[own]

    partitions = np.unique(fleet.partition_of(rows))
    return pd.concat(fleet.map(part, partitions, by_row=wanted, n_jobs=n_jobs))


def features_in_parts(
    telemetry: pd.DataFrame, *, rows: int = ROWS_IN_PARTS
) -> Iterator[pd.DataFrame]:
    """Yield what `build_features` returns, in parts of whole modules with about `rows` rows."""
    if len(SIGNALS) > _LANES:
        raise ValueError(f"There is room for {_LANES} signals, got {len(SIGNALS)}: raise _LANES.")
    times, bounds, racks = _times_and_bounds(telemetry)
    # the readings, room for the derived signals, the held readings
    shape = (len(telemetry), _LANES + len(col.SENSORS))
    signals = np.full(shape, np.nan, dtype=np.float32)
    for j, name in enumerate(col.SENSORS):
        if name in telemetry:
            signals[:, j] = telemetry[name].to_numpy(dtype=np.float32, na_value=np.nan)
    pairs = [[col.SENSORS.index(c) for c in pair] for pair in DIFFERENCES.values()]
    differences = np.array(pairs).reshape(-1, 2)
    vs_rack = np.array([col.SENSORS.index(c) for c in VS_RACK.values()])
    for begin, end in pairwise(racks):
        _derive_signals(times, bounds[begin : end + 1], differences, vs_rack, signals)

    lanes, names = [*SIGNALS, *[""] * (_LANES - len(SIGNALS))], feature_names()
    grid = [*lanes, *(f"{s}__{statistic}" for statistic in STATISTICS for s in lanes)]
    places = np.array([grid.index(name) for name in names])
    first = 0
    for last in range(1, len(bounds)) or [0]:  # without rows, one empty part
        if bounds[last] - bounds[first] >= rows or last == len(bounds) - 1:
            own = slice(bounds[first], bounds[last])
            features = np.empty((own.stop - own.start, len(names)), dtype=np.float32)
            modules = bounds[first : last + 1] - bounds[first]
            _roll(times[own], modules, signals[own], places, features)
            yield pd.DataFrame(features, index=telemetry.index[own], columns=names, copy=False)
            first = last


def with_sensor_set(X: pd.DataFrame, sensor_set: str) -> pd.DataFrame:
    """Return features, shape (n_samples, n_features), as a site with this sensor set has them."""
    parts = [part for kind in SENSOR_SETS[sensor_set] for part in SENSOR_KINDS[kind]]
    values = X.to_numpy(copy=True)
    values[:, [any(part in name for part in parts) for name in X.columns]] = np.nan
    return pd.DataFrame(values, index=X.index, columns=X.columns, copy=False)


def with_sensors_dropped(
    X: pd.DataFrame, *, share: float, seed: int | tuple[int, ...]
) -> pd.DataFrame:
    """Drop each of `SENSOR_KINDS` from a share of the rows, so that a model learns to do without.

    Parameters
    ----------
    X : DataFrame, shape (n_samples, n_features)
        From `build_features`; not modified.
    share : float
        Share of the rows, drawn independently for each kind.
    seed : int, or tuple of int
        Seed of the draws.
    """
    rng, values = np.random.default_rng(seed), X.to_numpy(copy=True)
    for parts in SENSOR_KINDS.values():
        rows = rng.random(len(X)) < share
        columns = [any(part in name for part in parts) for name in X.columns]
        values[np.ix_(rows, columns)] = np.nan
    return pd.DataFrame(values, index=X.index, columns=X.columns, copy=False)


def sensor_sets_of(telemetry: pd.DataFrame) -> list[str]:
    """Find the largest of `SENSOR_SETS` that each rack has; `NO_SET` where it lacks temperature.

    A kind of sensor is present if each of its columns has a reading; siblings are present if the
    rack has two modules. Any other sensors are not used.

    Returns
    -------
    list of str, one per rack, in the order of `rack_codes`
    """
    racks = rack_codes(telemetry)
    reads = telemetry[col.SENSORS].notna().groupby(racks).any()
    modules = pd.Series(module_codes(telemetry)).groupby(racks).nunique()
    found = []
    for (_, sensors), n_modules in zip(reads.iterrows(), modules, strict=True):
        absent = {*sensors.index[~sensors], *([] if n_modules > 1 else SENSOR_KINDS["siblings"])}
        lacking = {kind for kind, parts in SENSOR_KINDS.items() if absent & {*parts}}
        fitting = [name for name, lacks in SENSOR_SETS.items() if lacking <= {*lacks}]
        without = absent & {col.TEMP_AVG, col.TEMP_MAX}
        found.append(NO_SET if without else min(fitting, key=lambda name: len(SENSOR_SETS[name])))
    return found


def by_sensor_set(telemetry: pd.DataFrame, sets: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each sensor set in `sets`, from `sensor_sets_of`, with the rows of its racks."""
    of_row = np.array(sets)[rack_codes(telemetry)]
    for sensor_set in np.unique(sets):
        yield str(sensor_set), telemetry[of_row == sensor_set].reset_index(drop=True)


def check_interval(interval_s: float) -> list[str]:
    """Warn of windows with too few rows for a deviation or slope; refuse the interval if all are.

    Parameters
    ----------
    interval_s : float
        Usual time between two rows of a module [s], see `sampling_interval_s`.

    Raises
    ------
    DataError
        If no window holds two rows of a module.
    """
    short = [f"{window}" for window in WINDOWS_MIN if window * 60 <= interval_s]
    if len(short) == len(WINDOWS_MIN):
        most = WINDOWS_MIN[-1] * 60
        problem = (
            f"A module must have rows less than {most} s apart, got one every {interval_s:g} s;"
            f" windows of {WINDOWS_MIN[-1]} min would hold one reading: export at a higher rate."
        )
        raise DataError("No features can be computed", [problem])
    warning = (
        f"a row every {interval_s:g} s leaves one reading in windows of {', '.join(short)} min: "
        "their deviations and slopes are missing"
    )
    return [warning] if short else []


# ---- where modules and racks begin -----------------------------------------------------------


def _times_and_bounds(telemetry: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the times [us], the bounds of modules in rows and of racks in modules.

    Module k has the rows `modules[k]:modules[k + 1]`, rack r the modules `racks[r]:racks[r + 1]`.
    """
    times = telemetry[col.TIMESTAMP].to_numpy().astype("datetime64[us]")
    modules, racks = _starts(module_codes(telemetry)), _starts(rack_codes(telemetry))
    increases = np.empty(len(times), dtype=bool)
    increases[1:] = times[1:] > times[:-1]
    increases[modules] = ~np.isnat(times[modules])
    if not increases.all():
        row = increases.argmin()
        raise ValueError(
            f"{col.TIMESTAMP} must increase within a module, row {row} has {times[row]}: drop "
            f"duplicates and use telemetry.sort_values({col.KEYS})."
        )
    racks = np.append(np.searchsorted(modules, racks), len(modules))
    return times.view(np.int64), np.append(modules, len(times)), racks


def _starts(codes: np.ndarray) -> np.ndarray:
    """Return the rows where the codes change; the rows of each code must be contiguous."""
    starts = np.flatnonzero(np.diff(codes, prepend=-2))
    again = pd.Series(codes[starts]).duplicated().to_numpy()
    if again.any():
        raise ValueError(
            f"The rows of a rack or module must be in one piece, row {starts[again][0]} belongs to "
            f"an earlier one: use telemetry.sort_values({col.KEYS})."
        )
    return starts


# ---- first pass: signals ---------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _derive_signals(times, modules, differences, vs_rack, signals):
    """Walk a rack's modules through time together and fill `signals` beyond the readings."""
    n, n_sensors = len(modules) - 1, signals.shape[1] - _LANES
    ahead = modules[:-1].copy()  # the next row of each module
    here = np.empty(n, dtype=np.int64)  # its row at this instant, -1 if none
    last = np.full((n, n_sensors), np.nan, dtype=np.float32)
    seen = np.zeros((n, n_sensors), dtype=np.int64)
    order = np.empty((len(vs_rack), n), dtype=np.int64)
    order[:] = np.arange(n)
    while True:
        now = _NEVER
        for k in range(n):
            if ahead[k] < modules[k + 1]:
                now = min(now, times[ahead[k]])
        if now == _NEVER:
            return
        for k in range(n):
            is_now = ahead[k] < modules[k + 1] and times[ahead[k]] == now
            here[k] = ahead[k] if is_now else -1
            ahead[k] += is_now
            _hold(now, here[k], last[k], seen[k], differences, signals)
        for s in range(len(vs_rack)):
            place = n_sensors + len(differences) + s
            _compare_with_siblings(here, last[:, vs_rack[s]], order[s], signals[:, place])


@njit(cache=True, nogil=True)
def _hold(now, row, last, seen, differences, signals):
    """Update a module's latest readings and write what follows from them."""
    for j in range(len(last)):
        if row >= 0 and not np.isnan(signals[row, j]):
            last[j] = signals[row, j]
            seen[j] = now
        elif now - seen[j] > _CARRY_US:
            last[j] = np.nan
    if row >= 0:
        for j in range(len(last)):
            signals[row, _LANES + j] = last[j]
        for d in range(len(differences)):
            signals[row, len(last) + d] = last[differences[d, 0]] - last[differences[d, 1]]


@njit(cache=True, nogil=True)
def _compare_with_siblings(here, last, order, signal):
    """Write each module's difference from the median of the others.

    One sort serves the whole rack: without the module itself, the ranks above it move down by one.
    """
    n = _sort(last, order)
    low, high = (n - 2) // 2, (n - 1) // 2  # the middle of n - 1 siblings
    for p in range(n if n > 1 else 0):
        k = order[p]
        if here[k] >= 0:
            below = np.float64(last[order[low + (low >= p)]])
            above = np.float64(last[order[high + (high >= p)]])
            signal[here[k]] = last[k] - 0.5 * (below + above)


@njit(cache=True, nogil=True)
def _sort(values, order):
    """Sort `order` by the values, the missing ones last, and count those present.

    Insertion sort, because the order barely changes from one instant to the next.
    """
    n = 0
    for p in range(len(order)):
        k = order[p]
        if np.isnan(values[k]):
            continue
        order[p] = order[n]
        q = n
        while q > 0 and values[order[q - 1]] > values[k]:
            order[q] = order[q - 1]
            q -= 1
        order[q] = k
        n += 1
    return n


# ---- second pass: statistics over windows ----------------------------------------------------
#
# Subtracting old rows from running sums loses digits for good, above all after a spike. So nothing
# is subtracted here: a window has an old part, with stored sums from each of its rows to its end,
# and a new part that is summed row by row. When the old part has left the window, the new one
# becomes old, so each row is added twice, however long the window. Sums are about their own means,
# seven for each signal: count, mean t, mean x, S_tt, S_xx, S_tx, first t. They are merged as in
# Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
# Stanford STAN-CS-79-773 (1979), eq. 2.1. All signals advance together.


@njit(cache=True, nogil=True)
def _roll(times, modules, signals, places, features):
    """Write the features of every row."""
    n_windows = len(_WINDOWS_US)
    old = np.empty((n_windows, 128, 7 * _LANES))
    new = np.empty((n_windows, 7 * _LANES))
    start = np.empty(n_windows, dtype=np.int64)  # first row of the window
    turn = np.empty(n_windows, dtype=np.int64)  # first row of its new part
    last = np.zeros(_LANES)  # when each signal was last read
    grid = np.empty((1 + 3 * n_windows) * _LANES, dtype=np.float32)
    for k in range(len(modules) - 1):
        first = modules[k]
        start[:] = first
        turn[:] = first
        for w in range(n_windows):
            _clear(new[w])
            _clear(old[w, 0])
        for i in range(first, modules[k + 1]):
            t = (times[i] - times[first]) * 1e-6
            for j in range(_LANES):
                last[j] = last[j] if np.isnan(signals[i, j]) else t
                grid[j] = signals[i, j]
            for j in range(signals.shape[1] - _LANES):  # held readings
                grid[j] = signals[i, _LANES + j]
            for w in range(n_windows):
                _add(t, signals[i], new[w])
                while times[i] - times[start[w]] >= _WINDOWS_US[w]:
                    start[w] += 1
                if start[w] > turn[w]:
                    turn[w] = i + 1
                    if turn[w] - start[w] >= old.shape[1]:
                        old = _longer(old, 2 * (turn[w] - start[w]))
                    _turn(times[first : i + 1], signals[first : i + 1], start[w] - first, old[w])
                    _clear(new[w])
                statistics = grid[(1 + 3 * w) * _LANES :]
                age = turn[w] - start[w]
                _summarize(old[w, age], new[w], last, _MIN_SPANS_S[w], statistics)
            for f in range(len(places)):
                features[i, f] = grid[places[f]]


@njit(cache=True, nogil=True)
def _longer(old, n_rows):
    longer = np.empty((old.shape[0], n_rows, old.shape[2]))
    for w in range(old.shape[0]):
        for m in range(old.shape[1]):
            _copy(old[w, m], longer[w, m])
    return longer


@njit(cache=True, nogil=True)
def _turn(times, signals, start, old):
    """Make the rows from `start` on the old part: `old[m]` gets the sums of the last m rows."""
    for m in range(1, len(times) - start + 1):
        i = len(times) - m
        _copy(old[m - 1], old[m])
        _add((times[i] - times[0]) * 1e-6, signals[i], old[m])


@njit(cache=True, nogil=True)
def _copy(source, target):  # compiles 1 s faster than target[:] = source
    for j in range(len(target)):
        target[j] = source[j]


@njit(cache=True, nogil=True)
def _clear(sums):
    sums[:] = 0.0
    sums[6 * _LANES :] = np.inf


@njit(cache=True, nogil=True)
def _add(t, row, sums):
    """Add a reading of every signal at t [s]; a missing one has no weight."""
    for j in range(_LANES):
        there = 0.0 if np.isnan(row[j]) else 1.0
        count = sums[j] + there
        share = there / max(count, 1.0)
        rest = there - share
        dt = t - sums[_LANES + j]
        dx = 0.0 if np.isnan(row[j]) else row[j] - sums[2 * _LANES + j]
        sums[j] = count
        sums[_LANES + j] += dt * share
        sums[2 * _LANES + j] += dx * share
        sums[3 * _LANES + j] += dt * dt * rest
        sums[4 * _LANES + j] += dx * dx * rest
        sums[5 * _LANES + j] += dt * dx * rest
        sums[6 * _LANES + j] = min(sums[6 * _LANES + j], np.inf if np.isnan(row[j]) else t)


@njit(cache=True, nogil=True)
def _summarize(a, b, last, min_span, out):
    """Merge the two parts of a window and write mean, deviation and slope per minute."""
    for j in range(_LANES):
        n = a[j] + b[j]
        share = b[j] / max(n, 1.0)
        rest = a[j] * share
        dt = b[_LANES + j] - a[_LANES + j]
        dx = b[2 * _LANES + j] - a[2 * _LANES + j]
        mean = a[2 * _LANES + j] + dx * share
        s_tt = a[3 * _LANES + j] + b[3 * _LANES + j] + dt * dt * rest
        s_xx = a[4 * _LANES + j] + b[4 * _LANES + j] + dx * dx * rest
        s_tx = a[5 * _LANES + j] + b[5 * _LANES + j] + dt * dx * rest
        span = last[j] - min(a[6 * _LANES + j], b[6 * _LANES + j])
        deviation = np.sqrt(s_xx / max(n - 1.0, 1.0))
        slope = 60.0 * s_tx / max(s_tt, 1e-12)
        out[j] = mean if n > 0.0 else np.nan
        out[_LANES + j] = deviation if n > 1.0 else np.nan
        out[2 * _LANES + j] = slope if n > 1.0 and span >= min_span else np.nan
