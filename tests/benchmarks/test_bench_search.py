"""What sharing the prepared folds saves."""

import joblib
import pytest
from sklearn.model_selection import PredefinedSplit, RandomizedSearchCV
from xgboost import XGBClassifier

from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import XGBOOST_BY_HAND, XGBOOST_SEARCH_SPACE, make_pipeline
from hvs_lib.search import random_search
from hvs_lib.telemetry.fleet import load_fleet

COMMON = {"refit": False, "random_state": 42, "n_jobs": 2, "error_score": "raise"}


@pytest.fixture(scope="module")
def protocol():
    fleet = load_fleet(sites=12, seed=42)
    return Protocol(fleet, split_fleet(fleet.rows))


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline(XGBClassifier(**XGBOOST_BY_HAND, random_state=42, n_jobs=1))


def plain(protocol, pipeline, scoring, n_iter):
    """Fit the whole pipeline for each candidate and fold."""
    rows = protocol.training
    theirs = {"f1_class1": "f1", "pr_auc": "average_precision"}[scoring]
    search = RandomizedSearchCV(
        pipeline,
        XGBOOST_SEARCH_SPACE,
        n_iter=n_iter,
        scoring=theirs,
        cv=PredefinedSplit(rows.fold),
        **COMMON,
    )
    return search.fit(rows.X, rows.y, classify__sample_weight=rows.weight).best_score_


def shared(protocol, pipeline, scoring, n_iter):
    """Prepare and bin each fold once."""
    search = random_search(pipeline, protocol, XGBOOST_SEARCH_SPACE, n_iter=n_iter, seed=42)
    return max(metrics[f"cv_{scoring}"] for _, metrics in search)


@pytest.mark.parametrize("scoring", ["f1_class1", "pr_auc"])
@pytest.mark.parametrize("how", [plain, shared])
def test_search(benchmark, protocol, pipeline, scoring, how):
    def search():
        with joblib.parallel_config(backend="threading"):
            return how(protocol, pipeline, scoring, 20)

    best = benchmark.pedantic(search, rounds=1)
    benchmark.extra_info["best out-of-fold score"] = round(float(best), 3)
    print(f"{how.__name__} by {scoring}: {best:.3f}")
