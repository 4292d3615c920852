"""Rank comparable runs by a stated rule, and let a challenger take over only where it is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hvs_lib.evaluation.uncertainty import (
    PairedDifference,
    paired_difference,
    paired_event_difference,
)

import pandas as pd

# Policy to the metric that decides.
POLICIES = {
    "event_recall": "cv_event_recall",
    "pr_auc": "cv_pr_auc",
    "recall": "cv_recall_class1",
}


@dataclass(frozen=True)
class Verdict:
    """Who is the champion from now on, and why.

    Attributes
    ----------
    run : Series, the champion's row of the runs.
    replaced : whether it took over, or is the first.
    reason : a sentence.
    """

    run: pd.Series
    replaced: bool
    reason: str


def rank_models(
    runs: pd.DataFrame, *, policy: str = "event_recall", min_precision: float = 0.5
) -> pd.DataFrame:
    """Rank the models by their out-of-fold metrics; references and leaky runs cannot win.

    Parameters
    ----------
    runs : frame, one row for each run, from `tracking.comparable_runs`.
    policy : ``event_recall``: the most events caught, with the threshold that keeps within the
        alarm budget; ``pr_auc``: the highest average precision; ``recall``: the highest recall of
        hazardous rows among models whose precision reaches `min_precision`. Ties go to the
        higher average precision.
    min_precision : used by ``recall`` only.

    Returns
    -------
    DataFrame, the rows of the models that qualify, best first.

    Raises
    ------
    ValueError
        For an unknown policy, a `min_precision` outside 0 to 1, or where no run qualifies.
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
    order = [POLICIES[policy], "cv_pr_auc"]
    return able.sort_values(order, ascending=False, kind="stable").reset_index(drop=True)


def check_policy(policy: str, min_precision: float) -> None:
    """Refuse an unknown policy or a precision out of range, with a ValueError."""
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}.")
    if not 0 <= min_precision <= 1:
        raise ValueError(f"min_precision must be between 0 and 1, got {min_precision}.")


def paired_by_policy(
    policy: str, run: pd.Series, other: pd.Series, read_scores: Callable[[str], pd.DataFrame],
    *, seed: int = 42,
) -> PairedDifference:  # fmt: skip
    """Compare two runs out of fold by what the policy is about.

    Parameters
    ----------
    policy : one of `POLICIES`; for both ``pr_auc`` and ``recall``, which are about rows, the
        average precision is compared.
    run, other : Series with ``run_id`` and ``alarm``.
    read_scores : gives the out-of-fold scores frame of a Run ID.
    seed : of the bootstrap over racks.

    Returns
    -------
    PairedDifference of `run` minus `other`.
    """
    scores, reference = read_scores(run["run_id"]), read_scores(other["run_id"])
    if policy != "event_recall":
        return paired_difference(scores, reference, seed=seed)
    return paired_event_difference(
        scores, reference, alarm=run["alarm"], reference_alarm=other["alarm"], seed=seed
    )


def decide(
    challenger: pd.Series,
    incumbent: pd.Series | None,
    read_scores: Callable[[str], pd.DataFrame],
    *,
    policy: str = "event_recall",
    seed: int = 42,
) -> Verdict:
    """Let the challenger replace the incumbent only if it is better beyond chance.

    Parameters
    ----------
    challenger : the first of `rank_models`.
    incumbent : the run of the registered champion; None if there is none.
    read_scores, policy, seed : as for `paired_by_policy`.

    Returns
    -------
    Verdict. An incumbent that was judged on other telemetry, racks or alarm budget cannot be
    compared: it gives way, and stays registered.
    """
    if incumbent is None:
        return Verdict(challenger, True, "it is the first champion.")
    if incumbent["run_id"] == challenger["run_id"]:
        return Verdict(incumbent, False, "the champion leads the ranking itself.")
    judged_by = ["data_sha256", "protocol_digest"]
    if any(incumbent[name] != challenger[name] for name in judged_by):
        return Verdict(
            challenger,
            True,
            f"the incumbent, {incumbent['name']} ({incumbent['run_id']}), was judged on other "
            "telemetry, racks or alarm budget and cannot be compared.",
        )
    difference = paired_by_policy(policy, challenger, incumbent, read_scores, seed=seed)
    what = "event recall" if policy == "event_recall" else "average precision"
    said = f"challenger minus incumbent, {what} out of fold: {difference}, {difference.verdict}"
    if difference.verdict == "better":
        return Verdict(challenger, True, f"{said}: the challenger takes over.")
    return Verdict(incumbent, False, f"{said}: the incumbent stays.")
