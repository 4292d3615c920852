"""The leakage audit: signs that a good score says nothing about racks not yet seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.features import build_features

GIVEAWAY = 0.8  # average precision of one column from which on nothing is left to learn
GAP = 0.2  # average precision that a random row split may add before it counts as a leak
CUTS = (0.25, 0.5, 0.75)  # shares of the time at which the future is cut off


def audit(
    telemetry: pd.DataFrame,
    X: pd.DataFrame,
    rows: np.ndarray,
    *,
    cv_pr_auc: Mapping[str, float],
    build: Callable[[pd.DataFrame], pd.DataFrame] = build_features,
) -> pd.DataFrame:
    """Look for three leaks: near copies across the split, giveaway columns, and the future.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, n_columns)
        With the label.
    X : DataFrame, shape (n_samples, n_features)
        From `build`.
    rows : array of int, shape (n_rows,)
        Of the training racks.
    cv_pr_auc : mapping of str to float
        Average precision out of fold of one model on the splits ``rack`` and ``row``; the check is
        left out where one of them is missing.
    build : callable
        What makes `X` from telemetry.

    Returns
    -------
    DataFrame, shape (2 or 3, 5)
        check, found, limit, result ("ok", or what leaks) and meaning.
    """
    checks = []
    if {"rack", "row"} <= set(cv_pr_auc):
        checks.append(_row_split(cv_pr_auc["rack"], cv_pr_auc["row"]))
    checks.append(_giveaway(X, telemetry[col.LABEL].to_numpy(), rows))
    checks.append(_future(telemetry, X, build))
    table = pd.DataFrame(checks, columns=["check", "found", "limit", "leak", "meaning"])
    table.insert(3, "result", table.pop("leak").where(table["found"] > table["limit"], "ok"))
    return table.assign(found=table["found"].astype(float).round(3))


def _row_split(by_rack: float, by_row: float) -> tuple:
    """Compare one model on a random row split and on a split by rack."""
    meaning = (
        f"a row split reports {by_row:.2f}, whole racks {by_rack:.2f}: "
        "neighbouring rows are near copies, so judge by rack only"
    )
    check = "row split minus rack split, average precision"
    return check, by_row - by_rack, GAP, "row split leaks", meaning


def _giveaway(X: pd.DataFrame, y: np.ndarray, rows: np.ndarray) -> tuple:
    """Look for a column that gives the label away by itself."""
    single = single_feature_average_precision(X, y, rows=rows)
    check = "best single feature, average precision"
    return check, single.max(), GIVEAWAY, "label given away", f"strongest: {single.idxmax()}"


def _future(
    telemetry: pd.DataFrame, X: pd.DataFrame, build: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple:
    """Cut the future off and count the features that change before the cut."""
    changed: set[str] = set()
    time = telemetry[col.TIMESTAMP]
    for share in CUTS:
        past = (time <= time.min() + share * (time.max() - time.min())).to_numpy()
        again, before = build(telemetry[past].reset_index(drop=True)), X[past]
        changed |= {
            name
            for name in X
            if not np.array_equal(again[name].to_numpy(), before[name].to_numpy(), equal_nan=True)
        }
    meaning = f"they use the future: {', '.join(sorted(changed))}" if changed else "none does"
    check = "features that change when the future is cut off"
    return check, len(changed), 0, "future used", meaning


def single_feature_average_precision(
    X: pd.DataFrame, y: np.ndarray, *, rows: np.ndarray | None = None
) -> pd.Series:
    """Compute how well each feature alone, rising or falling, ranks the hazard rows.

    A value near 1 means that the feature gives the label away and nothing is left to learn.

    Parameters
    ----------
    X : DataFrame, shape (n_samples, n_features)
        Numbers; NaN ranks lowest in either direction.
    y : array, shape (n_samples,)
        Labels 0 and 1.
    rows : array of int, shape (n_rows,), optional
        Positions to use, all by default.

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
    if len(y) != len(X):
        raise ValueError(
            f"X and y must have one length, got {len(X)} and {len(y)}. Index both alike."
        )
    rows = np.arange(len(y)) if rows is None else np.asarray(rows)
    positive, negative = rows[y[rows] == 1], rows[y[rows] == 0]
    if not len(positive) or len(positive) + len(negative) != len(rows):
        raise ValueError(
            f"y must be 0 or 1 with at least one 1, got {pd.unique(y[rows])[:5].tolist()}. "
            "Use rows of racks that have events."
        )
    columns = {name: values.to_numpy() for name, values in X.items()}
    found = {name: _better_direction(x[positive], x[negative]) for name, x in columns.items()}
    return pd.Series(found, name="average_precision", dtype=np.float64)


def _better_direction(positive: np.ndarray, negative: np.ndarray) -> float:
    """Sum precision over the steps of recall; the positives that are NaN are one last step."""
    cuts, count = np.unique(positive[~np.isnan(positive)], return_counts=True)
    known = np.sort(negative[~np.isnan(negative)])
    falling = np.searchsorted(known, cuts, side="right")
    rising = len(known) - np.searchsorted(known, cuts, side="left")
    n_positive = len(positive)
    last = (n_positive - count.sum()) * n_positive / (n_positive + len(negative))

    def area(n_pos: np.ndarray, fp: np.ndarray) -> float:
        tp = np.cumsum(n_pos)
        return np.sum(n_pos * (tp / (tp + fp))) + last

    return float(max(area(count[::-1], rising[::-1]), area(count, falling)) / n_positive)
