from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import randint
from sklearn.base import clone
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import RandomizedSearchCV
from xgboost import XGBClassifier

from hvs_lib import cache, models, search
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_by_rack
from hvs_lib.features import build_features
from hvs_lib.models import make_pipeline, row_weights
from hvs_lib.search import check_search, random_search

SPACE = {"classify__max_depth": randint(1, 6), "classify__n_estimators": randint(5, 40)}


@pytest.fixture(scope="module")
def protocol(make_telemetry):
    telemetry = make_telemetry(racks=12, rows=90, event_racks=tuple(range(8)))
    split = split_by_rack(telemetry, test_size=0.25, n_folds=3, seed=1)
    return Protocol(telemetry, build_features(telemetry), split, normal_stride=3)


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(XGBClassifier(**models.XGBOOST_BY_HAND, random_state=0, n_jobs=1))


def found_by(protocol, pipeline):
    """Return the parameters and the metrics of five candidates."""
    return zip(*random_search(pipeline, protocol, SPACE, n_iter=5, seed=3), strict=True)


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
    params, metrics = found_by(protocol, pipeline)
    assert list(params) == plain.cv_results_["params"]
    ours = [of_one[f"cv_{scoring}"] for of_one in metrics]
    np.testing.assert_allclose(ours, plain.cv_results_["mean_test_score"], rtol=0, atol=1e-9)


def test_each_candidate_has_both_scores_of_each_fold(protocol, pipeline):
    for params, scores in random_search(pipeline, protocol, SPACE, n_iter=5, seed=3):
        settings = clone(pipeline).set_params(**params)
        hazard = []
        for rows, held in protocol.split.folds:
            rows = protocol.fitting_rows(rows)
            stride = protocol.normal_stride
            model = models.fit(settings, protocol.X, protocol.y, rows, normal_stride=stride)
            hazard.append((protocol.y[held], models.hazard_score(model, protocol.X.iloc[held])))
        by_hand = [average_precision_score(*pair) for pair in hazard]
        of_folds = [scores[f"cv_pr_auc_fold_{k}"] for k in (1, 2, 3)]
        assert of_folds == pytest.approx(by_hand, abs=1e-9)
        assert scores["cv_pr_auc_std"] == pytest.approx(np.std(by_hand), abs=1e-9)
        by_hand = [f1_score(y, score >= 0.5) for y, score in hazard]
        of_folds = [scores[f"cv_f1_class1_fold_{k}"] for k in (1, 2, 3)]
        assert of_folds == pytest.approx(by_hand, abs=1e-9)


def test_candidates_come_as_they_are_scored(protocol, pipeline):
    """A search that is stopped half way has logged what it has scored."""
    one_by_one = random_search(pipeline, replace(protocol, n_jobs=1), SPACE, n_iter=10**9, seed=3)
    assert (
        next(one_by_one)[0] == next(random_search(pipeline, protocol, SPACE, n_iter=1, seed=3))[0]
    )
    one_by_one.close()


def test_candidates_that_were_scored_are_not_scored_again(protocol, pipeline, project, monkeypatch):
    fitted = []
    train = search.train
    monkeypatch.setattr(search, "train", lambda *a, **k: fitted.append(1) or train(*a, **k))
    kept = replace(protocol, memory=cache.memory())
    first = random_search(pipeline, kept, SPACE, n_iter=5, seed=3)
    three = [next(first) for _ in range(3)]
    first.close()
    fitted.clear()
    again = list(random_search(pipeline, kept, SPACE, n_iter=5, seed=3))
    assert len(fitted) <= 2 * 3  # two candidates on three folds
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
        ({"scoring": "f1"}, "scoring must be one of f1_class1, pr_auc, got 'f1'"),
        ({"n_iter": 0}, "n_iter must be at least 1, got 0"),
    ],
)
def test_refusals(changed, message):
    good = {"scoring": "pr_auc", "n_iter": 1}
    check_search(**good)
    with pytest.raises(ValueError, match=message):
        check_search(**(good | changed))
