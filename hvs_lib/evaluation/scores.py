"""The scores frame: rows of any racks with identifiers, label and score, checked and sorted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import event_codes, hazard_types, module_codes, order_of, rack_codes
from hvs_lib.telemetry.quality import median_steps

Y_SCORE = "y_score"
IS_FAULT = "is_fault"  # whether the cause is a real fault, not a look-alike
MINUTE_US, DAY_US = 60_000_000, 86_400_000_000


def scores_frame(
    telemetry: pd.DataFrame,
    rows: np.ndarray,
    y_score: np.ndarray,
    *,
    fault_types: Collection[str] = (),
) -> pd.DataFrame:
    """Combine scores with the identifiers and labels of their rows.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, n_columns)
        The telemetry table. Its label, Event_ID, Event_Type and PNR are kept if present.
    rows : array of int, shape (n_rows,)
        Positions in `telemetry`, in any order, without duplicates.
    y_score : array of float, shape (n_rows,)
        Score of each of these rows, higher = more dangerous.
    fault_types : collection of str
        Causes (Event_Type) of real faults, besides those that occur with label 1.

    Returns
    -------
    DataFrame, shape (n_rows, 5 to 10)
        Includes the column is_fault if the telemetry has Event_Type. Sorted by site, rack, module
        and time, with a fresh index and no unused categories.

    Examples
    --------
    >>> telemetry = pd.DataFrame(
    ...     {
    ...         "Timestamp": pd.date_range("2025-01-01", periods=3, freq="10s"),
    ...         "Site_ID": "S1",
    ...         "Rack_ID": "R1",
    ...         "Module_ID": "M1",
    ...     }
    ... )
    >>> scores_frame(telemetry, np.array([2, 0]), np.array([0.9, 0.1]))
                Timestamp Site_ID Rack_ID Module_ID  y_score
    0 2025-01-01 00:00:00      S1      R1        M1      0.1
    1 2025-01-01 00:00:20      S1      R1        M1      0.9
    """
    rows, y_score = np.asarray(rows), np.asarray(y_score, dtype=np.float64)
    if rows.shape != y_score.shape or rows.ndim != 1:
        raise ValueError(
            f"rows and y_score must be one-dimensional and of one length, got shapes {rows.shape} "
            f"and {y_score.shape}. Pass one score per row: the second column of predict_proba."
        )
    wanted = [col.TIMESTAMP, *col.KEYS[:3], col.LABEL, col.EVENT_ID, col.EVENT_TYPE, col.PNR]
    frame = telemetry[[name for name in wanted if name in telemetry.columns]].iloc[rows]
    frame = frame.reset_index(drop=True).assign(**{Y_SCORE: y_score})
    if col.EVENT_TYPE in frame:
        frame[IS_FAULT] = frame[col.EVENT_TYPE].isin({*hazard_types(telemetry), *fault_types})
    for name in frame.columns[frame.dtypes == "category"]:
        frame[name] = frame[name].cat.remove_unused_categories()
    return check_scores(frame, label=False).frame


@dataclass(frozen=True)
class ScoreRows:
    """A checked scores frame, sorted by site, rack, module and time, with its arrays.

    Module and rack numbers count from 0 in the order of the names.
    """

    frame: pd.DataFrame
    time_us: np.ndarray
    module: np.ndarray
    rack: np.ndarray

    def with_scores(self, y_score: np.ndarray) -> ScoreRows:
        """Return the same rows with other scores; what does not depend on them is kept."""
        check_finite(y_score)
        other = replace(self, frame=self.frame.assign(**{Y_SCORE: y_score}))
        for name in ("label", "event", "event_id", "module_start", "interval_us"):
            vars(other)[name] = getattr(self, name)
        return other

    @cached_property
    def score(self) -> np.ndarray:
        """Scores, shape (n_rows,)."""
        return self.frame[Y_SCORE].to_numpy(dtype=np.float64)

    @cached_property
    def label(self) -> np.ndarray:
        """Labels 0 and 1, shape (n_rows,)."""
        return self.frame[col.LABEL].to_numpy(dtype=np.int8)

    @cached_property
    def rank(self) -> np.ndarray:
        """Rank of each score among the distinct scores of label 1, shape (n_rows,).

        2 i + 1 at the i-th of them, 2 i between it and the one before. The precision-recall and ROC
        curves depend on nothing else.
        """
        steps = np.unique(self.score[self.label == 1])
        above = np.searchsorted(steps, self.score, side="right")
        return (2 * above - (steps[above - 1] == self.score)).astype(np.int32)

    @cached_property
    def event(self) -> np.ndarray:
        """Event number on the rows of label 1, -1 elsewhere, shape (n_rows,)."""
        if col.LABEL not in self.frame.columns:
            return np.full(len(self.frame), -1, dtype=np.int32)
        return event_codes(self.frame)

    @cached_property
    def event_id(self) -> np.ndarray:
        """Number of the row's Event_ID, -1 where it has none, shape (n_rows,)."""
        if col.EVENT_ID not in self.frame.columns:
            return np.full(len(self.frame), -1, dtype=np.int32)
        return self.frame[col.EVENT_ID].astype("category").cat.codes.to_numpy()

    @cached_property
    def module_start(self) -> np.ndarray:
        """First row of each module, then the number of rows, shape (n_modules + 1,)."""
        return np.flatnonzero(np.diff(self.module, prepend=-1, append=self.module[-1] + 1))

    @cached_property
    def interval_us(self) -> np.ndarray:
        """Median sampling interval of each module [us]; that of the others if it has one sample."""
        interval = median_steps(self.time_us, self.module_start)
        known = interval[~np.isnan(interval)]
        return np.where(np.isnan(interval), np.median(known) if len(known) else 0.0, interval)

    @property
    def module_days(self) -> float:
        """Observed time: rows times the median sampling interval, over all modules [days]."""
        return float(np.diff(self.module_start) @ self.interval_us / DAY_US)


def check_scores(scores: pd.DataFrame, *, label: bool = True) -> ScoreRows:
    """Check and sort a scores frame; the argument is not modified.

    Parameters
    ----------
    scores : DataFrame, shape (n_rows, n_columns)
        A scores frame, in any order.
    label : bool
        Whether Hazard_Label must be present.

    Raises
    ------
    ValueError
        If the frame is empty, lacks a column, repeats a row or holds a non-finite score.
    """
    needed = [*col.KEYS, Y_SCORE, *([col.LABEL] if label else [])]
    missing = [name for name in needed if name not in scores.columns]
    if missing:
        raise ValueError(
            f"A scores frame must have the columns {', '.join(needed)}, but lacks "
            f"{', '.join(missing)}. Build it with scores_frame."
        )
    if scores.empty:
        raise ValueError("A scores frame must have rows, got 0. Choose racks that have telemetry.")
    check_finite(scores[Y_SCORE].to_numpy(dtype=np.float64))
    time_us = scores[col.TIMESTAMP].to_numpy(dtype="datetime64[us]").view(np.int64)  # no copy
    ids = pd.DataFrame({name: _in_order_of_names(scores[name]) for name in col.KEYS[:3]})
    rack, module = rack_codes(ids), module_codes(ids)
    if (order := order_of(module, time_us)) is not None:
        scores = scores.iloc[order].reset_index(drop=True)
        time_us, rack, module = time_us[order], rack[order], module[order]
    repeated = np.flatnonzero((np.diff(module) == 0) & (np.diff(time_us) == 0))
    if len(repeated):
        name, when = (scores[c].iloc[repeated[0]] for c in (col.MODULE, col.TIMESTAMP))
        raise ValueError(
            f"A module must have one row per timestamp, got two of {name} at {when}. "
            "Drop the repeated rows."
        )
    return ScoreRows(scores, time_us, module, rack)


def check_finite(y_score: np.ndarray) -> None:
    """Raise ValueError if a score is NaN or infinite."""
    bad = int((~np.isfinite(y_score)).sum())
    if bad:
        raise ValueError(
            f"{Y_SCORE} must be finite, got {bad} of {len(y_score)} that are not. "
            "Pass only rows that were scored."
        )


def _in_order_of_names(column: pd.Series) -> pd.Series:
    """Sort the categories, whose order may otherwise depend on other rows of the table."""
    column = column.astype("category")
    return column.cat.reorder_categories(sorted(column.cat.categories, key=str))
