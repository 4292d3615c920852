"""Each sensor set has the threshold that keeps the alarm budget out of fold."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, best_alarm
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.robustness import assess_sensor_sets
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.features import SENSOR_SETS, build_features, with_sensor_set

ALARM = Alarm(AlarmRule(k=2, n=3), threshold=0.5)
BUDGET = 300.0  # a site-day


class Warm(ClassifierMixin, BaseEstimator):
    """Scores the excess over the siblings; without them the temperature, far lower."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def predict_proba(self, X):
        excess = X[f"{col.TEMP_MAX}__vs_rack"].to_numpy(float) / 6
        alone = (X[col.TEMP_MAX].to_numpy(float) - 28.5) / 30
        hazard = self.factor * np.clip(np.where(np.isnan(excess), alone, excess), 0, 0.9)
        return np.column_stack([1 - hazard, hazard])


@pytest.fixture(scope="module")
def protocol(make_telemetry, make_fleet):
    telemetry = make_telemetry(
        sites=2, racks=8, modules=3, event_rows=24, event_racks=range(12), look_alike_racks=(13, 14)
    )
    fleet = make_fleet(telemetry, rows_together=500)
    split = split_fleet(fleet.rows, n_folds=2, split="rack")
    return Protocol(fleet, split, max_nuisance_alarms_per_site_day=BUDGET, n_jobs=1)


MODELS = [Warm(), Warm(factor=0.9)]


@pytest.fixture(scope="module")
def sets(protocol):
    return assess_sensor_sets(protocol, MODELS, ALARM)


def scored(protocol, sensor_set):
    """Score every training row at once by the model without its fold."""
    fleet, train, fold = protocol.fleet, protocol.split.train, protocol.split.fold
    telemetry = pd.concat([fleet.telemetry(number) for number in range(len(fleet.paths))])
    X = with_sensor_set(build_features(telemetry), sensor_set)
    of_fold = np.array([model.predict_proba(X)[:, 1] for model in MODELS])
    return scores_frame(fleet.rows, train, of_fold[fold[train], train])


@pytest.mark.parametrize("name", ["no gas", "no siblings", "temperature alone"])
def test_the_threshold_catches_as_many_as_the_best_within_the_budget(protocol, sets, name):
    scores, per_site = scored(protocol, name), {"modules_per_site": protocol.modules_per_site}
    best = best_alarm(
        scores, max_nuisance_alarms_per_site_day=BUDGET, rules=[ALARM.rule], **per_site
    )
    expected = evaluate(scores, best, **per_site)
    found = evaluate(scores, replace(ALARM, threshold=sets[name]["threshold"]), **per_site)
    assert found["nuisance_alarms_per_site_day"] <= BUDGET
    assert found["event_recall"] == expected["event_recall"] > 0.5
    assert sets[name] == pytest.approx({n: found[n] for n in sets[name]})
    assert len(sets[name]) > 10


def test_with_all_sensors_the_threshold_stays(protocol, sets):
    assert list(sets) == list(SENSOR_SETS)
    assert sets["all sensors"]["threshold"] == ALARM.threshold
    found = evaluate(
        scored(protocol, "all sensors"), ALARM, modules_per_site=protocol.modules_per_site
    )
    assert sets["all sensors"]["event_recall"] == found["event_recall"]
    assert sets["no siblings"]["threshold"] < 0.3 < ALARM.threshold, "out of reach without siblings"
