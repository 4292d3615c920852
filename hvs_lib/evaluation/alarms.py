"""Alarms: when a score raises one, and which threshold keeps within an alarm budget.

Everything here works on a scores frame (see `hvs_lib.evaluation.scores`): `y_score` is any real
number, higher = more dangerous. `hvs_lib.evaluation.outcomes` says what an alarm is worth.

- The level of a row is the k-th highest score of its module's last n samples. The alarm condition,
  "at or above the threshold in k of the last n samples", is therefore `level >= threshold`. A gap
  longer than 3 n median sampling intervals of the module restarts the window.
- An alarm is raised at a module's first row that meets the alarm condition outside a refractory
  period, which lasts `AlarmRule.refractory_min` from the raise. If the condition still holds
  afterwards, a new alarm is raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numba import njit

from hvs_lib import columns as col
from hvs_lib.evaluation.outcomes import FAULT, NOTHING, Outcomes
from hvs_lib.evaluation.scores import IS_FAULT, MINUTE_US, Y_SCORE, ScoreRows, check_scores

N_CANDIDATES = 1000  # thresholds to try, plus one per event
_HIGHEST, _FEW = 0.05, 100_000  # highest levels to try: their share, and their minimum number
BUDGET_SHARES = (0.1, 0.3, 1.0)  # shares of the alarm budget, for `early_recall`
LEADS_MIN = (5, 10)  # lead times that leave time to act [min], for event_recall_5min etc.


@dataclass(frozen=True)
class AlarmRule:
    """When scores raise an alarm: at or above the threshold in `k` of the last `n` samples.

    Parameters
    ----------
    k, n : int
        The score must be at or above the threshold in `k` of a module's last `n` samples.
    refractory_min : float
        Time after an alarm in which the module raises no other [min].
    """

    k: int = 3
    n: int = 5
    refractory_min: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise ValueError(f"k must be from 1 to n samples, got k={self.k}, n={self.n}.")
        if not 0 <= self.refractory_min < np.inf:
            raise ValueError(
                f"refractory_min must be finite and at least 0 min, got {self.refractory_min}."
            )


RULES = tuple(AlarmRule(k, n) for k, n in ((3, 5), (1, 1), (2, 3), (5, 8), (8, 12)))


@dataclass(frozen=True)
class Alarm:
    """A rule and its threshold, in the unit of the scores: all it takes to raise alarms."""

    rule: AlarmRule
    threshold: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.threshold):
            raise ValueError(
                f"threshold must be finite, got {self.threshold}: find one with best_alarm."
            )


def outcomes_of(scores: pd.DataFrame | Outcomes, *, label: bool = True) -> Outcomes:
    """Return the outcomes of a scores frame, or outcomes as given; `label` requires a label."""
    return scores if isinstance(scores, Outcomes) else Outcomes(check_scores(scores, label=label))


def raise_alarms(scores: pd.DataFrame | Outcomes, alarm: Alarm) -> pd.DataFrame:
    """List the alarms in a scores frame, with or without label, or in its outcomes.

    Returns
    -------
    DataFrame, shape (n_alarms, 6 or 9)
        Site_ID, Rack_ID, Module_ID, and Timestamp, y_score and level at the raise; with a label
        also outcome (one of `OUTCOMES`) and, for an alarm on an event, its Event_ID and
        lead_time_min, from the alarm to the PNR [min].

    Examples
    --------
    >>> raise_alarms(scores, alarm)[["Module_ID", "outcome", "lead_time_min"]]
             Module_ID outcome  lead_time_min
    0  RackA1_Module04  timely            5.0
    """
    track = AlarmTrack(outcomes_of(scores, label=False), alarm.rule)
    raised = track.alarms(alarm.threshold)
    alarms = track.rows.frame[[*col.KEYS, Y_SCORE]].iloc[raised].reset_index(drop=True)
    alarms["level"] = track.level[raised]
    if col.LABEL in track.rows.frame:
        outcomes, event = track.outcomes, track.outcomes.alarm_on[raised]
        alarms["outcome"] = outcomes.names(raised)
        names = [outcomes.event_names[number] if number >= 0 else None for number in event]
        alarms[col.EVENT_ID] = pd.Series(names, dtype=object)
        alarms["lead_time_min"] = outcomes.lead_min(raised)
    return alarms


def event_table(scores: pd.DataFrame | Outcomes, alarm: Alarm) -> pd.DataFrame:
    """List the events in a scores frame or its outcomes, whether each is caught, and how early.

    Returns
    -------
    DataFrame, shape (n_events, 10)
        Site_ID, Rack_ID, Module_ID, Event_ID, Event_Type (None where unknown), onset, window_start,
        PNR, caught and lead_time_min, from the first alarm since the onset [min] (NaN where
        missed).

    Examples
    --------
    >>> scores = pd.DataFrame({"Site_ID": "S1", "Rack_ID": "R1", "Module_ID": ["M1"] * 6})
    >>> scores["Timestamp"] = pd.date_range("2025-01-01", periods=6, freq="1min")
    >>> scores["Hazard_Label"] = [0, 0, 1, 1, 1, 0]
    >>> scores["y_score"] = [0.1, 0.6, 0.2, 0.9, 0.8, 0.1]
    >>> events = event_table(scores, Alarm(AlarmRule(k=1, n=1), threshold=0.5))
    >>> events[["Event_ID", "caught", "lead_time_min"]]
      Event_ID  caught  lead_time_min
    0  event 0    True            3.5
    """
    outcomes = outcomes_of(scores)
    first = [rows[0] for rows in outcomes.event_rows]
    at_start = outcomes.rows.frame.iloc[first].reset_index(drop=True)
    table = at_start[[col.SITE, col.RACK, col.MODULE]].copy()
    table[col.EVENT_ID] = pd.Series(outcomes.event_names, dtype=object)
    table[col.EVENT_TYPE] = at_start.get(col.EVENT_TYPE)
    on_event = np.flatnonzero(outcomes.alarm_on >= 0)
    onset = on_event[np.unique(outcomes.alarm_on[on_event], return_index=True)[1]]
    table["onset"] = outcomes.rows.frame[col.TIMESTAMP].to_numpy()[onset]
    table["window_start"] = at_start[col.TIMESTAMP]
    table[col.PNR] = outcomes.pnr_us.astype("datetime64[us]")
    lead = AlarmTrack(outcomes, alarm.rule).sweep([alarm.threshold]).lead_min[0]
    table["caught"] = ~np.isnan(lead)
    table["lead_time_min"] = lead
    return table


def other_table(scores: pd.DataFrame | Outcomes, alarm: Alarm) -> pd.DataFrame:
    """List the faults and look-alikes in a scores frame, with the number of alarms on each.

    Returns
    -------
    DataFrame, shape (n_others, 5)
        Site_ID, Event_ID, Event_Type, is_fault and alarms (their number over all modules); empty
        if the scores have no Event_ID and Event_Type.

    Examples
    --------
    >>> other_table(scores, alarm)[["Event_ID", "Event_Type", "alarms"]]
          Event_ID   Event_Type  alarms
    0  Site01-E012      hot_day       0
    1  Site01-E014  hvac_outage       0
    """
    track = AlarmTrack(outcomes_of(scores), alarm.rule)
    frame, names = track.rows.frame, [col.SITE, col.EVENT_ID, col.EVENT_TYPE, IS_FAULT]
    if not set(names) <= set(frame.columns):
        return pd.DataFrame(columns=[*names, "alarms"])
    raised = np.bincount(track.alarms(alarm.threshold), minlength=len(frame))
    frame = frame[names].assign(alarms=raised, labelled=track.rows.event >= 0)
    named = frame[track.rows.event_id >= 0].groupby(names, observed=True, dropna=False)
    others = named.sum().reset_index()
    return others[others["labelled"] == 0].drop(columns="labelled").reset_index(drop=True)


def alarm_curve(
    scores: pd.DataFrame | Outcomes, rule: AlarmRule, *, modules_per_site: float | None = None
) -> pd.DataFrame:
    """Trace event recall, lead time and alarm rates over the thresholds.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns), or Outcomes
        A scores frame with at least one event, or its outcomes.
    rule : AlarmRule
    modules_per_site : float, optional
        By default, the average over the sites in the scores.

    Returns
    -------
    DataFrame, shape (n_thresholds, 7)
        threshold (descending, the first above every score), event_recall, event_recall_5min,
        event_recall_10min, lead_time_median_min (NaN where no event is caught),
        nuisance_alarms_per_site_day and fault_alarms_per_site_day. All distinct levels if at most
        1000; otherwise about 1000, dense at the top, and the highest level of each event.

    Examples
    --------
    >>> scores = pd.DataFrame({"Site_ID": "S1", "Rack_ID": "R1", "Module_ID": ["M1"] * 6})
    >>> scores["Timestamp"] = pd.date_range("2025-01-01", periods=6, freq="1min")
    >>> scores["Hazard_Label"] = [0, 0, 1, 1, 1, 0]
    >>> scores["y_score"] = [0.1, 0.6, 0.2, 0.9, 0.8, 0.1]
    >>> alarm_curve(scores, AlarmRule(k=1, n=1))[["threshold", "event_recall"]].head(3)
       threshold  event_recall
    0        0.9           0.0
    1        0.9           1.0
    2        0.8           1.0
    """
    track = AlarmTrack(outcomes_of(scores), rule, modules_per_site)
    thresholds = track.candidates()
    found = track.sweep(thresholds)
    lead = np.full(len(thresholds), np.nan)
    lead[found.n_caught > 0] = np.nanmedian(found.lead_min[found.n_caught > 0], axis=1)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "event_recall": found.n_caught / len(track.outcomes.event_rows),
            **{f"event_recall_{m}min": np.mean(found.lead_min >= m, axis=1) for m in LEADS_MIN},
            "lead_time_median_min": lead,
            "nuisance_alarms_per_site_day": _rate(found.n_nuisance, track.site_days),
            "fault_alarms_per_site_day": _rate(found.n_fault, track.site_days),
        }
    )


def early_recall(
    scores: pd.DataFrame | Outcomes,
    rule: AlarmRule,
    *,
    max_nuisance_alarms_per_site_day: float,
    modules_per_site: float | None = None,
) -> float:
    """Average the share of events caught 5 min ahead over `BUDGET_SHARES` of the alarm budget.

    Each budget has its own best threshold; free-response ROC analysis averages sensitivities in the
    same way. At a single budget, many models differ by only an event or two.

    Arguments as in `alarm_curve`, plus the alarm budget [1/d].

    References
    ----------
    Setio et al., Medical Image Analysis 42 (2017) 1-13.
    """
    curve = alarm_curve(scores, rule, modules_per_site=modules_per_site)
    rate = curve["nuisance_alarms_per_site_day"] / max_nuisance_alarms_per_site_day
    caught = [curve["event_recall_5min"][rate <= share].max() for share in BUDGET_SHARES]
    return float(np.mean(caught))


def best_alarm(
    scores: pd.DataFrame | Outcomes,
    *,
    max_nuisance_alarms_per_site_day: float,
    missed_event_costs: float = 0.0,
    rules: Sequence[AlarmRule] = RULES,
    modules_per_site: float | None = None,
) -> Alarm:
    """Choose the alarm that catches the most events within the alarm budget, or costs the least.

    Among each rule's thresholds from `alarm_curve`: the highest event recall within the budget (or
    the lowest cost), then the longest average warning time (0 for a missed event), then the fewest
    nuisance alarms. Each threshold is evaluated separately: a lower one can turn a nuisance alarm
    into an early one.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns), or Outcomes
        A scores frame with at least one event, or its outcomes: out-of-fold scores, never those of
        test racks.
    max_nuisance_alarms_per_site_day : float
        The alarm budget [1/d].
    missed_event_costs : float
        Cost of a missed event, in nuisance alarms. Above 0, it replaces the budget: the alarm with
        the lowest total cost is chosen.
    rules : sequence of AlarmRule
        Rules to choose from; ties go to the first.
    modules_per_site : float, optional
        By default, the average over the sites in the scores.

    Returns
    -------
    Alarm
        Its threshold is above every score if no other keeps within the budget.

    Raises
    ------
    ValueError
        If the scores cover no event.
    """
    outcomes, found = outcomes_of(scores), []
    goal = (max_nuisance_alarms_per_site_day, missed_event_costs)
    for rule in rules:
        track = AlarmTrack(outcomes, rule, modules_per_site)
        thresholds = track.candidates()
        # Most thresholds, even at best, cannot beat the first, which never alarms: skip those.
        most, least = track.most_caught(thresholds), track.least_nuisance(thresholds)
        hoped = _worth(most, least, len(outcomes.event_rows), track.site_days, *goal)
        thresholds = thresholds[hoped >= hoped[0]]
        swept = track.sweep(thresholds)
        best, worth = best_threshold(swept, track.site_days, *goal)
        found.append((worth, Alarm(rule, float(thresholds[best]))))
    return max(found, key=lambda one: one[0])[1]


def best_threshold(
    swept: Sweep, site_days: float, budget: float, costs: float
) -> tuple[int, tuple]:
    """Choose a threshold as `best_alarm` does; return its index and what it is worth."""
    n_caught, n_nuisance, n_events = swept.n_caught, swept.n_nuisance, swept.lead_min.shape[1]
    worths = _worth(n_caught, n_nuisance, n_events, site_days, budget, costs)
    # Rounded, so that equal warning times stay equal whatever the order of summation.
    warning = np.nan_to_num(swept.lead_min).mean(axis=1).round(6)
    best = int(np.lexsort([n_nuisance, -warning, -worths])[0])
    return best, (worths[best], warning[best], -n_nuisance[best])


def _worth(n_caught, n_nuisance, n_events, site_days, budget, costs) -> np.ndarray:
    """Return the events caught within the budget, or minus the cost, shape (n_thresholds,)."""
    if costs:
        return -(n_nuisance + costs * (n_events - n_caught))
    return np.where(_rate(n_nuisance, site_days) <= budget, n_caught, -1)


def _rate(count: np.ndarray, site_days: float) -> np.ndarray:
    """Alarms per site-day; infinite where no time was observed, shape as given."""
    return count / site_days if site_days else np.where(count > 0, np.inf, 0.0)


@dataclass(frozen=True)
class Sweep:
    """Outcomes of the alarms at each of several thresholds.

    Attributes
    ----------
    n_nuisance, n_fault : array of int, shape (n_thresholds,)
        Number of alarms with this outcome.
    lead_min : array, shape (n_thresholds, n_events)
        Lead time of each event [min], NaN where it is missed.
    """

    n_nuisance: np.ndarray
    n_fault: np.ndarray
    lead_min: np.ndarray

    @classmethod
    def over_all(cls, parts: Sequence[Sweep]) -> Sweep:
        """Add up sweeps of the same thresholds over several racks."""
        return cls(
            sum(part.n_nuisance for part in parts), sum(part.n_fault for part in parts),
            np.hstack([part.lead_min for part in parts]),
        )  # fmt: skip

    @property
    def n_caught(self) -> np.ndarray:
        """Number of events caught, shape (n_thresholds,)."""
        return np.sum(~np.isnan(self.lead_min), axis=1)


@dataclass(frozen=True)
class AlarmTrack:
    """The scores under a rule: what all thresholds share, and the alarms at each of them."""

    outcomes: Outcomes
    rule: AlarmRule
    modules_per_site: float | None = None

    @property
    def rows(self) -> ScoreRows:
        """The scores."""
        return self.outcomes.rows

    @cached_property
    def level(self) -> np.ndarray:
        """The highest threshold at which the alarm condition holds, shape (n_rows,)."""
        rows, rule = self.rows, self.rule
        gap_us = rows.interval_us * 3 * rule.n
        return _levels(rows.score, rows.time_us, rows.module_start, gap_us, rule.k, rule.n)

    @property
    def refractory_us(self) -> int:
        """Refractory time [us]."""
        return round(self.rule.refractory_min * MINUTE_US)

    @cached_property
    def clock(self) -> np.ndarray:
        """Times, with modules set at least the refractory time apart [us], shape (n_rows,)."""
        time_us = self.rows.time_us - self.rows.time_us.min()
        return time_us + self.rows.module * (time_us.max() + self.refractory_us)

    @cached_property
    def event_level(self) -> np.ndarray:
        """The highest level of each event since its onset, shape (n_events,)."""
        highest = np.full(len(self.outcomes.event_rows), -np.inf)
        on_event = self.outcomes.alarm_on >= 0
        np.maximum.at(highest, self.outcomes.alarm_on[on_event], self.level[on_event])
        return highest

    def candidates(self) -> np.ndarray:
        """Choose the thresholds to try, descending, the first above every level.

        All distinct levels if they are few. Otherwise the highest ones, then those at geometrically
        spaced ranks, and the highest level of each event. With millions of rows, only the top
        `_HIGHEST` share is used: a threshold below it alarms all the time.
        """
        if not self.outcomes.event_rows:
            raise ValueError(
                f"The scores must cover at least one event, got no row with {col.LABEL} = 1. "
                "Use the out-of-fold scores of racks that have events."
            )
        levels = self.level[np.isfinite(self.level)]
        n_highest = max(int(_HIGHEST * len(levels)), _FEW)
        if n_highest < len(levels):  # sorting all of them would take longer than all the rest
            levels = np.partition(levels, -n_highest)[-n_highest:]
        levels = np.unique(levels)[::-1]
        if len(levels) > N_CANDIDATES:
            half = N_CANDIDATES // 2
            spaced = np.geomspace(half, len(levels) - 1, half).astype(np.int64)
            caught = self.event_level[np.isfinite(self.event_level)]
            levels = np.unique(np.concatenate([levels[:half], levels[spaced], caught]))[::-1]
        return np.concatenate([[np.nextafter(self.rows.score.max(), np.inf)], levels])

    def alarms(self, threshold: float) -> np.ndarray:
        """Return the rows at which alarms are raised."""
        return _raise(np.flatnonzero(self.level >= threshold), self.clock, self.refractory_us)

    def sweep(self, thresholds: np.ndarray | Sequence[float]) -> Sweep:
        """Count the outcomes at each of several descending thresholds."""
        thresholds = np.asarray(thresholds, dtype=np.float64)
        alarm_on, pnr_us = self.outcomes.alarm_on, self.outcomes.pnr_us
        n_nuisance, n_fault, first = _sweep(
            thresholds, self.level, self.clock, self.refractory_us, alarm_on, len(pnr_us)
        )
        lead_min = (pnr_us - self.rows.time_us[first]) / MINUTE_US
        return Sweep(n_nuisance, n_fault, np.where(first >= 0, lead_min, np.nan))

    def least_nuisance(self, thresholds: np.ndarray) -> np.ndarray:
        """Count the modules without event or fault that raise alarms: all are nuisance alarms."""
        first = self.rows.module_start[:-1]
        quiet = np.logical_and.reduceat(self.outcomes.alarm_on == NOTHING, first)
        highest = np.sort(np.maximum.reduceat(self.level, first)[quiet])
        return len(highest) - np.searchsorted(highest, thresholds)

    def most_caught(self, thresholds: np.ndarray) -> np.ndarray:
        """Count the events whose level reaches each threshold: no more can be caught."""
        level = np.sort(self.event_level)
        return len(level) - np.searchsorted(level, thresholds)

    @cached_property
    def site_days(self) -> float:
        """Observed time of all modules, in days of an average site."""
        sites = self.rows.frame[col.SITE].nunique()
        modules = self.modules_per_site or (len(self.rows.module_start) - 1) / sites
        return self.rows.module_days / modules


@njit(cache=True, nogil=True)
def _levels(score, time_us, module_start, gap_us, k, n):
    level = np.full(len(score), -np.inf)
    window = np.empty(n)  # the last scores, ascending
    for m in range(len(module_start) - 1):
        size = 0
        for i in range(module_start[m], module_start[m + 1]):
            if size and time_us[i] - time_us[i - 1] > gap_us[m]:
                size = 0
            if size == n:
                size -= 1
                oldest = np.searchsorted(window, score[i - n])
                for j in range(oldest, size):
                    window[j] = window[j + 1]
            j = size
            while j > 0 and window[j - 1] > score[i]:
                window[j] = window[j - 1]
                j -= 1
            window[j] = score[i]
            size += 1
            if size >= k:
                level[i] = window[size - k]
    return level


@njit(cache=True, nogil=True)
def _raise(rows, clock, refractory_us):
    raised, count, until = np.empty(len(rows), np.int64), 0, clock[0]
    for row in rows:
        if clock[row] >= until:
            raised[count] = row
            count, until = count + 1, clock[row] + refractory_us
    return raised[:count]


@njit(cache=True, nogil=True)
def _sweep(thresholds, level, clock, refractory_us, alarm_on, n_events):
    n_nuisance, n_fault = np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds), np.int64)
    first = np.full((len(thresholds), n_events), -1)
    rows = np.flatnonzero(level >= thresholds[-1])
    n_rows = len(rows)
    for k in range(len(thresholds) - 1, -1, -1):  # from the lowest up: fewer and fewer rows remain
        kept, until = 0, clock[0]
        for row in rows[:n_rows]:
            if level[row] < thresholds[k]:
                continue
            rows[kept] = row
            kept += 1
            if clock[row] >= until:
                until = clock[row] + refractory_us
                on = alarm_on[row]
                n_nuisance[k] += on == NOTHING
                n_fault[k] += on == FAULT
                if on >= 0 and first[k, on] < 0:
                    first[k, on] = row
        n_rows = kept
    return n_nuisance, n_fault, first
