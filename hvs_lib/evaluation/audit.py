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
    telemetry : DataFrame (n_samples, n_columns), labelled.
    X : DataFrame (n_samples, n_features), from `build`.
    rows : array of int, shape (n_rows,), of the training racks.
    cv_pr_auc : average precision out of fold of one model on the splits ``rack`` and ``row``;
        the check is left out where one of them is missing.
    build : what makes `X` from telemetry.

    Returns
    -------
    DataFrame, one row for each check: ``check``, ``found``, ``limit``, ``verdict`` ("ok", or what
    leaks) and ``meaning``.
    """
    checks = [single_feature_check(X, telemetry[col.LABEL].to_numpy(), rows)]
    checks += [future_cut_check(telemetry, X, build)]
    if {"rack", "row"} <= set(cv_pr_auc):
        checks.insert(0, split_gap_check(cv_pr_auc))
    return pd.DataFrame(checks)


def split_gap_check(cv_pr_auc: Mapping[str, float]) -> dict[str, object]:
    """Compare one model on a random row split and on a split by rack."""
    gap = cv_pr_auc["row"] - cv_pr_auc["rack"]
    meaning = (
        f"a row split reports {cv_pr_auc['row']:.2f}, whole racks {cv_pr_auc['rack']:.2f}: "
        "neighbouring rows are near copies, so judge by rack only"
    )
    name = "row split minus rack split, average precision"
    return _check(name, gap, GAP, meaning, leak="row split leaks")


def single_feature_check(X: pd.DataFrame, y: np.ndarray, rows: np.ndarray) -> dict[str, object]:
    """Look for a column that gives the label away by itself."""
    single = single_feature_average_precision(X, y, rows=rows)
    meaning = f"strongest: {single.idxmax()}"
    name = "best single feature, average precision"
    return _check(name, single.max(), GIVEAWAY, meaning, leak="label given away")


def future_cut_check(
    telemetry: pd.DataFrame, X: pd.DataFrame, build: Callable[[pd.DataFrame], pd.DataFrame]
) -> dict[str, object]:
    """Cut the future off and count the features that change before the cut."""
    changed: set[str] = set()
    time = telemetry[col.TIMESTAMP]
    start, span = time.min(), time.max() - time.min()
    for share in CUTS:
        past = (time <= start + share * span).to_numpy()
        again = build(telemetry[past].reset_index(drop=True))
        same = np.array_equal(again.to_numpy(), X.to_numpy()[past], equal_nan=True)
        if not same:
            changed |= {name for name in X if not _equal(again[name], X[name][past])}
    meaning = f"they use the future: {', '.join(sorted(changed))}" if changed else "none does"
    name = "features that change when the future is cut off"
    return _check(name, len(changed), 0, meaning, leak="future used")


def _equal(one: pd.Series, other: pd.Series) -> bool:
    return np.array_equal(one.to_numpy(), other.to_numpy(), equal_nan=True)


def _check(check: str, found: float, limit: float, meaning: str, *, leak: str) -> dict[str, object]:
    verdict = leak if found > limit else "ok"
    found = round(float(found), 3)
    return {"check": check, "found": found, "limit": limit, "verdict": verdict, "meaning": meaning}


def single_feature_average_precision(
    X: pd.DataFrame, y: np.ndarray, *, rows: np.ndarray | None = None
) -> pd.Series:
    """Compute how well each feature alone, rising or falling, ranks the hazard rows.

    A value near 1 means that the feature gives the label away and nothing is left to learn.

    Parameters
    ----------
    X : DataFrame (n_samples, n_features)
        Numbers; NaN ranks lowest in either direction.
    y : array of 0/1, shape (n_samples,)
    rows : array of int, shape (n_rows,), optional
        Positions to use, all by default.

    Returns
    -------
    Series of float, index the columns of `X`
        The better average precision of the two directions, between the prevalence of `y`
        (a constant feature) and 1 (a leak), or below the prevalence by chance.
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
    precision = {}
    for name, values in X.items():
        values = values.to_numpy()
        precision[name] = _better_direction(values[positive], values[negative])
    return pd.Series(precision, name="average_precision", dtype=np.float64)


def _better_direction(positive: np.ndarray, negative: np.ndarray) -> float:
    cuts, count = np.unique(positive[~np.isnan(positive)], return_counts=True)
    known = np.sort(negative[~np.isnan(negative)])
    falling = np.searchsorted(known, cuts, side="right")
    rising = len(known) - np.searchsorted(known, cuts, side="left")
    sizes = len(positive), len(negative)
    return max(
        _average_precision_of_steps(count[::-1], rising[::-1], *sizes),
        _average_precision_of_steps(count, falling, *sizes),
    )


def _average_precision_of_steps(
    n_pos: np.ndarray, fp: np.ndarray, n_positive: int, n_negative: int
) -> float:
    """Sum precision over the steps of recall; what they leave (NaN) is one last step."""
    tp = np.cumsum(n_pos)
    missing = n_positive - n_pos.sum()
    area = np.sum(n_pos * (tp / (tp + fp))) + missing * n_positive / (n_positive + n_negative)
    return float(area / n_positive)
