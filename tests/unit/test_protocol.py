from dataclasses import replace
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.calibration import Calibration, fit_platt
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_by_rack
from hvs_lib.features import build_features
from hvs_lib.models import hazard_score, make_pipeline


@pytest.fixture
def telemetry(make_telemetry):
    return make_telemetry(racks=8, rows=120, event_racks=(0, 1, 2, 3, 4))


@pytest.fixture
def protocol(telemetry):
    X = build_features(telemetry)
    split = split_by_rack(telemetry, test_size=0.25, n_folds=2, seed=1)
    return Protocol(telemetry, X, split, normal_stride=4, max_false_alarms_per_site_day=800.0)


@pytest.fixture
def pipeline():
    return make_pipeline(LogisticRegression(C=0.01))


def rack_of(scores):
    return set(scores[[col.SITE, col.RACK]].astype(str).agg("/".join, axis=1))


def test_every_row_is_judged_and_no_rack_twice(protocol, pipeline, telemetry):
    found = protocol.assess(pipeline)
    assert len(found.cv_scores) + len(found.test_scores) == len(telemetry)
    assert not rack_of(found.cv_scores) & rack_of(found.test_scores)
    assert found.metrics["cv_tp"] + found.metrics["cv_fn"] == found.cv_scores[col.LABEL].sum()
    assert found.metrics["threshold"] == found.metrics["cv_threshold"] == found.alarm.threshold


def test_out_of_fold_scores_come_from_models_that_have_not_seen_the_rack(protocol, pipeline):
    """Poisoned labels in one fold's racks change the scores of the others only."""
    _, valid_rows = protocol.split.folds[0]
    poisoned = protocol.telemetry.copy()
    label = poisoned[col.LABEL].to_numpy().copy()
    label[valid_rows] = 1 - label[valid_rows]
    poisoned[col.LABEL] = label
    other = Protocol(poisoned, protocol.X, protocol.split, normal_stride=4)
    before, after = protocol.out_of_fold_scores(pipeline), other.out_of_fold_scores(pipeline)
    held_out = np.isin(protocol.split.train, valid_rows)
    np.testing.assert_array_equal(before[held_out], after[held_out])
    assert not np.array_equal(before[~held_out], after[~held_out])


def test_test_racks_touch_neither_threshold_nor_model(protocol, pipeline):
    """Nothing that happens in the test racks changes what was chosen."""
    X = protocol.X.copy()
    X.iloc[protocol.split.test] += 100.0
    other = Protocol(
        protocol.telemetry, X, protocol.split, normal_stride=4, max_false_alarms_per_site_day=800.0
    )
    one, two = protocol.assess(pipeline), other.assess(pipeline)
    assert one.alarm == two.alarm
    pd.testing.assert_frame_equal(one.cv_scores, two.cv_scores)


def test_threshold_keeps_the_alarm_budget(protocol, pipeline, telemetry):
    strict = Protocol(telemetry, protocol.X, protocol.split, max_false_alarms_per_site_day=16.0)
    found = strict.assess(pipeline).metrics
    assert found["cv_false_alarms_per_site_day"] <= 16.0
    per_module = found["cv_false_alarms_per_module_day"]
    assert found["cv_false_alarms_per_site_day"] == pytest.approx(per_module * 16)
    assert found["cv_event_recall"] > 0


def test_random_rows_have_no_alarms(telemetry, protocol, pipeline):
    rows = split_by_rack(telemetry, test_size=0.25, n_folds=2, seed=1, split="row")
    found = Protocol(telemetry, protocol.X, rows, normal_stride=4).assess(pipeline).metrics
    assert "cv_pr_auc_low" in found
    assert not [name for name in found if "alarm" in name or "event" in name or "lead" in name]


def test_same_seed_same_metrics(protocol, pipeline):
    assert protocol.assess(pipeline).metrics == protocol.assess(pipeline).metrics


def test_reference_keeps_its_own_threshold(protocol):
    temperature = protocol.X[col.TEMP_MAX].to_numpy(np.float64)
    found = protocol.assess_reference(lambda rows: temperature[rows], threshold=31.0)
    assert found.alarm == Alarm(AlarmRule(), 31.0)
    assert found.model is None
    assert found.metrics["event_recall"] == 1.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"normal_stride": 0}, "normal_stride must be at least 1, got 0"),
        ({"max_false_alarms_per_site_day": 0}, "per_site_day must be above 0, got 0"),
        ({"missed_event_costs": -1}, "missed_event_costs must be 0 or more, got -1"),
    ],
)
def test_refusals(protocol, option, message):
    with pytest.raises(ValueError, match=message):
        Protocol(protocol.telemetry, protocol.X, protocol.split, **option)


def test_choices_are_made_for_each_model_and_logged_with_it(protocol, pipeline):
    found = protocol.assess(pipeline)
    assert found.alarm.rule in protocol.rules
    assert set(found.calibration.brier) == {"none", "platt"}
    best = min(found.calibration.brier.values())
    assert found.metrics["cv_brier"] == found.calibration.brier[found.calibration.method] == best


@pytest.mark.parametrize("method", ["none", "platt"])
def test_deployable_model_carries_calibration_and_threshold(protocol, pipeline, method):
    found = protocol.assess(pipeline)
    y, raw = protocol.y[protocol.split.train], protocol.out_of_fold_scores(pipeline)
    calibration = Calibration(method, fit_platt(y, raw) if method == "platt" else None, {})
    found = replace(found, calibration=calibration, alarm=Alarm(AlarmRule(), 0.3))
    test = protocol.X.iloc[protocol.split.test]
    model = found.deployable()
    expected = calibration.apply(hazard_score(found.model, test))
    np.testing.assert_array_equal(model.predict_proba(test)[:, 1], expected)
    np.testing.assert_array_equal(model.predict(test), expected >= 0.3)


def test_test_scores_are_those_of_the_deployable_model(protocol, pipeline):
    found = protocol.assess(pipeline)
    test = protocol.X.iloc[protocol.split.test]
    scores = found.deployable().predict_proba(test)[:, 1]
    np.testing.assert_array_equal(found.test_scores["y_score"], scores)


def test_a_missed_event_that_costs_much_is_worth_false_alarms(protocol, pipeline):
    costly = replace(protocol, missed_event_costs=1000.0)
    cheap = replace(protocol, missed_event_costs=1e-6)
    caught = [p.assess(pipeline).metrics["cv_n_events_caught"] for p in (costly, cheap)]
    false = [p.assess(pipeline).metrics["cv_n_false_alarms"] for p in (costly, cheap)]
    assert caught[0] >= caught[1]
    assert false[1] == 0


def test_the_number_of_threads_changes_nothing(protocol, pipeline):
    one, two = (replace(protocol, n_jobs=n).assess(pipeline) for n in (1, 2))
    pd.testing.assert_frame_equal(one.cv_scores, two.cv_scores, check_exact=True)
    pd.testing.assert_frame_equal(one.test_scores, two.test_scores, check_exact=True)
    assert one.metrics == two.metrics


def test_folds_are_fitted_side_by_side(protocol):
    """Both threads wait for each other inside a fit: one after the other would never meet."""
    pipeline = make_pipeline(Meeting())
    replace(protocol, n_jobs=3).out_of_fold_scores(pipeline)


class Meeting(LogisticRegression):
    """A classifier whose fit waits for another fit."""

    barrier = Barrier(2, timeout=60)

    def fit(self, X, y, sample_weight=None):
        self.barrier.wait()
        return super().fit(X, y, sample_weight)
