"""What finished runs have found: the runs to compare, the audit, the last verdict."""

import json

from hvs_lib.tracking.contents import AUDIT, read_alarm
from hvs_lib.tracking.store import search_runs, store_failures_told

import mlflow
import pandas as pd
from mlflow.entities import Run


def comparable_runs(*, data_sha256: str = "") -> pd.DataFrame:
    """List the finished model and reference runs that were judged alike: same rows, same alarm.

    Parameters
    ----------
    data_sha256 : of the telemetry; empty takes that of the newest run.

    Returns
    -------
    DataFrame, one row for each run, with ``name``, ``run_id``, ``stage``, ``model_name``,
    ``imbalance_technique``, ``role``, ``split``, ``leaky``, ``data_sha256``, ``protocol_digest``,
    and all metrics. Of runs with the same name and parameters the newest is listed. Leaky runs
    have other test rows by their nature and are listed beside.

    Raises
    ------
    ValueError
        Where there is none yet.
    """
    found = search_runs("attributes.status = 'FINISHED' and params.protocol_digest LIKE '_%'")
    runs = pd.DataFrame([row_of(run) for run in found])
    if data_sha256 and len(runs):
        runs = runs[runs["data_sha256"] == data_sha256]
    if runs.empty:
        raise ValueError("there is no run to compare: run 01_baseline, 02_tuning, 03_smote first.")
    runs = runs.sort_values(["started", "run_id"])
    runs = runs[runs["data_sha256"] == runs["data_sha256"].iloc[-1]]
    honest = runs[runs["leaky"] == "false"]
    if honest.empty:
        raise ValueError(
            "the runs on this telemetry are all on a random row split, which leaks, so none can be "
            'chosen: run 01_baseline with split="rack", on telemetry with more events.'
        )
    newest = honest.iloc[-1]
    runs = runs[(runs["protocol_digest"] == newest["protocol_digest"]) | (runs["leaky"] == "true")]
    same = ["model_name", "imbalance_technique", "params"]  # one entry, whichever notebook ran it
    runs = runs.drop_duplicates(same, keep="last")
    return _with_names(runs.drop(columns=["params", "started"]).reset_index(drop=True))


def row_of(run: Run) -> dict[str, object]:
    """Put what tells a run apart, and its metrics, into one row."""
    tags = run.data.tags
    names = ("stage", "model_name", "imbalance_technique", "role", "split", "leaky", "data_sha256")
    return {
        "run_id": run.info.run_id,
        "started": run.info.start_time,
        "params": json.dumps(run.data.params, sort_keys=True),
        "protocol_digest": run.data.params["protocol_digest"],
        "alarm": read_alarm(run.data.params),
        "modules_per_site": float(run.data.params["modules_per_site"]),
        **{name: tags[name] for name in names},
        **run.data.metrics,
    }


def _with_names(runs: pd.DataFrame) -> pd.DataFrame:
    """Name each run by its model and treatment; by its stage too where that is not enough."""
    plain = runs["model_name"].where(
        runs["role"] == "reference", runs["model_name"] + ", " + runs["imbalance_technique"]
    )
    named = plain.where(~plain.duplicated(keep=False), plain + " (" + runs["stage"] + ")")
    again = named.groupby(named).cumcount() + 1
    named = named.where(again == 1, named + " #" + again.astype(str))
    return runs.assign(name=named)


def read_audit(data_sha256: str) -> pd.DataFrame | None:
    """Read the newest leakage audit that 01_baseline has logged for this telemetry, if any."""
    runs = search_runs(f"tags.data_sha256 = '{data_sha256}' and tags.audited = 'true'")
    if not runs:
        return None
    run_id = runs[0].info.run_id
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=AUDIT)
    return pd.read_csv(path)


def verdict() -> tuple[pd.DataFrame, dict[str, str]]:
    """Return what the last finished comparison found.

    Returns
    -------
    The leaderboard, and the champion's ``name``, ``run_id`` and registered ``version``.
    """
    with store_failures_told():
        runs = search_runs("attributes.status = 'FINISHED' and tags.stage = 'comparison'")
        tags = runs[0].data.tags
        path = mlflow.artifacts.download_artifacts(
            run_id=runs[0].info.run_id, artifact_path="leaderboard.csv"
        )
    champion = {name: tags[f"champion_{name}"] for name in ("name", "run_id", "version")}
    return pd.read_csv(path), champion
