"""Speed of the metrics at the size of the simulated fleet's training racks."""

import numpy as np
import pandas as pd
import pytest

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, alarm_curve, best_alarm
from hvs_lib.evaluation.audit import single_feature_average_precision
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.scores import check_scores, scores_frame
from hvs_lib.evaluation.uncertainty import bootstrap_average_precision

N_RACKS, N_MODULES, N_TIMES = 24, 8, 2880
BUILD_UP_ROWS, WINDOW_ROWS = 60, 117
N_ROWS = N_RACKS * N_MODULES * N_TIMES


@pytest.fixture(scope="module")
def telemetry():
    """24 racks of 8 modules, 8 h at 10 s, with an event in every fourth module: 552,960 rows."""
    module = np.arange(N_ROWS) // N_TIMES
    row = np.arange(N_ROWS) % N_TIMES
    since = row - (400 + 37 * (module % 60))
    on_event = (module % 4 == 0) & (since >= -BUILD_UP_ROWS) & (since < WINDOW_ROWS)
    label = on_event & (since >= 0)
    times = pd.date_range("2025-01-01", periods=N_TIMES, freq="10s").as_unit("us")
    racks = [f"Rack{r:02d}" for r in range(N_RACKS)]
    names = [f"Module{m:02d}" for m in range(N_MODULES)]
    events = [f"Event{m:03d}" for m in range(N_RACKS * N_MODULES)]
    return pd.DataFrame(
        {
            col.TIMESTAMP: np.tile(times, N_RACKS * N_MODULES),
            col.SITE: pd.Categorical(["Site01"]).repeat(N_ROWS),
            col.RACK: pd.Categorical.from_codes(module // N_MODULES, racks),
            col.MODULE: pd.Categorical.from_codes(module % N_MODULES, names),
            col.LABEL: label.astype(np.int8),
            col.EVENT_ID: pd.Categorical.from_codes(np.where(on_event, module, -1), events),
        }
    )


@pytest.fixture(scope="module")
def scores(telemetry):
    noise = np.random.default_rng(0).normal(size=N_ROWS)
    smooth = np.convolve(noise, np.full(20, 0.9), mode="same") + 1.5 * telemetry[col.LABEL] - 3
    return scores_frame(telemetry, np.arange(N_ROWS), 1 / (1 + np.exp(-smooth)))


def mean_s(benchmark):
    """Mean time [s], 0 under --benchmark-disable."""
    return benchmark.stats.stats.mean if benchmark.stats else 0.0


def test_scores_frame(benchmark, telemetry):
    rows = np.random.default_rng(0).permutation(N_ROWS)
    frame = benchmark(scores_frame, telemetry, rows, rows / N_ROWS)
    assert frame["y_score"].is_monotonic_increasing
    assert mean_s(benchmark) < 2


def test_choose_alarm(benchmark, scores):
    alarm = benchmark(best_alarm, scores, max_nuisance_alarms_per_site_day=1)
    assert 0 < alarm.threshold < 1
    assert mean_s(benchmark) < 2


def test_alarm_curve(benchmark, scores):
    curve = benchmark(alarm_curve, scores, AlarmRule())
    assert curve["event_recall"].max() == 1
    assert mean_s(benchmark) < 2


def test_evaluate(benchmark, scores):
    result = benchmark(evaluate, scores, Alarm(AlarmRule(), 0.5))
    assert result["n_events"] == N_RACKS * N_MODULES / 4
    assert mean_s(benchmark) < 3


def test_bootstrap(benchmark, scores):
    resampled = benchmark(bootstrap_average_precision, check_scores(scores))
    assert resampled.shape == (1000,)
    assert mean_s(benchmark) < 3


def test_single_features(benchmark):
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(1_100_000, 9)).astype(np.float32))
    y = (rng.random(len(X)) < 0.005).astype(int)
    precision = benchmark.pedantic(single_feature_average_precision, (X, y), rounds=3)
    assert precision.between(0.004, 0.006).all()
    assert mean_s(benchmark) < 5
