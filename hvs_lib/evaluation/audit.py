"""The leakage audit: signs that a good score says nothing about unseen racks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score

from hvs_lib import columns as col
from hvs_lib.evaluation.protocol import TrainingRows
from hvs_lib.features import build_features
from hvs_lib.telemetry.fleet import Fleet

GIVEAWAY = 0.8  # average precision above which a single column leaves nothing to learn
GAP = 0.05  # average precision that a random row split may add before it counts as a leak
STOPPING = ("label given away", "future used")  # results that keep a model from being registered
FEWEST_EVENTS = 2  # needed in the test part for a model to be registered
CUTS = (0.25, 0.5, 0.75)  # shares of the time span at which the future is cut off


def audit(fleet: Fleet, training: TrainingRows, *, cv_pr_auc: Mapping[str, float]) -> pd.DataFrame:
    """Look for three leaks: near copies across the split, giveaway columns, and the future.

    Parameters
    ----------
    fleet : Fleet
        Its first partition is checked for use of the future.
    training : TrainingRows
        Searched for a column that gives the label away.
    cv_pr_auc : mapping of str to float
        Out-of-fold average precision of one model on the honest split and on the split ``row``; the
        check is skipped if either is missing.

    Returns
    -------
    DataFrame, shape (2 or 3, 5)
        check, found, limit, result ("ok", or what leaks) and meaning.

    Examples
    --------
    >>> audited = audit(fleet, protocol.training, cv_pr_auc={"honest": 0.5, "row": 0.9})
    >>> audited["result"].tolist()
    ['row split leaks', 'ok', 'ok']
    """
    checks = []
    if {"honest", "row"} <= set(cv_pr_auc):
        honest, by_row = cv_pr_auc["honest"], cv_pr_auc["row"]
        meaning = (
            f"a row split reports {by_row:.2f}, an honest one {honest:.2f}: "
            "neighbouring rows are near copies, so keep racks whole"
        )
        check = "row split minus honest split, average precision"
        checks.append((check, by_row - honest, GAP, "row split leaks", meaning))

    single = single_feature_average_precision(training.X_whole, training.y, weight=training.weight)
    check, meaning = "best single feature, average precision", f"strongest: {single.idxmax()}"
    checks.append((check, single.max(), GIVEAWAY, "label given away", meaning))

    changed = _features_of_the_future(fleet.telemetry(0))
    meaning = f"they use the future: {', '.join(changed)}" if changed else "none does"
    check = "features that change when the future is cut off"
    checks.append((check, len(changed), 0, "future used", meaning))

    table = pd.DataFrame(checks, columns=["check", "found", "limit", "result", "meaning"])
    table["result"] = table["result"].where(table["found"] > table["limit"], "ok")
    return table.assign(found=table["found"].astype(float).round(3))


def _features_of_the_future(telemetry: pd.DataFrame) -> list[str]:
    """Cut the future off at `CUTS`; name the features that change before the cut."""
    changed: set[str] = set()
    X, time = build_features(telemetry), telemetry[col.TIMESTAMP]
    for share in CUTS:
        past = time <= time.min() + share * (time.max() - time.min())
        again, before = build_features(telemetry[past]), X[past]
        changed |= {name for name in X if not again[name].equals(before[name])}
    return sorted(changed)


def single_feature_average_precision(
    X: pd.DataFrame, y: np.ndarray, *, weight: np.ndarray | None = None
) -> pd.Series:
    """Compute how well each feature alone, rising or falling, ranks the hazard rows.

    A value near 1 means that the feature gives the label away and nothing is left to learn.

    Parameters
    ----------
    X : DataFrame, shape (n_samples, n_features)
        NaN ranks lowest in either direction.
    y : array, shape (n_samples,)
        Labels 0 and 1.
    weight : array, shape (n_samples,), optional
        How many rows each stands for.

    Returns
    -------
    Series, shape (n_features,)
        The better average precision of the two directions, between the prevalence of `y`
        (a constant feature) and 1 (a leak), or below the prevalence by chance.

    Examples
    --------
    >>> X = pd.DataFrame({"leak": [9.0, 8.0, 1.0, 2.0], "constant": 5.0})
    >>> single_feature_average_precision(X, np.array([0, 0, 1, 1])).to_dict()
    {'leak': 1.0, 'constant': 0.5}
    """
    y = np.asarray(y)
    if not (y == 1).any() or not np.isin(y, (0, 1)).all():
        raise ValueError(
            f"y must be 0 or 1 with at least one 1, got {pd.unique(y)[:5].tolist()}. "
            "Use rows of racks that have events."
        )

    def better_direction(x: np.ndarray) -> float:
        lowest = np.finfo(np.float32).min
        scores = (np.nan_to_num(sign * x, nan=lowest) for sign in (1, -1))
        return max(average_precision_score(y, each, sample_weight=weight) for each in scores)

    return X.apply(better_direction, raw=True).rename("average_precision")
