"""Metrics: the same numbers, with intervals, for every model and rule on the same scores frame."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    precision_recall_fscore_support,
    roc_auc_score,
)

from hvs_lib.evaluation.alarms import LEADS_MIN, Alarm, AlarmTrack, Sweep, outcomes_of
from hvs_lib.evaluation.outcomes import Outcomes
from hvs_lib.evaluation.scores import ScoreRows
from hvs_lib.evaluation.uncertainty import (
    TAILS,
    bootstrap_average_precision,
    clopper_pearson,
    poisson_interval,
)

ROW_METRICS = (
    "accuracy", "precision_class1", "recall_class1", "f1_class1", "precision_macro", "recall_macro",
    "f1_macro", "roc_auc", "pr_auc", "brier", "tp", "tn", "fp", "fn", "threshold",
)  # fmt: skip
EVENT_METRICS = (
    "event_recall", "event_recall_5min", "event_recall_10min",
    "lead_time_median_min", "lead_time_p10_min",
    "nuisance_alarms_per_site_day", "fault_alarms_per_site_day", "alarm_precision",
    "n_events", "n_events_caught", "n_nuisance_alarms", "n_fault_alarms", "site_days",
)  # fmt: skip
METRICS = ROW_METRICS + EVENT_METRICS


def evaluate(
    scores: pd.DataFrame | Outcomes,
    alarm: Alarm,
    *,
    modules_per_site: float | None = None,
    seed: int = 42,
    prefix: str = "",
) -> dict[str, float]:
    """Compute the metrics of rows, alarms and events under an alarm, with 95 % intervals.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns), or Outcomes
        A scores frame, or its outcomes.
    alarm : Alarm
        Chosen on other racks.
    modules_per_site : float, optional
        By default, the average over the sites in the scores.
    seed : int
        Seed of the rack resampling for the interval of pr_auc.
    prefix : str
        Prefix of every name, such as `cv_`.

    Returns
    -------
    dict of str to float
        The `METRICS`, and `_low` and `_high` of the event recalls, the alarm rates and pr_auc.
        Metrics undefined on these rows are left out (see `undefined_metrics`), so no value is NaN
        or infinite. pr_auc is the average precision. brier needs scores within [0, 1]; the interval
        of pr_auc needs two racks.
    """
    track = AlarmTrack(outcomes_of(scores), alarm.rule, modules_per_site)
    rows = track.rows
    result = {"threshold": alarm.threshold} | _row_metrics(rows, alarm.threshold)
    result |= event_metrics(track.sweep([alarm.threshold]), track.site_days)
    if n_alarms := len(track.alarms(alarm.threshold)):
        result["alarm_precision"] = 1 - result["n_nuisance_alarms"] / n_alarms
    if "pr_auc" in result and rows.rack[-1] > 0:
        drawn = bootstrap_average_precision(rows, seed=seed)
        result["pr_auc_low"], result["pr_auc_high"] = np.quantile(drawn, TAILS)
    names = [n for metric in METRICS for n in (metric, f"{metric}_low", f"{metric}_high")]
    return {prefix + n: float(result[n]) for n in names if n in result and np.isfinite(result[n])}


def undefined_metrics(result: Mapping[str, float], prefix: str = "") -> list[str]:
    """List the metrics that `evaluate` left out of its result when called with this prefix."""
    return [prefix + name for name in METRICS if prefix + name not in result]


def _row_metrics(rows: ScoreRows, threshold: float) -> dict[str, float]:
    y_true, y_pred, n = _counted(rows.label, rows.score >= threshold)
    both = {"labels": [0, 1], "sample_weight": n}
    counts = confusion_matrix(y_true, y_pred, **both).ravel()
    *by_class, _ = precision_recall_fscore_support(y_true, y_pred, **both, zero_division=np.nan)
    result = dict(zip(("tn", "fp", "fn", "tp"), counts, strict=True))
    result["accuracy"] = accuracy_score(y_true, y_pred, sample_weight=n)
    for name, values in zip(("precision", "recall", "f1"), by_class, strict=True):
        # A plain mean: undefined if either class is, rather than the value of the other alone.
        result |= {f"{name}_class1": values[1], f"{name}_macro": values.mean()}
    if rows.label.min() < rows.label.max():
        y_true, rank, n = _counted(rows.label, rows.rank)
        result["roc_auc"] = roc_auc_score(y_true, rank, sample_weight=n)
        result["pr_auc"] = average_precision_score(y_true, rank, sample_weight=n)
    if rows.score.min() >= 0 and rows.score.max() <= 1:
        result["brier"] = np.mean((rows.score - rows.label) ** 2)
    return result


def _counted(y_true: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the rows of each label and value: the same metrics from far fewer rows."""
    count = np.bincount(2 * value.astype(np.int64) + y_true)
    key = np.flatnonzero(count)
    return key % 2, key // 2, count[key]


def event_metrics(swept: Sweep, site_days: float, *, place: int = 0) -> dict[str, float]:
    """Compute the event metrics at one threshold over the observed time.

    Parameters
    ----------
    swept : Sweep
    site_days : float
        Observed time [d].
    place : int
        Index of the threshold.

    Returns
    -------
    dict of str to float
        The `EVENT_METRICS` except alarm_precision, with intervals.
    """
    lead_min = swept.lead_min[place]
    counts = {"nuisance": int(swept.n_nuisance[place]), "fault": int(swept.n_fault[place])}
    lead, n_events = lead_min[~np.isnan(lead_min)], len(lead_min)
    result = {"n_events": n_events, "n_events_caught": len(lead), "site_days": site_days}
    if n_events:
        caught = {"event_recall": len(lead)}
        caught |= {f"event_recall_{m}min": int(np.sum(lead >= m)) for m in LEADS_MIN}
        for name, count in caught.items():
            low, high = clopper_pearson(count, n_events)
            result |= {name: count / n_events, f"{name}_low": low, f"{name}_high": high}
    if len(lead):
        result["lead_time_median_min"] = np.median(lead)
        result["lead_time_p10_min"] = np.quantile(lead, 0.1)
    for outcome, count in counts.items():
        result[f"n_{outcome}_alarms"] = count
        if site_days:
            rate, (low, high) = f"{outcome}_alarms_per_site_day", poisson_interval(count, site_days)
            result |= {rate: count / site_days, f"{rate}_low": low, f"{rate}_high": high}
    return {name: float(value) for name, value in result.items()}
