"""The model card: what the champion is, how it was judged, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from hvs_lib.report.tables import cell

_TEMPLATE = Path(__file__).with_name("card.md")
_METRICS = (
    # label, metric, digits
    ("average precision of rows", "pr_auc", 2),
    ("event recall", "event_recall", 2),
    ("event recall at least 5 min ahead", "event_recall_5min", 2),
    ("event recall at least 10 min ahead", "event_recall_10min", 2),
    ("nuisance alarms per site-day", "nuisance_alarms_per_site_day", 2),
    ("fault alarms per site-day", "fault_alarms_per_site_day", 2),
    ("alarm precision (share that are not nuisance alarms)", "alarm_precision", 2),
    ("median lead time [min]", "lead_time_median_min", 1),
    ("lead time exceeded by 9 of 10 caught events [min]", "lead_time_p10_min", 1),
    ("Brier score", "brier", 4),
)


def model_card(
    *,
    name: str,
    run_id: str,
    version: str,
    reason: str,
    stopped_by: str = "",
    tags: Mapping[str, str],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    by_cause: pd.DataFrame,
    missed: Sequence[str],
    sets: pd.DataFrame,
) -> str:
    """Fill in the card of a registered model, in Markdown.

    Parameters
    ----------
    name, run_id, version : str
        The model, its run, and its version in the registry.
    reason : str
        Why it is the champion.
    stopped_by : str
        Why it must not be registered; empty if it may be.
    tags, params, metrics : mapping
        Tags, parameters and metrics of its run.
    by_cause : DataFrame of str, shape (n_causes, n_parts)
        Events caught out of fold and on test racks.
    missed : list of str
        Causes with fewer than half of their events caught.
    sets : DataFrame of str, shape (n_sets, n_columns)
        Threshold and metrics for each sensor set.

    Examples
    --------
    >>> data, none = mlflow.get_run(run_id).data, pd.DataFrame()
    >>> described = {"tags": data.tags, "params": data.params, "metrics": data.metrics}
    >>> described |= {"by_cause": none, "missed": [], "sets": none}
    >>> card = model_card(
    ...     name="XGBoost", run_id=run_id, version="1", reason="it is the first", **described
    ... )
    >>> card.splitlines()[0]
    '# XGBoost, version 1'
    """
    numbers = {name: _number(text) for name, text in params.items()}
    budget = "at most {max_nuisance_alarms_per_site_day:g} nuisance alarms per site-day out of fold"
    goal = budget + " (a site: {modules_per_site:.0f} modules)"
    if numbers["missed_event_costs"]:
        goal = "a missed event counts as {missed_event_costs:g} nuisance alarms"
    weak = [f"- {_escape(cause)}: fewer than half of its events are caught" for cause in missed]
    none_weak = ["- no cause in the data has fewer than half of its events caught"]
    table = {
        what: {
            "out of fold": cell(metrics, f"cv_{metric}", digits),
            "test racks": cell(metrics, metric, digits),
        }
        for what, metric, digits in _METRICS
    }
    status = f"It is the champion because {reason}"
    uri, option = "models:/hvs-fire-prediction@champion", ""
    if stopped_by:
        uri = f"runs:/{run_id}/model"
        option = f" --model {uri}"
        status = f"It leads the ranking, but no version of it is registered: {stopped_by}."
    own = {
        "name": name,
        "run_id": run_id,
        "version": version or "none",
        "status": status,
        "uri": uri,
        "option": option,
        "goal": goal.format(**numbers),
        "missed": "\n".join(weak or none_weak),
        "metrics_table": _table(pd.DataFrame(table).T),
        "by_cause_table": _table(by_cause),
        "sets_table": _table(sets),
    }
    return _TEMPLATE.read_text(encoding="utf-8").format(**tags | numbers | own)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _table(frame: pd.DataFrame) -> str:
    lines = [["", *frame.columns], ["---"] * (frame.shape[1] + 1)]
    lines += [[index, *values] for index, values in zip(frame.index, frame.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(_escape(text) for text in line)} |" for line in lines)


def _escape(text: object) -> str:
    """Keep ids and causes that come from data from rendering as HTML or as a table's border."""
    entities = str.maketrans({"&": "&amp;", "<": "&lt;", "|": "\\|", "`": "&#96;"})
    return str(text).translate(entities).replace("](", "]&#40;")  # nor as a link
