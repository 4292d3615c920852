"""Outcomes by hand: early, timely, fault or nuisance; the tables of events and of the others."""

import numpy as np
import pandas as pd
import pytest
from score_frames import AT_ONCE, START, frame_of, module_rows, seconds

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, event_table, other_table, raise_alarms
from hvs_lib.evaluation.outcomes import OUTCOMES
from hvs_lib.evaluation.scores import IS_FAULT, scores_frame

AT_1 = Alarm(AT_ONCE, 1)


def every_row(*modules, **columns):
    """Raise an alarm at every row."""
    return raise_alarms(frame_of(*modules).assign(y_score=1.0, **columns), AT_1)


def outcomes(*modules, **columns):
    """Outcome of an alarm at every row."""
    return every_row(*modules, **columns)["outcome"].tolist()


def minutes(*seconds):
    return pytest.approx([s / 60 for s in seconds], nan_ok=True)


# --------------------------------------------------------------------------------------------------
# One event with an Event_ID
# --------------------------------------------------------------------------------------------------


def test_alarms_around_an_event():
    """Build-up from 10 s, labels at 30 and 40 s, PNR at 70 s; the event goes on to 50 s."""
    event, at_s = [None, "E1", "E1", "E1", "E1", "E1", None], [0, 10, 20, 30, 40, 50, 3660]
    alarms = every_row(module_rows([0] * 7, [0, 0, 0, 1, 1, 0, 0], event=event, at_s=at_s))
    expected = ["nuisance", "early", "early", "timely", "timely", "fault", "nuisance"]
    assert alarms["outcome"].tolist() == expected
    assert set(expected) == set(OUTCOMES)
    assert alarms[col.EVENT_ID].tolist() == [None, *["E1"] * 4, None, None]
    assert alarms["lead_time_min"].tolist() == minutes(np.nan, 60, 50, 40, 30, np.nan, np.nan)


def test_an_event_lasts_from_its_first_row_to_its_last_label_whatever_stands_between():
    event = ["E1", None, "L1", "E1", "E1", "E1"]
    rows = module_rows([0] * 6, [0, 0, 0, 1, 0, 1], event=event)
    alarms = every_row(rows)
    assert alarms["outcome"].tolist() == ["early", "early", "early", "timely", "early", "timely"]
    assert set(alarms[col.EVENT_ID]) == {"E1"}


def test_what_follows_the_last_label_is_a_fault_even_without_a_cause():
    rows = module_rows([0] * 3, [1, 0, 0], event="E1").drop(columns=col.EVENT_TYPE)
    scores = rows.assign(y_score=1.0)
    assert raise_alarms(scores, AT_1)["outcome"].tolist() == ["timely", "fault", "fault"]


@pytest.mark.parametrize(
    ("score", "outcome", "lead_s"),
    [
        ([0, 0, 1, 1, 1, 1, 0, 0], ["early"], 60),  # an early alarm that still stands at the PNR
        ([0, 0, 1, 0, 0, 0, 0, 0], ["early"], 60),  # and one that has ended by then
        ([0, 0, 0, 0, 1, 0, 0, 0], ["timely"], 40),  # at the first label
        ([0, 0, 0, 0, 0, 1, 0, 0], ["timely"], 30),  # at the last one
        ([0, 0, 0, 0, 0, 0, 1, 1], ["fault"], None),  # too late
        ([0, 1, 1, 1, 1, 1, 0, 0], ["nuisance"], None),  # before the onset, not raised again in it
        ([0, 0, 0, 0, 0, 0, 0, 0], [], None),
    ],
)
def test_an_event_is_caught_by_an_alarm_raised_from_onset_to_last_label(score, outcome, lead_s):
    event = [None, None, *["E1"] * 6]
    scores = frame_of(module_rows(score, [0, 0, 0, 0, 1, 1, 0, 0], event=event))
    alarm = Alarm(AlarmRule(1, 1, refractory_min=2), 1)
    assert raise_alarms(scores, alarm)["outcome"].tolist() == outcome
    (found,) = event_table(scores, alarm).to_dict("records")
    assert found["caught"] == (lead_s is not None)
    assert [found["lead_time_min"]] == minutes(np.nan if lead_s is None else lead_s)


@pytest.mark.parametrize(("refractory_s", "lead_s"), [(10, 70), (20, 60), (50, 30), (60, np.nan)])
def test_an_alarm_before_the_onset_delays_the_first_alarm_of_the_event(refractory_s, lead_s):
    event = [None, *["E1"] * 5]
    scores = frame_of(module_rows([1] * 6, [0, 0, 0, 0, 1, 1], event=event))
    alarm = Alarm(AlarmRule(1, 1, refractory_min=refractory_s / 60), 1)
    assert raise_alarms(scores, alarm)["outcome"][0] == "nuisance"
    assert event_table(scores, alarm)["lead_time_min"].tolist() == minutes(lead_s)


def test_lead_time_counts_from_the_alarm_not_from_the_first_high_score():
    scores = frame_of(module_rows([0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1], event="E1"))
    lead = [event_table(scores, Alarm(AlarmRule(k, 5), 1))["lead_time_min"][0] for k in (1, 3, 5)]
    assert lead == minutes(70, 50, 30)


# --------------------------------------------------------------------------------------------------
# Faults and look-alikes
# --------------------------------------------------------------------------------------------------


def test_a_cause_that_occurs_with_a_label_is_a_fault_and_another_a_look_alike():
    reached = module_rows([0], 1, name="M1", event="E1", kind="vent")
    averted = module_rows([0], rack="R2", event="E2", kind="vent")
    harmless = module_rows([0], rack="R3", event="L1", kind="load step")
    quiet = module_rows([0], rack="R4")
    modules = [reached, averted, harmless, quiet]
    assert outcomes(*modules) == ["timely", "fault", "nuisance", "nuisance"]
    assert outcomes(*modules[1:]) == ["nuisance"] * 3  # no cause occurs with a label


@pytest.mark.parametrize(
    ("fault_types", "is_fault"),
    [
        ((), [True, True, False, False]),
        (["vent", "leak"], [True, True, True, False]),
        (["leak"], [True, True, True, False]),
    ],
)
def test_scores_frame_tells_faults_by_their_cause(fault_types, is_fault):
    kinds = {"R1": "vent", "R2": "vent", "R3": "leak", "R4": "load step"}
    modules = [module_rows([1], name == "R1", rack=name, event=name, kind=kind)
               for name, kind in kinds.items()]  # fmt: skip
    telemetry = frame_of(*modules).drop(columns=["y_score", IS_FAULT])
    scores = scores_frame(telemetry, np.arange(4), np.ones(4), fault_types=fault_types)
    assert scores[IS_FAULT].tolist() == is_fault
    expected = ["timely", *("fault" if fault else "nuisance" for fault in is_fault[1:])]
    assert raise_alarms(scores, AT_1)["outcome"].tolist() == expected
    # The labels of all telemetry count, not only those of the scored rows.
    rows = np.arange(1, 4)
    some = scores_frame(telemetry, rows, np.ones(3), fault_types=fault_types)
    assert some[IS_FAULT].tolist() == is_fault[1:]


def test_telemetry_without_event_ids_or_causes_has_no_faults():
    modules = [module_rows([1], 1, event="E1"), module_rows([1], rack="R2", event="E2")]
    telemetry = frame_of(*modules).drop(columns=["y_score", IS_FAULT])
    for missing in (col.EVENT_ID, col.EVENT_TYPE):
        scores = scores_frame(telemetry.drop(columns=missing), np.arange(2), np.ones(2))
        assert raise_alarms(scores, AT_1)["outcome"].tolist() == ["timely", "nuisance"]


def test_an_alarm_on_a_sibling_catches_nothing():
    ill = module_rows([0] * 3, [0, 1, 0], name="M1", event="E1")
    warm = module_rows([1] * 3, name="M2")
    scores = frame_of(ill, warm)
    assert raise_alarms(scores, AT_1)["outcome"].tolist() == ["nuisance", "fault", "nuisance"]
    assert not event_table(scores, AT_1)["caught"].any()
    # Where the sibling's rows have the Event_ID, it has the fault as well.
    scores = frame_of(ill, warm.assign(**{col.EVENT_ID: "E1", col.EVENT_TYPE: "vent"}))
    assert raise_alarms(scores, AT_1)["outcome"].tolist() == ["fault"] * 3
    assert not event_table(scores, AT_1)["caught"].any()


# --------------------------------------------------------------------------------------------------
# A module that cools, and the rack-mates of one that vents
# --------------------------------------------------------------------------------------------------

REACHED = module_rows([0], 1, site="S9", event="E9")  # makes its cause that of a fault


@pytest.mark.parametrize(
    ("after_min", "event", "outcome"),
    [
        (30, "L1", "fault"),
        (30, None, "fault"),
        (60, "L1", "fault"),
        (60 + 1 / 6, "L1", "nuisance"),
        (70, "L1", "nuisance"),
        (70, None, "nuisance"),
    ],
)
def test_a_fault_shows_for_an_hour_after_its_last_row(after_min, event, outcome):
    """The fault has its last row at 10 s."""
    names, kinds = ["E1", "E1", event], ["vent", "vent", "load step"]
    at_s = [0, 10, 10 + 60 * after_min]
    ill = module_rows([0] * 3, name="M1", event=names, kind=kinds, at_s=at_s)
    assert outcomes(ill, REACHED) == ["fault", "fault", outcome, "timely"]
    harmless = ill.assign(**{col.EVENT_TYPE: "load step"})
    assert outcomes(harmless, REACHED) == [*["nuisance"] * 3, "timely"]


def test_a_fault_shows_neither_before_its_first_row_nor_on_another_module():
    ill = module_rows([0] * 2, name="M2", event=[None, "E1"])
    before, after = (module_rows([0] * 2, name=name, at_s=[10, 20]) for name in ("M1", "M3"))
    expected = ["nuisance"] * 2 + ["nuisance", "fault"] + ["nuisance"] * 2 + ["timely"]
    assert outcomes(before, ill, after, REACHED) == expected


def test_a_fault_cools_from_its_own_last_row_whatever_stands_between():
    """It comes again at 3000 s, and at 6000 s it is 100 min since its first row."""
    event = ["E1", None, "E1", "L1", "L1"]
    kind = ["vent", "vent", "vent", "load step", "load step"]
    rows = module_rows([0] * 5, event=event, kind=kind, at_s=[0, 1000, 3000, 6000, 6610])
    assert outcomes(rows, REACHED) == [*["fault"] * 4, "nuisance", "timely"]


def test_an_event_on_a_module_that_cools_is_caught():
    rows = module_rows([0] * 4, [0, 0, 1, 0], event=["E1", "E2", "E2", None])
    assert outcomes(rows) == ["fault", "early", "timely", "fault"]


def test_the_rack_mates_of_a_module_in_its_label_window_are_hot_from_it():
    """Labels at 20 and 40 s, with a hole; the rack of the same name at S2 is another one."""
    ill = module_rows([0] * 7, [0, 0, 1, 0, 1, 0, 0], name="M2", event="E1")
    mates = [module_rows([0] * 7, name=name) for name in ("M1", "M3")]
    others = [module_rows([0] * 7, rack="R2"), module_rows([0] * 7, site="S2")]
    mate, other = [*["nuisance"] * 2, *["fault"] * 3, *["nuisance"] * 2], ["nuisance"] * 7
    own = ["early", "early", "timely", "early", "timely", "fault", "fault"]
    assert outcomes(mates[0], ill, mates[1], *others) == [*mate, *own, *mate, *other, *other]
    # Whatever the Event_ID of the mate is, and whether or not the event has one.
    busy = module_rows([0] * 7, event="L1", kind="load step")
    assert outcomes(busy, ill) == [*mate, *own]
    bare = ill.assign(**{col.LABEL: np.int8([0, 0, 1, 1, 1, 0, 0]), col.EVENT_ID: None})
    assert outcomes(mates[0], bare)[:7] == mate


def test_an_event_comes_before_the_heat_of_a_rack_mate():
    """Both are in their label windows at 20 s, and each builds up in that of the other."""
    one = module_rows([0] * 4, [1, 1, 1, 0], name="M1", event="E1")
    other = module_rows([0] * 4, [0, 0, 1, 1], name="M2", event=[None, "E2", "E2", "E2"])
    expected = [*["timely"] * 3, "fault", "fault", "early", "timely", "timely"]
    assert outcomes(one, other) == expected
    assert event_table(frame_of(one, other), Alarm(AT_ONCE, 0))["caught"].all()


def test_outcomes_do_not_depend_on_the_index():
    scores = frame_of(module_rows([1] * 3, event=["E1", None, None]), REACHED)
    scores["y_score"] = 1.0
    for index in ([7, 8, 9, 10], [3, 2, 1, 0]):
        alarms = raise_alarms(scores.set_axis(index), AT_1)
        assert alarms["outcome"].tolist() == [*["fault"] * 3, "timely"]


# --------------------------------------------------------------------------------------------------
# Events without an Event_ID, and events that overlap
# --------------------------------------------------------------------------------------------------


def test_without_an_event_id_the_onset_is_an_hour_before_the_pnr():
    at_s = [0, 29.999, 30, 1800, 3600, 3610]  # PNR at 3630 s
    rows = module_rows([0] * 6, [0, 0, 0, 0, 1, 0], at_s=at_s)
    expected = ["nuisance", "nuisance", "early", "early", "timely", "nuisance"]
    assert outcomes(rows) == expected
    bare = rows.drop(columns=[col.EVENT_ID, col.EVENT_TYPE]).assign(y_score=1.0)
    assert raise_alarms(bare, AT_1)["outcome"].tolist() == expected
    assert seconds(event_table(bare, AT_1)["onset"]) == [30]


def test_without_an_event_id_the_onset_is_never_in_another_module():
    other, short = module_rows([0] * 3, rack="R1"), module_rows([0] * 2, [0, 1], rack="R2")
    assert outcomes(other, short) == ["nuisance"] * 3 + ["early", "timely"]
    assert seconds(event_table(frame_of(other, short), AT_1)["onset"]) == [0]


def test_of_two_events_that_overlap_an_alarm_is_on_the_next():
    alarms = every_row(module_rows([0] * 6, [0, 1, 0, 0, 1, 0]))
    names = ["event 0", "event 0", "event 1", "event 1", "event 1", None]
    assert alarms[col.EVENT_ID].tolist() == names
    expected = ["early", "timely", "early", "early", "timely", "nuisance"]
    assert alarms["outcome"].tolist() == expected
    table = event_table(frame_of(module_rows([0] * 6, [0, 1, 0, 0, 1, 0])), AT_1)
    assert seconds(table["onset"]) == [0, 20]


def test_an_alarm_in_a_label_window_is_on_that_event():
    """The window of E2 lies within the one of E1, or within one without an Event_ID."""
    for event in (["E1", "E1", "E2", "E1"], [None, None, "E2", None]):
        scores = frame_of(module_rows([0, 0, 1, 0], [0, 1, 1, 1], event=event))
        table = event_table(scores, AT_1).set_index(col.EVENT_ID)
        assert table["caught"].to_dict() == {event[0] or "event 0": False, "E2": True}
        assert seconds(table["onset"]) == [0, 20]


def test_a_fault_within_the_hour_before_an_event_without_id_is_early():
    event = ["E1", "E1", "E2", None, None]
    alarms = every_row(module_rows([0] * 5, [1, 0, 0, 0, 1], event=event))
    assert alarms["outcome"].tolist() == ["timely", "early", "early", "early", "timely"]
    assert alarms[col.EVENT_ID].tolist() == ["E1", *["event 1"] * 4]


def test_events_without_an_id_are_stretches():
    scores = frame_of(module_rows([0] * 7, [1, 1, 0, 1, 0, 0, 1]))
    bare = scores.drop(columns=[col.EVENT_ID, col.EVENT_TYPE])
    for table in (event_table(s, AT_1) for s in (scores, bare)):
        assert seconds(table["window_start"]) == [0, 30, 60]
        assert table[col.EVENT_ID].tolist() == ["event 0", "event 1", "event 2"]
        assert table[col.EVENT_TYPE].isna().all()


def test_one_event_id_is_one_event_per_module_even_with_holes():
    holed = [1, 1, 0, 1]
    scores = frame_of(
        module_rows([0, 0, 0, 1], holed, name="M1", event="E1"),
        module_rows([0, 0, 0, 0], holed, name="M2", event="E1"),
    )
    table = event_table(scores, AT_1)
    assert table[col.MODULE].tolist() == ["M1", "M2"]
    assert table["caught"].tolist() == [True, False]


# --------------------------------------------------------------------------------------------------
# The tables
# --------------------------------------------------------------------------------------------------


def test_event_table_by_hand():
    label = [0, 0, 1, 1]
    scores = frame_of(
        module_rows([0, 0, 1, 1], label, name="M2", event=[None, "E7", "E7", "E7"]),
        module_rows([1, 0, 0, 0], label, name="M1", event=[None, *["E9"] * 3], kind="leak"),
        module_rows([1, 0, 0, 0], name="M3", event="L1", kind="load step"),
    )
    names = [col.SITE, col.RACK, col.MODULE, col.EVENT_ID, col.EVENT_TYPE]
    names += ["onset", "window_start", "PNR", "caught", "lead_time_min"]
    table = event_table(scores, AT_1)
    assert list(table) == names
    assert table[col.MODULE].tolist() == ["M1", "M2"]
    assert table[col.EVENT_ID].tolist() == ["E9", "E7"]
    assert table[col.EVENT_TYPE].tolist() == ["leak", "vent"]
    assert seconds(table["onset"]) == [10, 10]
    assert seconds(table["window_start"]) == [20, 20]
    assert seconds(table["PNR"]) == [60, 60]  # the last label at 30 s, and 30 s more
    assert table["caught"].tolist() == [False, True]
    assert table["lead_time_min"].tolist() == minutes(np.nan, 40)


@pytest.mark.parametrize(
    ("after_s", "lead_s"), [(None, 50), (10, 30), (30, 50), (300, 320), (0, 20)]
)
@pytest.mark.parametrize("event", ["E1", None])
def test_lead_times_count_to_the_pnr_of_the_telemetry(after_s, lead_s, event):
    rows = module_rows([0, 1, 1, 1], [0, 0, 1, 1], event=event)  # the last label at 30 s
    if after_s is not None:
        rows[col.PNR] = rows[col.TIMESTAMP].max() + pd.Timedelta(seconds=after_s)
    other = module_rows([1, 1], [1, 1], name="M2", event="E2")  # has none: 30 s after 10 s
    scores = scores_frame(frame_of(rows, other), np.arange(6), np.array([0, 1, 1, 1, 1, 1]))
    table, alarms = event_table(scores, AT_1), raise_alarms(scores, AT_1)
    assert seconds(table[col.PNR]) == [lead_s + 10, 40]
    assert table["lead_time_min"].tolist() == pytest.approx(minutes(lead_s, 40))
    expected = minutes(lead_s, lead_s - 10, lead_s - 20, 40, 30)
    assert alarms["lead_time_min"].tolist() == pytest.approx(expected)


def test_an_hour_before_its_pnr_an_event_without_id_sets_on():
    rows = module_rows([1] * 4, [0, 0, 0, 1], at_s=[0, 299, 301, 3600])
    rows[col.PNR] = START + pd.Timedelta(seconds=3900)
    assert outcomes(rows) == ["nuisance", "nuisance", "early", "timely"]


def test_tables_without_events_are_empty():
    scores = frame_of(module_rows([1, 1]))
    assert event_table(scores, AT_1).empty
    assert other_table(scores, AT_1).empty
    alarms = raise_alarms(scores.assign(y_score=0.0), AT_1)
    assert alarms.empty
    assert list(alarms)[-3:] == ["outcome", col.EVENT_ID, "lead_time_min"]


def test_other_table_counts_alarms_by_fault_and_look_alike():
    scores = frame_of(
        module_rows([1, 1, 1], [0, 1, 0], name="M1", event="E1"),  # an event: not listed
        module_rows([1, 0, 1], name="M2", event="E1"),  # its neighbour: neither
        module_rows([1, 0, 1], name="M3", event=["E2", "E2", None]),
        module_rows([1, 1, 0], name="M4", event="L1", kind="load step"),
        module_rows([1, 0, 0], name="M5", event="L1", kind="load step"),
        module_rows([0, 0, 0], name="M6", event="L2", kind="load step"),
        module_rows([0, 1, 0], site="S2", event="L1", kind="load step"),
        module_rows([0, 0, 1], site="S2", name="M2", event="L2", kind=None),
    )
    table = other_table(scores, AT_1)
    expected = {
        col.SITE: ["S1", "S1", "S1", "S2", "S2"],
        col.EVENT_ID: ["E2", "L1", "L2", "L1", "L2"],
        col.EVENT_TYPE: ["vent", "load step", "load step", "load step", None],
        IS_FAULT: [True, False, False, False, False],
        "alarms": [1, 3, 0, 1, 1],
    }
    assert table.astype(object).where(table.notna(), None).to_dict("list") == expected
    bare = other_table(scores.drop(columns=IS_FAULT), AT_1)
    assert (list(bare), len(bare)) == (list(expected), 0)


def test_alarms_are_raised_without_labels():
    labelled = frame_of(module_rows([0, 1, 0, 1], [0, 1, 1, 0], event="E1"))
    known = ["outcome", col.EVENT_ID, "lead_time_min"]
    alarms = raise_alarms(labelled.drop(columns=[col.LABEL, col.EVENT_ID, col.EVENT_TYPE]), AT_1)
    expected = raise_alarms(labelled, AT_1)
    pd.testing.assert_frame_equal(alarms, expected.drop(columns=known))
    assert alarms[col.TIMESTAMP][0] == START + pd.Timedelta(seconds=10)
