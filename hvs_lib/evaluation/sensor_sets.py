"""Sensor sets: the alarm threshold that a model needs at a site with only some sensors.

Without a kind of sensor, a model's scores change. The threshold that keeps within the alarm budget
with all sensors may then be reached never, or all the time. So each set has its own threshold,
chosen in the same way: out of fold, within the same budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit
from sklearn import config_context
from sklearn.base import BaseEstimator

from hvs_lib.evaluation.alarms import Alarm, AlarmTrack, Sweep, best_threshold, outcomes_of
from hvs_lib.evaluation.metrics import event_metrics
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.features import SENSOR_SETS, build_features, with_sensor_set

# Thresholds to try, descending: above every score, then evenly spaced in log-odds to 1e-4.
_THRESHOLDS = np.append(np.nextafter(1.0, 2.0), expit(np.linspace(16.0, -9.0, 500)))


def assess_sensor_sets(
    protocol: Protocol, models: Sequence[BaseEstimator], alarm: Alarm
) -> dict[str, dict[str, float]]:
    """Choose the threshold of a model for each of `SENSOR_SETS`, in one pass over the partitions.

    Parameters
    ----------
    protocol : Protocol
        Provides the folds, the alarm budget and the number of threads.
    models : sequence of estimator, at least n_folds
        One fitted without each fold, calibrated.
    alarm : Alarm
        Alarm with all sensors; the other sets use the same rule.

    Returns
    -------
    dict of str to dict of str to float
        For each set, its threshold and the out-of-fold metrics from `event_metrics` at it.

    Examples
    --------
    >>> from hvs_lib.tracking.runs import fit_again
    >>> _, without_fold = fit_again(run_id, fleet)
    >>> sets = assess_sensor_sets(protocol, without_fold, assessment.alarm)
    >>> round(sets["all sensors"]["event_recall"], 2)
    0.83
    """
    fleet, faults, per_site = protocol.fleet, protocol.faults, protocol.modules_per_site
    thresholds = {
        name: _THRESHOLDS if SENSOR_SETS[name] else [alarm.threshold] for name in SENSOR_SETS
    }

    def sweep(partition: int, fold: np.ndarray) -> tuple[float, dict[str, Sweep]] | None:
        rows = np.flatnonzero(fold >= 0)
        if not len(rows):
            return None
        telemetry, own, found = fleet.telemetry(partition), fold[rows], {}
        frame = scores_frame(telemetry, rows, np.zeros(len(rows)), fault_types=faults)
        outcomes, X = outcomes_of(frame), build_features(telemetry).iloc[rows]
        for name in SENSOR_SETS:
            less, scores = with_sensor_set(X, name), np.empty(len(rows))
            with config_context(assume_finite=True):  # except for NaN
                for number in np.unique(own):
                    part = own == number
                    scores[part] = models[number].predict_proba(less[part])[:, 1]
            track = AlarmTrack(outcomes.with_scores(scores), alarm.rule, per_site)
            found[name] = track.sweep(thresholds[name])
        return track.site_days, found

    swept = fleet.map(sweep, by_row=protocol.split.fold, n_jobs=protocol.n_jobs)
    parts = [part for part in swept if part]
    site_days = sum(days for days, _ in parts)
    goal = protocol.max_nuisance_alarms_per_site_day, protocol.missed_event_costs
    sets = {}
    for name in SENSOR_SETS:
        swept = Sweep.over_all([found[name] for _, found in parts])
        best, _ = best_threshold(swept, site_days, *goal)
        metrics = event_metrics(swept, site_days, place=best)
        sets[name] = {"threshold": float(thresholds[name][best])} | metrics
    return sets
