import matplotlib
import numpy as np
import pandas as pd
import pytest

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, alarm_curve, event_table, raise_alarms
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.report import plots
from hvs_lib.samplers import make_samplers
from hvs_lib.telemetry.codes import event_codes

matplotlib.use("agg")


@pytest.fixture
def telemetry(make_telemetry):
    return make_telemetry(racks=2, rows=240, event_racks=(0,), look_alike_racks=(1,))


@pytest.fixture(autouse=True)
def closed():
    """Close what a test has drawn: matplotlib warns of more than 20 open figures."""
    yield
    plots.plt.close("all")


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
    settings = {"k_neighbors": 5, "sampling_strategy": 0.5, "thinning": 1, "seed": 0}
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


def test_look_alike_has_no_label_and_counts_to_its_last_row(telemetry):
    fig = plots.module_timeline(telemetry, (telemetry[col.EVENT_TYPE] == "hot_day").to_numpy())
    assert fig.axes[2].get_xlabel() == "minutes to the last row shown"
    assert "label 1" not in legend(fig.axes[0])


ALARM = Alarm(AlarmRule(), 0.5)


@pytest.fixture
def early(telemetry):
    """Return telemetry whose event sets on 30 min before its label, and scores that rise then."""
    first = np.flatnonzero(telemetry[col.LABEL])[0]
    since_onset = np.arange(first - 180, first + 12)
    names = telemetry[[col.EVENT_ID, col.EVENT_TYPE]].iloc[first]
    for name in names.index:
        telemetry.loc[since_onset, name] = names[name]
    score = np.isin(np.arange(len(telemetry)), since_onset[30:]).astype(float)
    return telemetry, scores_frame(telemetry, np.arange(len(telemetry)), score)


def drawn_at(ax, label):
    (line,) = (line for line in ax.get_lines() if line.get_label() == label)
    return line.get_xdata()[0]


@pytest.mark.parametrize("minutes", [10, 45])
def test_alarm_is_in_view_as_early_as_the_event_table_says(early, minutes, monkeypatch):
    monkeypatch.setattr(plots, "BEFORE_MIN", minutes)
    telemetry, scores = early
    event = event_table(scores, ALARM).iloc[0]
    quiet = scores.assign(y_score=0.0)
    alarms = {"a": (scores, ALARM), "b": (quiet, ALARM)}
    fig = plots.alarm_timeline(telemetry, alarms, event)
    said = legend(fig.axes[1])
    assert event["lead_time_min"] == 27.0
    assert said[:2] == ["a: alarm 27 min before", "b: no alarm"]
    assert fig.axes[0].get_lines()[0].get_xdata().min() < -event["lead_time_min"]
    assert "label 1" in said
    assert ("onset" in said) == (minutes == 45), "only where it lies in view"
    if minutes == 45:
        assert drawn_at(fig.axes[1], "onset") == pytest.approx(-32.33, abs=0.01)


def around_its_alarm(telemetry, scores):
    (alarm,) = (alarm for _, alarm in raise_alarms(scores, ALARM).iterrows())
    return plots.hours_around(telemetry.assign(rule=scores["y_score"] / ALARM.threshold), alarm)


def names_in(ax):
    return {each.get_label() for each in (*ax.lines, *ax.patches)}


def test_the_hours_around_an_alarm_show_what_its_module_has(early):
    plots.set_style()
    own = around_its_alarm(*early)
    quiet = own.assign(**{col.LABEL: 0})
    fig = plots.around_alarms({"a $": own, "b": quiet}, title="x")
    above, above_quiet, below, below_quiet = fig.axes[:4]
    assert above.get_title() == r"a \$"
    for ax in (above, below):
        assert drawn_at(ax, "alarm") == 0
        assert drawn_at(ax, "point of no return") == 27.0
        assert "label 1" in names_in(ax)
    for ax in (above_quiet, below_quiet):
        assert "alarm" in names_in(ax) and not {"label 1", "point of no return"} & names_in(ax)
    assert sorted(legend(above)) == [
        "VOC", "alarm", "label 1", "point of no return", "rule", "temperature",
    ]  # fmt: skip
    fig.canvas.draw()
    covered, shown = fig.legends[0].get_window_extent(), fig.bbox
    assert shown.x0 <= covered.x0 and covered.x1 <= shown.x1
    assert not any(covered.overlaps(ax.get_tightbbox()) for ax in fig.axes)


def test_a_label_that_goes_on_out_of_view_has_no_point_of_no_return(early, monkeypatch):
    monkeypatch.setattr(plots, "AROUND_MIN", 26.0)  # the label lasts until 26.5
    own = around_its_alarm(*early)
    above = plots.around_alarms({"a": own}, title="x").axes[0]
    assert own["minute"].max() == 26.0
    assert "label 1" in names_in(above) and "point of no return" not in names_in(above)


@pytest.mark.parametrize("after_s", [10, 30, 300])
def test_figures_count_to_the_pnr_of_the_telemetry(early, after_s):
    telemetry, scores = early
    labelled = telemetry[col.LABEL] == 1
    pnr = telemetry.loc[labelled, col.TIMESTAMP].max() + pd.Timedelta(seconds=after_s)
    telemetry = telemetry.assign(**{col.PNR: pd.Series(pnr, telemetry.index).where(labelled)})
    scores = scores_frame(telemetry, np.arange(len(telemetry)), scores["y_score"].to_numpy())
    event = event_table(scores, ALARM).iloc[0]
    lead = 27.0 + (after_s - 30) / 60
    assert event["PNR"] == pnr and event["lead_time_min"] == pytest.approx(lead)

    def window(ax):
        (patch,) = (each for each in ax.patches if each.get_label() == "label 1")
        return patch.get_x(), patch.get_x() + patch.get_width()

    expected = pytest.approx((-(110 + after_s) / 60, -after_s / 60))
    above = plots.module_timeline(telemetry, np.flatnonzero(labelled)).axes[0]
    assert window(above) == expected and drawn_at(above, "point of no return") == 0
    below = plots.alarm_timeline(telemetry, {"a": (scores, ALARM)}, event).axes[1]
    assert window(below) == expected
    assert below.get_lines()[1].get_xdata()[0] == pytest.approx(-lead)
    around = plots.around_alarms({"a": around_its_alarm(telemetry, scores)}, title="x").axes[0]
    assert drawn_at(around, "point of no return") == pytest.approx(lead)


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
    places = [c.get_offsets()[:, 0].tolist() for c in ax.collections[2:] if len(c.get_offsets())]
    lead = events["loud"]["lead_time_min"].iloc[0]
    assert places == [[pytest.approx(-lead)], [4]]
    assert legend(ax)[-2:] == ["loud", "mute"]


def test_event_timelines_show_early_alarms_and_onsets(early):
    events = event_table(early[1], ALARM)
    ax = plots.event_timelines({"a": events}, title="x").axes[0]
    assert ax.get_xlim()[0] < -events["lead_time_min"].iloc[0]
    onset, label = ax.collections[:2]
    assert onset.get_segments()[0][0, 0] == pytest.approx(-32.33, abs=0.01)
    assert label.get_segments()[0][0, 0] == pytest.approx(-2.33, abs=0.01)


def test_legend_of_long_names_fits_beside_one_event(early, recwarn):
    plots.set_style()
    names = sorted(plots._MODELS, key=len)[-5:]
    events = dict.fromkeys(names, event_table(early[1], ALARM))
    plots.event_timelines(events, title="x").canvas.draw()
    assert [str(warning.message) for warning in recwarn] == []


@pytest.fixture
def curve(telemetry):
    score = telemetry[col.TEMP_MAX].rank(pct=True).to_numpy()
    return alarm_curve(scores_frame(telemetry, np.arange(len(telemetry)), score), AlarmRule())


def test_operating_point_marks_the_threshold(curve):
    at = curve.iloc[len(curve) // 2]
    fig = plots.operating_point(curve, at["threshold"])
    mark = fig.axes[0].get_lines()[1]
    assert mark.get_ydata()[0] == at["event_recall"]
    assert mark.get_xdata()[0] == at["nuisance_alarms_per_site_day"] > 1
    assert f"threshold {at['threshold']:.3f}" in fig.get_suptitle()


def test_budget_curves_show_the_best_within_each_budget():
    rate = [0.0, 0.0, 2.0, 0.5, 100.0]
    recall, ahead = [0.0, 0.2, 0.6, 0.8, 0.7], [0.0, 0.1, 0.5, 0.4, 0.3]
    curve = pd.DataFrame({"nuisance_alarms_per_site_day": rate, "event_recall": recall,
                          "event_recall_5min": ahead})  # fmt: skip
    fig = plots.budget_curves({"a": curve, "b": curve}, {"a": (0.0, 0.2)}, title="x")
    (ax,) = fig.axes
    caught, early, dot = ax.get_lines()[:3]
    assert caught.get_xdata().tolist() == [1 / 30, 0.5, 2.0, 100.0], "0 is at the left edge"
    assert caught.get_ydata().tolist() == [0.2, 0.8, 0.8, 0.8]
    assert early.get_ydata().tolist() == [0.1, 0.4, 0.5, 0.5]
    assert (dot.get_xdata()[0], dot.get_ydata()) == (1 / 30, 0.2)
    ticks = [tick.get_text() for tick in ax.get_xticklabels()]
    assert ticks == ["1/month", "1/week", "1/day", "1/hour"]
    assert legend(ax) == ["a", "b", "caught", "caught at least 5 min ahead", "the chosen alarm"]


def test_slider_draws_the_threshold_that_it_stands_on(curve, monkeypatch):
    drawn, draw, figures = [], plots.operating_point, plots.plt.get_fignums()
    monkeypatch.setattr(plots, "operating_point", lambda *a: drawn.append(a[1]) or draw(*a))
    box = plots.threshold_slider(curve, threshold=curve["threshold"].iloc[3])
    slider, image = box.children  # no output widget: papermill may wait forever for one
    assert slider.value == drawn[0] == curve["threshold"].iloc[3]
    before = bytes(image.value)
    slider.value = slider.options[0][1]
    assert before.startswith(b"\x89PNG") and bytes(image.value) != before
    assert plots.plt.get_fignums() == figures, "a notebook would show it twice"
    assert drawn[-1] == curve["threshold"].min()
