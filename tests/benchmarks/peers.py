"""FLAML and AutoGluon beside the search of 02_tuning: same features, folds and wall time.

`make bench-peers` runs it in an environment of its own. Each contender searches on the thinned
training rows, with the folds of the workbook as its cross-validation and average precision as its
goal, until the time is up. What it found is then judged by the protocol: refitted on each fold,
scored on every row of the fold left out. Only the search is timed. The test sites are not looked
at.
"""

from __future__ import annotations

import datetime
import logging
import tempfile
import time
from importlib.metadata import version

import click
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import BaseCrossValidator
from xgboost import XGBClassifier

from hvs_lib import models
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.evaluation.uncertainty import paired_differences
from hvs_lib.models import XGBOOST_BY_HAND, XGBOOST_SEARCH_SPACE, make_pipeline
from hvs_lib.report.tables import cell
from hvs_lib.search import random_search
from hvs_lib.telemetry.fleet import load_fleet

PACKAGES = ("flaml", "autogluon.tabular", "scikit-learn", "xgboost", "pandas")

# FLAML's XGBoost learners call XGBoost 2, and its newer releases do not install beside XGBoost 3.
FLAML_LEARNERS = ["lgbm", "rf", "extra_tree"]


class Folds(BaseCrossValidator):
    """The workbook's folds, within the thinned training rows."""

    def __init__(self, fold: np.ndarray):
        self.fold = fold

    def get_n_splits(self, X=None, y=None, groups=None) -> int:
        """Count the folds."""
        return int(self.fold.max()) + 1

    def _iter_test_indices(self, X=None, y=None, groups=None):
        for number in range(self.get_n_splits()):
            yield np.flatnonzero(self.fold == number)


class AutoGluon(ClassifierMixin, BaseEstimator):
    """AutoGluon's best model and its settings, refitted as any estimator.

    Parameters
    ----------
    hyperparameters : what the search has chosen; AutoGluon's own form.
    """

    def __init__(self, hyperparameters: dict):
        self.hyperparameters = hyperparameters

    def fit(self, X, y, sample_weight=None):
        """Fit the chosen models, without a search."""
        from autogluon.tabular import TabularPredictor

        self.classes_ = np.array([0, 1])
        weighted = {} if sample_weight is None else {"sample_weight": "weight"}
        table = _table(X, y, sample_weight)
        self.folder_ = tempfile.mkdtemp()
        self.predictor_ = TabularPredictor(
            "label", eval_metric="average_precision", verbosity=0, path=self.folder_, **weighted
        ).fit(table, hyperparameters=self.hyperparameters, num_cpus=2)
        return self

    def predict_proba(self, X) -> np.ndarray:
        """Return the probabilities of class 0 and 1, shape (n_samples, 2)."""
        return self.predictor_.predict_proba(_table(X)).to_numpy()


def _table(X, y=None, sample_weight=None) -> pd.DataFrame:
    table = pd.DataFrame(np.asarray(X)).add_prefix("f")
    table = table if y is None else table.assign(label=np.asarray(y))
    return table if sample_weight is None else table.assign(weight=sample_weight)


def search_ours(protocol: Protocol, seconds: float) -> BaseEstimator:
    """Search as 02_tuning does, with about as many candidates as two cores do in the time."""
    pipeline = make_pipeline(XGBClassifier(**XGBOOST_BY_HAND, random_state=42, n_jobs=1))
    n_iter = max(1, round(seconds / 3))
    found = list(random_search(pipeline, protocol, XGBOOST_SEARCH_SPACE, n_iter=n_iter, seed=42))
    best, _ = max(found, key=lambda candidate: candidate[1]["cv_pr_auc"])
    print(f"  {len(found)} candidates")
    return clone(pipeline).set_params(**best, classify__n_jobs=2)


def search_flaml(protocol: Protocol, seconds: float) -> BaseEstimator:
    """Let FLAML choose learner and settings by average precision on the folds."""
    from flaml import AutoML

    rows, X = protocol.training, _prepared(protocol)
    automl = AutoML()
    automl.fit(
        X, rows.y, task="classification", metric="ap", time_budget=seconds, n_jobs=2,
        eval_method="cv", split_type=Folds(rows.fold), sample_weight=rows.weight, seed=42,
        verbose=0, retrain_full=False, estimator_list=FLAML_LEARNERS,
    )  # fmt: skip
    print(f"  {automl.best_estimator}, {automl.best_config}")
    return make_pipeline(clone(automl.model.estimator))


def search_autogluon(protocol: Protocol, seconds: float) -> BaseEstimator:
    """Let AutoGluon bag its models over the folds and choose the best by average precision."""
    from autogluon.tabular import TabularPredictor

    rows = protocol.training
    table = _table(_prepared(protocol), rows.y, rows.weight).assign(held_out_in=rows.fold)
    with tempfile.TemporaryDirectory() as folder:
        predictor = TabularPredictor(
            "label", eval_metric="average_precision", groups="held_out_in", verbosity=0,
            path=folder, sample_weight="weight",
        )  # fmt: skip
        predictor.fit(
            table, time_limit=seconds, num_cpus=2, num_bag_folds=protocol.split.n_folds,
            fit_weighted_ensemble=False, num_stack_levels=0,
            ag_args_ensemble={"use_child_oof": False},
        )  # fmt: skip
        board = predictor.leaderboard(silent=True)
        best = predictor.info()["model_info"][board["model"].iloc[0]]
    family, settings = best["children_info"], None
    first = next(iter(family.values()))
    settings = first["hyperparameters"]
    key = {"LGBModel": "GBM", "CatBoostModel": "CAT", "XGBoostModel": "XGB", "RFModel": "RF",
           "XTModel": "XT"}[first["model_type"]]  # fmt: skip
    print(f"  {board['model'].iloc[0]}, {len(board)} models")
    return make_pipeline(AutoGluon({key: settings}))


def _prepared(protocol: Protocol) -> np.ndarray:
    """Return the features of the training rows, imputed and scaled."""
    return make_pipeline(LogisticRegression())[:-1].fit_transform(protocol.training.X)


def judge(protocol: Protocol, pipeline: BaseEstimator) -> tuple[dict[str, float], pd.DataFrame]:
    """Return the metrics out of fold at the alarm budget, and the scores frame."""
    found = protocol.assess(pipeline)
    return evaluate(found.cv_scores, found.alarm), found.cv_scores


def table_of(found: dict[str, tuple[dict[str, float], pd.DataFrame, float]]) -> pd.DataFrame:
    """Set the contenders side by side, each with its difference from our search.

    Parameters
    ----------
    found : name to metrics, scores frame and seconds; "ours" among them.
    """
    rows, alarm = {}, Alarm(AlarmRule(), 0.5)  # of no effect on the average precision
    both = {"alarm": alarm, "reference_alarm": alarm}
    for name, (metrics, frame, seconds) in found.items():
        difference = paired_differences(frame, found["ours"][1], **both)["average precision"]
        rows[name] = {
            "average precision": cell(metrics, "pr_auc", 2),
            "minus ours": "" if name == "ours" else f"{difference}, {difference.verdict}",
            "event recall": cell(metrics, "event_recall", 2),
            "search [s]": f"{seconds:.0f}",
        }
    return pd.DataFrame(rows).T


@click.command()
@click.option("--seconds", default=90.0, show_default=True, help="Wall time of each search.")
@click.option("--sites", default=12, show_default=True)
def main(seconds: float, sites: int) -> None:
    """Search with each contender for the same time and print what they found."""
    logging.disable(logging.WARNING)
    fleet = load_fleet(sites=sites, seed=42)
    protocol = Protocol(fleet, split_fleet(fleet.rows))
    by_hand = make_pipeline(XGBClassifier(**models.XGBOOST_BY_HAND, random_state=42))
    searches = {
        "by hand": lambda *_: by_hand,
        "ours": search_ours,
        "FLAML": search_flaml,
        "AutoGluon": search_autogluon,
    }
    found = {}
    for name, search in searches.items():
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        pipeline = search(protocol, seconds)
        spent = time.perf_counter() - start
        found[name] = (*judge(protocol, pipeline), spent)
    print(table_of(found).to_string())
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"{datetime.date.today()}; {versions}; {sites} sites")


if __name__ == "__main__":
    main()
