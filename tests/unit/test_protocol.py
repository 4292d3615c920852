from dataclasses import replace
from functools import partial
from itertools import pairwise
from threading import Barrier
from weakref import finalize

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.calibration import Calibration, choose_calibration, fit_platt
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet, thin_rows
from hvs_lib.features import build_features, features_of
from hvs_lib.models import hazard_score, make_pipeline
from hvs_lib.telemetry.codes import rack_codes, site_codes

TABLE = {"racks": 8, "rows": 120, "event_racks": (0, 1, 2, 3, 4)}


@pytest.fixture
def telemetry(make_telemetry):
    return make_telemetry(**TABLE)


@pytest.fixture(scope="module")
def fleet(make_fleet):
    return make_fleet(**TABLE)


def protocol_of(fleet, *, split="auto", **options):
    chosen = split_fleet(fleet.rows, test_size=0.25, n_folds=2, seed=1, split=split)
    options = {"max_nuisance_alarms_per_site_day": 800.0} | options
    return Protocol(fleet, chosen, normal_stride=4, hazard_stride=2, **options)


@pytest.fixture
def protocol(fleet):
    return protocol_of(fleet)


def features(fleet, rows):
    return features_of(fleet, rows, n_jobs=1)


@pytest.fixture
def pipeline():
    return make_pipeline(LogisticRegression(C=0.01))


def rack_of(scores):
    return set(scores[[col.SITE, col.RACK]].astype(str).agg("/".join, axis=1))


def test_every_row_is_judged_and_no_rack_twice(protocol, pipeline):
    found = protocol.assess(pipeline)
    assert len(found.cv_scores) + len(found.test_scores) == len(protocol.fleet.rows)
    assert not rack_of(found.cv_scores) & rack_of(found.test_scores)
    assert found.metrics["cv_tp"] + found.metrics["cv_fn"] == found.cv_scores[col.LABEL].sum()
    assert found.metrics["threshold"] == found.metrics["cv_threshold"] == found.alarm.threshold


@pytest.mark.parametrize("sites", [1, 14])
def test_out_of_fold_scores_come_from_models_that_have_not_seen_the_rack(
    make_telemetry, make_fleet, sites, pipeline
):
    """Other labels in a fold's racks, or sites, change the scores of the others only."""
    table = {"racks": 8, "event_racks": range(5)} if sites == 1 else {
        "sites": sites, "racks": 2, "event_racks": range(0, 2 * sites, 2)
    }  # fmt: skip
    telemetry = make_telemetry(**table)
    before = protocol_of(make_fleet(telemetry))
    held_out = before.split.fold == 0
    poisoned = telemetry.copy()
    poisoned.loc[held_out, col.LABEL] ^= 1
    after = Protocol(make_fleet(poisoned), before.split, normal_stride=4, hazard_stride=2)
    assert before.split.kind == ("rack" if sites == 1 else "site")

    scored = [scores_by_row(each, pipeline) for each in (before, after)]
    np.testing.assert_array_equal(*(scores[held_out] for scores in scored))
    others = before.split.fold == 1
    assert not np.array_equal(*(scores[others] for scores in scored))


def scores_by_row(protocol, pipeline):
    """Scores before calibration, of all rows: out of fold, and of the test rows."""
    fitted, _ = protocol._fit(pipeline)
    scorers = [partial(hazard_score, model) for model in (*fitted[1:], fitted[0])]
    return protocol._score(scorers)[0]


def test_test_racks_touch_neither_threshold_nor_model(protocol, pipeline, telemetry, make_fleet):
    """Nothing that happens in the test racks changes what was chosen."""
    changed = telemetry.copy()
    changed.loc[protocol.split.test, [col.AMBIENT, col.VOC]] += np.float32(30)
    changed.loc[protocol.split.test[:500], col.LABEL] ^= 1
    other = replace(protocol, fleet=make_fleet(changed))
    one, two = protocol.assess(pipeline), other.assess(pipeline)
    assert one.alarm == two.alarm
    pd.testing.assert_frame_equal(one.cv_scores, two.cv_scores)
    np.testing.assert_array_equal(one.raw_cv_scores, two.raw_cv_scores)
    test = features(protocol.fleet, protocol.split.test)
    np.testing.assert_array_equal(hazard_score(one.model, test), hazard_score(two.model, test))
    for name in protocol.training.__dict__:
        one, two = (getattr(each.training, name) for each in (protocol, other))
        np.testing.assert_array_equal(one, two)


def test_threshold_keeps_the_alarm_budget(fleet, pipeline):
    strict = protocol_of(fleet, max_nuisance_alarms_per_site_day=16.0)
    found = strict.assess(pipeline).metrics
    assert found["cv_nuisance_alarms_per_site_day"] <= 16.0
    assert found["cv_event_recall"] > 0


def test_sites_have_as_many_modules_as_on_average(make_telemetry, make_fleet):
    telemetry = make_telemetry(sites=2, racks=4, event_racks=range(8))
    first = (telemetry[col.SITE] == "Site01") & (telemetry[col.RACK] == "RackA1")
    assert protocol_of(make_fleet(telemetry[~first])).modules_per_site == (6 + 8) / 2


def test_random_rows_have_no_alarms(fleet, pipeline):
    found = protocol_of(fleet, split="row").assess(pipeline).metrics
    assert "cv_pr_auc_low" in found
    assert not [name for name in found if "alarm" in name or "event" in name or "lead" in name]


def test_same_seed_same_metrics(protocol, pipeline):
    assert protocol.assess(pipeline).metrics == protocol.assess(pipeline).metrics


def hottest(X):
    """Score rows by their temperature alone."""
    return X[col.TEMP_MAX].to_numpy(np.float64)


def test_reference_keeps_its_own_threshold(protocol):
    found = protocol.assess_reference(hottest, threshold=31.0)
    assert found.alarm == Alarm(AlarmRule(), 31.0)
    assert found.model is None
    assert found.metrics["event_recall"] == 1.0


def test_reference_scores_every_row_and_is_not_calibrated(protocol, telemetry):
    found = protocol.assess_reference(hottest)
    assert found.alarm == protocol.choose_alarm(found.cv_scores)
    readings = telemetry[col.TEMP_MAX].to_numpy(np.float64)
    for scores, rows in ((found.cv_scores, protocol.split.train), (found.test_scores, None)):
        rows = protocol.split.test if rows is None else rows
        np.testing.assert_array_equal(scores["y_score"], readings[rows])
    assert found.calibration.method == "none"
    np.testing.assert_array_equal(found.raw_cv_scores, readings[protocol.training.X.index])


# --- the training rows ---------------------------------------------------------------------------


def test_training_rows_are_thinned_and_weighted_by_their_strides(protocol, telemetry):
    rows, split = protocol.training, protocol.split
    kept = rows.X.index.to_numpy()
    expected = thin_rows(protocol.fleet.rows, split.train, normal_stride=4, hazard_stride=2)
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(rows.y, telemetry[col.LABEL].to_numpy()[kept])
    np.testing.assert_array_equal(rows.weight, np.where(rows.y == 1, 2.0, 4.0))
    np.testing.assert_array_equal(rows.fold, split.fold[kept])
    pd.testing.assert_frame_equal(rows.X, build_features(telemetry).iloc[kept], check_exact=True)
    assert protocol.thinning == 2.0
    of_class = [rows.weight[rows.y == value].sum() for value in (0, 1)]
    everything = telemetry[col.LABEL].iloc[split.train].value_counts()
    assert of_class == pytest.approx([everything[0], everything[1]], rel=0.02)


@pytest.mark.parametrize("sites", [1, 16])
def test_a_share_of_the_sites_or_racks_is_fitted_on_and_all_are_judged(make_fleet, pipeline, sites):
    table = {"racks": 16, "event_racks": range(8)} if sites == 1 else {
        "sites": sites, "racks": 2, "event_racks": range(0, 2 * sites, 2)
    }  # fmt: skip
    fleet = make_fleet(**table, rows=30)
    whole = protocol_of(fleet)
    codes = (rack_codes if sites == 1 else site_codes)(fleet.rows)
    drawn = []
    for share in (0.01, 0.5, 1.0):
        less = replace(whole, share=share)
        rows = less.training
        drawn.append(set(codes[rows.X.index]))
        assert {*rows.fold[rows.y == 1]} == {0, 1}, "each fold has an event"
        np.testing.assert_array_equal(replace(less).training.X.index, rows.X.index)
        for group in drawn[-1]:
            of_group = codes[whole.training.X.index] == group
            assert (codes[rows.X.index] == group).sum() == of_group.sum(), "groups are whole"
    assert all(one < other for one, other in pairwise(drawn)), "a share holds the smaller ones"
    assert (
        replace(whole, share=0.5, seed=1).training.X.index.tolist()
        != replace(whole, share=0.5, seed=2).training.X.index.tolist()
    )
    found = replace(whole, share=0.3).assess(pipeline)
    assert len(found.cv_scores) == len(whole.split.train)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"normal_stride": 0}, "normal_stride must be at least 1, got 0"),
        ({"hazard_stride": 0}, "hazard_stride must be at least 1, got 0"),
        ({"max_nuisance_alarms_per_site_day": 0}, "per_site_day must be above 0, got 0"),
        ({"n_jobs": 0}, "n_jobs must be 1 or more, or -1"),
        ({"share": 0.0}, "share must be above 0 and 1 at most, got 0.0"),
        ({"share": 1.5}, "share must be above 0 and 1 at most, got 1.5"),
        ({"missed_event_costs": -1}, "missed_event_costs must be 0 or more, got -1"),
    ],
)
def test_refusals(protocol, option, message):
    with pytest.raises(ValueError, match=message):
        Protocol(protocol.fleet, protocol.split, **option)


def test_choices_are_made_for_each_model_and_logged_with_it(protocol, pipeline):
    found = protocol.assess(pipeline)
    assert found.alarm.rule in protocol.rules
    assert set(found.calibration.brier) == {"none", "platt"}
    best = min(found.calibration.brier.values())
    assert found.metrics["cv_brier"] == found.calibration.brier[found.calibration.method] == best


@pytest.mark.parametrize("method", ["none", "platt"])
def test_deployable_model_carries_calibration_and_threshold(protocol, pipeline, method):
    found = protocol.assess(pipeline)
    rows = protocol.training
    platt = fit_platt(rows.y, found.raw_cv_scores, rows.weight)
    calibration = Calibration(method, platt if method == "platt" else None, {})
    found = replace(found, calibration=calibration, alarm=Alarm(AlarmRule(), 0.3))
    test = features(protocol.fleet, protocol.split.test)
    model = found.deployable()
    expected = calibration.apply(hazard_score(found.model, test))
    np.testing.assert_array_equal(model.predict_proba(test)[:, 1], expected)
    np.testing.assert_array_equal(model.predict(test), expected >= 0.3)


def test_test_scores_are_those_of_the_deployable_model(protocol, pipeline):
    found = protocol.assess(pipeline)
    test = features(protocol.fleet, protocol.split.test)
    scores = found.deployable().predict_proba(test)[:, 1]
    np.testing.assert_array_equal(found.test_scores["y_score"], scores)


def test_calibration_is_that_of_the_weighted_training_rows(protocol, pipeline):
    found = protocol.assess(pipeline)
    rows = protocol.training
    raw = scores_by_row(protocol, pipeline)
    np.testing.assert_array_equal(found.raw_cv_scores, raw[rows.X.index])
    expected = choose_calibration(rows.y, raw[rows.X.index], rows.fold, rows.weight)
    assert found.calibration.brier == expected.brier
    scores = expected.apply(raw[protocol.split.train])
    np.testing.assert_array_equal(found.cv_scores["y_score"], scores)


def test_a_missed_event_that_costs_much_is_worth_false_alarms(protocol, pipeline):
    costly = replace(protocol, missed_event_costs=1000.0)
    cheap = replace(protocol, missed_event_costs=1e-6)
    caught = [p.assess(pipeline).metrics["cv_n_events_caught"] for p in (costly, cheap)]
    nuisance = [p.assess(pipeline).metrics["cv_n_nuisance_alarms"] for p in (costly, cheap)]
    assert caught[0] >= caught[1]
    assert nuisance[1] == 0


@pytest.fixture(scope="module")
def alone(make_fleet):
    """What comes out on one thread where all telemetry is one partition."""
    fleet = make_fleet(**TABLE, rows_together=10**9)
    assert len(fleet.paths) == 1
    return assessed(fleet, n_jobs=1)


def assessed(fleet, n_jobs):
    protocol = replace(protocol_of(fleet), n_jobs=n_jobs)
    classifiers = LogisticRegression(C=0.01), XGBClassifier(n_estimators=9, n_jobs=1)
    return [protocol.assess(make_pipeline(each)) for each in classifiers]


@pytest.mark.parametrize("n_jobs", [1, 2, 5])
@pytest.mark.parametrize(("rows_together", "partitions"), [(1, 8), (500, 3)])
def test_neither_threads_nor_the_size_of_partitions_change_anything(
    make_fleet, alone, n_jobs, rows_together, partitions
):
    fleet = make_fleet(**TABLE, rows_together=rows_together)
    assert len(fleet.paths) == partitions
    for found, expected in zip(assessed(fleet, n_jobs), alone, strict=True):
        for name in ("cv_scores", "test_scores"):
            pair = getattr(found, name), getattr(expected, name)
            pd.testing.assert_frame_equal(*pair, check_exact=True)
        np.testing.assert_array_equal(found.raw_cv_scores, expected.raw_cv_scores)
        assert found.metrics == expected.metrics
        assert (found.alarm, found.calibration.brier) == (
            expected.alarm, expected.calibration.brier,
        )  # fmt: skip


def test_features_are_of_one_partition_at_a_time(protocol, pipeline, monkeypatch):
    """Nothing holds the features of all rows, nor of more partitions than threads."""
    built, alive, most = [], [0], [0]

    def build(telemetry):
        built.append((telemetry.index[0], telemetry.index[-1] + 1))
        X = build_features(telemetry)
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        finalize(X, lambda: alive.__setitem__(0, alive[0] - 1))
        return X

    monkeypatch.setattr("hvs_lib.features.build_features", build)
    monkeypatch.setattr("hvs_lib.evaluation.protocol.build_features", build)
    one_by_one = replace(protocol, n_jobs=1)
    one_by_one.assess(pipeline)
    starts = protocol.fleet.starts.tolist()
    assert built == list(pairwise(starts)) * 2  # for the training rows, and for the scores
    assert len(starts) > 3
    assert most[0] <= 2  # the last one is let go of as the next is there
    assert len(one_by_one.training.X) < len(protocol.fleet.rows) / 3


def test_folds_are_fitted_side_by_side(protocol):
    """Three threads wait for each other inside a fit: one after the other would never meet."""
    pipeline = make_pipeline(Meeting())
    replace(protocol, n_jobs=3).assess(pipeline)


class Meeting(LogisticRegression):
    """A classifier whose fit waits for the other two."""

    barrier = Barrier(3, timeout=60)

    def fit(self, X, y, sample_weight=None):
        self.barrier.wait()
        return super().fit(X, y, sample_weight)
