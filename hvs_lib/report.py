"""Tables of results for people: the headline metrics, each with its interval."""

from collections.abc import Mapping

import pandas as pd

# Heading, metric, digits. AP is average precision; "cv" is out of fold, which choices are made on.
HEADLINES = (
    ("cv AP", "cv_pr_auc", 2),
    ("cv event recall", "cv_event_recall", 2),
    ("AP", "pr_auc", 2),
    ("event recall", "event_recall", 2),
    ("false alarms / site-day", "false_alarms_per_site_day", 1),
    ("median lead [min]", "lead_time_median_min", 1),
)


def results_table(metrics: Mapping[str, Mapping[str, float]]) -> pd.DataFrame:
    """Set the headline metrics of several models side by side.

    Parameters
    ----------
    metrics : name of the model to its metrics.

    Returns
    -------
    DataFrame of text, shape (n_models, 6): ``value [low, high]`` with the 95 % interval where there
    is one, and a dash where the metric is undefined. Columns without "cv" are of the test
    racks.
    """
    return pd.DataFrame(
        {
            name: {heading: _cell(found, metric, digits) for heading, metric, digits in HEADLINES}
            for name, found in metrics.items()
        }
    ).T


def _cell(found: Mapping[str, float], metric: str, digits: int) -> str:
    value, low, high = (found.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None or pd.isna(value):
        return "–"
    if low is None or pd.isna(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
