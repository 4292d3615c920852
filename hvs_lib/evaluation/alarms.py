"""Alarms and events: which alarms a score raises, which events they catch, and how early.

Everything here works on a scores frame (see `hvs_lib.evaluation.scores`): any real `y_score`,
higher = more dangerous.

The rules, in one place:

- The level of a row is the k-th highest score of its module's last n samples. The alarm condition,
  "at or above the threshold in k of the last n samples", therefore is `level >= threshold`. A gap
  longer than 3 n median sampling intervals of the module restarts the window.
- An alarm is raised at a module's first row with the alarm condition outside a refractory period,
  which lasts `AlarmRule.refractory_min` from the raise. If the condition still holds afterwards, a
  new alarm is raised.
- An event is the rows with label 1 of one module that share one Event_ID (without it: one unbroken
  stretch of label 1). It is caught if the condition holds at some sample of its label window; its
  lead time is the PNR minus the first such sample. An alarm that began before the window and still
  stands therefore counts, one that has ended does not.
- An alarm is true if the condition holds at a sample of an event window of its module at the raise
  or before the refractory period ends, otherwise false. Every caught event has a true alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real

import numpy as np
import pandas as pd
from numba import njit

from hvs_lib import columns as col
from hvs_lib.evaluation.scores import Y_SCORE, ScoreRows, check_scores

MINUTE_US = 60_000_000
N_CANDIDATES = 1000  # thresholds that are tried, besides one for each event


@dataclass(frozen=True)
class AlarmRule:
    """Say when scores become an alarm: at the threshold in `k` of the last `n` samples.

    Parameters
    ----------
    k, n : int
        The score must be at or above the threshold in `k` of a module's last `n` samples.
    refractory_min : float
        Time after a raised alarm in which the module raises no other [min].
    """

    k: int = 3
    n: int = 5
    refractory_min: float = 30.0

    def __post_init__(self) -> None:
        for name in ("k", "n"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise ValueError(
                    f"{name} must be a whole number of samples, at least 1, got {value!r}."
                )
        if self.k > self.n:
            raise ValueError(
                f"k must be at most n, got k={self.k}, n={self.n}. Lower k or raise n."
            )
        if not isinstance(self.refractory_min, Real) or not 0 <= self.refractory_min < np.inf:
            raise ValueError(
                "refractory_min must be a finite number, 0 or more, got "
                f"{self.refractory_min!r}. Give it in minutes."
            )


RULES = tuple(AlarmRule(k, n) for k, n in ((3, 5), (1, 1), (2, 3), (5, 8), (8, 12)))


@dataclass(frozen=True)
class Alarm:
    """A rule with its threshold: all that turns scores into alarms.

    Parameters
    ----------
    rule : AlarmRule
    threshold : float
        In the unit of the scores.
    """

    rule: AlarmRule
    threshold: float

    def __post_init__(self) -> None:
        if not isinstance(self.rule, AlarmRule):
            raise ValueError(
                f"rule must be an AlarmRule, got {self.rule!r}. Pass AlarmRule(k=3, n=5)."
            )
        if not isinstance(self.threshold, Real) or not np.isfinite(self.threshold):
            raise ValueError(
                f"threshold must be a finite number, got {self.threshold!r}. "
                "Find one with best_alarm."
            )


def raise_alarms(scores: pd.DataFrame, alarm: Alarm) -> pd.DataFrame:
    """List the alarms that the scores raise.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns)
        A scores frame; Hazard_Label is not needed.
    alarm : Alarm

    Returns
    -------
    DataFrame, shape (n_alarms, 6 or 8)
        Site_ID, Rack_ID, Module_ID, Timestamp of the raise, y_score and level there; with a label
        also is_true and Event_ID, the (first) event that makes the alarm true, or None.
    """
    track = AlarmTrack(check_scores(scores, label=False), alarm.rule)
    raised, event = track.alarms(alarm.threshold)
    alarms = track.rows.frame[[*col.KEYS, Y_SCORE]].iloc[raised].reset_index(drop=True)
    alarms["level"] = track.level[raised]
    if col.LABEL in scores.columns:
        alarms["is_true"] = event >= 0
        names = [track.event_names[number] if number >= 0 else None for number in event]
        alarms[col.EVENT_ID] = pd.Series(names, dtype=object)
    return alarms


def event_table(scores: pd.DataFrame, alarm: Alarm) -> pd.DataFrame:
    """List the events, whether each is caught, and how early.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns)
        A scores frame.
    alarm : Alarm

    Returns
    -------
    DataFrame, shape (n_events, 9)
        Site_ID, Rack_ID, Module_ID, Event_ID, Event_Type (None where unknown), window_start, PNR,
        caught and lead_time_min [min] (NaN where missed).

    Examples
    --------
    >>> scores = pd.DataFrame({"Site_ID": "S1", "Rack_ID": "R1", "Module_ID": ["M1"] * 6})
    >>> scores["Timestamp"] = pd.date_range("2025-01-01", periods=6, freq="1min")
    >>> scores["Hazard_Label"] = [0, 0, 1, 1, 1, 0]
    >>> scores["y_score"] = [0.1, 0.6, 0.2, 0.9, 0.8, 0.1]
    >>> events = event_table(scores, Alarm(AlarmRule(k=1, n=1), threshold=0.5))
    >>> events[["Event_ID", "caught", "lead_time_min"]]
      Event_ID  caught  lead_time_min
    0  event 0    True            1.5
    """
    track = AlarmTrack(check_scores(scores), alarm.rule)
    first = np.array([rows[0] for rows in track.event_rows], dtype=np.int64)
    at_start = track.rows.frame.iloc[first].reset_index(drop=True)
    table = at_start[[col.SITE, col.RACK, col.MODULE]].copy()
    table[col.EVENT_ID] = pd.Series(track.event_names, dtype=object)
    table[col.EVENT_TYPE] = at_start.get(col.EVENT_TYPE)
    table["window_start"] = at_start[col.TIMESTAMP]
    pnr_us = [track.pnr_us(rows) for rows in track.event_rows]
    table["PNR"] = np.array(pnr_us, dtype="datetime64[us]")
    lead = track.lead_times(np.array([alarm.threshold]))[0]
    table["caught"] = ~np.isnan(lead)
    table["lead_time_min"] = lead
    return table


def alarm_curve(scores: pd.DataFrame, rule: AlarmRule) -> pd.DataFrame:
    """Trace event recall, false alarms and lead time over the thresholds.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns)
        A scores frame with at least one event.
    rule : AlarmRule

    Returns
    -------
    DataFrame, shape (n_thresholds, 4)
        threshold (descending, the first above every score), event_recall,
        false_alarms_per_module_day and lead_time_median_min (NaN where no event is caught). All
        distinct levels up to 1000 of them; beyond that about 1000, dense at the top, and every
        step of event_recall.

    Examples
    --------
    >>> scores = pd.DataFrame({"Site_ID": "S1", "Rack_ID": "R1", "Module_ID": ["M1"] * 6})
    >>> scores["Timestamp"] = pd.date_range("2025-01-01", periods=6, freq="1min")
    >>> scores["Hazard_Label"] = [0, 0, 1, 1, 1, 0]
    >>> scores["y_score"] = [0.1, 0.6, 0.2, 0.9, 0.8, 0.1]
    >>> alarm_curve(scores, AlarmRule(k=1, n=1))[["threshold", "event_recall"]].tail(3)
       threshold  event_recall
    3        0.6           1.0
    4        0.2           1.0
    5        0.1           1.0
    """
    track = AlarmTrack(check_scores(scores), rule)
    thresholds = track.candidates()
    n_caught = track.n_caught(thresholds)
    lead = np.full(len(thresholds), np.nan)
    lead[n_caught > 0] = np.nanmedian(track.lead_times(thresholds[n_caught > 0]), axis=1)
    return pd.DataFrame(
        {
            "threshold": thresholds,
            "event_recall": n_caught / len(track.event_rows),
            "false_alarms_per_module_day": track.rate(track.n_false(thresholds)),
            "lead_time_median_min": lead,
        }
    )


def best_alarm(
    scores: pd.DataFrame,
    *,
    max_false_alarms_per_module_day: float,
    missed_event_costs: float = 0.0,
    rules: Sequence[AlarmRule] = RULES,
) -> Alarm:
    """Choose the alarm that catches most events within the alarm budget, or costs least.

    For each rule, among the thresholds of `alarm_curve` within the budget: the highest event
    recall, then the fewest false alarms, then the middle one by rank, which is the least sensitive
    to small changes of the scores. Every threshold is counted by itself: a lower one can turn a
    false alarm into a true one. Among the rules: the highest event recall (or the least costs),
    then the earliest warning on average, a missed event counting as no warning time.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns)
        A scores frame with at least one event: out-of-fold scores, never those of test racks.
    max_false_alarms_per_module_day : float
        The alarm budget [1 / module-day].
    missed_event_costs : float
        Cost of a missed event, in false alarms. Above 0 it takes the budget's place: the alarm that
        costs least in all is chosen.
    rules : sequence of AlarmRule
        To choose from; ties go to the first.

    Returns
    -------
    Alarm
        Its threshold is above every score if no other keeps within the budget.

    Raises
    ------
    ValueError
        If the scores cover no event.
    """
    budget, costs = max_false_alarms_per_module_day, missed_event_costs

    def worth(track: AlarmTrack, thresholds: np.ndarray, n_false: np.ndarray) -> np.ndarray:
        n_caught = track.n_caught(thresholds)
        if costs:
            return -(n_false + costs * (len(track.event_rows) - n_caught))
        return np.where(track.rate(n_false) <= budget, n_caught, -1)

    rows, found = check_scores(scores), []
    for rule in rules:
        track = AlarmTrack(rows, rule)
        thresholds = track.candidates()
        # Most thresholds cannot beat the first, which never alarms, even with the fewest false
        # alarms they may have: those need not be counted.
        hoped = worth(track, thresholds, track.least_false(thresholds))
        thresholds = thresholds[hoped >= hoped[0]]
        n_false = track.n_false(thresholds)
        worths = worth(track, thresholds, n_false)
        best = np.flatnonzero(worths == worths.max())
        best = best[n_false[best] == n_false[best].min()]
        threshold = thresholds[best[(len(best) - 1) // 2]]
        lead = np.nan_to_num(track.lead_times(np.array([threshold])))
        found.append((worths.max(), lead.mean(), Alarm(rule, float(threshold))))
    return max(found, key=lambda one: one[:2])[2]


@dataclass(frozen=True)
class AlarmTrack:
    """The scores under a rule: what all thresholds share, and what each of them raises."""

    rows: ScoreRows
    rule: AlarmRule

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
        """Times that leap from module to module by the refractory time or more [us], (n_rows,)."""
        time_us = self.rows.time_us - self.rows.time_us.min()
        return time_us + self.rows.module * (time_us.max() + self.refractory_us)

    @cached_property
    def event_rows(self) -> list[np.ndarray]:
        """The rows of each event's label window, in order of time."""
        event = self.rows.event
        rows = np.flatnonzero(event >= 0)
        rows = rows[np.argsort(event[rows], kind="stable")]
        return np.split(rows, np.flatnonzero(np.diff(event[rows])) + 1) if len(rows) else []

    @cached_property
    def event_names(self) -> list[str]:
        """Event_ID of each event, `event 0`, `event 1`... where it has none."""
        names = self.rows.frame.get(col.EVENT_ID)
        first = [names.iloc[rows[0]] if names is not None else np.nan for rows in self.event_rows]
        return [f"event {i}" if pd.isna(name) else str(name) for i, name in enumerate(first)]

    @cached_property
    def event_level(self) -> np.ndarray:
        """The highest threshold at which each event is caught, shape (n_events,)."""
        return np.array([self.level[rows].max() for rows in self.event_rows])

    def candidates(self) -> np.ndarray:
        """Choose the thresholds to try, descending, the first above every level.

        All distinct levels while they are few. Otherwise the highest ones, from there on those at
        geometrically spaced ranks, and those at which the events are caught: event recall changes
        nowhere else.
        """
        if not self.event_rows:
            raise ValueError(
                f"The scores must cover at least one event, got no row with {col.LABEL} = 1. "
                "Use the out-of-fold scores of racks that have events."
            )
        levels = np.unique(self.level)[::-1]
        levels = levels[np.isfinite(levels)]
        if len(levels) > N_CANDIDATES:
            half = N_CANDIDATES // 2
            spaced = np.geomspace(half, len(levels) - 1, half).astype(np.int64)
            caught = self.event_level[np.isfinite(self.event_level)]
            levels = np.unique(np.concatenate([levels[:half], levels[spaced], caught]))[::-1]
        return np.concatenate([[np.nextafter(self.rows.score.max(), np.inf)], levels])

    def alarms(self, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows at which alarms are raised and the event of each, -1 if it is false."""
        rows = np.flatnonzero(self.level >= threshold)
        return _raise(rows, self.clock, self.rows.event, self.refractory_us)

    def n_false(self, thresholds: np.ndarray) -> np.ndarray:
        """Count false alarms at each of some descending thresholds, shape (n_thresholds,)."""
        rows, level, n_false = np.arange(len(self.level)), self.level, []
        for threshold in thresholds[::-1]:  # from the lowest on, the rows become ever fewer
            holds = level >= threshold
            rows, level = rows[holds], level[holds]
            raised = _raise(rows, self.clock, self.rows.event, self.refractory_us)
            n_false.append(np.sum(raised[1] < 0))
        return np.array(n_false[::-1])

    def least_false(self, thresholds: np.ndarray) -> np.ndarray:
        """Count the modules without an event that raise alarms: at least so many are false."""
        first = self.rows.module_start[:-1]
        quiet = np.maximum.reduceat(self.rows.event, first) < 0
        highest = np.sort(np.maximum.reduceat(self.level, first)[quiet])
        return len(highest) - np.searchsorted(highest, thresholds)

    def n_caught(self, thresholds: np.ndarray) -> np.ndarray:
        """Count the events caught at each threshold, shape (n_thresholds,)."""
        level = np.sort(self.event_level)
        return len(level) - np.searchsorted(level, thresholds)

    def lead_times(self, thresholds: np.ndarray) -> np.ndarray:
        """Lead times [min], NaN where an event is missed, shape (n_thresholds, n_events)."""
        lead = np.full((len(thresholds), len(self.event_rows)), np.nan)
        for i, rows in enumerate(self.event_rows):
            # The first sample at or above a threshold is the first of the running maximum.
            first = np.searchsorted(np.maximum.accumulate(self.level[rows]), thresholds)
            caught = first < len(rows)
            since = self.rows.time_us[rows[first[caught]]]
            lead[caught, i] = (self.pnr_us(rows) - since) / MINUTE_US
        return lead

    def pnr_us(self, rows: np.ndarray) -> int:
        """Point of no return of the event with these rows [us]."""
        return int(self.rows.time_us[rows[-1]]) + round(col.LABEL_UNTIL_S * 1e6)

    def rate(self, n_false: np.ndarray) -> np.ndarray:
        """False alarms per module-day; infinite where no time was observed, shape as given."""
        days = self.rows.module_days
        return n_false / days if days else np.where(n_false > 0, np.inf, 0.0)


@njit(cache=True, nogil=True)
def _levels(score, time_us, module_start, gap_us, k, n):
    level = np.full(len(score), -np.inf)
    for m in range(len(module_start) - 1):
        first = module_start[m]
        for i in range(module_start[m], module_start[m + 1]):
            if i > first and time_us[i] - time_us[i - 1] > gap_us[m]:
                first = i
            window = score[max(first, i - n + 1) : i + 1]
            for value in window:
                if value > level[i]:
                    held = 0
                    for other in window:
                        held += other >= value
                    if held >= k:
                        level[i] = value
    return level


@njit(cache=True, nogil=True)
def _raise(rows, clock, event, refractory_us):
    raised, caught = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
    count, until = 0, clock[0]
    for row in rows:
        if clock[row] >= until:
            raised[count], caught[count] = row, event[row]
            count, until = count + 1, clock[row] + refractory_us
        elif event[row] >= 0 and caught[count - 1] < 0:
            caught[count - 1] = event[row]
    return raised[:count], caught[:count]
