"""The scores frame: rows of any racks with identifiers, label and score, checked and in order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from hvs_lib import columns as col
from hvs_lib.telemetry.codes import event_codes

import numpy as np
import pandas as pd

Y_SCORE = "y_score"
DAY_US = 86_400_000_000


def scores_frame(telemetry: pd.DataFrame, rows: np.ndarray, y_score: np.ndarray) -> pd.DataFrame:
    """Put scores beside the identifiers and labels of their rows.

    Parameters
    ----------
    telemetry : DataFrame (n_samples, n_columns)
        The telemetry table. Hazard_Label, Event_ID and Event_Type are taken along where present.
    rows : array of int, shape (n_rows,)
        Positions in `telemetry`, in any order, none twice.
    y_score : array of float, shape (n_rows,)
        The score of each of these rows, higher = more dangerous.

    Returns
    -------
    DataFrame (n_rows, 6 to 8)
        Sorted by site, rack, module and time, with a fresh index and no unused categories.

    Raises
    ------
    ValueError
        If the lengths differ, a column is missing, a row repeats or a score is not finite.
    """
    rows, y_score = np.asarray(rows), np.asarray(y_score, dtype=np.float64)
    if rows.shape != y_score.shape or rows.ndim != 1:
        raise ValueError(
            f"rows and y_score must be one-dimensional and of one length, got shapes {rows.shape} "
            f"and {y_score.shape}. Pass one score per row: the second column of predict_proba."
        )
    wanted = [
        col.TIMESTAMP,
        col.SITE,
        col.RACK,
        col.MODULE,
        col.LABEL,
        col.EVENT_ID,
        col.EVENT_TYPE,
    ]
    frame = telemetry[[name for name in wanted if name in telemetry.columns]].iloc[rows]
    frame = frame.reset_index(drop=True).assign(**{Y_SCORE: y_score})
    for name in frame.columns[frame.dtypes == "category"]:
        frame[name] = frame[name].cat.remove_unused_categories()
    return read_scores(frame, label=False).frame


@dataclass(frozen=True)
class ScoreRows:
    """A checked scores frame in the order site, rack, module, time, with its arrays.

    `order` holds the positions of the rows in the frame that was given. Module and rack numbers
    count from 0 in the order of the names.
    """

    frame: pd.DataFrame
    order: np.ndarray
    time_us: np.ndarray
    module: np.ndarray
    rack: np.ndarray

    @cached_property
    def score(self) -> np.ndarray:
        """Scores, shape (n,)."""
        return self.frame[Y_SCORE].to_numpy(dtype=np.float64)

    @cached_property
    def label(self) -> np.ndarray:
        """Labels 0/1, shape (n,); 0 throughout where the frame has none."""
        if col.LABEL not in self.frame.columns:
            return np.zeros(len(self.frame), dtype=np.int8)
        return self.frame[col.LABEL].to_numpy(dtype=np.int8)

    @cached_property
    def module_start(self) -> np.ndarray:
        """First row of each module and the number of rows, shape (n_modules + 1,)."""
        return np.flatnonzero(np.diff(self.module, prepend=-1, append=self.module[-1] + 1))

    @cached_property
    def interval_us(self) -> np.ndarray:
        """Median sampling interval of each module [us]; of the others where it has one sample."""
        bounds = zip(self.module_start[:-1], self.module_start[1:], strict=True)
        steps = [np.diff(self.time_us[start:stop]) for start, stop in bounds]
        interval = np.array([np.median(step) if len(step) else np.nan for step in steps])
        known = interval[~np.isnan(interval)]
        return np.where(np.isnan(interval), np.median(known) if len(known) else 0.0, interval)

    @property
    def module_days(self) -> float:
        """Observed time: rows times the median sampling interval, over all modules [days]."""
        return float(np.diff(self.module_start) @ self.interval_us / DAY_US)

    @cached_property
    def event(self) -> np.ndarray:
        """Event number on the rows of label 1, -1 elsewhere, shape (n,)."""
        if col.LABEL not in self.frame.columns:
            return np.full(len(self.frame), -1, dtype=np.int32)
        return event_codes(self.frame)


def read_scores(scores: pd.DataFrame, *, label: bool = True) -> ScoreRows:
    """Check a scores frame and bring it in order; the argument stays as it is.

    Parameters
    ----------
    scores : DataFrame (n, ...)
        A scores frame, in any order.
    label : bool
        Whether Hazard_Label must be there.

    Returns
    -------
    ScoreRows

    Raises
    ------
    ValueError
        If the frame is empty, lacks a column, or holds a value that no scores frame may hold.
    """
    _check_scores(scores, label=label)
    time_us = scores[col.TIMESTAMP].to_numpy(dtype="datetime64[us]").astype(np.int64)
    rack = _rank(scores[col.SITE]) * len(scores) + _rank(scores[col.RACK])
    rack = np.unique(rack, return_inverse=True)[1]
    ranks = _rank(scores[col.MODULE])
    module = rack * (ranks.max() + 1) + ranks
    order = np.arange(len(scores))
    if not _is_ordered(module, time_us):
        order = np.lexsort((time_us, module))
        scores = scores.iloc[order].reset_index(drop=True)
        time_us, rack, module = time_us[order], rack[order], module[order]
    repeated = np.flatnonzero((np.diff(module) == 0) & (np.diff(time_us) == 0))
    if len(repeated):
        name, when = (scores[c].iloc[repeated[0]] for c in (col.MODULE, col.TIMESTAMP))
        raise ValueError(
            f"A module must have one row per timestamp, got two of {name} at {when}. "
            "Drop the repeated rows."
        )
    module = np.cumsum(np.diff(module, prepend=module[0]) != 0)
    return ScoreRows(scores, order, time_us, module, rack)


def _check_scores(scores: pd.DataFrame, *, label: bool) -> None:
    needed = [*col.KEYS, Y_SCORE, *([col.LABEL] if label else [])]
    missing = [name for name in needed if name not in scores.columns]
    if missing:
        raise ValueError(
            f"A scores frame must have the columns {', '.join(needed)}, got none of "
            f"{', '.join(missing)}. Build it with scores_frame."
        )
    if scores.empty:
        raise ValueError("A scores frame must have rows, got 0. Choose racks that have telemetry.")
    if not pd.api.types.is_datetime64_any_dtype(scores[col.TIMESTAMP]):
        raise ValueError(
            f"{col.TIMESTAMP} must hold times, got {scores[col.TIMESTAMP].dtype}. "
            "Convert it with pandas.to_datetime."
        )
    for name in col.KEYS:
        if scores[name].isna().any():
            raise ValueError(
                f"{name} must not be missing, got {scores[name].isna().sum()} gaps. "
                "Fill them or drop the rows."
            )
    bad = int((~np.isfinite(scores[Y_SCORE].to_numpy(dtype=np.float64))).sum())
    if bad:
        raise ValueError(
            f"{Y_SCORE} must be finite, got {bad} NaN or infinite of {len(scores)}. "
            "Pass only rows that were scored."
        )
    if col.LABEL in scores.columns and not scores[col.LABEL].isin((0, 1)).all():
        wrong = scores[col.LABEL][~scores[col.LABEL].isin((0, 1))].iloc[0]
        raise ValueError(f"{col.LABEL} must be 0 or 1, got {wrong}. Drop rows without a label.")


def _rank(column: pd.Series) -> np.ndarray:
    """Number names in their sorted order, whatever the order of the categories."""
    column = column.astype("category")
    by_name = np.argsort(column.cat.categories.astype(str), kind="stable")
    rank = np.empty(len(by_name), dtype=np.int64)
    rank[by_name] = np.arange(len(by_name))
    return rank[column.cat.codes.to_numpy()]


def _is_ordered(module: np.ndarray, time_us: np.ndarray) -> bool:
    step = np.diff(module)
    return bool(np.all((step > 0) | ((step == 0) & (np.diff(time_us) > 0))))
