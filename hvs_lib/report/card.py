"""The model card: what the champion is, how it was judged, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hvs_lib.report.tables import cell

import pandas as pd

_METRICS = (
    # what, metric, digits
    ("average precision of rows", "pr_auc", 2),
    ("event recall", "event_recall", 2),
    ("false alarms per site-day", "false_alarms_per_site_day", 1),
    ("alarm precision", "alarm_precision", 2),
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
    tags: Mapping[str, str],
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    by_cause: pd.DataFrame,
    missed: Sequence[str],
) -> str:
    """Write the card of a registered model.

    Parameters
    ----------
    name, run_id, version : of the model, its run, and its version in the registry.
    reason : why it is the champion.
    tags, params, metrics : of its run.
    by_cause : frame of text, one row for each cause: events caught out of fold and on test racks.
    missed : causes of which it caught no event, or fewer than half.

    Returns
    -------
    str, Markdown.
    """
    return "\n".join(
        [
            f"# {name}, version {version}",
            "",
            "Early warning of thermal runaway in high-voltage battery storage, from module "
            f"telemetry. Run ID `{run_id}`. It is the champion because {reason}",
            *_section("Intended use and limits", _LIMITS),
            *_section("Data", _data(tags, params)),
            *_section("How it was judged", _judged(params)),
            *_section("Metrics, with 95 % intervals", [_table(_metrics(metrics))], bullet=""),
            *_section("By cause: events caught", [_table(by_cause)], bullet=""),
            *_section(
                "Causes it misses",
                [f"{_escape(cause)}: fewer than half of its events are caught" for cause in missed]
                or ["none of those in the data is caught in fewer than half of the cases"],
            ),
            *_section("Alarm settings", _alarm(params)),
            *_section(
                "Load and reproduce", _COMMANDS.format(run_id=run_id).splitlines(), bullet=""
            ),
            "",
        ]
    )


_LIMITS = (
    "It ranks modules by the danger of a thermal runaway within the next 20 minutes, so that a "
    "person or a system can look, ventilate or disconnect.",
    "It is no safety system and certified for nothing: it must never replace one.",
    "It knows the causes and sensors of the telemetry it was trained on. A new site, cell "
    "chemistry or sensor needs its own evaluation first.",
    "Metrics on simulated telemetry compare methods; they do not say how many fires a site has.",
)

_COMMANDS = """```
hvs score FILE                 # raw telemetry in, alarms out
hvs reproduce {run_id}
```

```python
from hvs_lib.tracking.model_files import load_model
from hvs_lib.tracking.store import connect

connect()
model, _ = load_model("models:/hvs-fire-prediction@champion")
model.predict_proba(X)[:, 1]  # X from hvs_lib.features.build_features
```"""


def _data(tags: Mapping[str, str], params: Mapping[str, str]) -> list[str]:
    sizes = "; ".join(
        f"{part} racks: {int(params[f'rows_{part}']):,} rows, "
        f"{int(params[f'hazard_rows_{part}']):,} of them hazardous, "
        f"{params[f'events_{part}']} events"
        for part in ("train", "test")
    )
    return [
        f"SHA-256 of the telemetry file: `{tags['data_sha256']}`",
        sizes,
        f"{params['n_features']} causal features of `hvs_lib.features`",
        f"treatment of the imbalance: {tags['imbalance_technique']}; fitted on "
        f"{int(params['rows_fitted']):,} rows (every {params['normal_stride']}th normal row)",
        f"code: commit `{tags['git_commit']}` (changed since: {tags['git_dirty']}), workbook "
        f"{tags['workbook_version']}",
    ]


def _judged(params: Mapping[str, str]) -> list[str]:
    costs = float(params["missed_event_costs"])
    goal = (
        f"a missed event counts as {costs:g} false alarms"
        if costs
        else f"at most {float(params['max_false_alarms_per_site_day']):g} false alarms per "
        f"site-day out of fold (a site: {float(params['modules_per_site']):g} modules)"
    )
    return [
        f"split by {params.get('split', 'rack')}; the racks are listed in `splits.json` of the run",
        f"calibration, threshold and alarm rule chosen out of fold, {goal}",
        "test racks scored once, after every choice",
    ]


def _alarm(params: Mapping[str, str]) -> list[str]:
    return [
        f"score at or above {float(params['alarm_threshold']):.6g} in {params['alarm_k']} of the "
        f"last {params['alarm_n']} samples of a module",
        f"then no other alarm of that module for {float(params['alarm_refractory_min']):g} min",
        f"calibration of the scores: {params['calibration']}",
    ]


def _metrics(metrics: Mapping[str, float]) -> pd.DataFrame:
    rows = {
        what: {
            "out of fold": cell(metrics, f"cv_{name}", digits),
            "test racks": cell(metrics, name, digits),
        }
        for what, name, digits in _METRICS
    }
    return pd.DataFrame(rows).T


def _table(frame: pd.DataFrame) -> str:
    lines = [["", *frame.columns], ["---"] * (frame.shape[1] + 1)]
    lines += [[index, *values] for index, values in zip(frame.index, frame.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(_escape(text) for text in line)} |" for line in lines)


def _escape(text: object) -> str:
    """Keep ids and causes that come from data from reading as HTML or as a table's border."""
    entities = {"&": "&amp;", "<": "&lt;", "|": "\\|", "`": "&#96;"}
    escaped = "".join(entities.get(letter, letter) for letter in str(text))
    return escaped.replace("](", "]&#40;")  # nor as a link


def _section(title: str, lines: Sequence[str], *, bullet: str = "- ") -> list[str]:
    return ["", f"## {title}", "", *(bullet + line for line in lines)]
