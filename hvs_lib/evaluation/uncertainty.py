"""Uncertainty: the 95 % intervals of the metrics, and of differences between two models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit
from scipy import stats

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, event_table, outcomes_of
from hvs_lib.evaluation.scores import ScoreRows

CONFIDENCE = 0.95
N_BOOTSTRAP = 1000  # draws of racks
TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def clopper_pearson(successes: int, trials: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of a proportion, such as the event recall.

    References
    ----------
    Clopper and Pearson, Biometrika 26 (1934) 404-413.
    """
    interval = stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, "exact")
    return interval.low, interval.high


def poisson_interval(count: int, exposure: float) -> tuple[float, float]:
    """Compute the exact 95 % interval of a rate, such as alarms per site-day.

    References
    ----------
    Garwood, Biometrika 28 (1936) 437-442.
    """
    low = stats.chi2.ppf(TAILS[0], 2 * count) / 2 if count else 0.0
    high = stats.chi2.ppf(TAILS[1], 2 * count + 2) / 2
    return float(low / exposure), float(high / exposure)


def bootstrap_average_precision(rows: ScoreRows, *, seed: int = 42) -> np.ndarray:
    """Compute the average precision on `N_BOOTSTRAP` draws of racks, one value for each draw.

    Racks are drawn with replacement, as many as there are, each with all its rows, because rows of
    one rack are near copies. A draw without any row of label 1 is repeated. The draws depend only
    on the racks (their sorted names), which of them hold label 1, and the seed: two models on the
    same rows get the same draws, so the differences of their results are paired.

    Parameters
    ----------
    rows : ScoreRows
        From `check_scores`, with a row of label 1.
    seed : int
        Seed of the draws.
    """
    has_label = np.bincount(rows.rack, weights=rows.label) > 0
    return _weighted_average_precision(_draw_racks(has_label, seed), *_count_by_step(rows))


@dataclass(frozen=True)
class PairedDifference:
    """A difference between two models over the resampled racks, with its 95 % interval."""

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return "better" or "worse" if the interval excludes zero, else "cannot tell"."""
        if self.low <= 0 <= self.high:
            return "cannot tell"
        return "better" if self.low > 0 else "worse"

    def __str__(self) -> str:
        return f"{self.median:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


_VALUES = {
    "event recall": lambda events: events["caught"],
    "caught 5 min ahead": lambda events: events["lead_time_min"] >= 5,
    "warning time [min]": lambda events: events["lead_time_min"].fillna(0),
}


def paired_differences(
    scores: pd.DataFrame,
    reference: pd.DataFrame,
    *,
    alarm: Alarm,
    reference_alarm: Alarm,
    seed: int = 42,
) -> dict[str, PairedDifference]:
    """Compare two models by rows and event by event, on the same draws of racks.

    Overlapping intervals of two models do not settle which is better, because both come from the
    same racks; the interval of the difference does.

    Returns
    -------
    dict of str to PairedDifference
        `scores` minus `reference`, frames over the same rows: the average precision, the event
        recall, the events caught at least 5 min ahead, and the warning time [min], where a missed
        event counts as 0.

    Examples
    --------
    >>> scores = pd.DataFrame({"Site_ID": "S1", "Rack_ID": ["R1", "R1", "R2", "R2"]})
    >>> scores = scores.assign(Module_ID="M1", Hazard_Label=[0, 1, 0, 1])
    >>> scores["Timestamp"] = pd.to_datetime(["2025-01-01", "2025-01-02"] * 2)
    >>> good, bad = scores.assign(y_score=[0, 1, 0, 1]), scores.assign(y_score=[1, 0, 1, 0])
    >>> from hvs_lib.evaluation.alarms import AlarmRule
    >>> alarm = Alarm(AlarmRule(k=1, n=1), threshold=0.5)
    >>> found = paired_differences(good, bad, alarm=alarm, reference_alarm=alarm)
    >>> print(found["event recall"], found["event recall"].verdict)
    +1.00 [+1.00, +1.00] better
    """
    _check_same_rows(scores, reference)
    ours, theirs = outcomes_of(scores), outcomes_of(reference)
    events, others = event_table(ours, alarm), event_table(theirs, reference_alarm)
    if events.empty:
        raise ValueError(f"The scores must cover at least one event, got no {col.LABEL} = 1.")
    precision, of_reference = (
        bootstrap_average_precision(each.rows, seed=seed) for each in (ours, theirs)
    )
    found = {"average precision": _summarize(precision - of_reference)}
    rack = ours.rows.rack[[rows[0] for rows in ours.event_rows]]  # of each event
    count = np.bincount(rack, minlength=ours.rows.rack[-1] + 1)
    drawn = _draw_racks(count > 0, seed)
    for name, value in _VALUES.items():
        gain = value(events).astype(float) - value(others).astype(float)
        total = np.bincount(rack, weights=gain, minlength=len(count))
        found[name] = _summarize(drawn @ total / (drawn @ count))
    return found


def _summarize(differences: np.ndarray) -> PairedDifference:
    return PairedDifference(*np.quantile(differences, [0.5, *TAILS]).tolist())


def _check_same_rows(scores: pd.DataFrame, reference: pd.DataFrame) -> None:
    pairs = [(scores[key], reference[key]) for key in (*col.KEYS, col.LABEL)]
    # `equals` is ten times as fast for categories, but alone would refuse equal values of two types
    if not all(ours.equals(theirs) or np.array_equal(ours, theirs) for ours, theirs in pairs):
        raise ValueError(
            f"both scores frames must cover the same rows, got {len(scores)} and "
            f"{len(reference)} that differ: compare models on the same split."
        )


def _draw_racks(has_label: np.ndarray, seed: int) -> np.ndarray:
    """Draw how often each rack counts, shape (N_BOOTSTRAP, n_racks)."""
    if not has_label.any():
        raise ValueError(f"a rack must have a row of {col.LABEL} 1, got none: add events.")
    rng, n_racks = np.random.default_rng(seed), len(has_label)
    weights = np.empty((0, n_racks), dtype=np.int64)
    while len(weights) < N_BOOTSTRAP:
        drawn = rng.multinomial(n_racks, np.full(n_racks, 1 / n_racks), size=N_BOOTSTRAP)
        weights = np.concatenate([weights, drawn[drawn[:, has_label].any(axis=1)]])
    return weights[:N_BOOTSTRAP]


def _count_by_step(rows: ScoreRows) -> tuple[np.ndarray, ...]:
    """Count rows by rack and step of the precision-recall curve, from the highest score down.

    Only the distinct scores of the positives are steps: a negative counts at the next step at or
    below its score, and not at all below the last step. That leaves a small part of the rows.
    """
    n_racks, above = int(rows.rack[-1]) + 1, (rows.rank + 1) // 2
    step = above.max() - above
    used = rows.rank > 0
    key = (step[used] * n_racks + rows.rack[used]) * 2 + rows.label[used]
    key, count = np.unique(key, return_counts=True)
    cell, label = key // 2, key % 2
    return cell // n_racks, cell % n_racks, count * label, count * (1 - label)


@njit(cache=True, nogil=True)
def _weighted_average_precision(weights, step, rack, n_pos, n_neg):
    weights = np.ascontiguousarray(weights.T).astype(np.float64)  # all draws of a rack at a time
    n_draws = weights.shape[1]
    tp, fp = np.zeros(n_draws), np.zeros(n_draws)
    tp_before, area = np.zeros(n_draws), np.zeros(n_draws)
    for i in range(len(step)):
        weight = weights[rack[i]]
        for b in range(n_draws):
            tp[b] += weight[b] * n_pos[i]
            fp[b] += weight[b] * n_neg[i]
        if i + 1 == len(step) or step[i + 1] != step[i]:
            for b in range(n_draws):
                area[b] += (tp[b] - tp_before[b]) * (tp[b] / max(tp[b] + fp[b], 1.0))
                tp_before[b] = tp[b]
    return area / tp
