from hvs_lib import models, search
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_by_rack
from hvs_lib.features import build_features
from hvs_lib.models import make_pipeline, row_weights
from hvs_lib.search import (
    CandidateScorer,
    SharedFoldClassifier,
    SharedFolds,
    check_search,
)

import joblib
import numpy as np
import pytest
from scipy.stats import randint
from sklearn.base import clone
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import RandomizedSearchCV
from xgboost import XGBClassifier

SPACE = {"classify__max_depth": randint(1, 6), "classify__n_estimators": randint(5, 40)}


@pytest.fixture(scope="module")
def protocol(make_telemetry):
    telemetry = make_telemetry(racks=12, rows=90, event_racks=tuple(range(8)))
    split = split_by_rack(telemetry, test_size=0.25, n_folds=3, seed=1)
    return Protocol(telemetry, build_features(telemetry), split, normal_stride=3)


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(XGBClassifier(**models.XGBOOST_BY_HAND, random_state=0, n_jobs=1))


def scorer_into(seen, folds, scoring="f1_class1"):
    return CandidateScorer(scoring, folds, on_candidate=lambda *found: seen.append(found))


def search_shared(protocol, pipeline, *, scoring="f1_class1", n_jobs=2, **options):
    seen, folds = [], SharedFolds(pipeline, protocol, names=SPACE, **options)
    tuner = RandomizedSearchCV(
        SharedFoldClassifier(pipeline[-1], folds), SPACE, n_iter=5, cv=folds.cv, refit=False,
        scoring=scorer_into(seen, folds, scoring), random_state=3, n_jobs=n_jobs,
        error_score="raise",
    )  # fmt: skip
    with joblib.parallel_config(backend="threading"):
        tuner.fit(np.arange(len(protocol.X))[:, None], protocol.y)
    return tuner.cv_results_, seen


@pytest.mark.parametrize(
    ("scoring", "theirs"), [("f1_class1", "f1"), ("pr_auc", "average_precision")]
)
def test_same_candidates_and_scores_as_scikit_learn_on_the_whole_pipeline(
    protocol, pipeline, scoring, theirs
):
    plain = RandomizedSearchCV(
        pipeline, SPACE, n_iter=5, scoring=theirs, refit=False, random_state=3,
        cv=[(protocol.fitting_rows(rows), held) for rows, held in protocol.split.folds],
    )  # fmt: skip
    weights = row_weights(pipeline, protocol.y, normal_stride=protocol.normal_stride)
    plain.fit(protocol.X, protocol.y, classify__sample_weight=weights)
    ours, _ = search_shared(protocol, pipeline, scoring=scoring)
    assert ours["params"] == plain.cv_results_["params"]
    np.testing.assert_allclose(
        ours["mean_test_score"], plain.cv_results_["mean_test_score"], rtol=0, atol=1e-9
    )


def test_each_candidate_is_reported_once_with_both_scores(protocol, pipeline):
    results, seen = search_shared(protocol, pipeline)
    assert [number for number, *_ in seen] == [1, 2, 3, 4, 5]
    for _, params, scores in seen:
        place = results["params"].index(params)
        assert scores["cv_f1_class1"] == pytest.approx(results["mean_test_score"][place])
        settings = clone(pipeline).set_params(**params)
        hazard = [
            (
                protocol.y[held],
                models.hazard_score(protocol.fit(settings, rows), protocol.X.iloc[held]),
            )
            for rows, held in protocol.split.folds
        ]
        by_hand = [average_precision_score(*pair) for pair in hazard]
        of_folds = [scores[f"cv_pr_auc_fold_{k}"] for k in (1, 2, 3)]
        assert of_folds == pytest.approx(by_hand, abs=1e-9)
        assert scores["cv_pr_auc_std"] == pytest.approx(np.std(by_hand), abs=1e-9)
        by_hand = [f1_score(y, score >= 0.5) for y, score in hazard]
        of_folds = [scores[f"cv_f1_class1_fold_{k}"] for k in (1, 2, 3)]
        assert of_folds == pytest.approx(by_hand, abs=1e-9)


def test_candidates_scored_before_are_not_fitted_again(protocol, pipeline, monkeypatch):
    """The scores come back to the bit, whatever the store turns parameters into."""
    results, seen = search_shared(protocol, pipeline)
    fitted = []
    train = search.train
    monkeypatch.setattr(search, "train", lambda *a, **k: fitted.append(1) or train(*a, **k))
    scored = [({name: str(v) for name, v in params.items()}, m) for _, params, m in seen[:3]]
    again, seen_again = search_shared(protocol, pipeline, scored=scored)
    assert len(fitted) == 2 * 3  # two candidates on three folds
    np.testing.assert_array_equal(again["mean_test_score"], results["mean_test_score"])
    assert {str(found[1:]) for found in seen_again} == {str(found[1:]) for found in seen}
    unfinished = [(params, {"cv_pr_auc": m["cv_pr_auc"]}) for params, m in scored]
    fitted.clear()
    search_shared(protocol, pipeline, scored=unfinished)
    assert len(fitted) == 5 * 3


def test_the_number_of_threads_changes_nothing(protocol, pipeline):
    one, two = (search_shared(protocol, pipeline, n_jobs=n)[0] for n in (1, 2))
    np.testing.assert_array_equal(one["mean_test_score"], two["mean_test_score"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scoring": "f1_clas"}, "scoring must be one of f1_class1, pr_auc, .* mean 'f1_class1'"),
        ({"scoring": "f1"}, "scoring must be one of f1_class1, pr_auc, got 'f1'"),
        ({"n_iter": 0}, "n_iter must be at least 1, got 0"),
    ],
)
def test_refusals(changed, message):
    good = {"scoring": "pr_auc", "n_iter": 1}
    check_search(**good)
    with pytest.raises(ValueError, match=message):
        check_search(**(good | changed))
