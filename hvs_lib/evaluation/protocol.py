"""The evaluation protocol: the same folds, thinning, alarm choice and metrics for every model.

`Protocol.assess` is all of it in one place: fit, score, calibrate, choose the alarm, judge.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

import joblib
import numpy as np
import pandas as pd
from imblearn.pipeline import Pipeline
from joblib import Parallel, delayed
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.utils.validation import check_memory

from hvs_lib import cache, models
from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import RULES, Alarm, AlarmRule, best_alarm
from hvs_lib.evaluation.calibration import (
    NO_CALIBRATION,
    CalibratedClassifier,
    Calibration,
    choose_calibration,
)
from hvs_lib.evaluation.metrics import EVENT_METRICS, evaluate
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import Split, thin_normal_rows
from hvs_lib.telemetry.codes import hazard_types
from hvs_lib.telemetry.quality import sampling_interval_s


@dataclass(frozen=True)
class Assessment:
    """What the protocol decided and found out about one model.

    Attributes
    ----------
    model : Pipeline or None
        Fitted on all training racks; None for a reference that is not fitted.
    calibration : Calibration
        Of its scores, chosen on the out-of-fold scores.
    alarm : Alarm
        Chosen on them as well.
    metrics : dict of str to float
        On the test racks; with the prefix ``cv_`` out of fold on the training racks.
    cv_scores, test_scores : DataFrame
        Scores frames, calibrated.
    raw_cv_scores : array, shape (len(split.train),)
        `cv_scores` before calibration.
    seconds : float
        That fitting and scoring took, of all fits together [s].
    """

    model: Pipeline | None
    calibration: Calibration
    alarm: Alarm
    metrics: dict[str, float]
    cv_scores: pd.DataFrame
    test_scores: pd.DataFrame
    raw_cv_scores: np.ndarray
    seconds: float

    def deployable(self) -> FixedThresholdClassifier:
        """Return the model with its calibration and its threshold, as it is logged."""
        calibrated = CalibratedClassifier(self.model, self.calibration.calibrator)
        fixed = FixedThresholdClassifier(
            FrozenEstimator(calibrated), threshold=self.alarm.threshold, pos_label=1,
            response_method="predict_proba",
        )  # fmt: skip
        features = self.model.feature_names_in_
        nothing = pd.DataFrame(np.zeros((2, len(features)), np.float32), columns=features)
        return fixed.fit(nothing, [0, 1])  # fits nothing: what is frozen stays as it is


@dataclass(frozen=True)
class Protocol:
    """Judge every model in the same way.

    Fit on the thinned rows of each fold and score every row of the fold left out. Choose there
    the calibration, the alarm's rule and its threshold, fit once more on all training racks, and
    score the test racks once.

    Parameters
    ----------
    telemetry : DataFrame, shape (n_samples, n_columns)
        With the label.
    X : DataFrame, shape (n_samples, n_features)
        From `build_features`.
    split : Split
        From `split_by_rack`.
    normal_stride : int
        Fit on every `normal_stride`-th normal row of a module; all rows are evaluated.
    max_nuisance_alarms_per_site_day : float
        The alarm budget out of fold [1/d]; a site has as many modules as the telemetry's sites
        have on average.
    missed_event_costs : float
        Cost of a missed event, in nuisance alarms; above 0 it takes the budget's place.
    fault_types : tuple of str
        Causes (Event_Type) of real faults, besides those that occur with label 1.
    seed : int
        Of the bootstrap.
    rules : tuple of AlarmRule
        To choose from.
    n_jobs : int
        Fits at once, in threads; -1: as many as cores. What they find does not depend on it.
    memory : joblib.Memory, optional
        Keeps what was fitted, from `hvs_lib.cache.memory`; by default nothing is kept.
    """

    telemetry: pd.DataFrame
    X: pd.DataFrame
    split: Split
    normal_stride: int = 6
    max_nuisance_alarms_per_site_day: float = 1.0
    missed_event_costs: float = 0.0
    fault_types: tuple[str, ...] = ()
    seed: int = 42
    rules: tuple[AlarmRule, ...] = RULES
    n_jobs: int = -1
    memory: joblib.Memory | None = None

    def __post_init__(self):
        check_protocol(
            self.normal_stride, self.max_nuisance_alarms_per_site_day, self.missed_event_costs,
            self.n_jobs,
        )  # fmt: skip

    def assess(self, pipeline: Pipeline) -> Assessment:
        """Fit a pipeline, score, calibrate, choose the alarm, and judge."""
        train, test = self.split.train, self.split.test
        fits = self._fit_and_score(pipeline, [(train, test), *self.split.folds])
        (model, raw_test, _), *folds = fits
        raw_cv = self._out_of_fold([scores for _, scores, _ in folds])

        fold = self._out_of_fold(range(len(folds)))
        calibration = choose_calibration(self.y[train], raw_cv, fold)
        cv_scores = self._scores(train, calibration.apply(raw_cv))
        test_scores = self._scores(test, calibration.apply(raw_test))

        alarm = self.choose_alarm(cv_scores)

        metrics = self._judge(cv_scores, test_scores, alarm)
        # The Brier score of the calibrated scores would be in-sample.
        metrics["cv_brier"] = calibration.brier[calibration.method]
        seconds = sum(taken for _, _, taken in fits)
        return Assessment(
            model, calibration, alarm, metrics, cv_scores, test_scores, raw_cv, seconds
        )

    def assess_reference(
        self, score: Callable[[np.ndarray], np.ndarray], *, threshold: float | None = None
    ) -> Assessment:
        """Assess a rule that is not fitted.

        Parameters
        ----------
        score : callable
            Gives the scores, shape (n_rows,), of the rows at the given positions.
        threshold : float, optional
            The rule's own, for 3 of 5 samples; None chooses the alarm as for a model.
        """
        start = perf_counter()
        raw_cv, raw_test = score(self.split.train), score(self.split.test)
        seconds = perf_counter() - start
        cv_scores = self._scores(self.split.train, raw_cv)
        test_scores = self._scores(self.split.test, raw_test)
        own = None if threshold is None else Alarm(AlarmRule(), threshold)
        alarm = own or self.choose_alarm(cv_scores)
        metrics = self._judge(cv_scores, test_scores, alarm)
        return Assessment(
            None, NO_CALIBRATION, alarm, metrics, cv_scores, test_scores, raw_cv, seconds
        )

    def out_of_fold_scores(self, pipeline: Pipeline) -> np.ndarray:
        """Score each training row by a model that has not seen its rack.

        Returns
        -------
        array, shape (len(split.train),), in the order of ``split.train``.
        """
        fits = self._fit_and_score(pipeline, self.split.folds)
        return self._out_of_fold([scores for _, scores, _ in fits])

    def fitting_rows(self, rows: np.ndarray) -> np.ndarray:
        """Thin the rows of a fold to those that models are fitted on, as positions in `X`."""
        return thin_normal_rows(self.telemetry, rows, self.normal_stride)

    def _fit_and_score(self, pipeline: Pipeline, parts: Sequence) -> list[tuple]:
        """Fit on the first rows of each part and score the second, parts side by side."""
        own = any(type(step).__module__ == "__main__" for _, step in pipeline.steps)
        memory = None if own else self.memory  # the key holds no code of a notebook
        cached = check_memory(memory).cache(models.fit_and_score, ignore=["X", "y"])
        same = {"normal_stride": self.normal_stride, "key": self.key}
        return Parallel(n_jobs=self.n_jobs, prefer="threads")(
            delayed(cached)(pipeline, self.X, self.y, self.fitting_rows(rows), scored_rows, **same)
            for rows, scored_rows in parts
        )

    def _out_of_fold(self, values: Sequence) -> np.ndarray:
        """Put what each fold found for its held-out rows in the order of ``split.train``."""
        placed = np.full(len(self.X), np.nan)
        for (_, held_out), value in zip(self.split.folds, values, strict=True):
            placed[held_out] = value
        return placed[self.split.train]

    def choose_alarm(self, cv_scores: pd.DataFrame) -> Alarm:
        """Choose the alarm's rule and threshold on a frame of out-of-fold scores."""
        return best_alarm(
            cv_scores,
            max_nuisance_alarms_per_site_day=self.max_nuisance_alarms_per_site_day,
            missed_event_costs=self.missed_event_costs,
            rules=self.rules,
            modules_per_site=self.modules_per_site,
        )

    def _scores(self, rows: np.ndarray, y_score: np.ndarray) -> pd.DataFrame:
        return scores_frame(self.telemetry, rows, y_score, fault_types=self.faults)

    def _judge(
        self, cv_scores: pd.DataFrame, test_scores: pd.DataFrame, alarm: Alarm
    ) -> dict[str, float]:
        """Measure the test racks and, with the prefix ``cv_``, the training racks out of fold."""
        same = {"modules_per_site": self.modules_per_site, "seed": self.seed}
        metrics = evaluate(test_scores, alarm, **same)
        metrics |= evaluate(cv_scores, alarm, **same, prefix="cv_")
        if self.split.kind == "row":
            # An alarm needs consecutive samples, which random rows are not.
            names = [n for n in metrics if not any(event in n for event in EVENT_METRICS)]
            metrics = {name: metrics[name] for name in names}
        return metrics

    @property
    def y(self) -> np.ndarray:
        """Labels, shape (n_samples,)."""
        return self.telemetry[col.LABEL].to_numpy()

    @cached_property
    def faults(self) -> list[str]:
        """Causes of real faults."""
        return sorted({*hazard_types(self.telemetry), *self.fault_types})

    @cached_property
    def modules_per_site(self) -> float:
        """Modules that a site has on average."""
        modules = self.telemetry.groupby(col.KEYS[:3], observed=True).ngroups
        return modules / self.telemetry[col.SITE].nunique()

    @cached_property
    def interval_s(self) -> float:
        """Usual time between two rows of a module [s]."""
        return sampling_interval_s(self.telemetry)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digests of what models are fitted on, to find where two machines begin to differ."""
        return {
            "digest_telemetry": joblib.hash(self.telemetry),
            "digest_features": joblib.hash(self.X.to_numpy()),
            "digest_training_rows": joblib.hash(self.fitting_rows(self.split.train)),
        }

    @cached_property
    def key(self) -> str:
        """What features, labels, code and packages are, for what is cached."""
        return cache.key(self.digests["digest_features"], list(self.X.columns), self.y)


def check_protocol(
    normal_stride: int,
    max_nuisance_alarms_per_site_day: float,
    missed_event_costs: float,
    n_jobs: int,
) -> None:
    """Refuse settings of a `Protocol` that are out of range, with a ValueError."""
    if normal_stride < 1:
        raise ValueError(f"normal_stride must be at least 1, got {normal_stride}.")
    budget = max_nuisance_alarms_per_site_day
    if not budget > 0:
        raise ValueError(f"max_nuisance_alarms_per_site_day must be above 0, got {budget}.")
    if not missed_event_costs >= 0:
        raise ValueError(
            f"missed_event_costs must be 0 or more, got {missed_event_costs}: 0 keeps to the alarm "
            "budget."
        )
    if n_jobs == 0:
        raise ValueError("n_jobs must be 1 or more, or -1 for as many as cores, got 0.")
