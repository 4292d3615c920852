from hvs_lib.champion import rank_models

import pandas as pd
import pytest

RUNS = pd.DataFrame(
    [
        # name, role, leaky, cv_event_recall, cv_pr_auc, cv_recall_class1, cv_precision_class1
        ("early", "model", "false", 0.9, 0.60, 0.5, 0.4),
        ("sharp", "model", "false", 0.8, 0.70, 0.4, 0.8),
        ("tied", "model", "false", 0.9, 0.50, 0.6, 0.3),
        ("leaky", "model", "true", 1.0, 0.99, 0.9, 0.9),
        ("reference", "reference", "false", 1.0, 0.99, 0.9, 0.9),
    ],
    columns=[
        "name", "role", "leaky", "cv_event_recall", "cv_pr_auc", "cv_recall_class1",
        "cv_precision_class1",
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "min_precision", "winner"),
    [
        ("event_recall", 0.5, "early"),
        ("pr_auc", 0.5, "sharp"),
        ("recall", 0.5, "sharp"),
        ("recall", 0.0, "tied"),
    ],
)
def test_each_policy_has_its_winner(policy, min_precision, winner):
    ranked = rank_models(RUNS, policy=policy, min_precision=min_precision)
    assert ranked["name"].iloc[0] == winner
    assert not {"leaky", "reference"} & set(ranked["name"])


def test_the_order_of_the_runs_does_not_matter():
    forwards, backwards = rank_models(RUNS), rank_models(RUNS[::-1])
    assert forwards["name"].tolist() == backwards["name"].tolist() == ["early", "tied", "sharp"]


def test_refusals():
    with pytest.raises(ValueError, match=r"policy must be one of .*, got 'best'"):
        rank_models(RUNS, policy="best")
    with pytest.raises(ValueError, match=r"min_precision must be between 0 and 1, got 2"):
        rank_models(RUNS, min_precision=2)
    with pytest.raises(ValueError, match="no model qualifies"):
        rank_models(RUNS, policy="recall", min_precision=0.99)
