"""The features are causal, and equal a plain reference on every kind of sampling."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvs_lib import columns as col
from hvs_lib import features
from hvs_lib.features import (
    NO_SET,
    SENSOR_KINDS,
    SENSOR_SETS,
    build_features,
    feature_names,
    features_of,
    sensor_sets_of,
    with_sensor_set,
)
from hvs_lib.telemetry.codes import rack_codes

START = np.datetime64("2024-03-01T00:00:00", "us")
MODULE_KEYS = [col.SITE, col.RACK, col.MODULE]


def seconds(values):
    return (np.asarray(values) * 1e6).astype(np.int64).astype("timedelta64[us]")


def module_frame(times_s, *, module="M1", rack="R1", site="S1", **sensors):
    """Return one module's telemetry; sensors not given are NaN."""
    n = len(times_s)
    readings = {c: np.full(n, np.nan, dtype=np.float32) for c in col.SENSORS}
    readings |= {c: np.asarray(v, dtype=np.float32) for c, v in sensors.items()}
    ids = {col.SITE: [site] * n, col.RACK: [rack] * n, col.MODULE: [module] * n}
    return pd.DataFrame({col.TIMESTAMP: START + seconds(times_s), **ids, **readings})


def telemetry_of(*frames):
    telemetry = pd.concat(frames, ignore_index=True)
    return telemetry.astype(dict.fromkeys(MODULE_KEYS, "category"))


def irregular_times(rng, n):
    """Return mostly even times [s] with jitter, bursts and gaps longer than every window."""
    steps = rng.choice([0.5, 1.0, 10.0, 30.0, 75.0], size=n, p=[0.1, 0.2, 0.55, 0.1, 0.05])
    steps[rng.random(n) < 0.01] = 900.0
    return np.round(np.cumsum(steps + rng.uniform(0.0, 0.3, n)), 3)


def random_telemetry(seed, *, n=120, racks=2, modules=3, shared_times=False, missing=0.1):
    rng = np.random.default_rng(seed)
    frames = []
    for r in range(racks):
        times = irregular_times(rng, n)
        for m in range(modules):
            if not shared_times:
                times = irregular_times(rng, n)
            sensors = {c: rng.normal(25.0, 3.0, n) for c in col.SENSORS}
            for values in sensors.values():
                values[rng.random(n) < missing] = np.nan
            ids = {"rack": f"R{r}", "module": f"R{r}_M{m}"}
            frames.append(module_frame(times, **ids, **sensors))
    return telemetry_of(*frames)


def assert_same_bits(a, b):
    assert list(a.columns) == list(b.columns)
    np.testing.assert_array_equal(a.to_numpy().view(np.int32), b.to_numpy().view(np.int32))


# ---- plain references ------------------------------------------------------------------------


def reference_rolling(telemetry, minutes, statistic):
    grouped = telemetry.groupby(MODULE_KEYS, observed=True, sort=False)
    rolling = grouped.rolling(f"{minutes}min", on=col.TIMESTAMP)[col.SENSORS]
    return getattr(rolling, statistic)().to_numpy()


def reference_slope(times_s, values, minutes):
    slopes = np.full(len(values), np.nan)
    for i, now in enumerate(times_s):
        inside = (times_s > now - 60 * minutes) & (times_s <= now) & np.isfinite(values)
        t, x = times_s[inside], values[inside].astype(float)
        if len(t) > 1 and np.ptp(t) >= features.MIN_SPAN * 60 * minutes:
            slopes[i] = 60 * np.polyfit(t - now, x, 1)[0]
    return slopes


def held(readings, now):
    """Return the latest reading at `now` that is no older than the carry limit."""
    known = readings[:now].dropna()
    if known.empty or now - known.index[-1] > pd.Timedelta(seconds=features.CARRY_S):
        return np.nan
    return known.iloc[-1]


def reference_vs_rack(rack, name):
    by_time = rack.set_index(col.TIMESTAMP)
    modules = {m: readings[name] for m, readings in by_time.groupby(col.MODULE, observed=True)}
    differences = []
    for module, now in zip(rack[col.MODULE], rack[col.TIMESTAMP], strict=True):
        siblings = [held(readings, now) for m, readings in modules.items() if m != module]
        siblings = [s for s in siblings if np.isfinite(s)]
        median = np.median(siblings) if siblings else np.nan
        differences.append(held(modules[module], now) - median)
    return np.array(differences)


# ---- the frame -------------------------------------------------------------------------------


def test_frame_is_one_float32_block_named_as_documented():
    telemetry = random_telemetry(0).set_index(np.arange(720) + 7)
    X = build_features(telemetry)
    assert list(X.columns) == feature_names()
    assert X.columns.is_unique
    assert X.index.equals(telemetry.index)
    assert (X.dtypes == np.float32).all()
    assert X.to_numpy().flags.c_contiguous
    assert np.shares_memory(X.to_numpy(), X.to_numpy())  # a view, so nothing is copied
    for name in ("__mean_5min", "__std_1min", "__slope_10min", "__vs_rack", "__minus_air"):
        assert col.TEMP_MAX + name in X


def test_argument_is_unchanged_and_not_shared():
    telemetry = random_telemetry(1)
    before = telemetry.copy(deep=True)
    X = build_features(telemetry)
    X.iloc[:, :] = 0.0
    pd.testing.assert_frame_equal(telemetry, before)


def test_absent_or_empty_sensor_gives_nan_columns():
    telemetry = random_telemetry(2)
    empty = telemetry.assign(**{col.CO: np.float32(np.nan)})
    absent = telemetry.drop(columns=col.CO)
    X = build_features(absent)
    assert X.filter(like=col.CO).isna().all(axis=None)
    assert X[f"{col.H2}__mean_5min"].notna().any()
    assert_same_bits(X, build_features(empty))


def test_empty_telemetry_gives_the_same_columns():
    X = build_features(random_telemetry(0).iloc[:0])
    assert X.shape == (0, len(feature_names()))


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_time_unit_does_not_matter(unit):
    times = np.arange(0, 1200, 10)
    telemetry = telemetry_of(module_frame(times, **{col.VOLTAGE: np.sin(times / 100)}))
    other = telemetry.assign(**{col.TIMESTAMP: telemetry[col.TIMESTAMP].dt.as_unit(unit)})
    assert_same_bits(build_features(telemetry), build_features(other))


# ---- causality -------------------------------------------------------------------------------


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.02, 1.0), shared_times=st.booleans())
def test_cutting_off_the_future_changes_no_bit(seed, share, shared_times):
    telemetry = random_telemetry(seed, n=60, shared_times=shared_times)
    past = telemetry[col.TIMESTAMP] <= telemetry[col.TIMESTAMP].quantile(share)
    if not past.any():
        past.iloc[0] = True
    assert_same_bits(build_features(telemetry)[past], build_features(telemetry[past]))


def test_changing_the_future_changes_no_bit():
    telemetry = random_telemetry(3, shared_times=True)
    past = telemetry[col.TIMESTAMP] <= telemetry[col.TIMESTAMP].quantile(0.5)
    changed = telemetry.copy()
    changed.loc[~past, col.SENSORS] = np.float32(-1e4)
    assert_same_bits(build_features(telemetry)[past], build_features(changed)[past])
    assert not build_features(telemetry)[~past].equals(build_features(changed)[~past])


def test_racks_are_independent():
    telemetry = random_telemetry(4, racks=3)
    X = build_features(telemetry)
    for _, rack in telemetry.groupby(col.RACK, observed=True):
        assert_same_bits(X.loc[rack.index], build_features(rack))


# ---- windows against the reference -----------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("minutes", features.WINDOWS_MIN)
def test_mean_and_deviation_equal_pandas(seed, minutes):
    telemetry = random_telemetry(seed, n=400)
    X = build_features(telemetry)
    for statistic, atol in (("mean", 0.0), ("std", 1e-6)):
        expected = reference_rolling(telemetry, minutes, statistic)
        names = [f"{c}__{statistic}_{minutes}min" for c in col.SENSORS]
        np.testing.assert_allclose(X[names], expected, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("minutes", features.WINDOWS_MIN)
def test_slope_equals_polyfit(seed, minutes):
    rng = np.random.default_rng(seed)
    times, values = irregular_times(rng, 300), rng.normal(50.0, 5.0, 300).astype(np.float32)
    values[rng.random(300) < 0.1] = np.nan
    X = build_features(telemetry_of(module_frame(times, **{col.VOLTAGE: values})))
    expected = reference_slope(times, values, minutes)
    assert 20 < np.isfinite(expected).sum() < 300
    got = X[f"{col.VOLTAGE}__slope_{minutes}min"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step_s", [1, 10, 30])
def test_a_ramp_has_its_slope_at_any_sampling(step_s):
    times = np.arange(0, 1800, step_s)
    X = build_features(telemetry_of(module_frame(times, **{col.TEMP_MAX: 20 + times / 120})))
    for minutes in features.WINDOWS_MIN:
        late = X[f"{col.TEMP_MAX}__slope_{minutes}min"][times >= 60 * minutes]
        np.testing.assert_allclose(late, 0.5, rtol=1e-4)


def test_a_constant_has_no_deviation_and_no_slope():
    times = irregular_times(np.random.default_rng(0), 500)
    X = build_features(telemetry_of(module_frame(times, **{col.VOLTAGE: np.full(500, 51.3)})))
    assert (X.filter(like=f"{col.VOLTAGE}__mean_") == np.float32(51.3)).all(axis=None)
    for statistic in ("std", "slope"):
        values = X.filter(like=f"{col.VOLTAGE}__{statistic}_")
        assert (values.isna() | (values == 0.0)).all(axis=None)
        assert values.notna().any().all()


def test_slope_waits_for_enough_of_its_window():
    times = np.arange(0, 900, 10)
    X = build_features(telemetry_of(module_frame(times, **{col.SOC: times / 60})))
    first = X[f"{col.SOC}__slope_5min"].first_valid_index()
    assert times[first] == features.MIN_SPAN * 300
    assert X[f"{col.SOC}__std_5min"].first_valid_index() == 1


@pytest.mark.parametrize("size", [1e4, 1e7])
def test_a_spike_leaves_no_trace(size):
    rng = np.random.default_rng(5)
    times = np.arange(0, 3600, 10.0)
    values = rng.normal(25.0, 0.2, 360)
    spiked = values.copy()
    spiked[100:103] += [size, -size, size]
    clean, after = (
        build_features(telemetry_of(module_frame(times, **{col.TEMP_AVG: v})))
        for v in (values, spiked)
    )
    np.testing.assert_allclose(after[170:], clean[170:], rtol=1e-6, atol=1e-6)
    assert after[f"{col.TEMP_AVG}__std_10min"][102] > size / 10


def test_weeks_of_history_leave_no_trace():
    rng = np.random.default_rng(6)
    times = np.arange(0, 21 * 86_400, 10.0)
    values = 25.0 + np.cumsum(rng.normal(0.0, 0.05, len(times)))
    values[1000] = 1e6
    telemetry = telemetry_of(module_frame(times, **{col.TEMP_AVG: values}))
    tail = build_features(telemetry)[-100:]
    alone = build_features(telemetry[-200:])[-100:]
    np.testing.assert_allclose(tail, alone, rtol=1e-6, atol=1e-7)


def test_many_rows_in_a_window():
    times = np.arange(0, 700, 0.25)
    values = np.random.default_rng(7).normal(0.0, 1.0, len(times)).astype(np.float32)
    X = build_features(telemetry_of(module_frame(times, **{col.CURRENT: values})))
    last = values[-2400:].astype(float)
    row = X.filter(like=col.CURRENT).iloc[-1]
    assert row[f"{col.CURRENT}__mean_10min"] == pytest.approx(last.mean(), rel=1e-5)
    assert row[f"{col.CURRENT}__std_10min"] == pytest.approx(last.std(ddof=1), rel=1e-5)


# ---- missing readings and siblings -----------------------------------------------------------


def test_missing_readings_are_held_for_a_bounded_time():
    times = np.arange(0, 200, 10)
    values = np.full(20, np.nan)
    values[3] = 40.0
    X = build_features(telemetry_of(module_frame(times, **{col.TEMP_MAX: values})))
    known = X[col.TEMP_MAX].notna().to_numpy()
    assert times[known].tolist() == [30, 40, 50, 60, 70, 80, 90]
    assert (X[col.TEMP_MAX][known] == 40.0).all()
    in_window = X[f"{col.TEMP_MAX}__mean_1min"].notna()
    assert times[in_window].tolist() == [30, 40, 50, 60, 70, 80]


def test_a_held_reading_is_not_counted_again():
    X = build_features(telemetry_of(module_frame([0, 10, 20], **{col.SOC: [50, np.nan, 56]})))
    assert X[f"{col.SOC}__mean_5min"].tolist() == [50.0, 50.0, 53.0]


def test_differences_use_held_readings():
    sensors = {col.TEMP_MAX: [30.0, np.nan], col.TEMP_AVG: [29.0, 29.5], col.AMBIENT: [20.0, 21.0]}
    X = build_features(telemetry_of(module_frame([0, 10], **sensors)))
    assert X[f"{col.TEMP_MAX}__minus_air"].tolist() == [10.0, 9.0]
    assert X[f"{col.TEMP_AVG}__minus_air"].tolist() == [9.0, 8.5]
    assert X[f"{col.TEMP_MAX}__minus_avg"].tolist() == [1.0, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("shared_times", [True, False])
@pytest.mark.parametrize("modules", [1, 2, 5, 6])
def test_vs_rack_equals_the_median_of_the_others(modules, shared_times):
    options = {"n": 40, "modules": modules, "shared_times": shared_times, "missing": 0.2}
    telemetry = random_telemetry(8, **options)
    X = build_features(telemetry)
    racks = [rack for _, rack in telemetry.groupby(col.RACK, observed=True)]
    for name in (col.TEMP_MAX, col.SOC):
        expected = np.concatenate([reference_vs_rack(rack, name) for rack in racks])
        np.testing.assert_allclose(X[f"{name}__vs_rack"], expected, rtol=1e-5, atol=1e-5)
        assert (modules > 1) == np.isfinite(expected).any()


def test_vs_rack_statistics_are_of_the_difference():
    telemetry = random_telemetry(9, n=80, shared_times=True)
    X = build_features(telemetry)
    name = f"{col.TEMP_MAX}__vs_rack"
    again = build_features(telemetry.assign(**{col.TEMP_MAX: X[name]}))
    for statistic in ("mean_5min", "slope_10min"):
        expected = again[f"{col.TEMP_MAX}__{statistic}"]
        np.testing.assert_array_equal(X[f"{name}__{statistic}"], expected)


# ---- errors ----------------------------------------------------------------------------------


def test_rows_out_of_order_are_refused():
    telemetry = random_telemetry(10)
    by_time = telemetry.sort_values(col.TIMESTAMP, kind="stable")
    with pytest.raises(ValueError, match=r"in one piece, row \d+ .*sort_values"):
        build_features(by_time)
    with pytest.raises(ValueError, match=rf"{col.TIMESTAMP} must increase .*row 1 .*sort_values"):
        build_features(telemetry[::-1])


@pytest.mark.parametrize("row", [0, 5])
def test_repeated_and_missing_times_are_refused(row):
    telemetry = random_telemetry(11)
    broken = telemetry.copy()
    broken.loc[row, col.TIMESTAMP] = pd.NaT
    with pytest.raises(ValueError, match=f"row {row} has NaT"):
        build_features(broken)
    with pytest.raises(ValueError, match=f"row {row + 1} has .* drop duplicates"):
        build_features(telemetry.iloc[[*range(row + 1), *range(row, 10)]])


@pytest.mark.parametrize("key", [col.RACK, col.TIMESTAMP])
def test_missing_key_is_named(key):
    with pytest.raises(ValueError, match=rf"none named \['{key}'\]"):
        build_features(random_telemetry(12).drop(columns=key))


def test_too_many_signals_are_refused(monkeypatch):
    monkeypatch.setattr(features, "SIGNALS", [f"signal {j}" for j in range(17)])
    with pytest.raises(ValueError, match="room for 16 signals, got 17: raise _LANES"):
        build_features(random_telemetry(13))


@pytest.mark.parametrize(("rows", "n_parts"), [(1, 12), (100, 6), (10_000, 1)])
def test_parts_give_the_same_to_the_bit(rows, n_parts):
    telemetry = random_telemetry(15, n=90, modules=6)
    parts = list(features.features_in_parts(telemetry, rows=rows))
    assert len(parts) == n_parts
    pd.testing.assert_frame_equal(pd.concat(parts), build_features(telemetry), check_exact=True)


# ---- memory ----------------------------------------------------------------------------------


def test_peak_memory_is_below_twice_the_output():
    telemetry = random_telemetry(14, n=2000, modules=8, shared_times=True)
    build_features(telemetry[:10])  # compile outside the measurement
    tracemalloc.start()
    X = build_features(telemetry)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    nbytes = X.to_numpy().nbytes
    assert nbytes < peak < 2 * nbytes


# --- of a fleet ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2, -1])
@pytest.mark.parametrize("rows_together", [1, 500, 10**9])
def test_features_of_some_rows_are_those_of_the_whole_table(
    make_telemetry, make_fleet, rows_together, n_jobs
):
    telemetry = make_telemetry(sites=2, racks=4, modules=3, rows=40)
    telemetry.loc[100:130, col.TEMP_AVG] = np.nan
    whole = build_features(telemetry)
    fleet = make_fleet(telemetry, rows_together=rows_together)
    rng = np.random.default_rng(0)
    scattered = np.sort(rng.choice(len(telemetry), 200, replace=False))
    for rows in (np.arange(len(telemetry)), scattered, np.array([130]), np.arange(110, 700, 3)):
        found = features_of(fleet, rows, n_jobs=n_jobs)
        pd.testing.assert_frame_equal(found, whole.iloc[rows], check_exact=True)


def test_partitions_without_a_wanted_row_are_not_read(make_fleet, monkeypatch):
    fleet = make_fleet(racks=4, rows_together=1)
    read, telemetry = [], type(fleet).telemetry
    monkeypatch.setattr(
        type(fleet), "telemetry", lambda self, k: read.append(k) or telemetry(self, k)
    )
    features_of(fleet, fleet.starts[[1, 3]] + 5)
    assert sorted(read) == [1, 3]


def with_set(telemetry, sensor_set):
    """Take sensors, or the siblings, away before the features are built."""
    for kind in SENSOR_SETS[sensor_set]:
        if kind == "siblings":
            telemetry = telemetry.assign(**{col.RACK: telemetry[col.MODULE]})
        else:
            names = [name for name in SENSOR_KINDS[kind] if name in telemetry]
            telemetry = telemetry.assign(**dict.fromkeys(names, np.nan))
    return telemetry


@pytest.mark.parametrize("sensor_set", SENSOR_SETS)
def test_a_sensor_set_names_the_features_that_a_site_lacks(sensor_set):
    telemetry = random_telemetry(3, missing=0.0)
    less = with_set(telemetry, sensor_set)
    X, lacking = build_features(telemetry), build_features(less)
    pd.testing.assert_frame_equal(with_sensor_set(X, sensor_set), lacking, check_exact=True)
    assert set(sensor_sets_of(less)) == {sensor_set}


def test_each_rack_has_the_largest_set_that_all_its_sensors_make():
    telemetry = random_telemetry(1, racks=4, modules=2, missing=0.0)
    racks = rack_codes(telemetry)
    telemetry.loc[racks == 1, col.VOC] = np.nan  # CO and H2 alone are no gas sensors
    telemetry.loc[racks == 2, [col.SOC, col.CO]] = np.nan
    telemetry.loc[racks == 3, col.TEMP_AVG] = np.nan
    expected = ["all sensors", "no gas", "temperature and siblings", NO_SET]
    assert sensor_sets_of(telemetry) == expected
