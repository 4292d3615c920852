"""Figures shown by several notebooks or by every run. Each function returns its figure."""

import io
import textwrap
from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from ipywidgets import Image, Layout, SelectionSlider, VBox
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import ConfusionMatrixDisplay, average_precision_score, precision_recall_curve

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, event_table
from hvs_lib.telemetry.codes import pnr_of

# Nuisance alarms per site-day, named by how long a site waits for one.
_TICKS = {1 / 30: "1/month", 1 / 7: "1/week", 1: "1/day", 24: "1/hour"}
_LEFT = min(_TICKS)  # where a logarithmic axis shows zero
AROUND_MIN = 120.0  # shown before and after an alarm [min]
BEFORE_MIN = 45.0  # shown before a PNR, or as far back as the first alarm if that is earlier [min]

# The colour of each model, in the order of all figures; grey: no fit needed.
_MODELS = {
    "logistic regression, none": "C0",
    "logistic regression, class weight": "C9",
    "random forest, none": "C2",
    "random forest, class weight": "#8ccfb5",
    "XGBoost, none": "C3",
    "by hand": "C3",  # the same model, while it is tuned
    "XGBoost tuned by f1_class1, none": "C4",
    "tuned by f1_class1": "C4",
    "tuned by pr_auc": "C6",
    "XGBoost tuned by pr_auc, none": "C6",
    "tuned by event_recall_5min": "#661100",
    "XGBoost tuned by event_recall_5min, none": "#661100",
    "XGBoost, class weight": "C1",
    "XGBoost, square-root weight": "C8",
    "XGBoost with limits, square-root weight": "C5",
    "XGBoost with limits, build-up left out, square-root weight": "#0b6e4f",
    "XGBoost build-up left out, square-root weight": "#aa4499",
    "XGBoost build-up as hazard, square-root weight": "#88ccee",
    "XGBoost, SMOTE": "#332288",
    "XGBoost, BorderlineSMOTE": "#ddcc77",
    "XGBoost, ADASYN": "#117733",
    "XGBoost, random under-sampling": "#882255",
    "XGBoost, SMOTE-Tomek": "#44aa99",
    "XGBoost, SMOTE-ENN": "#999933",
    "fixed, factor chosen": "0.2",
    "fixed threshold": "0.55",
    "random score": "0.75",
    "constant": "0.85",
}


def model_colors(names: Iterable[str]) -> dict[str, str]:
    """Return the colour of each model, in the order that all figures share.

    Models unknown to the workbook come last, in unused colours.

    Examples
    --------
    >>> model_colors(["XGBoost, none", "random forest, none", "mine"])
    {'random forest, none': 'C2', 'XGBoost, none': 'C3', 'mine': 'C0'}
    """
    names = list(names)
    known = {name: color for name, color in _MODELS.items() if name in names}
    own = [name for name in names if name not in known]
    free = [color for color in (f"C{i}" for i in range(10)) if color not in known.values()]
    return known | {name: free[number % len(free)] for number, name in enumerate(own)}


def set_style() -> None:
    """Set the style of all figures once: colour-blind safe colours, 100 dpi.

    Examples
    --------
    >>> set_style()
    >>> plt.rcParams["figure.dpi"]
    100.0
    """
    settings = {"figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True}
    sns.set_theme(style="whitegrid", palette="colorblind", rc=settings)


def confusion_matrix(scores: pd.DataFrame, *, threshold: float, title: str) -> Figure:
    """Draw the counts of a scores frame, shape (n_samples, ...), at a threshold."""
    fig, ax = plt.subplots(figsize=(4.5, 4))
    ConfusionMatrixDisplay.from_predictions(
        scores[col.LABEL], scores["y_score"] >= threshold, labels=[0, 1], ax=ax,
        display_labels=["normal", "hazard"], values_format=",d", colorbar=False, cmap="Blues",
    )  # fmt: skip
    ax.grid(False)
    ax.set_title(title)
    return fig


def legend_beside(ax: Axes, title: str = "") -> None:
    """Put the legend to the right of the axes, where it covers nothing.

    Examples
    --------
    >>> figure, ax = plt.subplots()
    >>> lines = ax.plot([0, 1], label="a line")
    >>> legend_beside(ax, title="Lines")
    """
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    legend = ax.legend(title=title, fontsize="small", title_fontsize="small", **place)
    for text in legend.get_texts():  # a long name must not narrow the axes
        text.set_text(textwrap.fill(text.get_text(), 30))


def plain(text: str) -> str:
    r"""Keep matplotlib from parsing text from data as mathematics.

    Examples
    --------
    >>> print(plain("5 $/kWh"))
    5 \$/kWh
    """
    return text.replace("$", r"\$")


def precision_recall(scores: dict[str, pd.DataFrame], *, title: str) -> Figure:
    """Overlay the precision-recall curves of models, from their scores frames of the same rows.

    Examples
    --------
    >>> figure = precision_recall({"fixed thresholds": scores}, title="One rack")
    """
    fig, ax = plt.subplots(figsize=(9, 4.5))
    for name, color in model_colors(scores).items():
        y_true, y_score = scores[name][col.LABEL], scores[name]["y_score"]
        precision, recall, _ = precision_recall_curve(y_true, y_score, drop_intermediate=True)
        ap = average_precision_score(y_true, y_score)
        ax.step(recall, precision, where="post", color=color, label=f"{name} ({ap:.2f})")
    ax.axhline(np.mean(y_true), color="0.4", linestyle=":", label="prevalence")
    ax.set(xlabel="Recall of hazardous rows", ylabel="Precision", title=title, xlim=(0, 1))
    ax.set_ylim(0, 1.02)
    legend_beside(ax, title="average precision")
    return fig


def module_timeline(telemetry: pd.DataFrame, rows: np.ndarray) -> Figure:
    """Draw what an event or look-alike did to its module, compared with its siblings in the rack.

    Three panels: temperature [degC], off-gas [ppm], voltage [V]. If there is a label window, it is
    shaded and time counts to the PNR; otherwise time counts to the last row of the look-alike.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, ...)
        Telemetry with the label.
    rows : array
        Positions or mask of the rows of one event or look-alike.

    Examples
    --------
    >>> figure = module_timeline(telemetry, telemetry["Hazard_Label"] == 1)
    """
    event = telemetry.iloc[rows]
    first = event.iloc[0]
    labelled = event[event[col.LABEL] == 1]
    hazard = len(labelled) > 0
    end = pnr_of(labelled).iloc[-1] if hazard else event[col.TIMESTAMP].max()
    rack = _before(telemetry, end, 75, **first[[col.SITE, col.RACK]])
    own = rack[rack[col.MODULE] == first[col.MODULE]]
    siblings = rack[rack[col.MODULE] != first[col.MODULE]].groupby("minute")
    fig, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
    for ax, name in ((axes[0], col.TEMP_MAX), (axes[2], col.VOLTAGE)):
        band = siblings[name].agg(["min", "max"])
        ax.fill_between(band.index, band["min"], band["max"], color="0.8", label="its siblings")
        ax.plot(own["minute"], own[name], linewidth=1.4, label="this module")
    voc = siblings[col.VOC].max()
    axes[1].fill_between(voc.index, 0, voc, color="0.8", label="VOC, siblings")
    for name, gas in ((col.VOC, "VOC"), (col.CO, "CO"), (col.H2, "H2")):
        axes[1].plot(own["minute"], own[name], linewidth=1.2, label=gas)
    axes[0].set(ylabel="max. surface [°C]", title=_title(first))
    axes[1].set_ylabel("off-gas [ppm]")
    axes[1].set_ylim(top=max(300, axes[1].get_ylim()[1]))  # otherwise noise fills the panel
    axes[2].set_ylabel("voltage [V]")
    axes[2].set_xlabel(f"minutes to {'the point of no return' if hazard else 'the last row shown'}")
    legend_beside(axes[1])
    for ax in axes:
        if hazard:
            window = own.loc[own[col.LABEL] == 1, "minute"]
            ax.axvspan(window.min(), window.max(), color="C1", alpha=0.15, label="label 1")
            ax.axvline(0, color="C3", linestyle="--", label="point of no return")
    legend_beside(axes[0])
    return fig


def alarm_timeline(
    telemetry: pd.DataFrame, alarms: dict[str, tuple[pd.DataFrame, Alarm]], event: pd.Series
) -> Figure:
    """Draw one event and the moment at which each alarm was raised.

    Two panels: surface temperature [degC] and gas [ppm]; scores divided by their thresholds, with a
    marker at the lead time. The onset, if in view, is dotted; the label window is shaded.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, ...)
    alarms : dict of str to (DataFrame, Alarm)
        Scores frame and alarm of each model.
    event : Series
        A row of `event_table` of one of the models.

    Examples
    --------
    >>> raised = {"fixed thresholds": (scores, alarm)}
    >>> figure = alarm_timeline(telemetry, raised, events.iloc[0])
    """
    module = event[[col.SITE, col.RACK, col.MODULE]]
    leads = {
        name: event_table(*with_alarm).loc[event.name, "lead_time_min"]
        for name, with_alarm in alarms.items()
    }
    minutes = np.nanmax([BEFORE_MIN, *(1.05 * lead for lead in leads.values())])
    own = _before(telemetry, event["PNR"], minutes, **module)
    fig, (above, below) = plt.subplots(2, 1, figsize=(8, 5.5), sharex=True)
    above.plot(own["minute"], own[col.TEMP_MAX], color="C5")
    above.set_ylabel("max. surface [°C]", color="C5")
    gas = above.twinx()
    gas.plot(own["minute"], own[col.VOC], color="C4", linewidth=1)
    gas.grid(False)
    gas.set_ylabel("VOC [ppm]", color="C4")
    above.set_title(_title(event))
    for name, color in model_colors(alarms).items():
        scores, alarm = alarms[name]
        rows = _before(scores, event["PNR"], minutes, **module)
        lead = leads[name]
        said = "no alarm" if np.isnan(lead) else f"alarm {lead:.0f} min before"
        ratio = (rows["y_score"] / alarm.threshold).clip(lower=1e-2)
        below.plot(rows["minute"], ratio, color=color, label=f"{name}: {said}")
        below.plot(-lead, 1, "v", color=color, markersize=11)
    below.axhline(1, color="0.3", linestyle=":")
    onset, window = _minutes_before(event, "onset"), _minutes_before(event, "window_start")
    last = own.loc[own[col.LABEL] == 1, "minute"].max()
    for ax in (above, below):
        ax.axvline(0, color="0.2", linestyle="--")
        ax.axvspan(-window, last, color="C1", alpha=0.15, label="label 1")
        if onset <= minutes:
            ax.axvline(-onset, color="0.2", linestyle=":", label="onset")
    below.set(ylabel="score / alarm threshold", xlabel="minutes to the point of no return")
    below.set_yscale("log")
    fig.legend(
        *below.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small"
    )
    return fig


def hours_around(telemetry: pd.DataFrame, alarm: pd.Series) -> pd.DataFrame:
    """Select the telemetry of an alarm's module, `AROUND_MIN` before and after it.

    Its column ``minute`` is the time since the alarm [min].

    Examples
    --------
    >>> hours = hours_around(telemetry, alarms.iloc[0])
    >>> hours["minute"].agg(["min", "max"]).round().tolist()
    [-116.0, 4.0]
    """
    own = np.all([telemetry[name] == alarm[name] for name in col.KEYS[:3]], axis=0)
    minute = (telemetry[col.TIMESTAMP] - alarm[col.TIMESTAMP]) / pd.Timedelta(minutes=1)
    return telemetry.assign(minute=minute)[own & (minute.abs() <= AROUND_MIN)]


def around_alarms(found: dict[str, pd.DataFrame], *, title: str) -> Figure:
    """Draw the hours around some alarms, one column each.

    Top: surface temperature [degC] and gas [ppm]. Bottom: each rule's score divided by its alarm
    threshold, on a logarithmic axis. The label window, if any, is shaded, and the PNR dashed.
    `found` maps headings to telemetry from `hours_around`, with one column per rule; no rule may
    have the name of a telemetry column.

    Examples
    --------
    >>> scored = telemetry.assign(score=scores["y_score"])
    >>> hours = hours_around(scored, alarms.iloc[0])
    >>> figure = around_alarms({"the first alarm": hours}, title="A short circuit")
    """
    size = {"figsize": (max(6, 3.6 * len(found)), 5.5), "sharex": "col", "sharey": "row"}
    fig, axes = plt.subplots(2, len(found), squeeze=False, **size)
    for (above, below), (heading, own) in zip(axes.T, found.items(), strict=True):
        gas = above.twinx()
        above.plot(own["minute"], own[col.TEMP_MAX], color="C5", label="temperature")
        gas.plot(own["minute"], own[col.VOC], color="C4", linewidth=1, label="VOC")
        gas.grid(False)
        above.tick_params(axis="y", labelcolor="C5")
        gas.tick_params(axis="y", labelcolor="C4")
        gas.set_ylim(0, max(300, np.nanmax([0, *own[col.VOC]])))  # otherwise noise fills it
        for rule in own.columns.difference([*col.TELEMETRY, "minute"], sort=False):
            below.plot(own["minute"], own[rule].clip(lower=1e-3), label=rule)
        labelled = own[own.get(col.LABEL, 0 * own["minute"]) == 1]
        for ax in (above, below):
            ax.axvline(0, color="C3", label="alarm")
            if len(labelled):
                start, end = labelled["minute"].iloc[[0, -1]]
                ax.axvspan(start, end, color="C1", alpha=0.15, label="label 1")
                late = pnr_of(labelled).iloc[-1] - labelled[col.TIMESTAMP].iloc[-1]
                pnr = end + late / pd.Timedelta(minutes=1)
                if pnr <= AROUND_MIN:  # otherwise it is out of view, and the label may go on
                    ax.axvline(pnr, color="0.2", linestyle="--", label="point of no return")
        below.axhline(1, color="0.3", linestyle=":")
        below.set(yscale="log", xlabel="minutes since the alarm")
        above.set_title(plain(heading), fontsize="medium")
    axes[0, 0].set_ylabel("max. surface [°C]", color="C5")
    gas.set_ylabel("VOC [ppm]", color="C4")
    axes[1, 0].set_ylabel("score / alarm threshold")
    handles = [handle for ax in (gas, *axes.flat) for handle in ax.get_legend_handles_labels()[0]]
    entries = {handle.get_label(): handle for handle in handles}  # each label once
    fig.legend(handles=entries.values(), loc="outside lower center", ncols=max(3, 2 * len(found)))
    fig.suptitle(title)
    return fig


def outside_ranges(found: pd.DataFrame, *, most: float) -> Figure:
    """Draw the shares of `outside_by_sensor`, and the largest share that the verdict allows.

    Examples
    --------
    >>> found = pd.DataFrame({"below": 0.01, "above": 0.02, "feature": "soc"}, ["soc"])
    >>> figure = outside_ranges(found, most=0.05)
    """
    fig, ax = plt.subplots(figsize=(9, 5))
    shares = 100 * found[["below", "above"]].iloc[::-1]
    shares.plot.barh(stacked=True, ax=ax, color=["C0", "C1"])
    ax.axvline(100 * most, color="0.3", linestyle=":")
    ax.set(
        xlabel="time outside the training range [%] (dotted: what the verdict allows)", ylabel=""
    )
    ax.set_title("The worst feature of each signal")
    return fig


def event_timelines(events: dict[str, pd.DataFrame], *, title: str) -> Figure:
    """Draw when each model raised its first alarm before each event's PNR.

    Events are lines, sorted by cause, that start at the onset and are thick from the start of the
    label window. A marker shows each model's first alarm at its time before the PNR [min], or in
    the right-hand column if there was none. Beyond 20 min the axis is logarithmic. `events` maps
    models to their tables from `event_table`, over the same events.

    Examples
    --------
    >>> figure = event_timelines({"fixed thresholds": events}, title="One rack")
    """
    first = next(iter(events.values()))
    first = first.sort_values([col.EVENT_TYPE, *col.KEYS[:3]])
    fig, ax = plt.subplots(figsize=(10, max(3.5, 0.36 * len(first) + 1.4)))  # room for the legend
    rows = np.arange(len(first))
    spans = ("onset", 1.5, "0.6", "since the onset"), ("window_start", 6, "#f2d9b3", "label 1")
    for since, width, color, label in spans:
        start = -_minutes_before(first, since)
        ax.hlines(rows, start, 0, color=color, linewidth=width, label=label)
    offsets = np.linspace(0.27, -0.27, len(events))
    for number, (name, color) in enumerate(model_colors(events).items()):
        lead = events[name].loc[first.index, "lead_time_min"].to_numpy()
        missed = np.isnan(lead)
        y = rows + offsets[number]
        style = {"color": color, "marker": "os^Dv<>P"[number % 8], "zorder": 3}
        ax.scatter(-lead[~missed], y[~missed], s=34, label=name, **style)
        ax.scatter(np.full(missed.sum(), 4), y[missed], s=26, alpha=0.5, **style)
    ax.axvline(0, color="0.2", linestyle="--")
    ax.set_yticks(rows, [_title(event) for _, event in first.iterrows()], fontsize="small")
    earliest = np.nanmax([20, *(table["lead_time_min"].max() for table in events.values())])
    ax.set_xscale("symlog", linthresh=20, linscale=2)
    ticks = [-480, -240, -120, -60, -20, -15, -10, -5]
    ax.set_xticks([*ticks, 0, 4], [*map(str, ticks), "PNR", "missed"])
    ax.set_xlim(-1.1 * earliest, 6)
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlabel="minutes to the point of no return", title=title)
    legend_beside(ax)
    return fig


def budget_curves(
    curves: dict[str, pd.DataFrame], points: dict[str, tuple[float, float]], *, title: str
) -> Figure:
    """Draw the share of events that several models catch against the nuisance alarms they raise.

    Solid: events caught. Dashed: events caught at least 5 min ahead. Each is at its best threshold
    within the budget; a dot marks the chosen alarm. The axis is logarithmic; zero nuisance alarms
    are drawn at its left edge.

    Parameters
    ----------
    curves : dict of str to DataFrame
        The `alarm_curve` of each model.
    points : dict of str to (float, float)
        Nuisance alarms per site-day and event recall of each model's chosen alarm.

    Examples
    --------
    >>> chosen = {"fixed thresholds": (0.0, 1.0)}
    >>> figure = budget_curves({"fixed thresholds": curve}, chosen, title="One rack")
    """
    fig, ax = plt.subplots(figsize=(10, 4.8))
    for name, color in model_colors(curves).items():
        best = curves[name].sort_values("nuisance_alarms_per_site_day").cummax()
        best = best.drop_duplicates("nuisance_alarms_per_site_day", keep="last")
        rate = best["nuisance_alarms_per_site_day"].clip(lower=_LEFT)
        ax.step(rate, best["event_recall"], where="post", color=color, label=name)
        ax.step(rate, best["event_recall_5min"], where="post", color=color, linestyle="--")
        if name in points:
            rate, recall = points[name]
            ax.plot(max(rate, _LEFT), recall, "o", color=color, markersize=9)
    _set_budget_axis(ax)
    for style, label in (("-", "caught"), ("--", "caught at least 5 min ahead")):
        ax.plot([], [], color="0.3", linestyle=style, label=label)
    ax.plot([], [], "o", color="0.3", label="the chosen alarm")
    ax.set(ylabel="event recall", title=title)
    ax.set_ylim(top=1.03)
    legend_beside(ax)
    return fig


def _set_budget_axis(ax: Axes) -> None:
    """Set the x axis to the log scale of nuisance alarms."""
    ax.set_xscale("log")
    ax.set_xticks(list(_TICKS), _TICKS.values())
    ax.set_xticks([], minor=True)
    ax.set_xlim(_LEFT * 0.9, max(_TICKS) * 1.1)
    ax.set_xlabel("nuisance alarms per site (left edge: none)")


def operating_point(curve: pd.DataFrame, threshold: float) -> Figure:
    """Draw event recall, lead time and nuisance alarms at one threshold of an `alarm_curve`."""
    rate = curve["nuisance_alarms_per_site_day"].clip(lower=_LEFT)
    at = curve.iloc[(curve["threshold"] - threshold).abs().argmin()]
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for ax, name in zip(axes, ("event_recall", "lead_time_median_min"), strict=True):
        ax.step(rate, curve[name], where="post", color="C0")
        ax.plot(rate[at.name], at[name], "o", color="C3", markersize=10)
        _set_budget_axis(ax)
    axes[0].set(ylabel="event recall", ylim=(0, 1.03))
    axes[1].set_ylabel("median lead time [min]")
    lead = at["lead_time_median_min"]
    fig.suptitle(
        f"threshold {at['threshold']:.3f}: recall {at['event_recall']:.2f}, "
        f"{at['nuisance_alarms_per_site_day']:.2g} nuisance alarms per site-day, "
        + ("no lead time" if np.isnan(lead) else f"median lead {lead:.1f} min")
    )
    return fig


def threshold_slider(curve: pd.DataFrame, *, threshold: float) -> VBox:
    """Return a slider over the thresholds of a curve, with `operating_point` below it.

    The figure is an image: `interactive` prints to an output widget, whose replies to the kernel
    can make papermill miss the end of the cell, and wait forever.

    Examples
    --------
    >>> slider, image = threshold_slider(curve, threshold=1.0).children
    >>> slider.description
    'threshold'
    """
    thresholds = np.sort(curve["threshold"].to_numpy())
    start = thresholds[np.abs(thresholds - threshold).argmin()]
    slider = SelectionSlider(
        options=[(f"{value:.4f}", value) for value in thresholds], value=start,
        description="threshold", continuous_update=False, layout=Layout(width="90%"),
    )  # fmt: skip
    image = Image()

    def draw(_=None) -> None:
        figure, png = operating_point(curve, slider.value), io.BytesIO()
        figure.savefig(png, bbox_inches="tight")
        plt.close(figure)
        image.value = png.getvalue()

    draw()
    slider.observe(draw, "value")
    return VBox([slider, image])


def _minutes_before(events: pd.DataFrame | pd.Series, name: str) -> np.ndarray | float:
    """Return the minutes from a column of `event_table` to the PNR."""
    return (events["PNR"] - events[name]) / pd.Timedelta(minutes=1)


def _title(event: pd.Series) -> str:
    """Return the event's cause, if known, and its module."""
    cause = event.get(col.EVENT_TYPE)
    return plain(event[col.MODULE] if pd.isna(cause) else f"{cause}, {event[col.MODULE]}")


def _before(frame: pd.DataFrame, end: pd.Timestamp, minutes: float, **ids: str) -> pd.DataFrame:
    """Select the rows of the ids in the minutes before ``end``; ``minute`` counts up to it."""
    minute = (frame[col.TIMESTAMP] - end).dt.total_seconds() / 60
    chosen = (minute >= -minutes) & (minute <= 0)
    for name, value in ids.items():
        chosen &= frame[name] == value
    return frame[chosen].assign(minute=minute[chosen])
