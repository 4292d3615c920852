"""Alarms and events: which alarms a score raises, which events they catch, and how early.

Everything here works on a scores frame (see `hvs_lib.evaluation.scores`): any real `y_score`,
higher = more dangerous.

The rules, in one place:

- The alarm condition holds at a sample where `level >= threshold`, with the level of `alarm_level`.
- An alarm is raised at a module's first such sample outside a refractory period, which lasts
  `AlarmRule.refractory_min` from the raise. If the condition still holds afterwards, a new alarm
  is raised.
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

from hvs_lib import columns as col
from hvs_lib.evaluation.scores import Y_SCORE, ScoreRows, read_scores

import numpy as np
import pandas as pd
from numba import njit

MINUTE_US = 60_000_000
N_CANDIDATES = 1000  # thresholds of a sweep, besides one per event
BLOCK = 64  # rows summarised by their highest level, so that a sweep can skip quiet stretches

# --------------------------------------------------------------------------------------------------
# The rule
# --------------------------------------------------------------------------------------------------


def _check_not_negative(name: str, value: float, cure: str) -> None:
    if not isinstance(value, Real) or not 0 <= value < np.inf:
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}. {cure}")


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
        _check_not_negative("refractory_min", self.refractory_min, "Give it in minutes.")


DEFAULT_RULE = AlarmRule()
RULES = tuple(AlarmRule(k, n) for k, n in ((3, 5), (1, 1), (2, 3), (5, 8), (8, 12)))

# --------------------------------------------------------------------------------------------------
# Kernels
# --------------------------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def _levels(score, time_us, module_start, gap_us, k, n):
    level = np.full(len(score), -np.inf)
    top = np.empty(k)
    for m in range(len(module_start) - 1):
        first = module_start[m]
        for i in range(module_start[m], module_start[m + 1]):
            if i > first and time_us[i] - time_us[i - 1] > gap_us[m]:
                first = i
            held = 0  # the highest k scores of the window, descending
            for j in range(max(first, i - n + 1), i + 1):
                if held < k:
                    held += 1
                elif score[j] <= top[k - 1]:
                    continue
                place = held - 1
                while place > 0 and top[place - 1] < score[j]:
                    top[place] = top[place - 1]
                    place -= 1
                top[place] = score[j]
            if held == k:
                level[i] = top[k - 1]
    return level


@njit(cache=True, nogil=True)
def _refractory_ends(time_us, module_start, refractory_us):
    end = np.empty(len(time_us), dtype=np.int64)
    for m in range(len(module_start) - 1):
        row = module_start[m]
        for i in range(module_start[m], module_start[m + 1]):
            row = max(row, i + 1)
            while row < module_start[m + 1] and time_us[row] - time_us[i] < refractory_us:
                row += 1
            end[i] = row
    return end


@njit(cache=True, nogil=True)
def _highest_event_level(level, event, end):
    """Sliding maximum of the level over the event rows in [i, end[i]), by a monotone queue."""
    highest = np.full(len(level), -np.inf)
    queue = np.empty(len(level), dtype=np.int64)
    head, tail, row = 0, 0, 0
    for i in range(len(level)):
        while row < end[i]:
            if event[row] >= 0:
                while tail > head and level[queue[tail - 1]] <= level[row]:
                    tail -= 1
                queue[tail] = row
                tail += 1
            row += 1
        while head < tail and queue[head] < i:
            head += 1
        if head < tail:
            highest[i] = level[queue[head]]
    return highest


@njit(cache=True, nogil=True)
def _block_highest(level):
    highest = np.full((len(level) + BLOCK - 1) // BLOCK, -np.inf)
    for i in range(len(level)):
        highest[i // BLOCK] = max(highest[i // BLOCK], level[i])
    return highest


@njit(cache=True, nogil=True)
def _walk(level, end, block, threshold, raised):
    """Write the rows at which alarms are raised into `raised`; return how many."""
    count, i = 0, 0
    while i < len(level):
        if i % BLOCK == 0 and block[i // BLOCK] < threshold:
            i += BLOCK
        elif level[i] >= threshold:
            raised[count] = i
            count += 1
            i = end[i]
        else:
            i += 1
    return count


@njit(cache=True, nogil=True)
def _count_false(level, end, block, highest, thresholds):
    n_false = np.zeros(len(thresholds), dtype=np.int64)
    raised = np.empty(len(level), dtype=np.int64)
    for t in range(len(thresholds)):
        for a in range(_walk(level, end, block, thresholds[t], raised)):
            if highest[raised[a]] < thresholds[t]:
                n_false[t] += 1
    return n_false


# --------------------------------------------------------------------------------------------------
# Alarms and events at a threshold
# --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AlarmTrack:
    """What does not depend on the threshold: the levels of the rows, and the events."""

    rows: ScoreRows
    rule: AlarmRule

    @cached_property
    def level(self) -> np.ndarray:
        """The highest threshold at which the alarm condition holds, shape (n,)."""
        rows, rule = self.rows, self.rule
        gap_us = rows.interval_us * 3 * rule.n
        return _levels(rows.score, rows.time_us, rows.module_start, gap_us, rule.k, rule.n)

    @cached_property
    def end(self) -> np.ndarray:
        """For an alarm raised at each row, the first row past its refractory period, shape (n,)."""
        refractory_us = round(self.rule.refractory_min * MINUTE_US)
        return _refractory_ends(self.rows.time_us, self.rows.module_start, refractory_us)

    @cached_property
    def highest(self) -> np.ndarray:
        """For an alarm raised at each row, the highest threshold at which it is true, (n,)."""
        return _highest_event_level(self.level, self.rows.event, self.end)

    @cached_property
    def block(self) -> np.ndarray:
        """Highest level of each block of rows."""
        return _block_highest(self.level)

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

    def raised(self, threshold: float) -> np.ndarray:
        """Rows at which alarms are raised, shape (n_alarms,)."""
        raised = np.empty(len(self.level), dtype=np.int64)
        return raised[: _walk(self.level, self.end, self.block, float(threshold), raised)].copy()

    def n_false(self, thresholds: np.ndarray) -> np.ndarray:
        """Count false alarms at each threshold, shape (n_thresholds,)."""
        return _count_false(self.level, self.end, self.block, self.highest, thresholds)

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


def track_alarms(scores: pd.DataFrame, rule: AlarmRule, *, label: bool = True) -> AlarmTrack:
    """Check scores and rule, and prepare what all thresholds share."""
    if not isinstance(rule, AlarmRule):
        raise ValueError(f"rule must be an AlarmRule, got {rule!r}. Pass AlarmRule(k=3, n=5).")
    return AlarmTrack(read_scores(scores, label=label), rule)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that no score can be compared with."""
    if not isinstance(threshold, Real) or not np.isfinite(threshold):
        raise ValueError(
            f"threshold must be a finite number, got {threshold!r}. Find one with choose_threshold."
        )


def alarm_level(scores: pd.DataFrame, rule: AlarmRule = DEFAULT_RULE) -> np.ndarray:
    """Compute the highest threshold at which the alarm condition holds at each row.

    It is the k-th highest score of the module's last n samples: "at or above the threshold in k of
    the last n samples" is the same as "level at or above the threshold". A gap longer than 3 n
    median sampling intervals of the module restarts the window.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame; Hazard_Label is not needed.
    rule : AlarmRule
        k and n.

    Returns
    -------
    ndarray of float, shape (n_rows,)
        In the order of `scores`; -inf in the first k - 1 samples of a module or after a gap.
    """
    track = track_alarms(scores, rule, label=False)
    level = np.empty_like(track.level)
    level[track.rows.order] = track.level
    return level


def raise_alarms(
    scores: pd.DataFrame, *, threshold: float, rule: AlarmRule = DEFAULT_RULE
) -> pd.DataFrame:
    """List the alarms that the scores raise.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame; Hazard_Label is not needed.
    threshold : float
        In the unit of the scores.
    rule : AlarmRule

    Returns
    -------
    DataFrame (n_alarms, 6 or 8)
        Site_ID, Rack_ID, Module_ID, Timestamp of the raise, y_score and level there; with a label
        also is_true and Event_ID, the (first) event that makes the alarm true, or None.
    """
    check_threshold(threshold)
    track = track_alarms(scores, rule, label=False)
    raised = track.raised(threshold)
    alarms = track.rows.frame[[*col.KEYS, Y_SCORE]].iloc[raised].reset_index(drop=True)
    alarms["level"] = track.level[raised]
    if col.LABEL in scores.columns:
        alarms["is_true"] = track.highest[raised] >= threshold
        alarms[col.EVENT_ID] = pd.Series(
            [_event_of_alarm(track, row, threshold) for row in raised], dtype=object
        )
    return alarms


def _event_of_alarm(track: AlarmTrack, row: int, threshold: float) -> str | None:
    span = slice(row, track.end[row])
    event = track.rows.event[span][track.level[span] >= threshold]
    event = event[event >= 0]
    return track.event_names[event[0]] if len(event) else None


def event_table(
    scores: pd.DataFrame, *, threshold: float, rule: AlarmRule = DEFAULT_RULE
) -> pd.DataFrame:
    """List the events, whether each is caught, and how early.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame.
    threshold : float
        In the unit of the scores.
    rule : AlarmRule

    Returns
    -------
    DataFrame (n_events, 9)
        Site_ID, Rack_ID, Module_ID, Event_ID, Event_Type (None where unknown), window_start, PNR,
        caught and lead_time_min [min] (NaN where missed).
    """
    check_threshold(threshold)
    track = track_alarms(scores, rule)
    first = np.array([rows[0] for rows in track.event_rows], dtype=np.int64)
    at_start = track.rows.frame.iloc[first].reset_index(drop=True)
    table = at_start[[col.SITE, col.RACK, col.MODULE]].copy()
    table[col.EVENT_ID] = pd.Series(track.event_names, dtype=object)
    table[col.EVENT_TYPE] = at_start.get(col.EVENT_TYPE)
    pnr_us = np.array([track.pnr_us(rows) for rows in track.event_rows], dtype=np.int64)
    lead = track.lead_times(np.array([float(threshold)]))[0]
    table["window_start"] = at_start[col.TIMESTAMP]
    table["PNR"] = pnr_us.astype("datetime64[us]")
    table["caught"] = ~np.isnan(lead)
    table["lead_time_min"] = lead
    return table


# --------------------------------------------------------------------------------------------------
# All thresholds
# --------------------------------------------------------------------------------------------------


def _candidates(track: AlarmTrack) -> np.ndarray:
    """Choose the thresholds of a sweep, descending, the first above every level.

    All distinct levels while they are few. Otherwise the highest ones, from there on those at
    geometrically spaced ranks, and those at which the events are caught: event recall changes
    nowhere else.
    """
    levels = np.unique(track.level)[::-1]
    levels = levels[np.isfinite(levels)]
    if len(levels) > N_CANDIDATES:
        half = N_CANDIDATES // 2
        spaced = np.geomspace(half, len(levels) - 1, half).astype(np.int64)
        caught = track.event_level[np.isfinite(track.event_level)]
        levels = np.unique(np.concatenate([levels[:half], levels[spaced], caught]))[::-1]
    return np.concatenate([[np.nextafter(track.rows.score.max(), np.inf)], levels])


def _n_caught(track: AlarmTrack, thresholds: np.ndarray) -> np.ndarray:
    level = np.sort(track.event_level)
    return len(level) - np.searchsorted(level, thresholds, side="left")


def _check_has_events(track: AlarmTrack) -> None:
    if not track.event_rows:
        raise ValueError(
            f"The scores must cover at least one event, got no row with {col.LABEL} = 1. "
            "Use the out-of-fold scores of racks that have events."
        )


def alarm_curve(scores: pd.DataFrame, *, rule: AlarmRule = DEFAULT_RULE) -> pd.DataFrame:
    """Trace event recall, false alarms and lead time over the thresholds.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame with at least one event.
    rule : AlarmRule

    Returns
    -------
    DataFrame (n_thresholds, 4)
        threshold (descending, the first above every score), event_recall,
        false_alarms_per_module_day and lead_time_median_min (NaN where no event is caught). All
        distinct levels up to 1000 of them; beyond that about 1000, dense at the top, and every
        step of event_recall.
    """
    track = track_alarms(scores, rule)
    _check_has_events(track)
    thresholds = _candidates(track)
    n_caught = _n_caught(track, thresholds)
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


def choose_threshold(
    scores: pd.DataFrame,
    *,
    max_false_alarms_per_module_day: float,
    missed_event_costs: float = 0.0,
    rule: AlarmRule = DEFAULT_RULE,
) -> float:
    """Choose the threshold that catches most events within the alarm budget, or costs least.

    Among the thresholds of `alarm_curve` within the budget: the highest event recall, then the
    fewest false alarms, then the middle one by rank, which is the least sensitive to small changes
    of the scores. Every candidate is counted by itself: a lower threshold can turn a false alarm
    into a true one.

    Parameters
    ----------
    scores : DataFrame (n_rows, ...)
        A scores frame with at least one event: out-of-fold scores, never those of test racks.
    max_false_alarms_per_module_day : float
        The alarm budget [1 / module-day].
    missed_event_costs : float
        As many false alarms as one missed event is worth. Above 0 it takes the budget's place: the
        fewest false alarms plus missed events, weighed so.
    rule : AlarmRule

    Returns
    -------
    float
        A finite threshold; above every score if no other keeps within the budget.

    Raises
    ------
    ValueError
        If the budget or the costs are negative or the scores cover no event.
    """
    goal = (max_false_alarms_per_module_day, missed_event_costs)
    _check_goal(*goal)
    track = track_alarms(scores, rule)
    _check_has_events(track)
    return _best_threshold(track, *goal)[0]


def choose_alarm(
    scores: pd.DataFrame,
    *,
    max_false_alarms_per_module_day: float,
    missed_event_costs: float = 0.0,
    rules: Sequence[AlarmRule] = RULES,
) -> tuple[AlarmRule, float]:
    """Choose the alarm's rule, k of n, together with its threshold.

    Each rule gets its best threshold. The best of them catches most events (or costs least), then
    warns earliest on average, a missed event counting as no warning time.

    Parameters
    ----------
    scores, max_false_alarms_per_module_day, missed_event_costs
        As for `choose_threshold`.
    rules : sequence of AlarmRule
        To choose from; ties go to the first.

    Returns
    -------
    rule, threshold : AlarmRule, float

    Raises
    ------
    ValueError
        As `choose_threshold`.
    """
    goal = (max_false_alarms_per_module_day, missed_event_costs)
    _check_goal(*goal)
    rows, found = read_scores(scores), {}
    for rule in rules:
        track = AlarmTrack(rows, rule)
        _check_has_events(track)
        threshold, worth = _best_threshold(track, *goal)
        lead = np.nan_to_num(track.lead_times(np.array([threshold]))[0])
        found[rule] = (worth, float(lead.mean()), threshold)
    best = max(found, key=lambda rule: found[rule][:2])
    return best, found[best][2]


def _check_goal(budget: float, costs: float) -> None:
    _check_not_negative("max_false_alarms_per_module_day", budget, "Try 0.1, one in ten days.")
    _check_not_negative("missed_event_costs", costs, "Give 0 to keep to the alarm budget.")


def _best_threshold(track: AlarmTrack, budget: float, costs: float) -> tuple[float, float]:
    """Return the best threshold and its worth: events caught, or the costs with a minus."""
    thresholds = _candidates(track)
    n_false, n_caught = track.n_false(thresholds), _n_caught(track, thresholds)
    if costs:
        worth = -(n_false + costs * (len(track.event_rows) - n_caught))
    else:
        worth = np.where(track.rate(n_false) <= budget, n_caught, -1)
    best = np.flatnonzero(worth == worth.max())
    best = best[n_false[best] == n_false[best].min()]
    return float(thresholds[best[(len(best) - 1) // 2]]), float(worth.max())
