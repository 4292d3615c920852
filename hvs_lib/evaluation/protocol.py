"""The evaluation protocol: the same folds, thinning, alarm choice and metrics for every model.

`Protocol.fit` fits a model on the folds; `Protocol.assess_all` scores every row with all models,
one partition after the other, and then calibrates, chooses the alarm and judges each.
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
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.utils.validation import check_memory

from hvs_lib import cache, models
from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import RULES, Alarm, AlarmRule, best_alarm, early_recall, outcomes_of
from hvs_lib.evaluation.calibration import (
    CalibratedClassifier,
    Calibration,
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
_SCALED_BY = 20_000  # rows, where features are in partitions
Score = Callable[[pd.DataFrame], np.ndarray]


@dataclass(frozen=True)
class TrainingRows:
    """The rows that models are fitted on.

    Attributes
    ----------
    X : DataFrame, shape (n_samples, n_features), or PartitionedFeatures
        Of `build_features`; its index are the numbers of the rows in the fleet.
    y : array of int8, shape (n_samples,)
        Labels 0 and 1.
    weight : array, shape (n_samples,)
        How many rows each stands for, see `thin_rows`.
    fold : array of int8, shape (n_samples,)
        The fold that each is held out in.
    alarm_on : array of int32, shape (n_samples,)
        What an alarm there is on, see `Outcomes`.
    lead_min : array, shape (n_samples,)
        Time to the PNR of the event that it is on [min], NaN elsewhere.
    X_whole : DataFrame, shape (n_samples, n_features), or None
        As `X`, without a sensor dropped: what a model is scored on. None in partitions.
    """

    X: pd.DataFrame | PartitionedFeatures
    y: np.ndarray
    weight: np.ndarray
    fold: np.ndarray
    alarm_on: np.ndarray
    lead_min: np.ndarray
    X_whole: pd.DataFrame | None

    def to_fit(self, build_up: str) -> tuple[np.ndarray, np.ndarray]:
        """Return which rows to fit on and their labels, both of shape (n_samples,).

        The build-up of an event comes before its label window; fit it as one of `BUILD_UP` says.
        """
        if build_up not in BUILD_UP:
            raise ValueError(f"build_up must be one of {', '.join(BUILD_UP)}, got {build_up!r}.")
        is_build_up = (self.alarm_on >= 0) & (self.y == 0)
        fitted = ~(is_build_up & (build_up == "left out"))
        y = self.y | (is_build_up & (build_up == "hazard"))
        empty = np.setdiff1d(self.fold, self.fold[fitted & (y == 0)])
        if len(empty):  # as where all telemetry is of the hour before events without Event_ID
            raise ValueError(
                f"build_up must leave normal rows to fit on in each fold, got {build_up!r} and "
                f'none in fold {empty[0] + 1}: choose "normal", or add telemetry of quiet times.'
            )
        return fitted, y


@dataclass(frozen=True)
class Fits:
    """A model on all folds, or a reference, ready to score.

    Attributes
    ----------
    models : list of Pipeline, n_folds + 1
        Fitted without each fold, then on all training rows; empty for a reference.
    reference : callable or None
        Gives the scores, shape (n_rows,), of features.
    threshold : float or None
        A reference's own, for 3 of 5 samples; None chooses the alarm.
    seconds : float
        Total time of all fits [s].
    limit_power : float
        Of `weigh_by_limits`, before the calibration.
    build_up : str
        What they were fitted on the build-up as, one of `BUILD_UP`.
    n_rows : int
        Rows that the last model was fitted on.
    """

    models: list[Pipeline]
    reference: Score | None = None
    threshold: float | None = None
    seconds: float = 0.0
    limit_power: float = 0.0
    build_up: str = "normal"
    n_rows: int = 0


@dataclass(frozen=True)
class Assessment:
    """What the protocol decided and found out about one model.

    Attributes
    ----------
    fits : Fits
        What was assessed.
    calibration : Calibration
        Of its scores, chosen on the out-of-fold scores of the training rows.
    alarm : Alarm
        Chosen on all out-of-fold scores.
    metrics : dict of str to float
        Of the test rows; with the prefix ``cv_`` out of fold. Also cv_early_recall, see
        `early_recall`, and cv_brier.
    cv_scores, test_scores : DataFrame
        Scores frames, calibrated.
    raw_cv_scores : array, shape (n_samples,)
        Out-of-fold scores of the training rows before calibration.
    """

    fits: Fits
    calibration: Calibration
    alarm: Alarm
    metrics: dict[str, float]
    cv_scores: pd.DataFrame
    test_scores: pd.DataFrame
    raw_cv_scores: np.ndarray

    @property
    def model(self) -> Pipeline | None:
        """What was fitted on all training rows; None for a reference."""
        return self.fits.models[-1] if self.fits.models else None

    def deployable(self) -> FixedThresholdClassifier:
        """Return the model with its calibration and its threshold, as it is logged."""
        calibrator, limit_power = self.calibration.calibrator, self.fits.limit_power
        calibrated = CalibratedClassifier(self.model, calibrator, limit_power)
        fixed = FixedThresholdClassifier(
            FrozenEstimator(calibrated), threshold=self.alarm.threshold, pos_label=1,
            response_method="predict_proba",
        )  # fmt: skip
        nothing = pd.DataFrame(0, [0, 1], self.model.feature_names_in_, dtype=np.float32)
        return fixed.fit(nothing, [0, 1])  # fits nothing: what is frozen stays as it is


@dataclass(frozen=True)
class Protocol:
    """Judge every model in the same way.

    Fit on the thinned rows of all folds but one and score every row of the fold left out. Choose
    there the calibration, the alarm's rule and its threshold, fit once more on the thinned rows of
    all folds, and score the test rows once.

    Parameters
    ----------
    fleet : Fleet
        With the label.
    split : Split
        Of ``fleet.rows``, from `split_fleet`.
    normal_stride, hazard_stride : int
        Fit on every so many-th normal or labelled row of a module, see `thin_rows`; all rows are
        evaluated.
    max_nuisance_alarms_per_site_day : float
        The alarm budget out of fold [1/d]; a site has as many modules as the fleet's sites have on
        average.
    missed_event_costs : float
        Cost of a missed event, in nuisance alarms; above 0 it replaces the budget when the alarm is
        chosen. The search and the ranking of the models keep to the budget.
    fault_types : tuple of str
        Causes (Event_Type) of real faults, besides those that occur with label 1.
    drop_sensors : float
        Share of the training rows from which each of `SENSOR_KINDS` is dropped.
    max_rows_in_memory : int
        Where there are more training rows, XGBoost is fitted on them one partition after the other,
        and all that needs its rows in memory on a part of them, see `training`.
    seed : int
        Of the bootstrap, and of what is dropped.
    rules : tuple of AlarmRule
        To choose from.
    n_jobs : int
        Fits, or partitions, at once, see `side_by_side`. The results are the same.
    memory : joblib.Memory, optional
        Keeps what was fitted, from `hvs_lib.cache.memory`; by default nothing is kept.
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

    def __post_init__(self):
        check_protocol(
            self.normal_stride, self.hazard_stride, self.max_nuisance_alarms_per_site_day,
            self.missed_event_costs, self.drop_sensors, self.max_rows_in_memory, self.n_jobs,
        )  # fmt: skip

    def fit(self, pipeline: Pipeline, *, share: float = 1.0, build_up: str = "normal") -> Fits:
        """Fit a pipeline on all training rows and without each fold, side by side.

        Parameters
        ----------
        pipeline : Pipeline
            From `make_pipeline`; stays unfitted.
        share : float
            Of each fold's sites or racks to fit on, for a learning curve.
        build_up : {"normal", "left out", "hazard"}
            What to fit the rows of an event before its label window as.
        """
        from_notebook = any(type(step).__module__ == "__main__" for _, step in pipeline.steps)
        memory = None if from_notebook else self.memory  # the key holds no code of a notebook
        cached = check_memory(memory).cache(models.fit, ignore=["X", "y", "weight"])
        rows = self.rows_of(pipeline)
        fitted, y = rows.to_fit(build_up)
        drawn = fitted & self.drawn(share, rows)
        chosen = joblib.hash([drawn, y])  # the build-up follows from ids, which no feature holds
        X, weight, fold, of_rows = rows.X, rows.weight, rows.fold, self.key
        if rows is not self.training:  # whose features `self.key` holds already
            of_rows = cache.key(of_rows, self.fleet.sha256, X.index)

        def fit(left_out: int | None, key: str) -> tuple[Pipeline, float]:
            kept = drawn if left_out is None else drawn & (fold != left_out)
            return cached(pipeline, X[kept], y[kept], weight[kept], key=key)

        parts = (*range(self.split.n_folds), None)
        keys = [cache.key(of_rows, chosen, left_out) for left_out in parts]
        found, seconds = zip(*side_by_side(fit, parts, keys, n_jobs=self.n_jobs), strict=True)
        return Fits([*found], seconds=sum(seconds), build_up=build_up, n_rows=int(drawn.sum()))

    def reference(self, score: Score, *, threshold: float | None = None) -> Fits:
        """Wrap a rule that is not fitted, so that it is assessed like a model.

        Parameters
        ----------
        score : callable
            Gives the scores, shape (n_rows,), of features, whose index are the rows' numbers.
        threshold : float, optional
            The rule's own, for 3 of 5 samples; None chooses the alarm as for a model.
        """
        return Fits([], score, threshold)

    def assess(self, pipeline: Pipeline) -> Assessment:
        """Fit a pipeline, score, calibrate, choose the alarm, and judge."""
        ((_, found),) = self.assess_all({"": self.fit(pipeline)})
        return found

    def assess_all(self, fits: Mapping[str, Fits]) -> Iterator[tuple[str, Assessment]]:
        """Score all rows with several models in one pass over the partitions, and judge each.

        Parameters
        ----------
        fits : mapping of str to Fits
            Names to what `fit` or `reference` returned.

        Yields
        ------
        name, assessment : str, Assessment
            In the order of `fits`.
        """
        scores = self._score(list(fits.values()))
        here = {"require": "sharedmem"}  # no cluster: judging takes less time than sending all rows
        judged = Parallel(n_jobs=self.n_jobs, return_as="generator", **here)(
            delayed(self._assess)(each, raw)
            for each, raw in zip(fits.values(), scores, strict=True)
        )
        yield from zip(fits, judged, strict=True)  # the next are judged while one is logged

    def _assess(self, fits: Fits, raw: np.ndarray) -> Assessment:
        """Calibrate the scores of all rows, choose the alarm, and judge."""
        rows, raw_cv = self.training, raw[self.training.X.index]
        calibration = Calibration("none", None, {})
        if fits.models:
            calibration = choose_calibration(rows.y, raw_cv, rows.fold, rows.weight)
        cv, test = (
            outcomes.with_scores(calibration.apply(raw[numbers]))
            for numbers, outcomes in (self._cv, self._test)
        )

        given = None if fits.threshold is None else Alarm(AlarmRule(), fits.threshold)
        alarm = given or self.choose_alarm(cv)

        metrics = self._judge(cv, test, alarm)
        if calibration.brier:  # that of the calibrated scores would be in-sample
            metrics["cv_brier"] = calibration.brier[calibration.method]
        return Assessment(fits, calibration, alarm, metrics, cv.rows.frame, test.rows.frame, raw_cv)

    @cached_property
    def training(self) -> TrainingRows:
        """The thinned training rows with their features.

        Where they are more than `max_rows_in_memory`, one in n is kept, n as small as possible, and
        the log says so.
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
        """Put what models and the search need to know of training rows beside their features."""
        y = self.y[rows]
        weight = times * np.where(y == 1, float(self.hazard_stride), float(self.normal_stride))
        numbers, outcomes = self._cv
        place = np.empty(len(self.y), np.int64)
        place[numbers] = np.arange(len(numbers))
        on, lead_min = outcomes.alarm_on[place[rows]], outcomes.lead_min(place[rows])
        return TrainingRows(X, y, weight, self.split.fold[rows], on, lead_min, whole)

    def drawn(self, share: float, rows: TrainingRows) -> np.ndarray:
        """Tell which training rows are of a share of each fold's sites or racks, shape (n,).

        Those with an event and those without are drawn separately, at least one of each.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and 1 at most, got {share}.")
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
        """Score each fold's rows by the models without it, and the test rows by the last ones.

        One partition after the other, shape (n_fits, n_samples).
        """
        fleet = self.fleet

        def score(partition: int, fold: np.ndarray) -> np.ndarray:
            X = build_features(fleet.telemetry(partition))
            scores = np.empty((len(fits), len(X)))
            for number in np.unique(fold):  # the test rows have the number -1, of the last
                in_fold = fold == number
                part = X if in_fold.all() else X[in_fold]
                with config_context(assume_finite=True):  # but for NaN, which the models take
                    scores[:, in_fold] = _scores_of(fits, number, part)
            return scores

        scores = np.empty((len(fits), len(fleet.rows)))
        parts = fleet.map(score, by_row=self.split.fold, n_jobs=self.n_jobs)
        for first, part in zip(fleet.starts[:-1], parts, strict=True):
            scores[:, first : first + part.shape[1]] = part
        return scores

    @cached_property
    def _cv(self) -> tuple[np.ndarray, Outcomes]:
        return self._in_order(self.split.train)

    @cached_property
    def _test(self) -> tuple[np.ndarray, Outcomes]:
        return self._in_order(self.split.test)

    def _in_order(self, rows: np.ndarray) -> tuple[np.ndarray, Outcomes]:
        """Return rows in the order of a scores frame, with what no score changes."""
        place = np.arange(len(rows))
        frame = scores_frame(self.fleet.rows, rows, place, fault_types=self.faults)
        outcomes = outcomes_of(frame)
        order = outcomes.rows.score
        if not np.array_equal(order, place):  # the rows of a fleet are in it: no copy of millions
            rows = rows[order.astype(np.int64)]
        return rows, outcomes

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
        """Measure the test rows and, with the prefix ``cv_``, the others out of fold."""
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
        return {n: metrics[n] for n in metrics if not any(metric in n for metric in of_alarms)}

    @property
    def y(self) -> np.ndarray:
        """Labels of all rows, shape (n_samples,)."""
        return self.fleet.rows[col.LABEL].to_numpy()

    @property
    def thinning(self) -> float:
        """How many times more normal than labelled rows are left out."""
        return self.normal_stride / self.hazard_stride

    @cached_property
    def faults(self) -> list[str]:
        """Causes of real faults."""
        return sorted({*hazard_types(self.fleet.rows), *self.fault_types})

    @cached_property
    def modules_per_site(self) -> float:
        """Modules that a site has on average."""
        rows = self.fleet.rows
        modules = rows.groupby(col.KEYS[:3], observed=True).ngroups
        return modules / rows[col.SITE].nunique()

    @property
    def site_days(self) -> float:
        """Observed time of the training rows, in days of an average site."""
        _, outcomes = self._cv
        return outcomes.rows.module_days / self.modules_per_site

    @cached_property
    def ranges(self) -> str:
        """Range of each feature in the training rows in memory, see `ranges_to_json`."""
        return ranges_to_json(self.training.X_whole)

    @cached_property
    def interval_s(self) -> float:
        """Time between two rows of a usual module [s], as the strides count them."""
        return float(np.median(module_intervals_s(self.fleet.rows)))

    @cached_property
    def intervals_s(self) -> tuple[float, float]:
        """Shortest and longest usual time between two rows of a training site's modules [s]."""
        rows = self.fleet.rows.iloc[self.split.train]
        sites = [sampling_interval_s(own) for _, own in rows.groupby(col.SITE, observed=True)]
        return min(sites), max(sites)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digests of the rows in memory, to find where two machines begin to differ."""
        rows = self.training
        return {
            "digest_telemetry": joblib.hash([self.fleet.sha256, self.fleet.rows]),
            "digest_features": joblib.hash(rows.X.to_numpy()),
            "digest_training_rows": joblib.hash([rows.y, rows.weight, rows.fold]),
        }

    @cached_property
    def key(self) -> str:
        """What the training rows, code and packages are, for what is cached."""
        rows = [self.digests["digest_features"], self.digests["digest_training_rows"]]
        return cache.key(rows, list(self.training.X.columns))


def _scores_of(fits: Sequence[Fits], number: int, X: pd.DataFrame) -> np.ndarray:
    """Score rows by the models of one number, shape (n_fits, n_rows).

    Models that impute and scale by the same statistics share the result, and so do those that
    differ in `limit_power` alone.
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


def check_protocol(
    normal_stride: int,
    hazard_stride: int,
    max_nuisance_alarms_per_site_day: float,
    missed_event_costs: float,
    drop_sensors: float,
    max_rows_in_memory: int,
    n_jobs: int,
) -> None:
    """Refuse settings of a `Protocol` that are out of range, with a ValueError."""
    for name, stride in {"normal_stride": normal_stride, "hazard_stride": hazard_stride}.items():
        if stride < 1:
            raise ValueError(f"{name} must be at least 1, got {stride}.")
    budget = max_nuisance_alarms_per_site_day
    if not budget > 0:
        raise ValueError(f"max_nuisance_alarms_per_site_day must be above 0, got {budget}.")
    if not missed_event_costs >= 0:
        raise ValueError(
            f"missed_event_costs must be 0 or more, got {missed_event_costs}: 0 keeps to the alarm "
            "budget."
        )
    if not 0 <= drop_sensors < 1:
        raise ValueError(f"drop_sensors must be between 0 and 1, got {drop_sensors}.")
    if max_rows_in_memory < 1:
        raise ValueError(f"max_rows_in_memory must be at least 1, got {max_rows_in_memory}.")
    if n_jobs == 0:
        raise ValueError("n_jobs must be 1 or more, or -1 for as many as cores, got 0.")
