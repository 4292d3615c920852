import matplotlib
import numpy as np
import pytest

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, alarm_curve, event_table
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.report import plots
from hvs_lib.samplers import make_samplers
from hvs_lib.telemetry.codes import event_codes

matplotlib.use("agg")


@pytest.fixture
def telemetry(make_telemetry):
    return make_telemetry(racks=2, rows=240, event_racks=(0,), look_alike_racks=(1,))


def legend(ax):
    found = ax.get_legend() or ax.figure.legends[0]
    return [text.get_text() for text in found.get_texts()]


def test_models_have_one_colour_and_order_in_all_figures():
    few = plots.model_colors(["fixed threshold", "mine", "XGBoost, none"])
    many = plots.model_colors([*plots._MODELS, "other"])
    assert list(few) == ["XGBoost, none", "fixed threshold", "mine"]
    assert many.items() >= {name: few[name] for name in list(few)[:2]}.items()
    assert len(set(few.values())) == 3


def test_every_treatment_of_the_workbook_has_a_colour_of_its_own():
    labels = [np.repeat([0, 1], [90, 10])]
    settings = {"k_neighbors": 5, "sampling_strategy": 0.5, "normal_stride": 1, "seed": 0}
    treatments = ["none", "class weight", "square-root weight", *make_samplers(labels, **settings)]
    colors = [plots._MODELS[f"XGBoost, {name}"] for name in treatments]
    assert len(set(colors)) == len(treatments)


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


def test_ids_from_data_are_no_mathematics(telemetry):
    evil = telemetry.assign(**{col.MODULE: "$\\frac$" + telemetry[col.MODULE].astype(str)})
    fig = plots.module_timeline(evil, event_codes(evil) == 0)
    fig.canvas.draw()
    assert r"\$\frac\$" in fig.axes[0].get_title()


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
    alarm = Alarm(AlarmRule(), 0.5)
    event = event_table(scores, alarm).iloc[0]
    quiet = scores.assign(y_score=0.0)
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
    fig.canvas.draw()
    covered, shown = (part.get_window_extent() for part in (fig.axes[0].get_legend(), fig.axes[0]))
    assert not covered.overlaps(shown)


def test_confusion_matrix_counts_at_the_threshold(telemetry):
    label = telemetry[col.LABEL].to_numpy()
    scores = scores_frame(telemetry, np.arange(len(telemetry)), label * 0.5)
    fig = plots.confusion_matrix(scores, threshold=0.5, title="x")
    counts = {text.get_text() for text in fig.axes[0].texts}
    assert {str(label.sum()), str(len(label) - label.sum())} <= counts


def test_event_timelines_tell_silent_from_early(telemetry):
    label = telemetry[col.LABEL].to_numpy(float)
    loud = scores_frame(telemetry, np.arange(len(telemetry)), label)
    events = {
        "loud": event_table(loud, Alarm(AlarmRule(), 0.5)),
        "mute": event_table(loud.assign(y_score=0.0), Alarm(AlarmRule(), 0.5)),
    }
    ax = plots.event_timelines(events, title="x").axes[0]
    places = [c.get_offsets()[:, 0].tolist() for c in ax.collections if len(c.get_offsets())]
    lead = events["loud"]["lead_time_min"].iloc[0]
    assert places == [[pytest.approx(-lead)], [2.5]]
    assert legend(ax) == ["loud", "mute"]


@pytest.fixture
def curve(telemetry):
    score = telemetry[col.TEMP_MAX].rank(pct=True).to_numpy()
    found = alarm_curve(scores_frame(telemetry, np.arange(len(telemetry)), score), AlarmRule())
    return found.assign(false_alarms_per_site_day=found["false_alarms_per_module_day"] * 8)


def test_operating_point_marks_the_threshold(curve):
    at = curve.iloc[len(curve) // 2]
    fig = plots.operating_point(curve, at["threshold"])
    mark = fig.axes[0].get_lines()[1]
    assert mark.get_ydata()[0] == at["event_recall"]
    assert mark.get_xdata()[0] == at["false_alarms_per_site_day"]
    assert f"threshold {at['threshold']:.3f}" in fig.get_suptitle()


def test_slider_draws_the_threshold_that_it_stands_on(curve, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "operating_point", lambda _, threshold: drawn.append(threshold))
    box = plots.threshold_slider(curve, threshold=curve["threshold"].iloc[3])
    slider = box.children[0]
    assert slider.value == curve["threshold"].iloc[3]
    box.update()
    slider.value = slider.options[0][1]
    assert drawn[0] == curve["threshold"].iloc[3]
    assert drawn[-1] == curve["threshold"].min()
