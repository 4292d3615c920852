"""Rank comparable runs by a stated rule; the first is the champion."""

import pandas as pd

# Policy to the metric that decides.
POLICIES = {
    "event_recall": "cv_event_recall",
    "pr_auc": "cv_pr_auc",
    "recall": "cv_recall_class1",
}


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
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}.")
    if not 0 <= min_precision <= 1:
        raise ValueError(f"min_precision must be between 0 and 1, got {min_precision}.")
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
