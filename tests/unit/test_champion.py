from hvs_lib.champion import choose_champion

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
    found = choose_champion(RUNS, policy=policy, min_precision=min_precision)
    assert found["name"] == winner


def test_the_order_of_the_runs_does_not_matter():
    assert choose_champion(RUNS[::-1])["name"] == choose_champion(RUNS)["name"] == "early"


def test_refusals():
    with pytest.raises(ValueError, match=r"policy must be one of .*, got 'best'"):
        choose_champion(RUNS, policy="best")
    with pytest.raises(ValueError, match=r"min_precision must be between 0 and 1, got 2"):
        choose_champion(RUNS, min_precision=2)
    with pytest.raises(ValueError, match="no model qualifies"):
        choose_champion(RUNS, policy="recall", min_precision=0.99)
