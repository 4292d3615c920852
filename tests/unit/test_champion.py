import numpy as np
import pandas as pd
import pytest

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.tracking.champion import decide, rank_models

RUNS = pd.DataFrame(
    [
        ("early", "model", "false", 0.9, 0.7, 0.55, 0.5, 0.4),
        ("sharp", "model", "false", 0.8, 0.8, 0.70, 0.4, 0.8),
        ("late", "model", "false", 0.9, 0.6, 0.60, 0.5, 0.4),
        ("tied", "model", "false", 0.9, 0.7, 0.50, 0.6, 0.3),
        ("leaky", "model", "true", 1.0, 1.0, 0.99, 0.9, 0.9),
        ("reference", "reference", "false", 1.0, 1.0, 0.99, 0.9, 0.9),
    ],
    columns=[
        "name", "role", "leaky", "cv_early_recall", "cv_event_recall_5min", "cv_pr_auc",
        "cv_recall_class1", "cv_precision_class1",
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


def test_ties_go_to_more_events_then_to_average_precision_in_any_order_of_the_runs():
    forwards, backwards = rank_models(RUNS), rank_models(RUNS[::-1])
    assert forwards["name"].tolist() == backwards["name"].tolist() == [
        "early", "tied", "late", "sharp",
    ]  # fmt: skip


def test_refusals():
    with pytest.raises(ValueError, match=r"policy must be one of .*, got 'best'"):
        rank_models(RUNS, policy="best")
    with pytest.raises(ValueError, match=r"min_precision must be between 0 and 1, got 2"):
        rank_models(RUNS, min_precision=2)
    with pytest.raises(ValueError, match="no model qualifies"):
        rank_models(RUNS, policy="recall", min_precision=0.99)


# ---- incumbent and challenger ------------------------------------------------------------------

N_EVENTS = 20


@pytest.fixture(scope="module")
def scores(make_telemetry):
    """Return a function that makes scores which catch so many events, minutes ahead."""
    telemetry = make_telemetry(
        sites=2, racks=12, rows=90, event_rows=40, event_racks=tuple(range(N_EVENTS))
    )
    rack = telemetry.groupby([col.SITE, col.RACK], observed=True).ngroup().to_numpy()
    label = telemetry[col.LABEL].to_numpy()

    def catching(n):
        held = np.random.default_rng(0).permutation(N_EVENTS)[:n]
        noise = np.random.default_rng(n).random(len(telemetry)) * 0.4
        score = np.where((label == 1) & np.isin(rack, held), 0.9, noise)
        return scores_frame(telemetry, np.arange(len(telemetry)), score)

    return catching


def run_of(name, **other):
    alarm = Alarm(AlarmRule(), 0.5)
    same = {"data_sha256": "a", "protocol_digest": "b", "alarm": alarm, "name": name}
    return pd.Series({"run_id": name} | same | other)


@pytest.mark.parametrize("policy", ["event_recall", "pr_auc", "recall"])
@pytest.mark.parametrize(
    ("challenger", "champion", "verdict"),
    [(18, "new", "better"), (9, "old", "cannot tell"), (2, "old", "worse")],
)
def test_the_incumbent_stays_unless_the_challenger_is_better(
    scores, policy, challenger, champion, verdict
):
    """Two planted challengers, one worse and one that luck explains, must not become champion."""
    caught = {"old": 8, "new": challenger}
    run, reason = decide(
        run_of("new"), run_of("old"), lambda run_id: scores(caught[run_id]), policy=policy
    )
    assert run["run_id"] == champion
    assert verdict in reason


def test_the_first_champion_has_no_incumbent(scores):
    run, _ = decide(run_of("new"), None, scores)
    assert run["run_id"] == "new"


def test_an_incumbent_that_leads_stays(scores):
    run, reason = decide(run_of("old"), run_of("old"), scores)
    assert run["run_id"] == "old"
    assert "leads the ranking" in reason


@pytest.mark.parametrize("other", [{"data_sha256": "x"}, {"protocol_digest": "x"}])
def test_what_was_judged_otherwise_cannot_be_compared(scores, other):
    run, reason = decide(run_of("new"), run_of("old", **other), scores)
    assert run["run_id"] == "new"
    assert "cannot be compared" in reason
