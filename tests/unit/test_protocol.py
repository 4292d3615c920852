from dataclasses import replace
from itertools import pairwise
from threading import Barrier
from weakref import finalize

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib import models
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.calibration import (
    calibrate,
    choose_calibration,
    fit_platt,
    weigh_by_limits,
)
from hvs_lib.evaluation.protocol import BUILD_UP, Fits, Protocol
from hvs_lib.evaluation.splits import split_fleet, thin_rows
from hvs_lib.features import build_features, features_of, with_sensor_set
from hvs_lib.models import make_pipeline
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
@pytest.mark.slow
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
    poisoned.loc[held_out & (poisoned.index % 60 >= 20), col.LABEL] = 1  # to each module's end
    after = Protocol(make_fleet(poisoned), before.split, normal_stride=4, hazard_stride=2)
    assert before.split.kind == ("rack" if sites == 1 else "site")

    scored = [scores_by_row(each, pipeline) for each in (before, after)]
    np.testing.assert_array_equal(*(scores[held_out] for scores in scored))
    others = before.split.fold == 1
    assert not np.array_equal(*(scores[others] for scores in scored))


def scores_by_row(protocol, pipeline):
    """Scores before calibration, of all rows: out of fold, and of the test rows."""
    return protocol._score([protocol.fit(pipeline)])[0]


@pytest.mark.slow
def test_test_racks_touch_neither_threshold_nor_model(protocol, pipeline, telemetry, make_fleet):
    """Nothing that happens in the test racks changes what was chosen."""
    changed = telemetry.copy()
    changed.loc[protocol.split.test, [col.AMBIENT, col.VOC]] += np.float32(30)
    changed.loc[protocol.split.test, col.LABEL] = 1
    other = replace(protocol, fleet=make_fleet(changed))
    one, two = protocol.assess(pipeline), other.assess(pipeline)
    assert one.alarm == two.alarm
    pd.testing.assert_frame_equal(one.cv_scores, two.cv_scores)
    np.testing.assert_array_equal(one.raw_cv_scores, two.raw_cv_scores)
    test = features(protocol.fleet, protocol.split.test)
    np.testing.assert_array_equal(one.model.predict_proba(test), two.model.predict_proba(test))
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


def assess_reference(protocol, score, **options):
    """Assess one rule that is not fitted."""
    ((_, found),) = protocol.assess_all({"rule": Fits(reference=score, **options)})
    return found


def test_models_assessed_together_are_assessed_as_alone(protocol, pipeline):
    fits = {"model": protocol.fit(pipeline), "rule": Fits(reference=hottest)}
    together = dict(protocol.assess_all(fits))
    assert list(together) == ["model", "rule"]
    alone = {"model": protocol.assess(pipeline), "rule": assess_reference(protocol, hottest)}
    for name, found in together.items():
        assert found.metrics == alone[name].metrics
        pd.testing.assert_frame_equal(found.cv_scores, alone[name].cv_scores, check_exact=True)


def test_reference_keeps_its_own_threshold(protocol):
    found = assess_reference(protocol, hottest, threshold=31.0)
    assert found.alarm == Alarm(AlarmRule(), 31.0)
    assert found.model is None
    assert found.metrics["event_recall"] == 1.0


def test_reference_scores_every_row_and_is_not_calibrated(protocol, telemetry):
    found = assess_reference(protocol, hottest)
    assert found.alarm == protocol.choose_alarm(found.cv_scores)
    readings = telemetry[col.TEMP_MAX].to_numpy(np.float64)
    for scores, rows in ((found.cv_scores, protocol.split.train), (found.test_scores, None)):
        rows = protocol.split.test if rows is None else rows
        np.testing.assert_array_equal(scores["y_score"], readings[rows])
    assert (found.calibrator, found.brier) == (None, {})
    np.testing.assert_array_equal(found.raw_cv_scores, readings[protocol.training.X.index])


def test_limits_weigh_every_score_and_are_logged_with_the_model(protocol, pipeline, telemetry):
    fits = protocol.fit(pipeline)
    both = {"plain": fits, "limits": replace(fits, limit_power=3.0)}
    found, X = dict(protocol.assess_all(both)), build_features(telemetry)
    kept = protocol.training.X.index
    plain, weighed = (found[name].raw_cv_scores for name in both)
    np.testing.assert_array_equal(weighed, weigh_by_limits(plain, X.loc[kept], 3.0))
    test = X.iloc[protocol.split.test]
    deployed = found["limits"].deployable().predict_proba(test)[:, 1]
    np.testing.assert_allclose(deployed, found["limits"].test_scores["y_score"], atol=1e-12)
    assert not np.allclose(deployed, found["plain"].test_scores["y_score"])


def test_models_that_impute_otherwise_share_nothing(protocol, pipeline):
    """A model of a share of the racks has other medians than one of all."""
    alone = protocol._score([protocol.fit(pipeline, share=0.5)])[0]
    beside = protocol._score([protocol.fit(pipeline), protocol.fit(pipeline, share=0.5)])[1]
    np.testing.assert_array_equal(alone, beside)


def at_intervals(make_telemetry, seconds):
    """Make a site with events for each interval between rows."""
    parts = [
        make_telemetry(racks=3, rows=240, interval_s=s, event_racks=(0, 1, 2)).assign(
            **{col.SITE: f"Site{k}"}
        )
        for k, s in enumerate(seconds)
    ]
    return pd.concat(parts, ignore_index=True)


def test_intervals_are_those_of_a_usual_module_and_of_the_training_sites(
    make_telemetry, make_fleet
):
    table = at_intervals(make_telemetry, (1.0, 10.0, 10.0, 30.0))
    sparse = table[(table[col.SITE] == "Site1") & (table[col.MODULE] == "RackA1_Module01")]
    table = table.drop(sparse.index[1:-1])  # a module with two rows far apart tells nothing
    protocol = protocol_of(make_fleet(table))
    assert protocol.interval_s == 10.0
    sites = set(protocol.fleet.rows[col.SITE].iloc[protocol.split.train])
    seconds = {"Site0": 1.0, "Site1": 10.0, "Site2": 10.0, "Site3": 30.0}
    found = [seconds[site] for site in sites]
    assert protocol.intervals_s == (min(found), max(found))


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


def with_build_up(make_telemetry):
    """Give each event ten more rows before its label window, in its Event_ID."""
    telemetry = make_telemetry(**TABLE)
    first = telemetry.groupby(col.EVENT_ID, observed=True).head(1).index
    for row in first:
        telemetry.loc[row - 10 : row, [col.EVENT_ID, col.EVENT_TYPE]] = telemetry.loc[
            row, [col.EVENT_ID, col.EVENT_TYPE]
        ].to_numpy()
    return telemetry


def test_the_build_up_of_events_is_fitted_as_asked(make_telemetry, make_fleet, pipeline):
    protocol = protocol_of(make_fleet(with_build_up(make_telemetry)))
    rows, table = protocol.training, protocol.fleet.rows
    named = table[col.EVENT_ID].notna().to_numpy()[rows.X.index]
    build_up = named & (rows.y == 0)
    assert build_up.sum() > 4
    fitted = {name: rows.to_fit(name) for name in BUILD_UP}
    for name, (kept, y) in fitted.items():
        np.testing.assert_array_equal(kept, ~build_up | (name != "left out"))
        np.testing.assert_array_equal(y, rows.y | (build_up & (name == "hazard")))
    alone = [
        models.fit(pipeline, rows.X[kept], y[kept], rows.weight[kept])[0]
        for kept, y in fitted.values()
    ]
    for name, model in zip(BUILD_UP, alone, strict=True):
        expected = model.predict_proba(rows.X)
        found = protocol.fit(pipeline, build_up=name).models[-1]
        np.testing.assert_array_equal(found.predict_proba(rows.X), expected)
    with pytest.raises(ValueError, match="build_up must be one of normal, left out, hazard, got"):
        protocol.fit(pipeline, build_up="some")


def test_training_rows_know_the_time_to_the_point_of_no_return(make_telemetry, make_fleet):
    protocol = protocol_of(make_fleet(with_build_up(make_telemetry)))
    rows = protocol.training
    on_event = rows.alarm_on >= 0
    assert (rows.y[~on_event] == 0).all()
    assert np.isnan(rows.lead_min[~on_event]).all()
    last = 22 * 10 / 60 + 20 / 60  # the label ends 30 s before the PNR
    assert 0.5 <= rows.lead_min[on_event].min() < rows.lead_min[on_event].max() <= last


def test_sensors_are_dropped_from_training_rows_and_from_no_others(fleet, protocol, pipeline):
    dropping = replace(protocol, drop_sensors=0.3)
    whole, X = protocol.training.X, dropping.training.X
    changed = ~(X.eq(whole) | (X.isna() & whole.isna()))
    assert X.to_numpy()[changed].size
    assert np.isnan(X.to_numpy()[changed]).all()
    gas = whole.columns[with_sensor_set(whole, "no gas").isna().all()]
    without_gas = X[gas].isna().all(axis=1)
    assert 0.1 < without_gas.mean() < 0.5
    assert not changed.loc[~without_gas, gas].any(axis=None), "all of a kind or nothing"
    pd.testing.assert_frame_equal(dropping.training.X, replace(dropping).training.X)
    assert dropping.key != protocol.key
    fits = dropping.fit(pipeline)
    np.testing.assert_array_equal(dropping._score([fits]), protocol._score([fits]))


@pytest.mark.parametrize("build_up", ["left out", "hazard"])
def test_telemetry_of_nothing_but_build_up_needs_it_as_normal_rows(make_fleet, pipeline, build_up):
    """Without Event_ID the build-up is the hour before the PNR: all there is of each module."""
    fleet = make_fleet(racks=8, modules=1, event_racks=range(8), event_ids=False)
    with pytest.raises(ValueError, match=f"build_up .* got '{build_up}' and none in fold 1"):
        protocol_of(fleet).fit(pipeline, build_up=build_up)
    assert protocol_of(fleet).assess(pipeline).metrics["n_events"] == 2


def test_a_fold_that_thinning_leaves_without_a_hazardous_row_is_refused(make_fleet):
    fleet = make_fleet(racks=8, rows=90, event_rows=2)
    protocol = Protocol(fleet, split_fleet(fleet.rows), normal_stride=3, hazard_stride=3)
    with pytest.raises(ValueError, match=r"hazard_stride must .* got 3 and none in fold 2"):
        protocol.assess(make_pipeline(LogisticRegression()))
    assert set(replace(protocol, hazard_stride=1).training.fold) == {0, 1, 2}


def test_a_fold_that_has_no_normal_row_at_all_is_refused(telemetry, make_fleet, pipeline):
    chosen = split_fleet(telemetry, n_folds=2)
    quiet = (telemetry[col.LABEL] == 0) & (chosen.fold == 0)
    fleet = make_fleet(telemetry[~quiet])
    chosen = replace(chosen, fold=chosen.fold[~quiet])
    with pytest.raises(ValueError, match=r"normal_stride .* got 1 and none in fold 1: use fewer"):
        Protocol(fleet, chosen, normal_stride=1).assess(pipeline)


@pytest.mark.parametrize("sites", [1, 16])
@pytest.mark.slow
def test_a_share_of_the_sites_or_racks_is_fitted_on_and_all_are_judged(make_fleet, pipeline, sites):
    table = {"racks": 16, "event_racks": range(8)} if sites == 1 else {
        "sites": sites, "racks": 2, "event_racks": range(0, 2 * sites, 2)
    }  # fmt: skip
    fleet = make_fleet(**table, rows=30)
    whole = protocol_of(fleet)
    codes = (rack_codes if sites == 1 else site_codes)(fleet.rows)
    drawn, rows = [], whole.training
    of_row = codes[rows.X.index]
    for share in (0.01, 0.5, 1.0):
        kept = whole.drawn(share, rows)
        drawn.append(set(of_row[kept]))
        assert {*rows.fold[kept & (rows.y == 1)]} == {0, 1}, "each fold has an event"
        np.testing.assert_array_equal(whole.drawn(share, rows), kept)
        assert not drawn[-1] & set(of_row[~kept]), "groups are whole"
    assert all(one < other for one, other in pairwise(drawn)), "a share holds the smaller ones"
    drawn = [replace(whole, seed=seed).drawn(0.5, rows).tolist() for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    fits = {f"{share}": whole.fit(pipeline, share=share) for share in (0.3, 1.0)}
    found = dict(whole.assess_all(fits))
    assert len(found["0.3"].cv_scores) == len(whole.split.train)
    assert found["1.0"].metrics == whole.assess(pipeline).metrics
    assert found["0.3"].metrics != found["1.0"].metrics
    with pytest.raises(ValueError, match=r"share must be above 0 and at most 1, got 0"):
        whole.fit(pipeline, share=0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"normal_stride": 0}, "normal_stride must be at least 1, got 0"),
        ({"hazard_stride": 0}, "hazard_stride must be at least 1, got 0"),
        ({"max_nuisance_alarms_per_site_day": 0}, "per_site_day must be above 0, got 0"),
        ({"n_jobs": 0}, "n_jobs must be 1 or more, or -1"),
        ({"missed_event_costs": -1}, "missed_event_costs must be finite, 0 or more, got -1"),
        ({"missed_event_costs": np.inf}, "missed_event_costs must be finite, .* got inf"),
    ],
)
def test_refusals(protocol, option, message):
    with pytest.raises(ValueError, match=message):
        Protocol(protocol.fleet, protocol.split, **option)


def test_choices_are_made_for_each_model_and_logged_with_it(protocol, pipeline):
    found = protocol.assess(pipeline)
    assert found.alarm.rule in protocol.rules
    assert set(found.brier) == {"none", "platt"}
    chosen = found.brier[found.calibration]
    assert found.metrics["cv_brier"] == chosen == min(found.brier.values())


@pytest.mark.parametrize("calibrated", [False, True])
def test_deployable_model_carries_calibrator_and_threshold(protocol, pipeline, calibrated):
    found = protocol.assess(pipeline)
    rows = protocol.training
    platt = fit_platt(rows.y, found.raw_cv_scores, rows.weight) if calibrated else None
    found = replace(found, calibrator=platt, alarm=Alarm(AlarmRule(), 0.3))
    test = features(protocol.fleet, protocol.split.test)
    model = found.deployable()
    expected = calibrate(platt, found.model.predict_proba(test)[:, 1].astype(float))
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
    calibrator, brier = choose_calibration(rows.y, raw[rows.X.index], rows.fold, rows.weight)
    assert found.brier == brier
    scores = calibrate(calibrator, raw[protocol.split.train])
    np.testing.assert_array_equal(found.cv_scores["y_score"], scores)


@pytest.mark.slow
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
@pytest.mark.slow
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
        assert (found.alarm, found.brier) == (expected.alarm, expected.brier)


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
