from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import randint
from sklearn.base import clone
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import ParameterSampler
from xgboost import XGBClassifier

from hvs_lib import cache, models, search
from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import AlarmRule
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import make_pipeline
from hvs_lib.search import check_search, random_search, score_candidate

SPACE = {"classify__max_depth": randint(1, 6), "classify__n_estimators": randint(5, 40)}


@pytest.fixture(scope="module")
def protocol(make_telemetry, make_fleet):
    telemetry = make_telemetry(racks=12, rows=90, event_racks=tuple(range(8)), event_rows=45)
    for row in telemetry.groupby(col.EVENT_ID, observed=True).head(1).index:  # the build-up
        telemetry.loc[row : row + 14, col.LABEL] = 0
    fleet = make_fleet(telemetry)
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=3, seed=1)
    return Protocol(fleet, split, normal_stride=3, hazard_stride=2)


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(XGBClassifier(**models.XGBOOST_BY_HAND, random_state=0, n_jobs=1))


@pytest.fixture(scope="module")
def folds(protocol):
    """List the thinned rows to fit on and the thinned rows held out, of each fold."""
    fold = protocol.training.fold
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(3)]


def test_candidates_are_those_that_scikit_learn_draws(protocol, pipeline):
    found = [params for params, _ in random_search(pipeline, protocol, SPACE, n_iter=5, seed=3)]
    assert found == list(ParameterSampler(SPACE, 5, random_state=3))


def test_scores_are_those_of_the_whole_pipeline_on_each_fold(protocol, pipeline, folds):
    """Of the thinned rows that are held out, each weighted by the rows that it stands for."""
    rows = protocol.training
    assert set(rows.weight) == {2.0, 3.0}
    for params, scores in random_search(pipeline, protocol, SPACE, n_iter=5, seed=3):
        settings = clone(pipeline).set_params(**params)
        precision, f1 = [], []
        for fitting, held in folds:
            parts = rows.X.iloc[fitting], rows.y[fitting], rows.weight[fitting]
            hazard = models.fit(settings, *parts)[0].predict_proba(rows.X.iloc[held])[:, 1]
            y, weight = rows.y[held], {"sample_weight": rows.weight[held]}
            precision.append(average_precision_score(y, hazard, **weight))
            f1.append(f1_score(y, hazard >= 0.5, **weight))
        for name, by_hand in {"pr_auc": precision, "f1_class1": f1}.items():
            of_folds = [scores[f"cv_{name}_fold_{k}"] for k in (1, 2, 3)]
            assert of_folds == pytest.approx(by_hand, abs=1e-9)
            assert scores[f"cv_{name}"] == pytest.approx(np.mean(by_hand), abs=1e-9)
            assert scores[f"cv_{name}_std"] == pytest.approx(np.std(by_hand), abs=1e-9)


@pytest.mark.slow
def test_candidates_are_scored_on_rows_with_all_their_sensors(make_telemetry, make_fleet, pipeline):
    """As the protocol scores: sensors are dropped from the rows that are fitted on alone.

    Here the gas alone tells an event.
    """
    made = make_telemetry(racks=12, rows=90, event_racks=tuple(range(8)), event_rows=45)
    made = made.assign(**{col.CO: made[col.TEMP_MAX], col.TEMP_MAX: made[col.TEMP_AVG]})
    fleet = make_fleet(made)
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=3, seed=1)
    dropping = Protocol(fleet, split, normal_stride=3, hazard_stride=2, drop_sensors=0.5)
    ((params, scores),) = random_search(pipeline, dropping, SPACE, n_iter=1, seed=3)
    raw = dropping.assess(clone(pipeline).set_params(**params)).raw_cv_scores
    expected = score_candidate(dropping, raw)
    assert 0 < scores["cv_pr_auc"] == pytest.approx(expected["cv_pr_auc"], abs=1e-9)
    assert scores["cv_pr_auc_fold_1"] == pytest.approx(expected["cv_pr_auc_fold_1"], abs=1e-9)


def test_without_a_refractory_time_each_row_above_is_an_alarm(protocol):
    rule = AlarmRule(k=3, n=5, refractory_min=0.0)
    hazard = np.random.default_rng(0).random(len(protocol.training.y))
    every_row = replace(protocol, rules=(rule,), max_nuisance_alarms_per_site_day=1e6)
    assert score_candidate(every_row, hazard)["cv_event_recall_5min"] == 1
    none = replace(every_row, max_nuisance_alarms_per_site_day=1e-6)
    assert score_candidate(none, hazard)["cv_event_recall_5min"] == 0


def test_early_catches_are_counted_at_the_budget(protocol):
    """By hand: each quiet row at or above the threshold stands for its weight in rows."""
    protocol = replace(protocol, max_nuisance_alarms_per_site_day=120.0)
    rows, rng = protocol.training, np.random.default_rng(0)
    hazard = rng.random(len(rows.y)).round(2)
    quiet, alarms_per_row = rows.alarm_on == -1, 10 / (30 * 60)
    budget = protocol.max_nuisance_alarms_per_site_day * protocol.site_days
    nuisance = {
        t: rows.weight[quiet & (hazard >= t)].sum() * alarms_per_row for t in np.unique(hazard)
    }
    threshold = min([t for t, alarms in nuisance.items() if alarms <= budget], default=2.0)
    scores = score_candidate(protocol, hazard)
    assert 0 < scores["cv_event_recall_5min"] < 1, "neither none nor all"
    for number in range(3):
        events = set(rows.alarm_on[(rows.fold == number) & (rows.alarm_on >= 0)])
        early = (rows.lead_min >= 5) & (hazard >= threshold) & (rows.fold == number)
        share = len(set(rows.alarm_on[early])) / len(events)
        assert scores[f"cv_event_recall_5min_fold_{number + 1}"] == pytest.approx(share)


def test_a_looser_budget_catches_more_events_early(protocol):
    hazard = np.random.default_rng(0).random(len(protocol.training.y))
    caught = [
        score_candidate(replace(protocol, max_nuisance_alarms_per_site_day=budget), hazard)
        for budget in (1e-6, 120.0, 1e6)
    ]
    recall = [found["cv_event_recall_5min"] for found in caught]
    assert recall[0] == 0 < recall[1] < recall[2] == 1


def test_a_ratio_that_the_classifier_sets_is_not_weighted_again(protocol, folds):
    by_hand = models.XGBOOST_BY_HAND | {"scale_pos_weight": 4.0}
    pipeline = make_pipeline(XGBClassifier(**by_hand, random_state=0, n_jobs=1))
    ((params, scores),) = random_search(pipeline, protocol, SPACE, n_iter=1, seed=3)
    rows, (fitting, held) = protocol.training, folds[0]
    model = clone(pipeline).set_params(**params).fit(rows.X.iloc[fitting], rows.y[fitting])
    hazard = model.predict_proba(rows.X.iloc[held])[:, 1]
    expected = average_precision_score(rows.y[held], hazard, sample_weight=rows.weight[held])
    assert scores["cv_pr_auc_fold_1"] == pytest.approx(expected, abs=1e-9)


def test_candidates_come_as_they_are_scored(protocol, pipeline):
    """A search that is stopped half way has logged what it has scored."""
    one_by_one = random_search(pipeline, replace(protocol, n_jobs=1), SPACE, n_iter=10**9, seed=3)
    assert (
        next(one_by_one)[0] == next(random_search(pipeline, protocol, SPACE, n_iter=1, seed=3))[0]
    )
    one_by_one.close()


@pytest.mark.slow
def test_candidates_that_were_scored_are_not_scored_again(protocol, pipeline, project, monkeypatch):
    fitted = []
    train = search.train
    monkeypatch.setattr(search, "train", lambda *a, **k: fitted.append(1) or train(*a, **k))
    kept = replace(protocol, memory=cache.memory())
    alone = replace(kept, n_jobs=1)  # other threads would go on after close()
    first = random_search(pipeline, alone, SPACE, n_iter=5, seed=3)
    three = [next(first) for _ in range(3)]
    first.close()
    fitted.clear()
    again = list(random_search(pipeline, kept, SPACE, n_iter=5, seed=3))
    assert len(fitted) == 2 * 3, "two candidates on three folds"
    assert str(again[:3]) == str(three)
    assert str(again) == str(list(random_search(pipeline, protocol, SPACE, n_iter=5, seed=3)))
    other = replace(kept, normal_stride=4)
    fitted.clear()
    list(random_search(pipeline, other, SPACE, n_iter=5, seed=3))
    assert len(fitted) == 5 * 3, "other rows are other folds"


def test_the_number_of_threads_changes_nothing(protocol, pipeline):
    one, two = (
        list(random_search(pipeline, replace(protocol, n_jobs=n), SPACE, n_iter=5, seed=3))
        for n in (1, 2)
    )
    assert str(one) == str(two)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scoring": "f1_clas"}, "scoring must be one of f1_class1, pr_auc, .* mean 'f1_class1'"),
        (
            {"scoring": "f1"},
            "scoring must be one of f1_class1, pr_auc, event_recall_5min, got 'f1'",
        ),
        ({"n_iter": 0}, "n_iter must be at least 1, got 0"),
    ],
)
def test_refusals(changed, message):
    good = {"scoring": "pr_auc", "n_iter": 1}
    check_search(**good)
    with pytest.raises(ValueError, match=message):
        check_search(**(good | changed))
