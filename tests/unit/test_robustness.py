import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, event_table
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.robustness import (
    CHANGES,
    assess_changes,
    resampled,
    with_clocks_apart,
    with_losses,
    with_twice_the_noise,
)
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import TEST, Split
from hvs_lib.features import build_features

ALARM = Alarm(AlarmRule(k=2, n=3), threshold=0.5)


class Hottest(ClassifierMixin, BaseEstimator):
    """Alarms where a module is warmer than its siblings; without them it scores far lower."""

    def predict_proba(self, X):
        excess = X[f"{col.TEMP_MAX}__vs_rack"].to_numpy(float) / 6
        alone = (X[col.TEMP_MAX].to_numpy(float) - 28.5) / 30
        hazard = np.nan_to_num(np.clip(np.where(np.isnan(excess), alone, excess), 0, 1))
        return np.column_stack([1 - hazard, hazard])


@pytest.fixture(scope="module")
def telemetry(make_telemetry):
    return make_telemetry(sites=2, racks=4, modules=3, event_racks=(0, 2, 5), event_rows=24)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


THRESHOLDS = {"all sensors": 0.5, "no gas": 0.5, "no siblings": 0.1}
SETS = {name: {"threshold": value} for name, value in THRESHOLDS.items()}


def protocol_on(fleet, is_test):
    """Judge the racks that are test ones; all others are one fold."""
    fold = np.where(is_test, TEST, 0).astype(np.int8)
    return Protocol(fleet, Split(fold, "rack", 42, {}), n_jobs=1)


@pytest.fixture(scope="module")
def protocol(telemetry, make_fleet):
    fleet = make_fleet(telemetry)
    chosen = telemetry[col.RACK].unique()[:3]
    return protocol_on(fleet, fleet.rows[col.RACK].isin(chosen))


@pytest.fixture(scope="module")
def found(protocol):
    return dict(assess_changes(protocol, Hottest(), ALARM, SETS))


def test_all_sensors_have_the_metrics_of_the_test_racks(found, telemetry, protocol):
    rows = protocol.split.test
    y_score = Hottest().predict_proba(build_features(telemetry))[rows, 1]
    scores = scores_frame(telemetry, rows, y_score)
    metrics = evaluate(scores, ALARM, modules_per_site=12.0)
    assert found["all sensors"]["n_events"] == 3
    for name, value in found["all sensors"].items():
        assert metrics[name] == pytest.approx(value), name


def test_each_set_at_its_own_threshold_and_each_change_is_tried(found):
    assert list(found) == [*SETS, *CHANGES]
    assert found["all sensors"]["event_recall"] == found["no gas"]["event_recall"] == 1
    assert found["no siblings"]["event_recall"] == 1


def test_what_all_sensors_reach_may_be_out_of_reach(protocol):
    found = dict(assess_changes(protocol, Hottest(), ALARM, {"no siblings": SETS["no gas"]}))
    assert found["no siblings"]["event_recall"] == 0


def test_coarse_telemetry_is_not_sampled_every_second(make_telemetry, make_fleet):
    """It would be 60 times as many rows, of all racks of a partition at once."""
    telemetry = make_telemetry(racks=2, interval_s=60.0, event_racks=(0, 1))
    protocol = protocol_on(make_fleet(telemetry), np.arange(len(telemetry)) >= 60)
    told = [name for name, _ in assess_changes(protocol, Hottest(), ALARM, {})]
    assert "a row every 1 s" not in told
    assert told[-1] == "twice the noise" and "a row every 30 s" in told


def test_a_row_is_what_was_last_known_or_lies_between_two(telemetry, rng):
    module = telemetry[:60]
    fine, coarse = resampled(module, rng, seconds=1.0), resampled(module, rng, seconds=30.0)
    assert len(fine) == 10 * (len(module) - 1) + 1
    pd.testing.assert_frame_equal(fine[::10].reset_index(drop=True), module.reset_index(drop=True))
    pd.testing.assert_frame_equal(coarse, module[::3].reset_index(drop=True))
    middle = (module[col.TEMP_MAX].iloc[0] + module[col.TEMP_MAX].iloc[1]) / 2
    assert fine[col.TEMP_MAX][5] == pytest.approx(middle, abs=1e-5)
    whole = resampled(telemetry, rng, seconds=30.0)
    assert whole[col.MODULE].tolist() == telemetry[col.MODULE][::3].tolist()


@pytest.mark.parametrize("seconds", [1.0, 30.0, 60.0])
def test_no_row_is_made_up_in_a_gap(telemetry, rng, seconds):
    """A module that burnt and was replaced: its label window must not last until then."""
    burnt = telemetry[:60]
    assert burnt[col.LABEL].iloc[-1] == 1
    new = telemetry[60:120].assign(**{name: burnt[name].iloc[0] for name in col.KEYS[:3]})
    new[col.TIMESTAMP] += pd.Timedelta(hours=5)
    found = resampled(pd.concat([burnt, new], ignore_index=True), rng, seconds=seconds)
    times = found[col.TIMESTAMP]
    gap = (times > burnt[col.TIMESTAMP].iloc[-1] + pd.Timedelta(seconds=10)) & (
        times < new[col.TIMESTAMP].iloc[0]
    )
    assert not gap.any()
    labelled = times[found[col.LABEL] == 1]
    assert labelled.max() - labelled.min() <= pd.Timedelta(minutes=4, seconds=10)
    assert (times >= new[col.TIMESTAMP].iloc[0]).sum() > 590 / seconds - 1


def test_readings_are_lost_one_by_one(telemetry, rng):
    lost = with_losses(telemetry, rng, share=0.05)[col.SENSORS].isna()
    assert lost.mean().to_numpy() == pytest.approx(0.05, abs=0.02)
    assert lost.any(axis=1).mean() > 0.2


def test_clocks_are_apart_by_module(telemetry, rng):
    apart = with_clocks_apart(telemetry, rng, seconds=5.0)[col.TIMESTAMP] - telemetry[col.TIMESTAMP]
    of_module = apart.groupby(telemetry[col.MODULE], observed=True).nunique()
    assert (of_module == 1).all()
    assert sorted(apart.dt.total_seconds().unique()) == [0.0, 5.0]


def test_the_noise_is_twice_as_large(rng):
    noise = rng.normal(0, 0.3, (6000, len(col.SENSORS))) + 50
    telemetry = pd.DataFrame(noise.astype(np.float32), columns=col.SENSORS)
    found = with_twice_the_noise(telemetry, rng).std()
    np.testing.assert_allclose(found, 0.6, rtol=0.05)


def test_a_sensor_that_is_absent_has_no_noise(telemetry, rng, recwarn):
    found = with_twice_the_noise(telemetry.assign(**{col.CO: np.float32(np.nan)}), rng)
    assert found[col.CO].isna().all()
    assert found[col.H2].notna().all()
    assert not recwarn.list


def test_lead_times_and_counts_add_up_over_the_partitions(found, telemetry):
    lead = event_table(
        scores_frame(
            telemetry, np.arange(len(telemetry)),
            Hottest().predict_proba(build_features(telemetry))[:, 1],
        ),
        ALARM,
    )["lead_time_min"]  # fmt: skip
    assert found["all sensors"]["lead_time_median_min"] == pytest.approx(lead.median())
