"""The field trial finds, partition by partition, what all telemetry at once shows."""

from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.metrics import evaluate
from hvs_lib.evaluation.outcomes import OUTCOMES
from hvs_lib.evaluation.ranges import outside_by_sensor, ranges_from_json, ranges_to_json
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.features import NO_SET, build_features
from hvs_lib.report import plots
from hvs_lib.score import Champion
from hvs_lib.telemetry import read
from hvs_lib.telemetry.files import DataError, save_telemetry
from hvs_lib.telemetry.fleet import load_fleet
from hvs_lib.trial import (
    CHAMPION,
    FIXED,
    Tried,
    around,
    first_alarms,
    judge_trust,
    try_fleet,
    try_on,
    verdict,
)

matplotlib.use("agg")


class Warm(ClassifierMixin, BaseEstimator):
    """Scores the excess over the siblings, or without them half of what is above 28.5 degC."""

    def predict_proba(self, X):
        excess = X[f"{col.TEMP_MAX}__vs_rack"].to_numpy(float)
        alone = (X[col.TEMP_MAX].to_numpy(float) - 28.5) / 2
        hazard = np.clip(np.where(np.isnan(excess), alone, excess) / 6, 0, 0.9)
        return np.column_stack([1 - hazard, hazard])


def tried_on(telemetry, champion):
    return Tried.together(try_on(telemetry, champion))


TABLE = {"sites": 2, "racks": 8, "event_racks": (0, 3, 9), "look_alike_racks": (5, 12)}


@pytest.fixture(scope="module")
def telemetry(make_telemetry):
    return make_telemetry(rows=240, **TABLE)


@pytest.fixture(scope="module")
def champion(telemetry):
    ranges = ranges_from_json(ranges_to_json(build_features(telemetry)))
    sets = {"all sensors": {"threshold": 0.3, "event_recall_low": 0.9}}
    rule = Alarm(AlarmRule(k=2, n=3), 0.3)
    return Champion(Warm(), rule, (10.0, 10.0), frozenset(["short"]), sets, ranges, 5.0, "training")


@pytest.mark.slow
def test_partitions_together_are_the_whole(telemetry, champion, make_fleet):
    fleet = make_fleet(telemetry, rows_together=1000)
    assert len(fleet.paths) > 3
    parts, whole = try_fleet(fleet, champion, n_jobs=2), tried_on(telemetry, champion)
    pd.testing.assert_frame_equal(parts.alarms, whole.alarms)
    pd.testing.assert_frame_equal(parts.outside, whole.outside)
    assert parts.metrics(CHAMPION) == whole.metrics(CHAMPION)
    assert parts.alarm_rates().equals(whole.alarm_rates())

    y_score = Warm().predict_proba(build_features(telemetry))[:, 1]
    frame = scores_frame(telemetry, np.arange(len(telemetry)), y_score)
    expected, found = evaluate(frame, champion.alarm), parts.metrics(CHAMPION)
    assert found["n_events"] == 3 and found["n_nuisance_alarms"] > 0
    for name in ("event_recall", "nuisance_alarms_per_site_day", "site_days"):
        assert found[name] == pytest.approx(expected[name])


@pytest.mark.slow
def test_telemetry_without_a_label_has_alarms_but_no_outcomes(
    telemetry, champion, project, monkeypatch
):
    names = [col.LABEL, col.EVENT_ID, col.EVENT_TYPE]
    save_telemetry(telemetry.drop(columns=names), project / "own.csv")
    monkeypatch.setattr(read, "ROWS_TOGETHER", 1000)
    fleet = load_fleet(project / "own.csv", require_label=False)
    assert not {*names} & {*fleet.rows}
    tried, labelled = try_fleet(fleet, champion, n_jobs=1), tried_on(telemetry, champion)
    assert len(tried.alarms) == len(labelled.alarms) > 3
    assert list(tried.alarm_rates()) == ["all"]
    assert list(labelled.alarm_rates()) == [*OUTCOMES, "all"]
    found = tried.metrics(CHAMPION)
    assert {*found} == {f"alarms_per_site_day{end}" for end in ("", "_low", "_high")}
    of_champion = (tried.alarms["rule"] == CHAMPION).sum()
    assert found["alarms_per_site_day"] == pytest.approx(of_champion / tried.site_days)
    rules = judge_trust(tried, champion, outside=0.0)
    assert len(rules) == 4 and rules["met"].all()
    with pytest.raises(DataError, match="must be a column"):
        load_fleet(project / "own.csv")


def test_each_rack_has_its_own_sampling_interval(telemetry, champion):
    slow = (telemetry[col.RACK] == "RackA1") & (telemetry.groupby(col.MODULE).cumcount() % 6 > 0)
    tried = tried_on(telemetry[~slow].reset_index(drop=True), champion)
    intervals = tried.racks.set_index([col.SITE, col.RACK])["interval_s"]
    assert intervals["Site01", "RackA1"] == 60 and intervals["Site01", "RackA2"] == 10


def test_without_a_label_no_cause_makes_an_alarm_a_fault(telemetry, champion):
    unlabelled = tried_on(telemetry.drop(columns=col.LABEL), champion)
    of_champion = (unlabelled.alarms["rule"] == CHAMPION).sum()
    rate = unlabelled.metrics(CHAMPION)["alarms_per_site_day"]
    assert rate == pytest.approx(of_champion / unlabelled.site_days)


@pytest.mark.slow
@pytest.mark.parametrize("label", [True, False])
def test_the_hours_around_an_alarm_are_those_of_its_module(
    telemetry, champion, make_fleet, label, monkeypatch
):
    monkeypatch.setattr(plots, "AROUND_MIN", 5.0)
    fleet = make_fleet(telemetry, rows_together=1000)
    tried = try_fleet(fleet, champion, n_jobs=1)
    alarms = tried.alarms if label else tried.alarms.drop(columns="outcome")
    first = first_alarms(alarms, CHAMPION)
    if label:
        assert first["outcome"].tolist() == ["nuisance", "timely"]
    else:
        assert first.index.tolist() == alarms.index[alarms["rule"] == CHAMPION][:4].tolist()
    alarm = first.iloc[0]
    own = around(fleet, champion, alarm)
    assert set(own[col.MODULE]) == {alarm[col.MODULE]} and set(own[col.SITE]) == {alarm[col.SITE]}
    assert own["minute"].abs().max() <= 5
    at = own[own["minute"] == 0].iloc[0]
    assert at[CHAMPION] == pytest.approx(alarm["y_score"] / 0.3) and at[FIXED] > 0
    figure = plots.around_alarms({"a $ site": own}, title="alarms")
    assert [ax.get_ylabel() for ax in figure.axes] == [
        "max. surface [°C]", "score / alarm threshold", "VOC [ppm]",
    ]  # fmt: skip
    drawn = [line.get_label() for line in figure.axes[1].lines]
    assert drawn[:2] == [CHAMPION, FIXED]
    assert ("point of no return" in drawn) == own[col.LABEL].any() == (not label)


@pytest.mark.slow
def test_racks_without_temperature_are_counted_but_not_scored(telemetry, champion, make_fleet):
    rack = (telemetry[col.SITE] == "Site01") & (telemetry[col.RACK] == "RackA1")
    less = telemetry.assign(**{col.TEMP_AVG: telemetry[col.TEMP_AVG].mask(rack)})
    tried, whole = tried_on(less, champion), tried_on(telemetry, champion)
    assert tried.racks["sensor_set"].value_counts().to_dict() == {"all sensors": 15, NO_SET: 1}
    assert tried.site_days == pytest.approx(whole.site_days)
    assert tried.metrics(CHAMPION)["n_events"] == 2
    assert judge_trust(tried, champion, outside=0.0)["met"].tolist()[1] is False
    none = make_fleet(telemetry.assign(**{col.TEMP_AVG: np.float32(np.nan)}))
    with pytest.raises(DataError, match="must have readings of"):
        try_fleet(none, champion, n_jobs=1)


@pytest.mark.parametrize(
    ("changed", "options", "broken"),
    [
        ({}, {}, ""),
        ({}, {"data_sha256": "training"}, "telemetry that of the training"),
        ({"sets": {}}, {}, "racks whose sensor set was not judged 16"),
        ({}, {"outside": 0.051}, "most time outside a training range 5.1%"),
        ({"intervals_s": (1.0, 60.0)}, {}, ""),
        ({"intervals_s": (1.0, 4.0)}, {}, "largest ratio of sampling intervals 2.5"),
        ({"intervals_s": (21.0, 60.0)}, {}, "largest ratio of sampling intervals 2.1"),
        ({"budget": 0.5}, {}, "nuisance alarms per site-day"),
        ({"budget": np.nan}, {}, ""),  # its alarm was chosen by the cost of missed events
        ({"alarm": Alarm(AlarmRule(), 2.0), "sets": "deaf"}, {}, "event recall 0.00 [0.00, 0.71]"),
    ],
)
def test_each_rule_of_the_verdict_breaks_by_itself(telemetry, champion, changed, options, broken):
    champion = replace(champion, budget=1000.0)
    if changed.get("sets") == "deaf":
        sets = {"all sensors": {"threshold": 2.0, "event_recall_low": 0.9}}
        changed = changed | {"sets": sets}
    champion = replace(champion, **changed)
    rules = judge_trust(tried_on(telemetry, champion), champion, **({"outside": 0.01} | options))
    said = verdict(rules)
    assert int((~rules["met"]).sum()) == (1 if broken else 0)
    if broken:
        assert said.startswith("do not trust the champion") and broken in said
    else:
        assert said == f"trust the champion on this telemetry: all {len(rules)} rules are met"


def test_time_outside_a_range_counts_alike_at_every_interval(make_telemetry, champion, make_fleet):
    parts = [
        make_telemetry(racks=4, rows=rows, interval_s=seconds).assign(**{col.SITE: name})
        for name, rows, seconds in (("Hot", 600, 1.0), ("Cool", 60, 10.0))
    ]
    parts[0][col.AMBIENT] += np.float32(30)
    fleet = make_fleet(pd.concat(parts, ignore_index=True))
    found = outside_by_sensor(try_fleet(fleet, champion, n_jobs=1).outside)
    assert found.loc[col.AMBIENT, "outside"] == pytest.approx(0.5, abs=0.03)


def test_the_figure_of_the_ranges_names_every_signal(telemetry, champion):
    found = outside_by_sensor(tried_on(telemetry, champion).outside)
    figure = plots.outside_ranges(found, most=0.05)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == found.index[::-1].tolist()
