"""The comparison with other libraries, as far as it goes without them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import make_pipeline


@pytest.fixture(scope="module")
def peers(load_benchmark):
    return load_benchmark("peers")


@pytest.fixture(scope="module")
def protocol(make_fleet):
    fleet = make_fleet(racks=12, rows=60, event_racks=tuple(range(8)))
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=3, seed=1)
    return Protocol(fleet, split, normal_stride=3, hazard_stride=1)


def test_contenders_get_the_folds(peers, protocol):
    fold = protocol.training.fold
    for number, (fitting, held) in enumerate(peers.Folds(fold).split(fold)):
        assert set(fold[held]) == {number}
        assert sorted([*fitting, *held]) == list(range(len(fold)))


def test_found_models_are_judged_out_of_fold(peers, protocol):
    metrics, frame = peers.judge(protocol, make_pipeline(LogisticRegression(C=0.01)))
    assert len(frame) == len(protocol.split.train)
    assert {"pr_auc", "event_recall"} <= set(metrics)


def test_table_sets_each_beside_ours(peers, protocol):
    label = protocol.y[protocol.split.train].astype(float)
    noise = np.random.default_rng(0).random(len(label))
    found = {}
    for name, scores in {"ours": label, "lost": noise}.items():
        frame = scores_frame(protocol.fleet.rows, protocol.split.train, scores)
        found[name] = (evaluate(frame, Alarm(AlarmRule(), 0.99)), frame, 90.4)
    table = peers.table_of(found)
    assert table.loc["ours", "average precision"] == "1.00 [1.00, 1.00]"
    assert table.loc["ours", "minus ours"] == ""
    assert table.loc["lost", "minus ours"].endswith(", worse")
    assert table.loc["lost", "search [s]"] == "90"
