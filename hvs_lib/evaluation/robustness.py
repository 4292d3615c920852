"""Robustness: how a model performs when sensors are missing or the telemetry differs.

Without a kind of sensor, a model's scores change. The threshold that keeps within the alarm budget
with all sensors may then be reached never, or all the time. So each sensor set has its own
threshold, chosen in the same way: out of fold, within the same budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
from scipy.special import expit
from sklearn import config_context
from sklearn.base import BaseEstimator

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmTrack, Sweep, best_threshold, outcomes_of
from hvs_lib.evaluation.metrics import event_metrics
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import TEST
from hvs_lib.features import SENSOR_KINDS, SENSOR_SETS, build_features, with_sensor_set
from hvs_lib.models import score_in_parts
from hvs_lib.telemetry.codes import module_codes

# Thresholds to try, descending: above every score, then evenly spaced in log-odds to 1e-4.
_THRESHOLDS = np.append(np.nextafter(1.0, 2.0), expit(np.linspace(16.0, -9.0, 500)))
_GAP = 3  # sampling intervals, the longest gap to interpolate over


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


def resampled(telemetry: pd.DataFrame, rng: np.random.Generator, *, seconds: float) -> pd.DataFrame:
    """Resample each module at a fixed interval by interpolation, but not in gaps."""
    modules = telemetry.groupby(module_codes(telemetry))
    return pd.concat([_resampled(rows, seconds) for _, rows in modules], ignore_index=True)


def _resampled(rows: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """Resample the rows of one module."""
    time_s = rows[col.TIMESTAMP].to_numpy("datetime64[us]").astype(np.int64) / 1e6
    wanted = np.arange(time_s[0], time_s[-1] + 1e-6, seconds)
    latest = np.searchsorted(time_s, wanted + 1e-6) - 1
    to_next = np.diff(time_s, append=time_s[-1])
    usual = np.median(to_next)
    in_gap = (to_next[latest] > _GAP * usual) & (wanted - time_s[latest] > usual)
    wanted, latest = wanted[~in_gap], latest[~in_gap]
    sampled = rows.iloc[latest].reset_index(drop=True)
    sampled[col.TIMESTAMP] = (wanted * 1e6).round().astype("datetime64[us]")
    for name in col.SENSORS:
        sampled[name] = np.interp(wanted, time_s, rows[name].to_numpy(float)).astype(np.float32)
    return sampled


def with_losses(telemetry: pd.DataFrame, rng: np.random.Generator, *, share: float) -> pd.DataFrame:
    """Drop a share of the readings, each independently."""
    lost = rng.random((len(telemetry), len(col.SENSORS))) < share
    return telemetry.assign(**telemetry[col.SENSORS].mask(lost))


def with_clocks_apart(
    telemetry: pd.DataFrame, rng: np.random.Generator, *, seconds: float
) -> pd.DataFrame:
    """Set the clock of every second module ahead."""
    ahead = pd.to_timedelta(module_codes(telemetry) % 2 * seconds, unit="s")
    return telemetry.assign(**{col.TIMESTAMP: telemetry[col.TIMESTAMP] + ahead})


def with_twice_the_noise(telemetry: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Double the standard deviation of the noise, estimated from second differences."""
    readings = telemetry[col.SENSORS].to_numpy(np.float64)
    curvature = np.abs(np.diff(readings, n=2, axis=0))
    sd = 1.4826 * pd.DataFrame(curvature).median().to_numpy() / np.sqrt(6)  # for normal noise
    noisy = readings + np.sqrt(3) * sd * rng.standard_normal(readings.shape)
    noisy = pd.DataFrame(noisy.astype(np.float32), telemetry.index, col.SENSORS)
    return telemetry.assign(**noisy.assign(**noisy[[*SENSOR_KINDS["gas"]]].clip(lower=0)))


# Ways in which telemetry may differ.
CHANGES: dict[str, Callable[[pd.DataFrame, np.random.Generator], pd.DataFrame]] = {
    "a row every 1 s": partial(resampled, seconds=1.0),
    "a row every 10 s": partial(resampled, seconds=10.0),
    "a row every 30 s": partial(resampled, seconds=30.0),
    "a row every 60 s": partial(resampled, seconds=60.0),
    "5 % of readings lost": partial(with_losses, share=0.05),
    "clocks 5 s apart": partial(with_clocks_apart, seconds=5.0),
    "twice the noise": with_twice_the_noise,
}
_DENSEST = "a row every 1 s"  # many times more rows: only on every fourth partition
_COARSE_S = 10.0  # sampling interval above which it is skipped: even more rows


def assess_changes(
    protocol: Protocol, model: BaseEstimator, alarm: Alarm, sets: Mapping[str, dict[str, float]]
) -> Iterable[tuple[str, dict[str, float]]]:
    """Evaluate a model on the test rows with each of its sensor sets and under each of `CHANGES`.

    A row every 1 s is tried on a quarter of the partitions, and not at all if rows are more than
    10 s apart.

    Parameters
    ----------
    protocol : Protocol
        Provides the test rows, the seed of the losses and the noise, and the number of threads.
    model : estimator
        From `load_model`.
    alarm : Alarm
        The alarm that the model was logged with.
    sets : mapping of str to dict of str to float
        From `assess_sensor_sets`, each with its threshold.

    Yields
    ------
    name, metrics : str, dict of str to float
        Metrics from `event_metrics`.

    Examples
    --------
    >>> model, sets = assessment.deployable(), {"all sensors": {"threshold": 0.5}}
    >>> name, metrics = next(assess_changes(protocol, model, assessment.alarm, sets))
    >>> name, metrics["n_events"]
    ('all sensors', 2.0)
    """
    fleet, test = protocol.fleet, protocol.split.fold == TEST
    partitions = np.unique(fleet.partition_of(protocol.split.test))

    faults, per_site, seed = protocol.faults, protocol.modules_per_site, protocol.seed

    def count(name: str, partition: int, test: np.ndarray) -> tuple:
        telemetry = fleet.telemetry(partition)[test].reset_index(drop=True)
        sensor_set, threshold = "all sensors", alarm.threshold
        if name in sets:
            sensor_set, threshold = name, sets[name]["threshold"]
        else:
            telemetry = CHANGES[name](telemetry, np.random.default_rng([seed, partition]))
        y_score = np.concatenate([y for *_, y in score_in_parts(model, telemetry, sensor_set)])
        rows = np.arange(len(telemetry))
        frame = scores_frame(telemetry, rows, y_score, fault_types=faults)
        track = AlarmTrack(outcomes_of(frame), alarm.rule, per_site)
        return track.sweep([threshold]), track.site_days

    for name in (*sets, *CHANGES):
        if name == _DENSEST and protocol.interval_s > _COARSE_S:
            continue
        chosen = partitions[::4] if name == _DENSEST else partitions
        found = fleet.map(partial(count, name), chosen, by_row=test, n_jobs=protocol.n_jobs)
        swept, site_days = zip(*found, strict=True)
        yield name, event_metrics(Sweep.over_all(swept), sum(site_days))
