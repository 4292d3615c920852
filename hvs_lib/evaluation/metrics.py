"""Metrics: the same numbers, with intervals, for every model and rule on the same scores frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import (
    DEFAULT_RULE,
    RULES,
    AlarmRule,
    AlarmTrack,
    alarm_curve,
    alarm_level,
    check_threshold,
    choose_alarm,
    choose_threshold,
    event_table,
    raise_alarms,
    track_alarms,
)
from hvs_lib.evaluation.scores import ScoreRows, read_scores, scores_frame

import numpy as np
import pandas as pd
from numba import njit
from scipy import stats
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

__all__ = [
    "EVENT_METRICS",
    "INTERVALS",
    "METRICS",
    "ROW_METRICS",
    "RULES",
    "AlarmRule",
    "PairedDifference",
    "alarm_curve",
    "alarm_level",
    "bootstrap_average_precision",
    "choose_alarm",
    "choose_threshold",
    "clopper_pearson",
    "evaluate",
    "event_table",
    "paired_difference",
    "paired_event_difference",
    "poisson_interval",
    "raise_alarms",
    "scores_frame",
    "single_feature_average_precision",
    "undefined_metrics",
]

ROW_METRICS = (
    "accuracy",
    "precision_class1",
    "recall_class1",
    "f1_class1",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "roc_auc",
    "pr_auc",
    "brier",
    "tp",
    "tn",
    "fp",
    "fn",
    "threshold",
)
EVENT_METRICS = (
    "event_recall",
    "alarm_precision",
    "lead_time_median_min",
    "lead_time_p10_min",
    "false_alarms_per_module_day",
    "n_events",
    "n_events_caught",
    "n_false_alarms",
    "module_days",
)
METRICS = ROW_METRICS + EVENT_METRICS
INTERVALS = ("event_recall", "false_alarms_per_module_day", "pr_auc")  # also with _low and _high
CONFIDENCE = 0.95


def evaluate(
    scores: pd.DataFrame,
    *,
    threshold: float,
    rule: AlarmRule = DEFAULT_RULE,
    n_bootstrap: int = 1000,
    seed: int = 42,
    prefix: str = "",
) -> dict[str, float]:
    """Measure scores at a threshold: rows, alarms and events, with 95 % intervals.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame.
    threshold : float
        In the unit of the scores, chosen on other racks.
    rule : AlarmRule
    n_bootstrap : int
        Resamples of the racks for the interval of pr_auc; 0 leaves it out.
    seed : int
    prefix : str
        Put before every name, such as `cv_`.

    Returns
    -------
    dict of str to float
        The `METRICS`, and `_low` and `_high` of the `INTERVALS`. A metric that is undefined on
        these rows is left out (see `undefined_metrics`), no value is NaN or infinite. pr_auc is the
        average precision. brier needs scores within [0, 1], the interval of pr_auc two racks.

    Raises
    ------
    ValueError
        If the frame, the threshold, the rule or n_bootstrap is not valid.
    """
    check_threshold(threshold)
    _check_n_bootstrap(n_bootstrap, least=0)
    track = track_alarms(scores, rule)
    result = {"threshold": float(threshold)}
    result |= _row_metrics(track.rows.label, track.rows.score, threshold)
    result |= _event_metrics(track, threshold)
    if "pr_auc" in result and n_bootstrap and track.rows.rack[-1] > 0:
        resampled = _bootstrap_average_precision(track.rows, n_bootstrap, seed)
        low, high = np.quantile(resampled, _tails())
        result |= {"pr_auc_low": low, "pr_auc_high": high}
    names = [n for metric in METRICS for n in (metric, f"{metric}_low", f"{metric}_high")]
    return {prefix + n: float(result[n]) for n in names if n in result and np.isfinite(result[n])}


def undefined_metrics(result: Mapping[str, float], prefix: str = "") -> list[str]:
    """Name the metrics that `evaluate` left out.

    Parameters
    ----------
    result : mapping of str to float
        What `evaluate` returned, other names may be among it.
    prefix : str
        The prefix it was called with.

    Returns
    -------
    list of str
        With the prefix, in the order of `METRICS`.
    """
    return [prefix + name for name in METRICS if prefix + name not in result]


# --------------------------------------------------------------------------------------------------
# Rows and events
# --------------------------------------------------------------------------------------------------


def _row_metrics(y_true: np.ndarray, y_score: np.ndarray, threshold: float) -> dict[str, float]:
    y_pred = (y_score >= threshold).astype(np.int8)
    (tn, fp), (fn, tp) = confusion_matrix(y_true, y_pred, labels=[0, 1])
    precision, recall, f1, _ = precision_recall_fscore_support(
        y_true, y_pred, labels=[0, 1], zero_division=np.nan
    )
    result = {
        "accuracy": accuracy_score(y_true, y_pred),
        "precision_class1": precision[1],
        "recall_class1": recall[1],
        "f1_class1": f1[1],
        # A plain mean: undefined where one class is, instead of the mean of the other alone.
        "precision_macro": precision.mean(),
        "recall_macro": recall.mean(),
        "f1_macro": f1.mean(),
        "tp": tp,
        "tn": tn,
        "fp": fp,
        "fn": fn,
    }
    if y_true.min() < y_true.max():
        result["roc_auc"] = roc_auc_score(y_true, y_score)
        result["pr_auc"] = average_precision_score(y_true, y_score)
    if y_score.min() >= 0 and y_score.max() <= 1:
        result["brier"] = brier_score_loss(y_true, y_score, pos_label=1)
    return result


def _event_metrics(track: AlarmTrack, threshold: float) -> dict[str, float]:
    lead = track.lead_times(np.array([float(threshold)]))[0]
    lead = lead[~np.isnan(lead)]
    raised = track.raised(threshold)
    n_events, n_caught, days = len(track.event_rows), len(lead), track.rows.module_days
    n_false = int(np.sum(track.highest[raised] < threshold))
    result = {
        "n_events": n_events,
        "n_events_caught": n_caught,
        "n_false_alarms": n_false,
        "module_days": days,
    }
    if n_events:
        low, high = clopper_pearson(n_caught, n_events)
        result |= {"event_recall": n_caught / n_events}
        result |= {"event_recall_low": low, "event_recall_high": high}
    if len(raised):
        result["alarm_precision"] = 1 - n_false / len(raised)
    if n_caught:
        result["lead_time_median_min"] = np.median(lead)
        result["lead_time_p10_min"] = np.quantile(lead, 0.1)
    if days:
        low, high = poisson_interval(n_false, days)
        rate = "false_alarms_per_module_day"
        result |= {rate: n_false / days, f"{rate}_low": low, f"{rate}_high": high}
    return result


# --------------------------------------------------------------------------------------------------
# Intervals
# --------------------------------------------------------------------------------------------------


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of a proportion.

    Parameters
    ----------
    successes, trials : int
        Such as events caught, and events.

    Returns
    -------
    low, high : float

    References
    ----------
    Clopper and Pearson, Biometrika 26 (1934) 404-413.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(
            f"successes must be between 0 and trials, and trials at least 1, got {successes} of "
            f"{trials}. Count each event once."
        )
    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(CONFIDENCE, "exact")
    return float(interval.low), float(interval.high)


def poisson_interval(count: int, exposure: float) -> tuple[float, float]:
    """Compute the exact 95 % interval of the rate of a Poisson count.

    Parameters
    ----------
    count : int
        Such as false alarms.
    exposure : float
        What was observed, such as module-days.

    Returns
    -------
    low, high : float
        Per unit of exposure.

    References
    ----------
    Garwood, Biometrika 28 (1936) 437-442.
    """
    if count < 0 or not 0 < exposure < np.inf:
        raise ValueError(
            f"count must be 0 or more and exposure above 0, got {count} in {exposure}. "
            "Give the observed time, such as module-days."
        )
    tail, other = _tails()
    low = stats.chi2.ppf(tail, 2 * count) / 2 if count else 0.0
    return float(low / exposure), float(stats.chi2.ppf(other, 2 * count + 2) / 2 / exposure)


def bootstrap_average_precision(
    scores: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 42
) -> np.ndarray:
    """Compute the average precision on resampled racks.

    Racks are drawn with replacement, as many as there are, and all rows of a rack go with it: rows
    of one rack are near copies. A draw without any row of label 1 is drawn again. The draws depend
    only on the racks (their sorted names), which of them hold label 1, and the seed: two models on
    the same rows are resampled alike, so that the differences of their results are paired.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame with a row of label 1.
    n_bootstrap : int
    seed : int

    Returns
    -------
    ndarray of float, shape (n_bootstrap,)
    """
    _check_n_bootstrap(n_bootstrap, least=1)
    rows = read_scores(scores)
    if not rows.label.any():
        raise ValueError(
            f"Average precision needs a row with {col.LABEL} = 1, got none of {len(scores)}. "
            "Use racks that have events."
        )
    return _bootstrap_average_precision(rows, n_bootstrap, seed)


@dataclass(frozen=True)
class PairedDifference:
    """A difference between two models with its 95 % interval.

    Attributes
    ----------
    median, low, high : float
        Over the resampled racks.
    """

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Say "better" or "worse" where the interval leaves zero out, else "cannot tell"."""
        if self.low <= 0 <= self.high:
            return "cannot tell"
        return "better" if self.low > 0 else "worse"

    def __str__(self) -> str:
        return f"{self.median:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def paired_difference(
    scores: pd.DataFrame, reference: pd.DataFrame, *, n_bootstrap: int = 1000, seed: int = 42
) -> PairedDifference:
    """Compare the average precision of two models on the same draws of racks.

    Overlapping intervals of two models do not settle which is better, because the racks behind
    them are the same ones; the interval of the difference does.

    Parameters
    ----------
    scores, reference : DataFrame (n_rows, ...)
        Scores frames over the same rows.
    n_bootstrap : int
    seed : int

    Returns
    -------
    PairedDifference
        Of `scores` minus `reference`.

    Raises
    ------
    ValueError
        If the frames do not cover the same rows.
    """
    _check_same_rows(scores, reference)
    options = {"n_bootstrap": n_bootstrap, "seed": seed}
    difference = bootstrap_average_precision(scores, **options)
    difference -= bootstrap_average_precision(reference, **options)
    return _summarize(difference)


def paired_event_difference(
    scores: pd.DataFrame,
    reference: pd.DataFrame,
    *,
    alarm: Mapping[str, object],
    reference_alarm: Mapping[str, object],
    value: str = "caught",
    n_bootstrap: int = 1000,
    seed: int = 42,
) -> PairedDifference:
    """Compare two alarms event by event, on the same draws of racks.

    Parameters
    ----------
    scores, reference : DataFrame (n_rows, ...)
        Scores frames over the same rows.
    alarm, reference_alarm : mapping
        The ``threshold`` and ``rule`` of each.
    value : {"caught", "lead_time_min"}
        A column of `event_table`: its mean is the event recall, or the warning time over all
        events [min], in which a missed event counts 0.
    n_bootstrap : int
    seed : int

    Returns
    -------
    PairedDifference
        Of `scores` minus `reference`.

    Raises
    ------
    ValueError
        If the frames do not cover the same rows, cover no event, or the value is another.
    """
    if value not in ("caught", "lead_time_min"):
        raise ValueError(f"value must be caught or lead_time_min, got {value!r}.")
    _check_same_rows(scores, reference)
    _check_n_bootstrap(n_bootstrap, least=1)
    events = event_table(scores, **alarm)
    if events.empty:
        raise ValueError(f"The scores must cover at least one event, got no {col.LABEL} = 1.")
    others = event_table(reference, **reference_alarm)
    gain = events[value].astype(float).fillna(0) - others[value].astype(float).fillna(0)
    racks = scores[[col.SITE, col.RACK]].drop_duplicates()
    by_rack = gain.groupby([events[c].astype(str) for c in (col.SITE, col.RACK)])
    names = pd.MultiIndex.from_frame(racks.astype(str).sort_values([col.SITE, col.RACK]))
    total = by_rack.sum().reindex(names, fill_value=0.0).to_numpy()
    count = by_rack.size().reindex(names, fill_value=0).to_numpy()
    drawn = _draw_racks(count > 0, n_bootstrap, np.random.default_rng(seed))
    return _summarize(drawn @ total / (drawn @ count))


def _summarize(differences: np.ndarray) -> PairedDifference:
    low, median, high = np.quantile(differences, [_tails()[0], 0.5, _tails()[1]])
    return PairedDifference(float(median), float(low), float(high))


def _check_same_rows(scores: pd.DataFrame, reference: pd.DataFrame) -> None:
    keys = [*col.KEYS, col.LABEL]
    if not all(np.array_equal(scores[key].to_numpy(), reference[key].to_numpy()) for key in keys):
        raise ValueError(
            f"both scores frames must cover the same rows, got {len(scores)} and "
            f"{len(reference)} that differ: compare models on the same split."
        )


def _check_n_bootstrap(n_bootstrap: int, *, least: int) -> None:
    if not isinstance(n_bootstrap, (int, np.integer)) or n_bootstrap < least:
        raise ValueError(
            f"n_bootstrap must be a whole number, at least {least}, got {n_bootstrap!r}. Try 1000."
        )


def _bootstrap_average_precision(rows: ScoreRows, n_bootstrap: int, seed: int) -> np.ndarray:
    n_racks = int(rows.rack[-1]) + 1
    has_label = np.bincount(rows.rack, weights=rows.label, minlength=n_racks) > 0
    step, rack, n_pos, n_neg = _count_by_step(rows, n_racks)
    weights = _draw_racks(has_label, n_bootstrap, np.random.default_rng(seed))
    return _weighted_average_precision(weights, step, rack, n_pos, n_neg)


def _draw_racks(has_label: np.ndarray, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each rack counts, shape (n_bootstrap, n_racks)."""
    n_racks = len(has_label)
    weights = np.empty((0, n_racks), dtype=np.int64)
    while len(weights) < n_bootstrap:
        drawn = rng.multinomial(n_racks, np.full(n_racks, 1 / n_racks), size=n_bootstrap)
        weights = np.concatenate([weights, drawn[drawn[:, has_label].any(axis=1)]])
    return weights[:n_bootstrap]


def _count_by_step(rows: ScoreRows, n_racks: int) -> tuple[np.ndarray, ...]:
    """Count rows by rack and step of the precision-recall curve, from the highest score down.

    Only the distinct scores of the positives are steps: a negative matters at the next of them at
    or below its score, and not at all below the last. That leaves a small part of the rows.
    """
    cuts = np.unique(rows.score[rows.label == 1])
    step = len(cuts) - np.searchsorted(cuts, rows.score, side="right")
    used = step < len(cuts)
    cell, index = np.unique(step[used] * n_racks + rows.rack[used], return_inverse=True)
    n_pos = np.bincount(index, weights=rows.label[used], minlength=len(cell)).astype(np.int64)
    n_neg = np.bincount(index, minlength=len(cell)) - n_pos
    return cell // n_racks, cell % n_racks, n_pos, n_neg


@njit(cache=True, nogil=True)
def _weighted_average_precision(weights, step, rack, n_pos, n_neg):
    result = np.empty(len(weights))
    for b in range(len(weights)):
        weight = weights[b]
        tp, fp, tp_before, area = 0, 0, 0, 0.0
        for i in range(len(step)):
            tp += weight[rack[i]] * n_pos[i]
            fp += weight[rack[i]] * n_neg[i]
            last_of_step = i + 1 == len(step) or step[i + 1] != step[i]
            if last_of_step and tp > tp_before:
                area += (tp - tp_before) * (tp / (tp + fp))
                tp_before = tp
        result[b] = area / tp
    return result


# --------------------------------------------------------------------------------------------------
# Leak check
# --------------------------------------------------------------------------------------------------


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
