"""Metrics, alarms and the scores frame: limits by hand, an independent model, and properties."""

from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from score_frames import AT_ONCE, IDS, frame_of, module_rows, seconds
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

from hvs_lib import columns as col
from hvs_lib.evaluation import alarms, uncertainty
from hvs_lib.evaluation.alarms import (
    Alarm,
    AlarmRule,
    AlarmTrack,
    Sweep,
    alarm_curve,
    best_alarm,
    early_recall,
    event_table,
    raise_alarms,
)
from hvs_lib.evaluation.metrics import METRICS, evaluate, undefined_metrics
from hvs_lib.evaluation.outcomes import Outcomes
from hvs_lib.evaluation.scores import IS_FAULT, check_scores, scores_frame
from hvs_lib.evaluation.uncertainty import (
    bootstrap_average_precision,
    clopper_pearson,
    paired_differences,
    poisson_interval,
)

DAY_S = 86_400


def bootstrapped(scores, **options):
    return bootstrap_average_precision(check_scores(scores), **options)


INTERVALS = {  # metrics with _low and _high
    "event_recall", "event_recall_5min", "event_recall_10min", "nuisance_alarms_per_site_day",
    "fault_alarms_per_site_day", "pr_auc",
}  # fmt: skip


def at(threshold):
    return Alarm(AlarmRule(), threshold)


def levels(scores, rule):
    return AlarmTrack(Outcomes(check_scores(scores)), rule).level


def chosen_threshold(scores, budget, rule, *, costs=0.0):
    """Choose the threshold of one rule."""
    return best_alarm(
        scores, max_nuisance_alarms_per_site_day=budget, missed_event_costs=costs, rules=[rule]
    ).threshold


# --------------------------------------------------------------------------------------------------
# The rule and the level
# --------------------------------------------------------------------------------------------------


def test_level_is_the_kth_highest_of_the_last_n():
    scores = frame_of(module_rows([5, 1, 4, 2, 3, 9, 0]))
    level = levels(scores, AlarmRule(k=2, n=3))
    assert level.tolist() == [-np.inf, 1, 4, 2, 3, 3, 3]


def test_level_at_or_above_the_threshold_is_k_of_n_at_or_above_it():
    scores = frame_of(module_rows([0, 1, 0, 1, 1, 0, 0, 0]))
    holds = levels(scores, AlarmRule(k=3, n=4)) >= 1
    assert holds.tolist() == [False, False, False, False, True, False, False, False]


def test_level_with_one_of_one_is_the_score():
    assert levels(frame_of(module_rows([3, 1, 2])), AT_ONCE).tolist() == [3, 1, 2]


def test_level_never_mixes_modules_racks_or_sites():
    high, low = [9, 9, 9], [1, 1, 1]
    scores = frame_of(
        module_rows(high, name="M1"),
        module_rows(low, name="M2"),
        module_rows(low, rack="R2", name="M1"),
        module_rows(low, site="S2", name="M1"),
    )
    level = levels(scores, AlarmRule(k=2, n=3)).reshape(4, 3)
    assert (level[:, 0] == -np.inf).all()
    assert (level[0, 1:] == 9).all()
    assert (level[1:, 1:] == 1).all()


@pytest.mark.parametrize(("gap_s", "expected"), [(60, 5), (70, -np.inf)])
def test_level_restarts_after_a_gap_of_more_than_3n_intervals(gap_s, expected):
    at_s = [0, 10, 20, 20 + gap_s, 30 + gap_s]
    scores = frame_of(module_rows([5, 5, 5, 5, 5], at_s=at_s))
    level = levels(scores, AlarmRule(k=2, n=2))
    assert level[3] == expected
    assert level[4] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"k must be from 1 to n samples, got k=0, n=5\."),
        ({"k": 6, "n": 5}, r"k must be from 1 to n samples, got k=6, n=5\."),
        ({"refractory_min": -1}, r"refractory_min must be finite and at least 0 min, got -1\."),
        ({"refractory_min": np.nan}, r"refractory_min must be finite .* got nan\."),
    ],
)
def test_rule_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        AlarmRule(**options)


# --------------------------------------------------------------------------------------------------
# Alarms
# --------------------------------------------------------------------------------------------------


def test_a_standing_alarm_is_raised_again_after_the_refractory_period():
    scores = frame_of(module_rows([0, 1, 1, 1, 1, 1, 1, 1]))
    alarms = raise_alarms(scores, Alarm(AlarmRule(1, 1, refractory_min=0.5), 1))
    assert seconds(alarms[col.TIMESTAMP]) == [10, 40, 70]
    assert (alarms["outcome"] == "nuisance").all()


def test_an_alarm_inside_the_refractory_period_is_not_raised_but_waits_for_no_edge():
    scores = frame_of(module_rows([1, 0, 1, 0, 0, 1, 1]))
    alarms = raise_alarms(scores, Alarm(AlarmRule(1, 1, refractory_min=0.5), 1))
    assert seconds(alarms[col.TIMESTAMP]) == [0, 50]


def test_the_refractory_period_of_one_module_is_not_another_ones():
    one = [0, 1, 0, 0]
    scores = frame_of(module_rows(one, name="M1"), module_rows(one, name="M2"))
    alarms = raise_alarms(scores, Alarm(AlarmRule(1, 1), 1))
    assert alarms[col.MODULE].tolist() == ["M1", "M2"]
    assert alarms["y_score"].tolist() == alarms["level"].tolist() == [1, 1]


@pytest.mark.parametrize("row", [0, 1, 63, 64, 65, 127, 128, 198, 199])
def test_a_single_high_score_is_found_wherever_it_is(row):
    scores = frame_of(module_rows(np.arange(200) == row))
    alarms = raise_alarms(scores, Alarm(AT_ONCE, 1))
    assert seconds(alarms[col.TIMESTAMP]) == [10 * row]


def test_without_refractory_every_sample_is_an_alarm():
    alarms = raise_alarms(frame_of(module_rows([1, 1, 0, 1])), Alarm(AT_ONCE, 1))
    assert seconds(alarms[col.TIMESTAMP]) == [0, 10, 30]


# --------------------------------------------------------------------------------------------------
# An independent model: plain Python, row by row
# --------------------------------------------------------------------------------------------------


def plain_holds(score, at_s, threshold, rule):
    step = np.median(np.diff(at_s)) if len(at_s) > 1 else 0
    holds, window = [], []
    for i, value in enumerate(score):
        if i and at_s[i] - at_s[i - 1] > 3 * rule.n * step:
            window = []
        window = [*window, value][-rule.n :]
        holds.append(sum(v >= threshold for v in window) >= rule.k)
    return holds


def plain_events(label, ids):
    """Key and rows of each event: an Event_ID or, without one, an unbroken stretch of label 1."""
    events, stretch = {}, 0
    for i, hazard in enumerate(label):
        stretch += not hazard
        if hazard:
            events.setdefault(ids[i] or stretch, []).append(i)
    return list(events.items())


def plain_vents(place, modules):
    """First and last time of each label window on the other modules of the rack [s]."""
    return [
        (at_s[rows[0]], at_s[rows[-1]])
        for other, _, label, at_s, ids in modules
        if other[:2] == place[:2] and other != place
        for _, rows in plain_events(label, ids)
    ]


def plain_outcome(i, label, at_s, ids, faults, vents):
    """Outcome of an alarm at row i and, where it is on an event, the event's number."""
    events = plain_events(label, ids)
    for number, (_, rows) in enumerate(events):
        if i in rows:
            return "timely", number
    for number, (key, rows) in enumerate(events):
        onset_s = at_s[ids.index(key)] if key in ids else at_s[rows[-1]] + 30 - 3600
        if onset_s <= at_s[i] < at_s[rows[-1]]:
            return "early", number
    shown = [name for name, then in zip(ids[: i + 1], at_s, strict=False) if at_s[i] - then <= 3600]
    is_fault = any(name and name[0] in faults for name in shown)
    is_fault |= any(first <= at_s[i] <= last for first, last in vents)
    return ("fault" if is_fault else "nuisance"), None


def plain_module(score, label, at_s, ids, faults, vents, threshold, rule):
    """Return raise times, the outcome of each, and each event's lead time, None if missed [s]."""
    holds = plain_holds(score, at_s, threshold, rule)
    events = plain_events(label, ids)
    raised, outcomes, leads = [], [], [None] * len(events)
    for i, now in enumerate(at_s):
        if holds[i] and (not raised or now >= raised[-1] + rule.refractory_min * 60):
            outcome, number = plain_outcome(i, label, at_s, ids, faults, vents)
            raised.append(now)
            outcomes.append(outcome)
            if number is not None and leads[number] is None:
                leads[number] = at_s[events[number][1][-1]] + 30 - now
    return raised, outcomes, leads


def plain_faults(modules):
    """Causes that occur with label 1."""
    return {e[0] for _, _, label, _, ids in modules for y, e in zip(label, ids, strict=True)
            if y and e}  # fmt: skip


@st.composite
def fleets(draw):
    """Up to three modules of up to three racks, with coarse scores (many ties) and irregular steps.

    Each is a row of runs: quiet, build-ups, label windows with and without an Event_ID, faults and
    look-alikes, in any order. The first letter of an Event_ID is its cause.
    """
    run = st.tuples(
        st.integers(1, 5),
        st.sampled_from([0, 0, 1]),
        st.sampled_from([None, None, "A1", "A2", "B1"]),
    )
    racks = st.sampled_from([("S1", "R1"), ("S1", "R1"), ("S1", "R2"), ("S2", "R1")])
    modules = []
    for m in range(draw(st.integers(1, 3))):
        runs = draw(st.lists(run, min_size=1, max_size=6))
        label = [label for n, label, _ in runs for _ in range(n)]
        ids = [name for n, _, name in runs for _ in range(n)]
        n = len(label)
        score = draw(st.lists(st.integers(-2, 4), min_size=n, max_size=n))
        steps = st.sampled_from([10, 10, 10, 10, 20, 400, 2000, 3600])
        at_s = np.cumsum(draw(st.lists(steps, min_size=n, max_size=n))).tolist()
        modules.append(((*draw(racks), f"M{m}"), score, label, at_s, ids))
    return modules


rules = st.builds(
    lambda k, more, refractory: AlarmRule(k, k + more, refractory),
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from([0, 0.25, 0.5, 1, 5]),
)


def frame_of_fleet(modules):
    return frame_of(
        *(
            module_rows(
                score,
                label,
                site=site,
                rack=rack,
                name=name,
                at_s=at_s,
                event=ids,
                kind=[str(e)[0] for e in ids],
            )
            for (site, rack, name), score, label, at_s, ids in modules
        )
    )


def with_an_event(modules):
    """The same modules, the very first row labelled."""
    (place, score, label, at_s, ids), *others = modules
    return [(place, score, [1, *label[1:]], at_s, ids), *others]


M0, M1 = ("S1", "R1", "M0"), ("S1", "R1", "M1")


@settings(max_examples=60, deadline=None)
@given(fleets(), rules, st.integers(-3, 4))
@example([(M0, [1] * 4, [0, 1, 1, 1], [10, 20, 30, 40], ["A1", "A1", "B1", "A1"])], AT_ONCE, 1)
@example([(M0, [1] * 3, [1, 1, 1], [10, 20, 30], [None, "A1", None])], AT_ONCE, 1)
@example(
    [
        (M0, [1] * 4, [0] * 4, [10, 20, 3620, 3630], ["A1", "A1", "B1", None]),
        (M1, [1] * 4, [0, 1, 1, 0], [10, 3620, 3630, 3640], [None, "A2", "A2", None]),
        (("S2", "R1", "M2"), [1] * 2, [0] * 2, [3620, 3630], [None] * 2),
    ],
    AT_ONCE,
    1,
)
@pytest.mark.slow
def test_alarms_and_events_agree_with_the_plain_model(modules, rule, threshold):
    scores = frame_of_fleet(modules)
    alarms = raise_alarms(scores, Alarm(rule, threshold))
    events = event_table(scores, Alarm(rule, threshold))
    faults = plain_faults(modules)
    for place, *module in modules:
        vents, name = plain_vents(place, modules), place[2]
        raised, outcomes, leads = plain_module(*module, faults, vents, threshold, rule)
        ours = alarms[alarms[col.MODULE] == name]
        assert seconds(ours[col.TIMESTAMP]) == raised
        assert ours["outcome"].tolist() == outcomes
        lead = events.loc[events[col.MODULE] == name, "lead_time_min"] * 60
        expected = [np.nan if lead is None else lead for lead in leads]
        assert lead.tolist() == pytest.approx(expected, nan_ok=True)
        on_event = ours[ours["outcome"].isin(["early", "timely"])]
        firsts = on_event.groupby(col.EVENT_ID)["lead_time_min"].max() * 60
        assert sorted(firsts) == pytest.approx(sorted(lead for lead in leads if lead))


def plain_totals(modules, threshold, rule):
    """Nuisance alarms, fault alarms and the lead times of all events, None if missed [s]."""
    faults = plain_faults(modules)
    results = [
        plain_module(*module, faults, plain_vents(place, modules), threshold, rule)
        for place, *module in modules
    ]
    outcomes = [outcome for _, found, _ in results for outcome in found]
    leads = [lead for _, _, found in results for lead in found]
    return outcomes.count("nuisance"), outcomes.count("fault"), leads


@settings(max_examples=60, deadline=None)
@given(fleets(), rules, st.sampled_from([0, 200, 1000, 3000, 1e9]), st.sampled_from([0, 0, 0.5, 2]))
@pytest.mark.slow
def test_the_chosen_threshold_is_the_best(modules, rule, budget, costs):
    modules = with_an_event(modules)
    scores = frame_of_fleet(modules)
    days = evaluate(scores, Alarm(rule, 0))["site_days"]

    def merit(threshold):
        """Recall (or costs), then mean warning, then nuisance; None beyond the budget."""
        n_nuisance, _, leads = plain_totals(modules, threshold, rule)
        n_caught = sum(lead is not None for lead in leads)
        warning = sum(lead or 0 for lead in leads)
        if costs:
            return -n_nuisance - costs * (len(leads) - n_caught), warning, -n_nuisance
        within = n_nuisance <= budget * days + 1e-9
        return (n_caught, warning, -n_nuisance) if within else None

    # All thresholds that differ: every score, and one above them.
    merits = [merit(threshold) for threshold in [*range(-2, 5), 99]]
    chosen = chosen_threshold(scores, budget, rule, costs=costs)
    assert merit(chosen) == max(m for m in merits if m is not None)


def test_long_modules_with_rare_alarms_agree_with_the_plain_model():
    rng = np.random.default_rng(11)
    modules = []
    for number in range(4):
        # Quiet, build-up, label window, aftermath, quiet; the last module has a fault instead.
        label = np.repeat([0, 0, int(number < 3), 0, 0], [150, 50, 20, 10, 170])
        ids = [None] * 150 + [f"A{number}"] * 80 + [None] * 170
        score = rng.normal(size=400) + 0.5 * np.repeat([0, 1, 0], [150, 80, 170])
        place = ("S1", f"R{number % 3}", f"M{number}")
        modules.append((place, score, label.tolist(), list(range(0, 4000, 10)), ids))
    scores = frame_of_fleet(modules)
    rule = AlarmRule(2, 3, refractory_min=3)
    curve = alarm_curve(scores, rule)
    days = evaluate(scores, Alarm(rule, 0))["site_days"]
    assert days == pytest.approx(4000 / DAY_S)
    assert len(curve) > 500
    for point in curve.iloc[::25].itertuples():
        n_nuisance, n_fault, leads = plain_totals(modules, point.threshold, rule)
        caught = [lead for lead in leads if lead is not None]
        assert point.nuisance_alarms_per_site_day == pytest.approx(n_nuisance / days)
        assert point.fault_alarms_per_site_day == pytest.approx(n_fault / days)
        assert point.event_recall == pytest.approx(len(caught) / 3)
        assert point.event_recall_5min == pytest.approx(sum(x >= 300 for x in caught) / 3)
        assert point.event_recall_10min == pytest.approx(sum(x >= 600 for x in caught) / 3)


CURVE = [
    "threshold",
    "event_recall",
    "event_recall_5min",
    "event_recall_10min",
    "lead_time_median_min",
    "nuisance_alarms_per_site_day",
    "fault_alarms_per_site_day",
]


@settings(max_examples=12, deadline=None)
@given(fleets(), rules)
@pytest.mark.slow
def test_curve_agrees_with_the_single_thresholds(modules, rule):
    scores = frame_of_fleet(with_an_event(modules))
    curve = alarm_curve(scores, rule, modules_per_site=2)
    assert list(curve) == CURVE
    assert (curve["threshold"].diff().dropna() < 0).all()
    found = levels(scores, rule)
    assert set(curve["threshold"][1:]) == set(found[np.isfinite(found)])
    for point in curve.itertuples():
        alone = evaluate(scores, Alarm(rule, point.threshold), modules_per_site=2)
        names = [name for name in CURVE if alone["site_days"] or "site_day" not in name]
        ours = [getattr(point, name) for name in names]
        assert [alone.get(name, np.nan) for name in names] == pytest.approx(ours, nan_ok=True)


# --------------------------------------------------------------------------------------------------
# The choice of a threshold
# --------------------------------------------------------------------------------------------------


def test_a_wider_budget_catches_more():
    # One hour: event levels 9 and 5, nuisance alarms at 7 and 3.
    score, label, event = np.zeros((2, 360)), np.zeros(360), np.full(360, None)
    score[[0, 1, 0, 1], [20, 100, 200, 300]] = [9, 7, 5, 3]
    label[[20, 200]], event[[20, 200]] = 1, ["E1", "E2"]
    scores = frame_of(module_rows(score[0], label, event=event), module_rows(score[1], rack="R2"))
    rule = AlarmRule(1, 1, refractory_min=5)
    assert [chosen_threshold(scores, budget, rule) for budget in (0, 23.9, 24)] == [9, 9, 5]


def test_the_budget_is_for_a_site_of_so_many_modules():
    """One nuisance alarm in 4 modules of an hour each."""
    peak = np.arange(360) == 7
    event = module_rows(np.ones(360), 1, rack="R2", event="E1")
    quiet = [module_rows(peak * (name == "M2"), name=name) for name in ("M2", "M3", "M4")]
    scores = frame_of(event, *quiet)

    def within(budget, **options):
        options |= {"rules": [AlarmRule(1, 1)], "max_nuisance_alarms_per_site_day": budget}
        return best_alarm(scores, **options).threshold == 1

    assert [within(budget) for budget in (23.9, 24)] == [False, True]
    assert [within(budget, modules_per_site=8) for budget in (47.9, 48)] == [False, True]


def test_fault_alarms_are_free():
    """Two alarms on a fault stand before the quieter of two events."""
    loud, quiet = (
        module_rows([score], 1, name=name, event=name) for name, score in (("M1", 0.9), ("M2", 0.3))
    )
    fault = module_rows([0.5, 0.4], rack="R2", event="M3")
    assert chosen_threshold(frame_of(loud, quiet, fault), 0, AT_ONCE) == 0.3
    look_alike = fault.assign(**{col.EVENT_TYPE: "load step"})
    assert chosen_threshold(frame_of(loud, quiet, look_alike), 0, AT_ONCE) == 0.9


def test_of_the_thresholds_that_catch_most_the_earliest_warning_is_chosen():
    # The event rises through 1..5 from its onset on, and nothing else is above 0.
    scores = frame_of(module_rows([1, 2, 3, 4, 5], [0, 0, 1, 1, 1], event="E1"))
    assert chosen_threshold(scores, 0, AlarmRule(1, 1, refractory_min=5)) == 1


def test_the_warning_is_the_mean_over_all_events():
    """Below 4, E1 gains 10 s while a nuisance alarm delays E2 by 20 s."""
    scores = frame_of(
        module_rows([0, 3, 4, 4, 4, 4], [0, 0, 0, 0, 0, 1], name="M1", event="E1"),
        module_rows([3, 4, 4, 4, 4, 4], [0] * 5 + [1], name="M2", event=[None, *["E2"] * 5]),
    )
    rule = AlarmRule(1, 1, refractory_min=0.5)
    leads = {t: event_table(scores, Alarm(rule, t))["lead_time_min"].sum() * 60 for t in (3, 4)}
    assert leads == pytest.approx({3: 70 + 50, 4: 60 + 70})
    assert chosen_threshold(scores, 1e9, rule) == 4


def test_equal_warning_is_equal_whatever_the_rounding_of_its_sum():
    """At 3, E1 gains the 10 s that E2 loses to a nuisance alarm: 90 + 70 s against 80 + 80 s."""
    scores = frame_of(
        module_rows([0, 3, *[4] * 6], [0] * 7 + [1], name="M1", event=[None, *["E1"] * 7]),
        module_rows([3, 3, *[4] * 6], [0] * 7 + [1], name="M2", event=[None, *["E2"] * 7]),
    )
    assert 90 / 60 + 70 / 60 > 80 / 60 + 80 / 60  # in floating point
    assert chosen_threshold(scores, 1e9, AlarmRule(1, 1, refractory_min=0.5)) == 4


def test_among_equal_recall_and_warning_the_fewest_nuisance_alarms_win():
    """At 2 the same alarm catches the event as at 3, beside a nuisance alarm in the budget."""
    event = module_rows([3], 1, name="M1", event="E1")
    scores = frame_of(event, module_rows([2, 2], rack="R2"))
    assert chosen_threshold(scores, 1e9, AT_ONCE) == 3
    # So do equal rules; then the first counts.
    rules = [AlarmRule(1, 1, 0), AlarmRule(1, 1, 5), AlarmRule(1, 1, 6)]
    scores = frame_of(event, module_rows([4, 4], rack="R2"))
    options = {"max_nuisance_alarms_per_site_day": 1e9, "rules": rules}
    assert best_alarm(scores, **options) == Alarm(rules[1], 3)


def test_a_lower_threshold_may_raise_fewer_nuisance_alarms():
    """At 3 the alarm on a fault keeps back the nuisance alarm that follows it."""
    event = module_rows([4], 1, name="M1", event="E1")
    fault = module_rows([3, 4], rack="R2", event=["E2", None], at_s=[0, 3610])
    scores = frame_of(event, fault)
    assert chosen_threshold(scores, 1e9, AlarmRule(1, 1, refractory_min=90)) == 3


def test_a_missed_event_is_weighed_against_nuisance_alarms():
    """Two nuisance alarms stand before the quieter of two events."""
    quiet, loud = (
        module_rows([0.1, 0.9], [0, 1], event="E1"),
        module_rows([0.1, 0.3], [0, 1], name="M2", event="E2"),
    )
    frame = frame_of(quiet, loud, module_rows([0.5], name="M3"), module_rows([0.4], name="M4"))
    thresholds = [chosen_threshold(frame, 0.0, AT_ONCE, costs=costs) for costs in (0.0, 1.9, 2.1)]
    caught = [event_table(frame, Alarm(AT_ONCE, t))["caught"].sum() for t in thresholds]
    assert caught == [1, 1, 2]


def test_the_rule_that_catches_most_is_chosen_then_the_earliest():
    spiky = frame_of(
        module_rows([0.0, 0.9, 0.0, 0.9, 0.0, 0.9], [0, 1, 1, 1, 1, 1], event="E1"),
        module_rows([0.95, 0.0, 0.0, 0.0, 0.0, 0.0], rack="R2"),
    )
    rules = [AlarmRule(1, 1), AlarmRule(2, 3), AlarmRule(3, 5)]
    options = {"max_nuisance_alarms_per_site_day": 0.0}
    assert best_alarm(spiky, rules=rules, **options) == Alarm(AlarmRule(2, 3), 0.9)
    assert best_alarm(spiky, rules=rules[:1], **options).threshold > 0.95
    steady = frame_of(module_rows([0.9] * 6, [1] * 6, event="E1"), module_rows([0.1], name="M2"))
    assert best_alarm(steady, rules=rules[::-1], **options).rule == AlarmRule(1, 1)


def test_no_threshold_within_the_budget_means_never_alarm():
    scores = frame_of(module_rows([1.0, 0, 0, 0.5], [0, 0, 0, 1], event=[None, *["E1"] * 3]))
    rule = AlarmRule(1, 1, refractory_min=0.1)
    chosen = chosen_threshold(scores, 0, rule)
    assert 1 < chosen < 1 + 1e-9
    assert raise_alarms(scores, Alarm(rule, chosen)).empty


def test_too_short_for_any_alarm_never_alarms():
    scores = frame_of(module_rows([0.5, 0.7], [0, 1]))
    assert chosen_threshold(scores, 1, AlarmRule()) > 0.7
    assert alarm_curve(scores, AlarmRule())["event_recall"].tolist() == [0]


def test_a_lower_threshold_may_turn_a_nuisance_alarm_early():
    """At 2 the alarm before the onset keeps back the one in the event; at 1 it comes sooner."""
    scores = frame_of(module_rows([1, 0, 2, 1], [0, 0, 0, 1], event=[None, None, None, "E1"]))
    rule = AlarmRule(1, 1, refractory_min=0.5)
    results = [evaluate(scores, Alarm(rule, t)) for t in (1, 2)]
    assert [result["n_events_caught"] for result in results] == [1, 0]
    assert chosen_threshold(scores, 1e9, rule) == 1


def test_many_distinct_levels_keep_the_highest_of_each_event():
    rng = np.random.default_rng(7)
    score, label, event = rng.random(5000), np.zeros(5000), np.full(5000, None)
    for start in range(100, 5000, 500):
        label[start : start + 10], event[start - 20 : start + 10] = 1, f"E{start}"
    scores = frame_of(module_rows(score, label, event=event))
    curve = alarm_curve(scores, AT_ONCE)
    assert 950 < len(curve) <= 1011
    highest = [score[event == name].max() for name in set(event) - {None}]
    assert set(highest) <= set(curve["threshold"])
    assert set(np.sort(score)[-500:]) <= set(curve["threshold"])
    expected = [np.mean([level >= t for level in highest]) for t in curve["threshold"]]
    assert curve["event_recall"].tolist() == expected


def test_of_very_many_rows_only_the_highest_and_the_events_give_thresholds(monkeypatch):
    monkeypatch.setattr(alarms, "_FEW", 2000)
    score = np.random.default_rng(0).random(20_000)
    score[-1] = 0.5  # the event's, far below the highest 2,000
    label, event = np.zeros(len(score)), np.full(len(score), None)
    label[-1], event[-1] = 1, "E"
    scores = frame_of(module_rows(score, label, event=event))
    thresholds = alarm_curve(scores, AT_ONCE)["threshold"].to_numpy()
    assert thresholds[1:500] == pytest.approx(np.sort(score)[::-1][:499])
    assert thresholds[-2] >= np.sort(score)[-2000]
    assert thresholds[-1] == 0.5


def test_choice_and_curve_refuse_scores_without_events():
    scores = frame_of(module_rows([1, 2, 3]))
    with pytest.raises(ValueError, match=r"at least one event, got no row with Hazard_Label = 1"):
        best_alarm(scores, max_nuisance_alarms_per_site_day=1)
    with pytest.raises(ValueError, match="at least one event"):
        alarm_curve(scores, AlarmRule())


# --------------------------------------------------------------------------------------------------
# evaluate
# --------------------------------------------------------------------------------------------------


def two_racks():
    label = np.repeat([0, 1, 0], [10, 4, 6])
    return frame_of(
        module_rows(np.where(label, 0.9, 0.1), label, rack="R1", event="E1"),
        module_rows(np.where(label, 0.8, 0.2), label, rack="R2", event="E2"),
    )


def test_perfect_scores():
    result = evaluate(two_racks(), at(0.5))
    names = ["accuracy", "precision_class1", "recall_class1", "f1_class1", "precision_macro"]
    names += ["recall_macro", "f1_macro", "roc_auc", "pr_auc", "pr_auc_low", "pr_auc_high"]
    names += ["event_recall", "event_recall_high", "alarm_precision"]
    assert {name: result[name] for name in names} == dict.fromkeys(names, 1.0)
    assert [result[name] for name in ("tp", "fn", "fp", "tn")] == [8, 0, 0, 32]
    assert result["brier"] == pytest.approx((0.01 + 0.04) / 2)
    assert result["nuisance_alarms_per_site_day"] == result["fault_alarms_per_site_day"] == 0
    assert result["site_days"] == pytest.approx(20 * 10 / DAY_S)
    # The third of the four label rows, 10 s before the last, and 30 s more.
    assert result["lead_time_median_min"] == pytest.approx(40 / 60)


def test_constant_scores():
    result = evaluate(two_racks().assign(y_score=0.3), at(0.5))
    assert result["pr_auc"] == pytest.approx(8 / 40)
    assert result["roc_auc"] == 0.5
    assert result["recall_class1"] == result["event_recall"] == result["event_recall_low"] == 0
    assert result["f1_class1"] == 0  # defined: there are positives
    missing = ["precision_class1", "precision_macro"]
    missing += ["lead_time_median_min", "lead_time_p10_min", "alarm_precision"]
    assert undefined_metrics(result) == missing


def test_row_and_event_numbers_by_hand():
    #          nuisance    early, timely  fault   missed
    score = [0, 1, 0, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0, 0]
    label = [0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 0]
    event = [*[None] * 5, *["E1"] * 5, *["E2"] * 4]
    scores = frame_of(module_rows(score, label, event=event))
    result = evaluate(scores, Alarm(AT_ONCE, 1))
    assert [result[name] for name in ("tp", "fp", "fn", "tn")] == [1, 3, 3, 7]
    expected = {
        "accuracy": 8 / 14,
        "precision_class1": 1 / 4,
        "recall_class1": 1 / 4,
        "f1_class1": 1 / 4,
        "precision_macro": (1 / 4 + 7 / 10) / 2,
        "recall_macro": (1 / 4 + 7 / 10) / 2,
        "f1_macro": (1 / 4 + 7 / 10) / 2,
        "brier": 6 / 14,
        "threshold": 1,
        "n_events": 2,
        "n_events_caught": 1,
        "event_recall": 1 / 2,
        "event_recall_5min": 0,
        "event_recall_10min": 0,
        "n_nuisance_alarms": 1,
        "n_fault_alarms": 1,
        "alarm_precision": 3 / 4,
        "site_days": 140 / DAY_S,
        "nuisance_alarms_per_site_day": DAY_S / 140,
        "fault_alarms_per_site_day": DAY_S / 140,
        "lead_time_median_min": 50 / 60,
        "lead_time_p10_min": 50 / 60,
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    for name in ("nuisance_alarms_per_site_day", "fault_alarms_per_site_day"):
        interval = [result[f"{name}_{end}"] for end in ("low", "high")]
        assert interval == pytest.approx(poisson_interval(1, 140 / DAY_S))
    interval = [result[f"event_recall_5min_{end}"] for end in ("low", "high")]
    assert interval == pytest.approx(clopper_pearson(0, 2))


def test_recall_with_a_lead_counts_events_caught_at_least_so_early():
    """Leads of 30, 300, 330, 600 and 630 s, and a missed event."""
    modules = [
        module_rows(np.arange(61) == 60 - i, np.arange(61) == 60, name=f"M{i:02d}", event=f"E{i}")
        for i in (0, 27, 30, 57, 60)
    ]
    missed = module_rows([0] * 61, 1, name="M99", event="E99")
    result = evaluate(frame_of(*modules, missed), Alarm(AT_ONCE, 1))
    names = ["event_recall", "event_recall_5min", "event_recall_10min"]
    assert [result[name] for name in names] == pytest.approx([5 / 6, 4 / 6, 2 / 6])
    interval = [result[f"event_recall_10min_{end}"] for end in ("low", "high")]
    assert interval == pytest.approx(clopper_pearson(2, 6))


def test_sweep_counts_caught_events():
    lead_min = np.array([[np.nan, np.nan], [5.0, np.nan], [10.0, 4.9]])
    swept = Sweep(np.zeros(3), np.zeros(3), lead_min)
    assert swept.n_caught.tolist() == [0, 1, 2]


def test_lead_times_are_summarised_over_the_caught_events():
    label = [0, *[1] * 11]
    late = [module_rows([0] * (1 + i) + [1] * (11 - i), label, name=f"M{i}") for i in range(11)]
    missed = module_rows([0] * 12, label, name="M99")
    result = evaluate(frame_of(*late, missed), Alarm(AT_ONCE, 1))
    # Leads of 30, 40 ... 130 s.
    assert result["lead_time_median_min"] == pytest.approx(80 / 60)
    assert result["lead_time_p10_min"] == pytest.approx(40 / 60)
    assert result["event_recall"] == pytest.approx(11 / 12)


def test_names_are_exactly_those_promised():
    assert set(METRICS) > INTERVALS
    result = evaluate(two_racks(), at(0.5), prefix="cv_")
    names = [*METRICS, *(f"{n}_{end}" for n, end in product(INTERVALS, ("low", "high")))]
    assert sorted(result) == sorted(f"cv_{name}" for name in names)
    assert all(type(value) is float for value in result.values())
    assert undefined_metrics(result, prefix="cv_") == []
    assert undefined_metrics(result) == list(METRICS)


@pytest.mark.parametrize("decimals", [1, 6])
def test_row_metrics_are_scikit_learns(decimals):
    scores = random_racks(3, decimals=decimals)
    scores["y_score"] = np.round(scores["y_score"] / 1.3, decimals)
    result = evaluate(scores, at(0.5))
    y_true, y_score = scores[col.LABEL], scores["y_score"]
    expected = {
        "roc_auc": roc_auc_score(y_true, y_score),
        "pr_auc": average_precision_score(y_true, y_score),
        "brier": brier_score_loss(y_true, y_score),
        "accuracy": accuracy_score(y_true, y_score >= 0.5),
        "f1_macro": f1_score(y_true, y_score >= 0.5, average="macro"),
    }
    assert {name: result[name] for name in expected} == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_leaves_metrics_out(label):
    scores = two_racks().assign(**{col.LABEL: np.int8(label)})
    result = evaluate(scores, at(0.5))
    assert {"roc_auc", "pr_auc"} <= set(undefined_metrics(result))
    assert ("event_recall" in result) == ("recall_class1" in result) == (label == 1)
    assert "pr_auc_low" not in result
    assert np.isfinite(list(result.values())).all()


def test_brier_only_for_scores_between_0_and_1():
    scores = two_racks()
    scores["y_score"] *= 2
    result = evaluate(scores, at(1))
    assert undefined_metrics(result) == ["brier"]


def test_a_single_sample_has_no_alarm_rate():
    result = evaluate(frame_of(module_rows([0.2])), at(0.5))
    rates = {"nuisance_alarms_per_site_day", "fault_alarms_per_site_day"}
    assert rates <= set(undefined_metrics(result))
    assert result["site_days"] == 0


def test_site_days_take_each_modules_own_sampling_interval():
    scores = frame_of(
        module_rows([0] * 4, name="M1", at_s=[0, 10, 20, 500]),  # the gap is not observed
        module_rows([0] * 3, name="M2", at_s=[0, 30, 60]),
        module_rows([0], name="M3"),  # as long as the median of the others, 20 s
    )
    result = evaluate(scores, at(1), modules_per_site=1)
    assert result["site_days"] == pytest.approx((4 * 10 + 3 * 30 + 20) / DAY_S)


@pytest.mark.parametrize(("options", "modules"), [({}, 2), ({"modules_per_site": 8}, 8)])
def test_a_site_has_as_many_modules_as_the_scores_sites_on_average(options, modules):
    """Three modules at one site and one at another, a nuisance alarm in each."""
    names = [("S1", "M1"), ("S1", "M2"), ("S1", "M3"), ("S2", "M1")]
    scores = frame_of(*(module_rows([1, 0, 0, 0], site=s, rack=m, name=m) for s, m in names))
    result = evaluate(scores, Alarm(AT_ONCE, 1), **options)
    days = 4 * 40 / DAY_S / modules
    assert result["site_days"] == pytest.approx(days)
    assert result["nuisance_alarms_per_site_day"] == pytest.approx(4 / days)
    scores.loc[0, col.LABEL] = 1  # the first of these alarms is timely
    curve = alarm_curve(scores, AT_ONCE, **options)
    assert curve["nuisance_alarms_per_site_day"][1] == pytest.approx(3 / days)


def test_the_interval_of_pr_auc_needs_two_racks():
    scores = two_racks()
    one = scores[scores[col.RACK] == "R1"]  # the category R2 stays, unused
    assert "pr_auc" in evaluate(one, at(0.5))
    assert "pr_auc_low" not in evaluate(one, at(0.5))
    assert "pr_auc_low" in evaluate(scores, at(0.5))


def test_alarms_and_row_counts_share_the_threshold_at_equality():
    scores = frame_of(module_rows([0.0, 0.7, 0.7, 0.7], [0, 1, 1, 1]))
    result = evaluate(scores, at(0.7))
    assert (result["tp"], result["event_recall"]) == (3, 1)
    above = evaluate(scores, at(np.nextafter(0.7, 1)))
    assert (above["tp"], above["event_recall"]) == (0, 0)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(fleets(), rules, st.integers(-3, 5))
def test_results_are_finite_and_within_their_limits(modules, rule, threshold):
    scores = frame_of_fleet(modules)
    result = evaluate(scores, Alarm(rule, threshold))
    assert np.isfinite(list(result.values())).all()
    assert set(METRICS) == set(undefined_metrics(result)) | (set(METRICS) & set(result))
    for name in INTERVALS - {"pr_auc"}:
        if name in result:
            assert result[f"{name}_low"] <= result[name] <= result[f"{name}_high"]
    n_caught = result["n_events_caught"]
    assert n_caught <= result["n_events"]
    if n_caught:  # each event is caught by an alarm that is no nuisance
        assert result["alarm_precision"] > 0


# --------------------------------------------------------------------------------------------------
# Intervals
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        (0, 10, 0, 1 - 0.025 ** (1 / 10)),
        (10, 10, 0.025 ** (1 / 10), 1),
        (0, 1, 0, 0.975),
        (5, 10, 0.1871, 0.8129),
        (8, 10, 0.4439, 0.9748),
    ],
)
def test_clopper_pearson(successes, trials, low, high):
    assert clopper_pearson(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("count", "exposure", "low", "high"),
    [
        (0, 16, 0, -np.log(0.025) / 16),
        (1, 1, 0.0253, 5.5716),
        (5, 1, 1.6235, 11.6683),
        (10, 2, 4.7954 / 2, 18.3904 / 2),
    ],
)
def test_poisson_interval(count, exposure, low, high):
    assert poisson_interval(count, exposure) == pytest.approx((low, high), abs=5e-5)


# --------------------------------------------------------------------------------------------------
# Bootstrap over racks
# --------------------------------------------------------------------------------------------------


def random_racks(n_racks, *, seed=0, n=60, decimals=1):
    rng = np.random.default_rng(seed)
    racks = []
    for r in range(n_racks):
        label = (rng.random(n) < 0.2).astype(int)
        score = np.round(rng.random(n) + 0.3 * label, decimals)
        racks.append(module_rows(score, label, rack=f"R{r}"))
    return frame_of(*racks)


def weighted_values(scores):
    """Average precision of every way to draw the racks, by scikit-learn."""
    racks = sorted(scores[col.RACK].unique())
    label, y_score = scores[col.LABEL], scores["y_score"]
    values = {}
    for counts in product(range(len(racks) + 1), repeat=len(racks)):
        weight = scores[col.RACK].astype(object).map(dict(zip(racks, counts, strict=True)))
        if sum(counts) == len(racks) and (weight * label).any():
            values[counts] = average_precision_score(label, y_score, sample_weight=weight)
    return values


@pytest.mark.parametrize("decimals", [1, 6])
def test_resamples_are_scikit_learns_weighted_average_precision(decimals):
    scores = random_racks(3, decimals=decimals)
    resampled = bootstrapped(scores, seed=1)
    expected = np.array(list(weighted_values(scores).values()))
    assert len(expected) == 10
    distance = np.abs(resampled[:, None] - expected)
    assert distance.min(axis=1).max() < 1e-12  # every resample is one of the ten
    assert (distance.min(axis=0) < 1e-12).all()  # and all ten occur


def test_resamples_are_drawn_with_the_right_frequency(monkeypatch):
    monkeypatch.setattr(uncertainty, "N_BOOTSTRAP", 4000)
    scores = random_racks(2)
    values = weighted_values(scores)
    resampled = bootstrapped(scores, seed=3)
    for counts, chance in {(2, 0): 0.25, (1, 1): 0.5, (0, 2): 0.25}.items():
        share = np.isclose(resampled, values[counts], atol=1e-12).mean()
        assert share == pytest.approx(chance, abs=0.03)


def test_resamples_without_a_positive_are_drawn_again():
    scores = random_racks(3)
    scores.loc[scores[col.RACK] != "R0", col.LABEL] = 0
    resampled = bootstrapped(scores)
    assert len(resampled) == uncertainty.N_BOOTSTRAP
    expected = np.array(list(weighted_values(scores).values()))
    assert np.abs(resampled[:, None] - expected).min(axis=1).max() < 1e-12


def test_two_models_on_the_same_rows_are_resampled_alike():
    scores = random_racks(6)
    one = bootstrapped(scores, seed=5)
    same_ranks = bootstrapped(scores.assign(y_score=np.exp(scores["y_score"])), seed=5)
    assert one == pytest.approx(same_ranks, abs=1e-15)
    other_order = scores.sample(frac=1, random_state=0)
    backwards = other_order[col.RACK].cat.categories[::-1]
    other_order[col.RACK] = other_order[col.RACK].cat.reorder_categories(backwards)
    assert one.tolist() == bootstrapped(other_order, seed=5).tolist()
    assert one.tolist() != bootstrapped(scores, seed=6).tolist()


def test_racks_of_two_sites_with_one_name_are_two_racks():
    scores = random_racks(2)
    renamed = scores.assign(**{col.SITE: scores[col.RACK], col.RACK: "R"})
    one = bootstrapped(scores)
    assert one.tolist() == bootstrapped(renamed).tolist()
    assert len(set(one)) == 3


def test_bootstrap_refuses_scores_without_a_hazard():
    with pytest.raises(ValueError, match="a rack must have a row of Hazard_Label 1, got none"):
        bootstrapped(two_racks().assign(**{col.LABEL: np.int8(0)}))


def test_bootstrap_interval_of_evaluate_is_the_percentiles():
    scores = random_racks(5)
    result = evaluate(scores, at(0.5), seed=9)
    resampled = bootstrapped(scores, seed=9)
    assert result["pr_auc_low"] == pytest.approx(np.quantile(resampled, 0.025))
    assert result["pr_auc_high"] == pytest.approx(np.quantile(resampled, 0.975))
    assert result["pr_auc_low"] < result["pr_auc"] < result["pr_auc_high"]


# --------------------------------------------------------------------------------------------------
# The scores frame
# --------------------------------------------------------------------------------------------------


def telemetry():
    modules = [
        module_rows([0, 0, 0], [0, 1, 1], rack=rack, event="E" + rack) for rack in ("R1", "R2")
    ]
    table = frame_of(*modules).drop(columns=["y_score", IS_FAULT])
    return table.assign(**{col.TEMP_AVG: np.float32(25)})


def test_scores_frame_sorts_and_forgets_unused_categories():
    table = telemetry()
    scores = scores_frame(table, np.array([5, 3, 4]), np.array([0.5, 0.3, 0.4]))
    assert scores["y_score"].tolist() == [0.3, 0.4, 0.5]
    assert seconds(scores[col.TIMESTAMP]) == [0, 10, 20]
    assert scores.index.tolist() == [0, 1, 2]
    assert scores[col.RACK].cat.categories.tolist() == ["R2"]
    assert scores[col.EVENT_ID].cat.categories.tolist() == ["ER2"]
    assert col.TEMP_AVG not in scores
    assert scores[col.LABEL].dtype == np.int8
    assert scores[IS_FAULT].tolist() == [True, True, True]


def test_scores_frame_works_without_the_optional_columns():
    table = telemetry().drop(columns=[col.LABEL, col.EVENT_ID, col.EVENT_TYPE])
    scores = scores_frame(table, np.arange(6), np.arange(6.0))
    assert list(scores) == [*[col.TIMESTAMP, col.SITE, col.RACK, col.MODULE], "y_score"]


def test_scores_frame_refuses():
    table = telemetry()
    with pytest.raises(ValueError, match=r"of one length, got shapes \(2,\) and \(3,\)"):
        scores_frame(table, np.arange(2), np.arange(3.0))
    with pytest.raises(ValueError, match=r"second column of predict_proba"):
        scores_frame(table, np.arange(2), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"one row per timestamp, got two of M1"):
        scores_frame(table, np.array([1, 1]), np.zeros(2))
    with pytest.raises(ValueError, match=r"y_score must be finite, got 1 of 2 that are not"):
        scores_frame(table, np.arange(2), np.array([0, np.nan]))


def scores_without(name):
    return two_racks().drop(columns=name)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (scores_without("y_score"), r"must have the columns .*, but lacks y_score\."),
        (scores_without(col.LABEL), r"but lacks Hazard_Label\. Build it with scores_frame\."),
        (two_racks().iloc[:0], r"must have rows, got 0\."),
        (two_racks().assign(y_score=np.inf), r"finite, got 40 of 40 that are not\."),
        (pd.concat([two_racks()] * 2), r"one row per timestamp, got two of M1 at 2025-03-01"),
    ],
)
def test_invalid_scores_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        evaluate(scores, at(0.5))


@pytest.mark.parametrize("threshold", [np.nan, np.inf])
def test_invalid_thresholds_are_refused(threshold):
    with pytest.raises(ValueError, match="threshold must be finite, got "):
        at(threshold)


def test_results_do_not_depend_on_the_order_or_the_type_of_the_ids():
    scores = random_racks(4)
    shuffled = scores.sample(frac=1, random_state=1).astype({name: object for name in IDS})
    assert evaluate(scores, at(0.9)) == evaluate(shuffled, at(0.9))
    budget = {"max_nuisance_alarms_per_site_day": 500, "rules": [AlarmRule(1, 2, 0.5)]}
    assert best_alarm(scores, **budget) == best_alarm(shuffled, **budget)
    pd.testing.assert_frame_equal(alarm_curve(scores, AT_ONCE), alarm_curve(shuffled, AT_ONCE))


def test_arguments_stay_as_they_are():
    scores = random_racks(3).sample(frac=1, random_state=2)
    before = scores.copy(deep=True)
    evaluate(scores, at(0.5))
    best_alarm(scores, max_nuisance_alarms_per_site_day=1)
    alarm_curve(scores, AlarmRule())
    raise_alarms(scores, at(0.5))
    event_table(scores, at(0.5))
    bootstrapped(scores)
    pd.testing.assert_frame_equal(scores, before)
    table = telemetry()
    rows, y_score = np.array([4, 1]), np.array([0.4, 0.1])
    scores_frame(table, rows, y_score)
    pd.testing.assert_frame_equal(table, telemetry())
    assert (rows.tolist(), y_score.tolist()) == ([4, 1], [0.4, 0.1])


def test_levels_fall_with_k():
    scores = random_racks(2)
    found = [levels(scores, AlarmRule(k, 5)) for k in range(1, 6)]
    assert all((a >= b).all() and (a > b).any() for a, b in pairwise(found))


def test_paired_differences_tell_what_separate_intervals_cannot():
    """A little better on every rack: the intervals overlap, the difference leaves zero out."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [30, 10])
    noise = [rng.normal(size=40) * scale for scale in rng.uniform(0.2, 2.5, 20)]

    def model(signal):
        return frame_of(
            *(
                module_rows(signal * label + values, label, rack=f"R{number:02d}")
                for number, values in enumerate(noise)
            )
        )

    weak, strong = model(1.0), model(1.2)
    assert gain(strong, weak).verdict == "better"
    assert gain(weak, strong).verdict == "worse"
    same = gain(weak, weak)
    assert (same.verdict, str(same)) == ("cannot tell", "+0.00 [+0.00, +0.00]")
    separate = [
        np.quantile(bootstrapped(frame, seed=1), [0.025, 0.975]) for frame in (weak, strong)
    ]
    assert separate[0][1] > separate[1][0], "the separate intervals overlap"


@pytest.mark.parametrize("other", [([0.1, 0.9], [1, 0]), ([0.1, 0.9, 0.5], [0, 1, 0])])
def test_paired_differences_need_the_same_rows(other):
    one = frame_of(module_rows([0.1, 0.9], [0, 1]))
    with pytest.raises(ValueError, match="must cover the same rows"):
        gain(one, frame_of(module_rows(*other)))


def gain(scores, reference):
    """Return the difference in average precision; the alarms have no effect on it."""
    alarm = Alarm(AT_ONCE, 0.5)
    both = {"alarm": alarm, "reference_alarm": alarm}
    return paired_differences(scores, reference, **both, seed=1)["average precision"]


def racks_with_events(scores):
    """One rack for each score: its only event reaches that score in its last row."""
    return frame_of(
        *(
            module_rows([0.1, 0.2, score], [0, 1, 1], rack=f"R{i:02d}", event="E")
            for i, score in enumerate(scores)
        )
    )


def test_paired_differences_by_hand():
    """Three of four events against one of four: the mean of the draws is that difference."""
    alarm = Alarm(AT_ONCE, 0.5)
    one, other = racks_with_events([0.9, 0.9, 0.9, 0.1]), racks_with_events([0.9, 0.1, 0.1, 0.1])
    every = paired_differences(one, other, alarm=alarm, reference_alarm=alarm, seed=1)
    found = every["event recall"]
    assert found.median == pytest.approx(0.5)
    assert (found.low, found.high) == (0.0, 1.0)
    assert every["warning time [min]"].median == pytest.approx(0.5 * col.LABEL_UNTIL_S / 60)
    assert every["caught 5 min ahead"].median == 0
    drawn = bootstrapped(one, seed=1) - bootstrapped(other, seed=1)
    assert every["average precision"].median == np.median(drawn)


def test_paired_differences_uses_each_models_own_alarm():
    frame = racks_with_events([0.9, 0.8, 0.7, 0.6] * 5)
    strict, loose = (Alarm(AT_ONCE, t) for t in (0.85, 0.5))
    found = paired_differences(frame, frame, alarm=loose, reference_alarm=strict)["event recall"]
    assert found.verdict == "better"
    back = paired_differences(frame, frame, alarm=strict, reference_alarm=loose)["event recall"]
    assert back.verdict == "worse"
    assert back.median == pytest.approx(-found.median)


def test_racks_without_events_are_drawn_as_well():
    """As many racks without events as with: now and then a draw holds one event only."""
    alarm = Alarm(AT_ONCE, 0.5)
    quiet = [module_rows([0.1], rack=f"Q{i}") for i in range(20)]
    one = frame_of(racks_with_events([0.9, 0.1]), *quiet)
    other = frame_of(racks_with_events([0.1, 0.1]), *quiet)
    found = paired_differences(one, other, alarm=alarm, reference_alarm=alarm)["event recall"]
    assert (found.low, found.high) == (0.0, 1.0)


def test_paired_differences_refuses():
    alarm = Alarm(AT_ONCE, 0.5)
    options = {"alarm": alarm, "reference_alarm": alarm}
    frame, quiet = racks_with_events([0.9]), frame_of(module_rows([0.1]))
    with pytest.raises(ValueError, match="must cover the same rows"):
        paired_differences(frame, quiet, **options)
    with pytest.raises(ValueError, match="must cover at least one event"):
        paired_differences(quiet, quiet, **options)


@pytest.mark.slow
def test_early_recall_averages_over_shares_of_the_budget(make_telemetry):
    """By hand: the best of all thresholds within each share."""
    telemetry = make_telemetry(event_rows=40, rows=60)
    y_score = np.random.default_rng(0).random(len(telemetry)).round(2)
    y_score[telemetry[col.LABEL] == 1] += 0.02
    scores = scores_frame(telemetry, np.arange(len(telemetry)), y_score)
    rule, budget, expected = AlarmRule(3, 4), 1000.0, []
    days = evaluate(scores, Alarm(rule, 0.5))["site_days"]
    found = []
    for threshold in [2.0, *np.unique(y_score)]:
        alarm = Alarm(rule, threshold)
        nuisance = (raise_alarms(scores, alarm)["outcome"] == "nuisance").sum() / days
        found.append((nuisance, np.mean(event_table(scores, alarm)["lead_time_min"] >= 5)))
    for share in (0.1, 0.3, 1.0):
        expected.append(max(early for rate, early in found if rate <= share * budget))
    assert expected[0] < expected[-1]
    options = {"max_nuisance_alarms_per_site_day": budget}
    assert early_recall(scores, rule, **options) == pytest.approx(np.mean(expected))
