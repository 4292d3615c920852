"""The evaluation protocol: the same folds, thinning, alarm choice and metrics for every model.

`Protocol.fit` fits a model on the folds; `Protocol.assess_all` scores every row with all models,
one partition at a time, then calibrates each model, chooses its alarm and evaluates it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import joblib
import numpy as np
import pandas as pd
from imblearn.pipeline import Pipeline
from joblib import Parallel, delayed
from sklearn import config_context
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.utils.validation import check_memory

from hvs_lib import cache, models
from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import RULES, Alarm, AlarmRule, best_alarm, early_recall, outcomes_of
from hvs_lib.evaluation.calibration import (
    CalibratedClassifier,
    calibrate,
    choose_calibration,
    weigh_by_limits,
)
from hvs_lib.evaluation.metrics import EVENT_METRICS, evaluate
from hvs_lib.evaluation.outcomes import Outcomes
from hvs_lib.evaluation.ranges import ranges_to_json
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import Split, rows_to_fit
from hvs_lib.external_memory import PartitionedFeatures, fits_in_parts
from hvs_lib.features import build_features, features_of, with_sensors_dropped
from hvs_lib.parallel import side_by_side
from hvs_lib.progress import STEP, log_line
from hvs_lib.telemetry.codes import hazard_types, rack_codes, site_codes
from hvs_lib.telemetry.fleet import Fleet
from hvs_lib.telemetry.quality import module_intervals_s, sampling_interval_s

BUILD_UP = ("normal", "left out", "hazard")
_SCALED_BY = 20_000  # rows that the scaler is fitted on if features are in partitions


@dataclass(frozen=True)
class TrainingRows:
    """The rows that models are fitted on.

    Attributes
    ----------
    X : DataFrame, shape (n_samples, n_features), or PartitionedFeatures
        Features from `build_features`, indexed by the row numbers in the fleet.
    y : array of int8, shape (n_samples,)
        Labels 0 and 1.
    weight : array, shape (n_samples,)
        How many rows at the usual interval each stands for, see `thin_rows`.
    fold : array of int8, shape (n_samples,)
        Fold in which each row is held out.
    alarm_on : array of int32, shape (n_samples,)
        What an alarm at each row would count for, see `Outcomes`.
    lead_min : array, shape (n_samples,)
        Time from each row to the PNR of its event [min], NaN without an event.
    X_whole : DataFrame, shape (n_samples, n_features), or None
        `X` with no sensor dropped: what a model is scored on. None if `X` is in partitions.
    """

    X: pd.DataFrame | PartitionedFeatures
    y: np.ndarray
    weight: np.ndarray
    fold: np.ndarray
    alarm_on: np.ndarray
    lead_min: np.ndarray
    X_whole: pd.DataFrame | None

    def to_fit(self, build_up: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the mask of the rows to fit on, and the labels, both of shape (n_samples,).

        The build-up precedes an event's label window; fit it as `build_up`, one of `BUILD_UP`.
        """
        if build_up not in BUILD_UP:
            raise ValueError(f"build_up must be one of {', '.join(BUILD_UP)}, got {build_up!r}.")
        is_build_up = (self.alarm_on >= 0) & (self.y == 0)
        fitted = ~(is_build_up & (build_up == "left out"))
        y = self.y | (is_build_up & (build_up == "hazard"))
        empty = np.setdiff1d(self.fold, self.fold[fitted & (y == 0)])
        if len(empty):  # e.g. if all telemetry is from the hour before events without Event_ID
            raise ValueError(
                f"build_up must leave normal rows to fit on in each fold, got {build_up!r} and "
                f'none in fold {empty[0] + 1}: choose "normal", or add telemetry of quiet times.'
            )
        return fitted, y


@dataclass(frozen=True)
class Fits:
    """A model fitted on all folds, or a reference, ready to score.

    A rule that is not fitted is assessed like a model as ``Fits(reference=rule)``, or with its own
    threshold as ``Fits(reference=rule, threshold=1.0)``.

    Attributes
    ----------
    models : sequence of Pipeline, n_folds + 1
        One fitted without each fold, then one on all training rows; empty for a reference.
    reference : callable or None
        Maps features, indexed by row number, to scores, shape (n_rows,).
    threshold : float or None
        A reference's own threshold, for 3 of 5 samples; None: the alarm is chosen.
    seconds : float
        Total time of all fits [s].
    limit_power : float
        Power for `weigh_by_limits`, applied before the calibration.
    build_up : str
        How the build-up was treated in the fits, one of `BUILD_UP`.
    n_rows : int
        Number of rows that the last model was fitted on.
    """

    models: Sequence[Pipeline] = ()
    reference: Callable[[pd.DataFrame], np.ndarray] | None = None
    threshold: float | None = None
    seconds: float = 0.0
    limit_power: float = 0.0
    build_up: str = "normal"
    n_rows: int = 0


@dataclass(frozen=True)
class Assessment:
    """What the protocol chose and measured for one model.

    Attributes
    ----------
    fits : Fits
        What was assessed.
    calibrator : LogisticRegression or None
        For `calibrate`, chosen on the out-of-fold scores of the training rows.
    brier : dict of str to float
        From `choose_calibration`; empty for a reference, which is not calibrated.
    alarm : Alarm
        Chosen on all out-of-fold scores.
    metrics : dict of str to float
        Metrics of the test rows and, with the prefix ``cv_``, out of fold. Also cv_early_recall
        (see `early_recall`) and cv_brier.
    cv_scores, test_scores : DataFrame
        Calibrated scores frames.
    raw_cv_scores : array, shape (n_samples,)
        Out-of-fold scores of the training rows before calibration.
    """

    fits: Fits
    calibrator: LogisticRegression | None
    brier: dict[str, float]
    alarm: Alarm
    metrics: dict[str, float]
    cv_scores: pd.DataFrame
    test_scores: pd.DataFrame
    raw_cv_scores: np.ndarray

    @property
    def calibration(self) -> str:
        """What turns the scores into probabilities, "platt" or "none"."""
        return "platt" if self.calibrator else "none"

    @property
    def model(self) -> Pipeline | None:
        """The model fitted on all training rows; None for a reference."""
        return self.fits.models[-1] if self.fits.models else None

    def deployable(self) -> FixedThresholdClassifier:
        """Return the model with its calibration and threshold, in the form that is logged."""
        calibrated = CalibratedClassifier(self.model, self.calibrator, self.fits.limit_power)
        fixed = FixedThresholdClassifier(
            FrozenEstimator(calibrated), threshold=self.alarm.threshold, pos_label=1,
            response_method="predict_proba",
        )  # fmt: skip
        nothing = pd.DataFrame(0, [0, 1], self.model.feature_names_in_, dtype=np.float32)
        return fixed.fit(nothing, [0, 1])  # fits nothing: the model is frozen


@dataclass(frozen=True)
class Protocol:
    """Evaluate every model in the same way.

    Fit on the thinned rows of all folds but one and score every row of the fold left out. Choose
    the calibration and the alarm's rule and threshold on those scores, fit once more on the thinned
    rows of all folds, and score the test rows once.

    Parameters
    ----------
    fleet : Fleet
        With the label.
    split : Split
        Split of ``fleet.rows``, from `split_fleet`.
    normal_stride, hazard_stride : int
        Fit on every n-th normal or labelled row of a module, see `thin_rows`; all rows are
        evaluated.
    max_nuisance_alarms_per_site_day : float
        Out-of-fold alarm budget [1/d] of a site with the fleet's average number of modules.
    missed_event_costs : float
        Cost of a missed event, in nuisance alarms; above 0 it replaces the budget when the alarm is
        chosen. The search and the ranking of the models still use the budget.
    fault_types : tuple of str
        Causes (Event_Type) of real faults, besides those that occur with label 1.
    drop_sensors : float
        Share of the training rows from which each of `SENSOR_KINDS` is dropped.
    max_rows_in_memory : int
        If there are more training rows, XGBoost is fitted on them one partition at a time, and
        whatever needs its rows in memory gets a subset, see `training`.
    seed : int
        Seed of the bootstrap and of the dropped sensors.
    rules : tuple of AlarmRule
        Rules to choose from.
    n_jobs : int
        Fits or partitions run in parallel, see `side_by_side`. The results do not depend on it.
    memory : joblib.Memory, optional
        Cache of the fits, from `hvs_lib.cache.memory`; by default, nothing is cached.
    """

    fleet: Fleet
    split: Split
    normal_stride: int = 72
    hazard_stride: int = 6
    max_nuisance_alarms_per_site_day: float = 1.0
    missed_event_costs: float = 0.0
    fault_types: tuple[str, ...] = ()
    drop_sensors: float = 0.0
    max_rows_in_memory: int = 250_000
    seed: int = 42
    rules: tuple[AlarmRule, ...] = RULES
    n_jobs: int = -1
    memory: joblib.Memory | None = None

    def __post_init__(self) -> None:
        for name in ("normal_stride", "hazard_stride", "max_rows_in_memory"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        budget, costs = self.max_nuisance_alarms_per_site_day, self.missed_event_costs
        if not budget > 0:
            raise ValueError(f"max_nuisance_alarms_per_site_day must be above 0, got {budget}.")
        if not 0 <= costs < np.inf:
            raise ValueError(
                f"missed_event_costs must be finite, 0 or more, got {costs}: 0 keeps to the budget."
            )
        if not 0 <= self.drop_sensors < 1:
            raise ValueError(f"drop_sensors must be between 0 and 1, got {self.drop_sensors}.")
        if self.n_jobs == 0:
            raise ValueError("n_jobs must be 1 or more, or -1 for as many as cores, got 0.")

    def fit(self, pipeline: Pipeline, *, share: float = 1.0, build_up: str = "normal") -> Fits:
        """Fit a pipeline on all training rows and without each fold, in parallel.

        Parameters
        ----------
        pipeline : Pipeline
            From `make_pipeline`; stays unfitted.
        share : float
            Share of each fold's sites or racks to fit on, for a learning curve.
        build_up : {"normal", "left out", "hazard"}
            How to treat the rows of an event before its label window.
        """
        from_notebook = any(type(step).__module__ == "__main__" for _, step in pipeline.steps)
        memory = None if from_notebook else self.memory  # the key does not cover notebook code
        cached = check_memory(memory).cache(models.fit, ignore=["X", "y", "weight"])
        rows = self.rows_of(pipeline)
        fitted, y = rows.to_fit(build_up)
        drawn = fitted & self.drawn(share, rows)
        chosen = joblib.hash([drawn, y])  # the build-up depends on ids, which are not features
        X, weight, fold, of_rows = rows.X, rows.weight, rows.fold, self.key
        if rows is not self.training:  # whose features `self.key` already covers
            of_rows = cache.key(of_rows, self.fleet.sha256, X.index)

        def fit(left_out: int | None, key: str) -> tuple[Pipeline, float]:
            kept = drawn if left_out is None else drawn & (fold != left_out)
            return cached(pipeline, X[kept], y[kept], weight[kept], key=key)

        parts = (*range(self.split.n_folds), None)
        keys = [cache.key(of_rows, chosen, left_out) for left_out in parts]
        found, seconds = zip(*side_by_side(fit, parts, keys, n_jobs=self.n_jobs), strict=True)
        return Fits(found, seconds=sum(seconds), build_up=build_up, n_rows=int(drawn.sum()))

    def assess(self, pipeline: Pipeline) -> Assessment:
        """Fit a pipeline, score, calibrate, choose the alarm, and evaluate."""
        ((_, found),) = self.assess_all({"": self.fit(pipeline)})
        return found

    def assess_all(self, fits: Mapping[str, Fits]) -> Iterator[tuple[str, Assessment]]:
        """Score all rows with several models in one pass over the partitions, and evaluate each.

        Parameters
        ----------
        fits : mapping of str to Fits
            Results of `fit`, or references, by name.

        Yields
        ------
        name, assessment : str, Assessment
            In the order of `fits`.
        """
        scores = self._score(list(fits.values()))
        here = {"require": "sharedmem"}  # no cluster: sending all rows would take longer
        judged = Parallel(n_jobs=self.n_jobs, return_as="generator", **here)(
            delayed(self._assess)(each, raw)
            for each, raw in zip(fits.values(), scores, strict=True)
        )
        yield from zip(fits, judged, strict=True)  # the next ones are evaluated while one is logged

    def _assess(self, fits: Fits, raw: np.ndarray) -> Assessment:
        """Calibrate the scores of all rows, choose the alarm, and evaluate."""
        rows, raw_cv = self.training, raw[self.training.X.index]
        calibrator, brier = None, {}
        if fits.models:
            calibrator, brier = choose_calibration(rows.y, raw_cv, rows.fold, rows.weight)
        cv = self._cv.with_scores(calibrate(calibrator, raw[self.split.train]))
        test = self._test.with_scores(calibrate(calibrator, raw[self.split.test]))

        given = None if fits.threshold is None else Alarm(AlarmRule(), fits.threshold)
        alarm = given or self.choose_alarm(cv)

        metrics = self._judge(cv, test, alarm)
        frames = cv.rows.frame, test.rows.frame
        found = Assessment(fits, calibrator, brier, alarm, metrics, *frames, raw_cv)
        if brier:  # recomputed on the calibrated scores, it would be in-sample
            metrics["cv_brier"] = brier[found.calibration]
        return found

    @cached_property
    def training(self) -> TrainingRows:
        """The thinned training rows with their features.

        If there are more than `max_rows_in_memory`, one in n is kept, with n as small as possible,
        and the log says so.
        """
        rows = self.rows
        times = int(np.ceil(len(rows) / self.max_rows_in_memory))
        if times > 1:
            told = (
                f"{len(rows):,} training rows are more than max_rows_in_memory = "
                f"{self.max_rows_in_memory:,}: XGBoost is fitted on all of them, in parts; the "
                f"search, samplers and models of scikit-learn need theirs in memory and get one in "
                f"{times}. Larger strides fit all models on the same rows."
            )
            log_line(f"{STEP}{told}")
            rows = rows[::times]
            if len(np.unique(2 * self.split.fold[rows] + self.y[rows])) < 2 * self.split.n_folds:
                raise ValueError(
                    "max_rows_in_memory must leave rows of both classes in each fold, got "
                    f"{self.max_rows_in_memory}: raise it."
                )
        X = whole = features_of(self.fleet, rows, n_jobs=self.n_jobs)
        if self.drop_sensors:
            X = with_sensors_dropped(whole, share=self.drop_sensors, seed=self.seed)
        return self._training_rows(rows, times, X, whole)

    @cached_property
    def _all_training(self) -> TrainingRows:
        """All thinned training rows, with their features in partitions."""
        rows, sample = self.rows, self.training.X
        sample = sample.iloc[:: max(len(sample) // _SCALED_BY, 1)]
        X = PartitionedFeatures(
            self.fleet, sample, rows, np.ones(len(rows), bool), self.drop_sensors, self.seed,
            self.memory,
        )  # fmt: skip
        X.build(n_jobs=self.n_jobs)
        return self._training_rows(rows, 1, X, None)

    def rows_of(self, pipeline: Pipeline) -> TrainingRows:
        """Return the rows to fit a pipeline on: all, or as many as fit into memory."""
        too_many = len(self.rows) > self.max_rows_in_memory
        return self._all_training if too_many and fits_in_parts(pipeline) else self.training

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of all thinned training rows, ascending."""
        strides = {"normal_stride": self.normal_stride, "hazard_stride": self.hazard_stride}
        return rows_to_fit(self.fleet.rows, self.split, **strides)

    def _training_rows(
        self,
        rows: np.ndarray,
        times: int,
        X: pd.DataFrame | PartitionedFeatures,
        whole: pd.DataFrame | None,
    ) -> TrainingRows:
        """Return training rows: their features, with what else models and the search need."""
        y = self.y[rows]
        weight = times * np.where(y == 1, float(self.hazard_stride), float(self.normal_stride))
        place = np.searchsorted(self.split.train, rows)
        on, lead_min = self._cv.alarm_on[place], self._cv.lead_min(place)
        return TrainingRows(X, y, weight, self.split.fold[rows], on, lead_min, whole)

    def drawn(self, share: float, rows: TrainingRows) -> np.ndarray:
        """Draw a share of each fold's sites or racks; return the mask of their rows, shape (n,).

        Those with an event and those without are drawn separately, at least one of each.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}.")
        table, rng = self.fleet.rows, np.random.default_rng(self.seed)
        groups = site_codes(table) if self.split.kind == "site" else rack_codes(table)
        with_event = np.unique(groups[self.y == 1])
        drawn = []
        for number in range(self.split.n_folds):
            in_fold = np.unique(groups[self.split.fold == number])
            for kind in (np.intersect1d(in_fold, with_event), np.setdiff1d(in_fold, with_event)):
                drawn.append(rng.permutation(kind)[: int(np.ceil(share * len(kind)))])
        return np.isin(groups[rows.X.index], np.concatenate(drawn))

    def _score(self, fits: Sequence[Fits]) -> np.ndarray:
        """Score each fold with the models fitted without it, and the test rows with the last ones.

        One partition at a time; the result has shape (n_fits, n_samples).
        """
        fleet = self.fleet

        def score(partition: int, fold: np.ndarray) -> np.ndarray:
            X = build_features(fleet.telemetry(partition))
            scores = np.empty((len(fits), len(X)))
            for number in np.unique(fold):  # test rows have number -1, that of the last model
                in_fold = fold == number
                part = X if in_fold.all() else X[in_fold]
                with config_context(assume_finite=True):  # except for NaN, which the models accept
                    scores[:, in_fold] = _scores_of(fits, number, part)
            return scores

        scores = np.empty((len(fits), len(fleet.rows)))
        parts = fleet.map(score, by_row=self.split.fold, n_jobs=self.n_jobs)
        for first, part in zip(fleet.starts[:-1], parts, strict=True):
            scores[:, first : first + part.shape[1]] = part
        return scores

    @cached_property
    def _cv(self) -> Outcomes:
        return self._outcomes(self.split.train)

    @cached_property
    def _test(self) -> Outcomes:
        return self._outcomes(self.split.test)

    def _outcomes(self, rows: np.ndarray) -> Outcomes:
        """Return what does not depend on the scores; a fleet's rows are sorted as scores are."""
        frame = scores_frame(self.fleet.rows, rows, np.zeros(len(rows)), fault_types=self.faults)
        return outcomes_of(frame)

    def choose_alarm(self, cv_scores: pd.DataFrame | Outcomes) -> Alarm:
        """Choose the alarm's rule and threshold on out-of-fold scores."""
        return best_alarm(
            cv_scores,
            max_nuisance_alarms_per_site_day=self.max_nuisance_alarms_per_site_day,
            missed_event_costs=self.missed_event_costs,
            rules=self.rules,
            modules_per_site=self.modules_per_site,
        )

    def _judge(self, cv: Outcomes, test: Outcomes, alarm: Alarm) -> dict[str, float]:
        """Compute the metrics of the test rows and, with the prefix ``cv_``, out of fold."""
        same = {"modules_per_site": self.modules_per_site, "seed": self.seed}
        metrics = evaluate(test, alarm, **same) | evaluate(cv, alarm, **same, prefix="cv_")
        budget = {"max_nuisance_alarms_per_site_day": self.max_nuisance_alarms_per_site_day}
        metrics["cv_early_recall"] = early_recall(
            cv, alarm.rule, modules_per_site=self.modules_per_site, **budget
        )
        if self.split.kind != "row":
            return metrics
        # An alarm needs consecutive samples, which random rows are not.
        of_alarms = (*EVENT_METRICS, "early_recall")
        return {
            name: value
            for name, value in metrics.items()
            if not name.removeprefix("cv_").startswith(of_alarms)
        }

    @property
    def y(self) -> np.ndarray:
        """Labels of all rows, shape (n_samples,)."""
        return self.fleet.rows[col.LABEL].to_numpy()

    @property
    def thinning(self) -> float:
        """How many times more strongly normal rows are thinned than labelled ones."""
        return self.normal_stride / self.hazard_stride

    @cached_property
    def faults(self) -> list[str]:
        """Causes of real faults."""
        return sorted({*hazard_types(self.fleet.rows), *self.fault_types})

    @cached_property
    def modules_per_site(self) -> float:
        """Average number of modules per site."""
        rows = self.fleet.rows
        modules = rows.groupby(col.KEYS[:3], observed=True).ngroups
        return modules / rows[col.SITE].nunique()

    @property
    def site_days(self) -> float:
        """Observed time of the training rows, in days of an average site."""
        return self._cv.rows.module_days / self.modules_per_site

    @cached_property
    def ranges(self) -> str:
        """Range of each feature in the training rows in memory, see `ranges_to_json`."""
        return ranges_to_json(self.training.X_whole)

    @cached_property
    def interval_s(self) -> float:
        """Median sampling interval of the modules [s], which the strides refer to."""
        return float(np.median(module_intervals_s(self.fleet.rows)))

    @cached_property
    def intervals_s(self) -> tuple[float, float]:
        """Shortest and longest median sampling interval among the training sites [s]."""
        rows = self.fleet.rows.iloc[self.split.train]
        sites = [sampling_interval_s(own) for _, own in rows.groupby(col.SITE, observed=True)]
        return min(sites), max(sites)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digests of the rows in memory, to find where two machines start to differ."""
        rows = self.training
        return {
            "digest_telemetry": joblib.hash([self.fleet.sha256, self.fleet.rows]),
            "digest_features": joblib.hash(rows.X.to_numpy()),
            "digest_training_rows": joblib.hash([rows.y, rows.weight, rows.fold]),
        }

    @cached_property
    def key(self) -> str:
        """Cache key of the training rows, the code and the packages."""
        rows = [self.digests["digest_features"], self.digests["digest_training_rows"]]
        return cache.key(rows, list(self.training.X.columns))


def _scores_of(fits: Sequence[Fits], number: int, X: pd.DataFrame) -> np.ndarray:
    """Score rows with model `number` of each fit, shape (n_fits, n_rows).

    Models that impute and scale with the same statistics share the transformed features; those that
    differ only in `limit_power` share the predictions.
    """
    prepared, known, scores = {}, {}, np.empty((len(fits), len(X)))
    for place, each in zip(scores, fits, strict=True):
        if each.reference:
            place[:] = each.reference(X)
            continue
        model = each.models[number]
        if id(model) not in known:
            prepare = models.before_scoring(model)
            key = joblib.hash(prepare)
            if key not in prepared:
                prepared[key] = prepare.transform(X)
            known[id(model)] = model[-1].predict_proba(prepared[key])[:, 1]
        place[:] = weigh_by_limits(known[id(model)], X, each.limit_power)
    return scores
