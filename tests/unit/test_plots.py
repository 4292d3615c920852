from hvs_lib import columns as col
from hvs_lib import plots
from hvs_lib.alarms import AlarmRule, event_table
from hvs_lib.data import event_codes
from hvs_lib.metrics import scores_frame

import matplotlib
import numpy as np
import pytest

matplotlib.use("agg")


@pytest.fixture
def telemetry(make_telemetry):
    return make_telemetry(racks=2, rows=240, event_racks=(0,), look_alike_racks=(1,))


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_event_counts_to_its_point_of_no_return_and_shows_its_label(telemetry):
    fig = plots.module_timeline(telemetry, event_codes(telemetry) == 0)
    temperature, _, voltage = fig.axes
    assert voltage.get_xlabel() == "minutes to the point of no return"
    assert {"this module", "its siblings", "label 1", "point of no return"} <= set(
        legend(temperature)
    )
    (own,) = (line for line in temperature.get_lines() if line.get_label() == "this module")
    assert own.get_xdata().max() == pytest.approx(-0.5)
    assert "short" in temperature.get_title()


def test_look_alike_has_no_label_and_counts_to_its_end(telemetry):
    fig = plots.module_timeline(telemetry, (telemetry[col.EVENT_TYPE] == "hot_day").to_numpy())
    assert fig.axes[2].get_xlabel() == "minutes to its end"
    assert "label 1" not in legend(fig.axes[0])


def test_alarm_is_said_to_be_as_early_as_the_event_table_says(telemetry):
    """An alarm before the label window that did not last is a false one, however early."""
    label = telemetry[col.LABEL].to_numpy()
    score = label.astype(float)
    first = np.flatnonzero(label)[0]
    score[first - 150 : first - 145] = 1.0
    scores = scores_frame(telemetry, np.arange(len(telemetry)), score)
    event = event_table(scores, threshold=0.5).iloc[0]
    quiet = scores.assign(y_score=0.0)
    alarm = {"threshold": 0.5, "rule": AlarmRule()}
    fig = plots.alarm_timeline(telemetry, {"a": (scores, alarm), "b": (quiet, alarm)}, event)
    said = legend(fig.axes[1])
    assert said[0] == f"a: alarm {event['lead_time_min']:.0f} min before"
    assert event["lead_time_min"] < 3
    assert said[1] == "b: no alarm"


def test_precision_recall_names_each_curve_with_its_average_precision(telemetry):
    scores = scores_frame(
        telemetry, np.arange(len(telemetry)), telemetry[col.LABEL].to_numpy(float)
    )
    fig = plots.precision_recall({"perfect": scores}, title="x")
    assert legend(fig.axes[0]) == ["perfect (1.00)", "prevalence"]


def test_confusion_matrix_counts_at_the_threshold(telemetry):
    label = telemetry[col.LABEL].to_numpy()
    scores = scores_frame(telemetry, np.arange(len(telemetry)), label * 0.5)
    fig = plots.confusion_matrix(scores, threshold=0.5, title="x")
    counts = {text.get_text() for text in fig.axes[0].texts}
    assert {str(label.sum()), str(len(label) - label.sum())} <= counts
