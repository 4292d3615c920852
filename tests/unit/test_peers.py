"""The comparison with other libraries, as far as it goes without them."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import split_by_rack
from hvs_lib.features import build_features

PATH = Path(__file__).parents[1] / "benchmarks" / "peers.py"


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("peers", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def protocol(make_telemetry):
    telemetry = make_telemetry(racks=12, rows=60, event_racks=tuple(range(8)))
    split = split_by_rack(telemetry, test_size=0.25, n_folds=3, seed=1)
    return Protocol(telemetry, build_features(telemetry), split, normal_stride=3)


def test_contenders_get_the_rack_folds_and_no_test_row(peers, protocol):
    rows, fold, X, weights = peers._training_rows(protocol)
    assert not set(rows) & set(protocol.split.test)
    assert len(X) == len(fold) == len(weights) == len(rows)
    assert set(weights) == {1.0, 3.0}
    for number, (fitting, held) in enumerate(peers.RackFolds(fold).split(X)):
        assert set(rows[held]) <= set(protocol.split.folds[number][1])
        assert set(rows[fitting]) == set(protocol.fitting_rows(protocol.split.folds[number][0]))


def test_table_sets_each_beside_ours(peers, protocol):
    label = protocol.y[protocol.split.train].astype(float)
    noise = np.random.default_rng(0).random(len(label))
    found = {}
    for name, scores in {"ours": label, "lost": noise}.items():
        frame = scores_frame(protocol.telemetry, protocol.split.train, scores)
        found[name] = (evaluate(frame, Alarm(AlarmRule(), 0.99)), frame, 90.4)
    table = peers.table_of(found)
    assert table.loc["ours", "average precision"] == "1.00 [1.00, 1.00]"
    assert table.loc["ours", "minus ours"] == ""
    assert table.loc["lost", "minus ours"].endswith(", worse")
    assert table.loc["lost", "search [s]"] == "90"
