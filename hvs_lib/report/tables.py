"""Tables of results for the reader: the headline metrics, each with its interval."""

from collections.abc import Mapping

import pandas as pd

from hvs_lib import columns as col
from hvs_lib.evaluation.scores import IS_FAULT
from hvs_lib.evaluation.uncertainty import clopper_pearson

# Heading, metric, digits. AP is average precision; "cv" is out of fold, the basis of all choices.
HEADLINES = (
    ("cv AP", "cv_pr_auc", 2),
    ("cv event recall", "cv_event_recall", 2),
    ("cv 5 min ahead", "cv_event_recall_5min", 2),
    ("event recall", "event_recall", 2),
    ("5 min ahead", "event_recall_5min", 2),  # of all events, like the event recall
    ("nuisance/site-day", "nuisance_alarms_per_site_day", 2),
    ("fault/site-day", "fault_alarms_per_site_day", 2),
    ("median lead [min]", "lead_time_median_min", 1),
)
BUDGETS = (0.1, 0.3, 1.0, 3.0, 10.0)  # nuisance alarms per site-day


def results_table(metrics: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Tabulate the headline metrics of several models, shape (n_models, 8).

    A cell is ``value [low, high]``, with the 95 % interval if there is one, or a dash if the metric
    is undefined. Columns without "cv" are for the test racks; "5 min ahead" is the recall of events
    with at least that lead time, and the rates count alarms.

    Examples
    --------
    >>> found = {"event_recall": 0.9, "event_recall_low": 0.7, "event_recall_high": 1.0}
    >>> results_table({"XGBoost": found})["event recall"].item()
    '0.90 [0.70, 1.00]'
    """
    return pd.DataFrame(
        {
            name: {heading: cell(found, metric, digits) for heading, metric, digits in HEADLINES}
            for name, found in metrics.items()
        }
    ).T


def cell(found: Mapping[str, float], metric: str, digits: int) -> str:
    """Format a metric as ``value [low, high]``, ``value`` if it has no interval, or a dash."""
    value, low, high = (found.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if pd.isna(value):
        return "–"
    if pd.isna(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def at_budgets(curve: pd.DataFrame, n_events: int) -> dict[str, str]:
    """Read off, at several alarm budgets, the event recall with its interval and the median lead.

    Parameters
    ----------
    curve : DataFrame, shape (n_thresholds, n_columns)
        From `alarm_curve`.
    n_events : int
        Number of events behind the curve.

    Returns
    -------
    dict of str to str
        For each of `BUDGETS`, the highest recall within it; ties go to the earlier warning.

    Examples
    --------
    >>> at_budgets(curve, n_events=1)["1 a day"]
    '1.00 [0.03, 1.00], 66 min'
    """
    found = {}
    for budget in BUDGETS:
        within = curve[curve["nuisance_alarms_per_site_day"] <= budget]
        best = within.sort_values(["event_recall", "event_recall_5min"], kind="stable").iloc[-1]
        low, high = clopper_pearson(round(best["event_recall"] * n_events), n_events)
        lead = best["lead_time_median_min"]
        minutes = "" if pd.isna(lead) else f", {lead:.0f} min"
        found[f"{budget:g} a day"] = f"{best['event_recall']:.2f} [{low:.2f}, {high:.2f}]{minutes}"
    return found


def caught_by_cause(events: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the caught events of each cause, for several models or parts of the data.

    Parameters
    ----------
    events : mapping of str to DataFrame
        For each name, a table from `event_table`.

    Returns
    -------
    DataFrame of str, shape (n_causes, n_names)
        ``caught of all``, or a dash if there is no such event. An event without a cause is counted
        as "unknown".

    Examples
    --------
    >>> caught_by_cause({"fixed thresholds": events})
                 fixed thresholds
    cause
    sudden_short           1 of 1
    """
    counted = {name: _shares(table["caught"], _cause(table)) for name, table in events.items()}
    return pd.DataFrame(counted).fillna("–").rename_axis("cause")


def alarmed_by_kind(others: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Count the look-alikes and faults of each kind that raise an alarm, for several models.

    Like `caught_by_cause`, but from tables of `other_table`; the index holds "fault" or
    "look-alike", and the cause.

    Examples
    --------
    >>> alarmed_by_kind({"fixed thresholds": others})
                           fixed thresholds
               cause
    look-alike hot_day               0 of 1
               hvac_outage           0 of 1
    """
    counted = {}
    for name, table in others.items():
        outcome = table[IS_FAULT].map({True: "fault", False: "look-alike"})
        counted[name] = _shares(table["alarms"] > 0, [outcome, _cause(table)])
    return pd.DataFrame(counted).fillna("–").rename_axis(["", "cause"])


def weak_causes(events: pd.DataFrame) -> list[str]:
    """Return the causes with fewer than half of their events caught.

    Examples
    --------
    >>> weak_causes(events.assign(caught=False))
    ['sudden_short']
    """
    share = events["caught"].groupby(_cause(events)).mean()
    return sorted(share.index[share < 0.5])


def _cause(table: pd.DataFrame) -> pd.Series:
    return table[col.EVENT_TYPE].astype(object).fillna("unknown")


def _shares(counts: pd.Series, by: pd.Series | list[pd.Series]) -> pd.Series:
    """Format the count of true values in each group as ``true of all``."""
    groups = counts.groupby(by)
    return groups.sum().astype(str) + " of " + groups.size().astype(str)
