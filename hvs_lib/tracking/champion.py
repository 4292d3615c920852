"""Rank comparable runs by a stated rule, and register the best if it beats the last champion."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from hvs_lib.evaluation.uncertainty import paired_differences
from hvs_lib.progress import STEP, log_line
from hvs_lib.project import StoreError
from hvs_lib.tracking.model_files import SENSOR_SETS_FILE
from hvs_lib.tracking.runs import row_of
from hvs_lib.tracking.store import one_at_a_time, search_runs

REGISTERED_MODEL = "hvs-fire-prediction"
CHAMPION = "champion"
_MOST_SHOWN = 5000  # characters of a description that fit MLflow's tables

# The metrics that decide each policy; each metric breaks the ties of those before it.
POLICIES = {
    "event_recall": ["cv_early_recall", "cv_event_recall_5min", "cv_pr_auc"],
    "pr_auc": ["cv_pr_auc"],
    "recall": ["cv_recall_class1", "cv_pr_auc"],
}


def rank_models(
    runs: pd.DataFrame, *, policy: str = "event_recall", min_precision: float = 0.5
) -> pd.DataFrame:
    """Rank the qualifying models by their out-of-fold metrics, best first.

    References and leaky runs do not qualify.

    Parameters
    ----------
    runs : DataFrame
        One row per run, from `comparable_runs`.
    policy : str
        ``event_recall``: the most events caught at least 5 min ahead, averaged over shares of the
        nuisance-alarm budget, see `early_recall`; ties go to the most at the full budget, then to
        the higher average precision. ``pr_auc``: the highest average precision. ``recall``: the
        highest recall of hazardous rows among models whose precision reaches `min_precision`; ties
        go to the higher average precision.
    min_precision : float
        Used by ``recall`` only.

    Raises
    ------
    ValueError
        If the policy is unknown, `min_precision` is outside 0 to 1, or no run qualifies.

    Examples
    --------
    >>> compared = runs.comparable_runs()
    >>> rank_models(compared)["name"].tolist()
    ['XGBoost, none']
    """
    check_policy(policy, min_precision)
    able = runs[(runs["role"] == "model") & (runs["leaky"] == "false")]
    if policy == "recall":
        able = able[able["cv_precision_class1"] >= min_precision]
    if able.empty:
        raise ValueError(
            f"no model qualifies for the policy {policy!r} with min_precision {min_precision}: "
            "run 01_baseline, 02_tuning or 03_smote first, or ask for less."
        )
    ranked = able.sort_values(POLICIES[policy], ascending=False, kind="stable")
    return ranked.reset_index(drop=True)


def check_policy(policy: str, min_precision: float) -> None:
    """Raise a ValueError for an unknown policy or a precision out of range."""
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}.")
    if not 0 <= min_precision <= 1:
        raise ValueError(f"min_precision must be between 0 and 1, got {min_precision}.")


def decide(
    challenger: pd.Series,
    incumbent: pd.Series | None,
    read_scores: Callable[[str], pd.DataFrame],
    *,
    policy: str = "event_recall",
    seed: int = 42,
) -> tuple[pd.Series, str]:
    """Let the challenger replace the incumbent only if it is better beyond chance.

    Return the run of the champion from now on, and the reason.

    An incumbent judged on other telemetry, racks or alarm budget cannot be compared: it is
    replaced but stays registered.

    Parameters
    ----------
    challenger : Series
        The first row of `rank_models`.
    incumbent : Series or None
        The run of the registered champion; None if there is none.
    read_scores : callable
        Function that returns the out-of-fold scores frame of a Run ID.
    policy : str
        ``event_recall`` compares the events caught 5 min ahead; ``pr_auc`` and ``recall``, which
        are about rows, compare the average precision.
    seed : int
        Seed of the bootstrap over racks.

    Examples
    --------
    >>> leader = rank_models(runs.comparable_runs()).iloc[0]
    >>> chosen, reason = decide(leader, None, runs.read_scores)
    >>> reason
    'it is the first champion.'
    """
    if incumbent is None:
        return challenger, "it is the first champion."
    if incumbent["run_id"] == challenger["run_id"]:
        return incumbent, "the champion leads the ranking itself."
    if any(incumbent[name] != challenger[name] for name in ("data_sha256", "protocol_digest")):
        what = f"the incumbent, {incumbent['name']} ({incumbent['run_id']}), was judged on other"
        return challenger, f"{what} telemetry, racks or alarm budget and cannot be compared."
    found = paired_differences(
        read_scores(challenger["run_id"]), read_scores(incumbent["run_id"]), seed=seed,
        alarm=challenger["alarm"], reference_alarm=incumbent["alarm"],
    )  # fmt: skip
    what, difference = "average precision", found["average precision"]
    if policy == "event_recall":
        what, difference = "events caught 5 min ahead", found["caught 5 min ahead"]
    said = f"challenger minus incumbent, {what} out of fold: {difference}, {difference.verdict}"
    if difference.verdict == "better":
        return challenger, f"{said}: the challenger takes over."
    return incumbent, f"{said}: the incumbent stays."


def champion_is_registered() -> bool:
    """Return whether a version has the champion alias."""
    found = MlflowClient().search_registered_models(f"name = '{REGISTERED_MODEL}'")
    return bool(found) and CHAMPION in found[0].aliases


def incumbent() -> pd.Series | None:
    """Return the run of the registered champion, as a row of `comparable_runs`.

    None if no champion is registered, or its run is deleted.

    Examples
    --------
    >>> incumbent()["run_id"] == run_id
    True
    """
    if not champion_is_registered():
        return None
    client = MlflowClient()
    run_id = client.get_model_version_by_alias(REGISTERED_MODEL, CHAMPION).run_id
    runs = search_runs(f"attributes.run_id = '{run_id}'")  # none if it is in the trash or gone
    if not runs:
        log_line(f"{STEP}the champion's run {run_id} is deleted: it no longer counts")
        return None
    row = row_of(runs[0])
    return pd.Series(row | {"name": f"{row['model_name']}, {row['imbalance_technique']}"})


def register_version(run_id: str) -> str:
    """Return the version of a run's model, which is registered if it is not yet.

    Examples
    --------
    >>> register_version(run_id)
    '1'
    """
    client, named = MlflowClient(), f"name = '{REGISTERED_MODEL}'"
    with one_at_a_time():
        known = client.search_model_versions(f"{named} and run_id = '{run_id}'")
        if not known:  # `mlflow.register_model` does the same but writes to standard error
            model_id = _logged_model_id(client, run_id)
            if not client.search_registered_models(named):
                client.create_registered_model(REGISTERED_MODEL)
            new = (REGISTERED_MODEL, f"models:/{model_id}", run_id)
            known = [client.create_model_version(*new, model_id=model_id)]
    return str(known[0].version)


def promote(version: str, sets: Mapping[str, dict[str, float]], card: str) -> None:
    """Log a version's sensor sets and card to its model and run, show the card, set the alias.

    In this order, so that whatever stops it, the champion is a complete one.

    Examples
    --------
    >>> promote(register_version(run_id), {}, "# The card of the model")
    """
    client = MlflowClient()
    run_id = client.get_model_version(REGISTERED_MODEL, version).run_id
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model_card.md").write_text(card, encoding="utf-8")
        (Path(folder) / SENSOR_SETS_FILE).write_text(json.dumps(sets, indent=1), encoding="utf-8")
        client.log_artifacts(run_id, folder)
        client.log_model_artifacts(_logged_model_id(client, run_id), folder)
    shown = card[:_MOST_SHOWN].rsplit("\n", 1)[0] if len(card) > _MOST_SHOWN else card
    client.update_model_version(REGISTERED_MODEL, version, description=shown)
    client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)


def _logged_model_id(client: MlflowClient, run_id: str) -> str:
    model_id = client.get_run(run_id).outputs.model_outputs[0].model_id
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        raise StoreError(
            f"the model of run {run_id} is deleted: delete the run too, so that the next in rank "
            "takes its place, or run its notebook again."
        ) from error
    return model_id
