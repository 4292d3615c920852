"""Outcomes: what an alarm is worth to an operator, given what happens to its module.

The rules, in one place:

- **early** or **timely**: the module has an event that reaches its point of no return (PNR), and
  the alarm is raised between the onset of the event and the end of its label window: early before
  that window, timely within it. The event is caught; its lead time runs from the first such
  alarm to the PNR.
- **fault**: the alarm finds a real fault that does not reach the PNR: an Event_ID without a label
  whose cause also occurs with one or is listed as a fault, until `COOLING_MIN` after its last row.
  Or it is on a rack-mate of a module in its label window, which vents and heats the whole rack.
  It is worth a visit, so it counts neither as a catch nor against the alarm budget.
- **nuisance**: everything else. The alarm budget limits these.

An event is all rows with label 1 of one module that share an Event_ID (without one: an unbroken
stretch of label 1). Its onset is the module's first row with that Event_ID; without an Event_ID,
`EARLY_MIN` before the PNR. Rows of the Event_ID after the last label count as a fault; if its cause
is known, it has the same cooling time as other faults. Where two events overlap, an alarm in a
label window counts for that event, any other alarm for the next event.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.evaluation.scores import IS_FAULT, MINUTE_US, ScoreRows
from hvs_lib.telemetry.codes import pnr_of

OUTCOMES = ("early", "timely", "fault", "nuisance")
EARLY_MIN = 60.0  # how long before the PNR an alarm counts as early without an Event_ID [min]
COOLING_MIN = 60.0  # how long a module still shows a fault after it has ended [min]
NOTHING, FAULT = -1, -2  # values in `Outcomes.alarm_on`


@dataclass(frozen=True)
class Outcomes:
    """The events among the rows, and what an alarm at each row would count for.

    Parameters
    ----------
    rows : ScoreRows
        From `check_scores`.
    """

    rows: ScoreRows

    def with_scores(self, y_score: np.ndarray) -> Outcomes:
        """Return the outcomes of the same rows with other scores."""
        other = Outcomes(self.rows.with_scores(y_score))
        for name in ("event_rows", "event_names", "pnr_us", "alarm_on"):
            vars(other)[name] = getattr(self, name)
        return other

    @cached_property
    def event_rows(self) -> list[np.ndarray]:
        """The rows of each event's label window, in time order."""
        event = self.rows.event
        rows = np.flatnonzero(event >= 0)
        rows = rows[np.argsort(event[rows], kind="stable")]
        return np.split(rows, np.flatnonzero(np.diff(event[rows])) + 1) if len(rows) else []

    @cached_property
    def event_names(self) -> list[str]:
        """Event_ID of each event; `event 0`, `event 1`... where it has none."""
        names = self.rows.frame.get(col.EVENT_ID)
        first = [names.iloc[rows[0]] if names is not None else np.nan for rows in self.event_rows]
        return [f"event {i}" if pd.isna(name) else str(name) for i, name in enumerate(first)]

    @cached_property
    def pnr_us(self) -> np.ndarray:
        """Point of no return of each event [us], shape (n_events,)."""
        last = self.rows.frame.iloc[[rows[-1] for rows in self.event_rows]]
        return pnr_of(last).to_numpy(dtype="datetime64[us]").astype(np.int64)

    @cached_property
    def alarm_on(self) -> np.ndarray:
        """What an alarm raised at each row would count for, shape (n_rows,).

        An event number, `FAULT` or `NOTHING`.
        """
        rows, event_id = self.rows, self.rows.event_id
        is_fault = (event_id >= 0) & np.asarray(rows.frame.get(IS_FAULT, False), dtype=bool)
        latest = np.maximum.accumulate(np.where(is_fault, np.arange(len(is_fault)), 0))
        shows_it = is_fault[latest] & (rows.module[latest] == rows.module)
        shows_it &= rows.time_us - rows.time_us[latest] <= COOLING_MIN * MINUTE_US
        alarm_on = np.where(shows_it, FAULT, NOTHING).astype(np.int32)
        for labelled in self.event_rows:
            first, last = rows.time_us[labelled[[0, -1]]]
            rack = rows.rack[labelled[0]]
            mates = slice(*(np.searchsorted(rows.rack, rack, side) for side in ("left", "right")))
            meanwhile = (rows.time_us[mates] >= first) & (rows.time_us[mates] <= last)
            alarm_on[mates][meanwhile] = FAULT
        # From the last event to the first: where two overlap, an alarm counts for the next one.
        for number, labelled in reversed(list(enumerate(self.event_rows))):
            last = labelled[-1]
            first, end = rows.module_start[rows.module[last] + np.array([0, 1])]
            if event_id[last] >= 0:
                own = first + np.flatnonzero(event_id[first:end] == event_id[last])
                onset, later = own[0], own[own > last]
                alarm_on[later[alarm_on[later] < 0]] = FAULT
            else:
                onset_us = self.pnr_us[number] - EARLY_MIN * MINUTE_US
                onset = first + np.searchsorted(rows.time_us[first : last + 1], onset_us)
            alarm_on[onset : last + 1] = number
        return np.where(rows.event >= 0, rows.event, alarm_on)  # in a window, its own event

    def lead_min(self, rows: np.ndarray) -> np.ndarray:
        """Return the time from each given row to the PNR of its event [min], NaN without one."""
        alarm_on = self.alarm_on[rows]
        pnr_us = np.append(self.pnr_us, 0)[np.maximum(alarm_on, NOTHING)]
        return np.where(alarm_on >= 0, (pnr_us - self.rows.time_us[rows]) / MINUTE_US, np.nan)

    def names(self, raised: np.ndarray) -> np.ndarray:
        """Return the outcome, one of `OUTCOMES`, of an alarm raised at each given row."""
        alarm_on = self.alarm_on[raised]
        on_event = np.where(self.rows.event[raised] >= 0, "timely", "early")
        return np.select(
            [alarm_on >= 0, alarm_on == FAULT], [on_event, "fault"], default="nuisance"
        ).astype(object)
