"""The evaluation protocol: the same folds, thinning, alarm choice and metrics for every model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

from hvs_lib import columns as col
from hvs_lib import models
from hvs_lib.evaluation.calibration import (
    NO_CALIBRATION,
    CalibratedClassifier,
    Calibration,
    choose_calibration,
)
from hvs_lib.evaluation.metrics import (
    EVENT_METRICS,
    RULES,
    AlarmRule,
    choose_alarm,
    evaluate,
    scores_frame,
)
from hvs_lib.evaluation.splits import Split, thin_normal_rows
from hvs_lib.telemetry.quality import sampling_interval_s

import joblib
import numpy as np
import pandas as pd
from imblearn.pipeline import Pipeline
from joblib import Parallel, delayed
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier


@dataclass(frozen=True)
class Assessment:
    """What the protocol decided and found out about one model.

    Attributes
    ----------
    model : fitted on all training racks; None for a reference that is not fitted.
    calibration : of its scores, chosen on the out-of-fold scores, like
    rule, threshold : of the alarm.
    metrics : on the test racks; with the prefix ``cv_`` out of fold on the training racks.
    cv_scores, test_scores : scores frames, calibrated.
    raw_cv_scores : array, shape (len(split.train),), `cv_scores` before calibration.
    seconds : spent on fitting and scoring [s].
    taken_over_from : Run ID that was fitted for, where nothing was fitted for this one.
    """

    model: Pipeline | None
    calibration: Calibration
    rule: AlarmRule
    threshold: float
    metrics: dict[str, float]
    cv_scores: pd.DataFrame
    test_scores: pd.DataFrame
    raw_cv_scores: np.ndarray
    seconds: float
    taken_over_from: str = ""

    @property
    def alarm(self) -> dict[str, object]:
        """What `evaluate`, `event_table` and `raise_alarms` need to judge scores alike."""
        return {"threshold": self.threshold, "rule": self.rule}

    def deployable(self) -> FixedThresholdClassifier:
        """Return the model with its calibration and its threshold, as it is logged."""
        calibrated = CalibratedClassifier(self.model, self.calibration.calibrator)
        fixed = FixedThresholdClassifier(
            FrozenEstimator(calibrated), threshold=self.threshold, pos_label=1,
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
    telemetry : frame, shape (n_samples, ...), labelled.
    X : frame, shape (n_samples, n_features), from `build_features`.
    split : from `split_by_rack`.
    normal_stride : fit on every how many normal rows of a module; all rows are evaluated.
    max_false_alarms_per_site_day : the alarm budget out of fold [1/d]; a site has as many modules
        as the telemetry's sites have on average.
    missed_event_costs : as many false alarms as one missed event is worth; above 0 it takes the
        budget's place.
    seed : of the bootstrap.
    rules : of the alarm, to choose from.
    n_jobs : fits at once, in threads; -1: as many as cores. What they find does not depend on it.
    """

    telemetry: pd.DataFrame
    X: pd.DataFrame
    split: Split
    normal_stride: int = 6
    max_false_alarms_per_site_day: float = 1.0
    missed_event_costs: float = 0.0
    seed: int = 42
    rules: tuple[AlarmRule, ...] = RULES
    n_jobs: int = -1

    def __post_init__(self):
        check_protocol(
            self.normal_stride, self.max_false_alarms_per_site_day, self.missed_event_costs,
            self.n_jobs,
        )  # fmt: skip

    @property
    def y(self) -> np.ndarray:
        """Labels, shape (n_samples,)."""
        return self.telemetry[col.LABEL].to_numpy()

    @property
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

    def fitting_rows(self, rows: np.ndarray) -> np.ndarray:
        """Thin the rows of a fold to those that models are fitted on, as positions in `X`."""
        return thin_normal_rows(self.telemetry, rows, self.normal_stride)

    def fit(self, pipeline: Pipeline, rows: np.ndarray) -> Pipeline:
        """Fit a clone of the pipeline on the thinned rows."""
        rows = self.fitting_rows(rows)
        return models.fit(pipeline, self.X, self.y, rows, normal_stride=self.normal_stride)

    def out_of_fold_scores(self, pipeline: Pipeline) -> np.ndarray:
        """Score each training row by a model that has not seen its rack.

        Returns
        -------
        array, shape (len(split.train),), in the order of ``split.train``.
        """
        return self._in_order(self._fit_and_score(pipeline, self.split.folds))

    def assess(self, pipeline: Pipeline) -> Assessment:
        """Assess a pipeline; see the class."""
        start = perf_counter()
        whole = (self.split.train, self.split.test)
        (model, test_scores), *folds = self._fit_and_score(pipeline, [whole, *self.split.folds])
        seconds = perf_counter() - start
        return self._calibrate(model, self._in_order(folds), test_scores, seconds=seconds)

    def assess_again(
        self, deployable: FixedThresholdClassifier, raw_cv_scores: np.ndarray, *, seconds: float
    ) -> Assessment:
        """Repeat an assessment from what was fitted for it, to the bit.

        Parameters
        ----------
        deployable : from ``assessment.deployable``.
        raw_cv_scores, seconds : of the assessment.
        """
        model = deployable.estimator.estimator.classifier
        test_scores = models.hazard_score(model, self.X.iloc[self.split.test])
        return self._calibrate(model, raw_cv_scores, test_scores, seconds=seconds)

    def _calibrate(self, model, cv_scores, test_scores, *, seconds) -> Assessment:
        train = self.split.train
        calibration = choose_calibration(self.y[train], cv_scores, self._fold_of_row()[train])
        calibrated = (calibration.apply(scores) for scores in (cv_scores, test_scores))
        found = {"raw_cv_scores": cv_scores, "calibration": calibration, "seconds": seconds}
        return self._report(*calibrated, model=model, **found)

    def _fit_and_score(self, pipeline: Pipeline, parts: Sequence) -> list[tuple]:
        """Fit on the first rows of each part and score the second, parts side by side."""

        def one(fit_rows: np.ndarray, score_rows: np.ndarray) -> tuple[Pipeline, np.ndarray]:
            model = self.fit(pipeline, fit_rows)
            return model, models.hazard_score(model, self.X.iloc[score_rows])

        return Parallel(n_jobs=self.n_jobs, prefer="threads")(delayed(one)(*part) for part in parts)

    def _in_order(self, folds: Sequence[tuple]) -> np.ndarray:
        """Put the scores of the folds in the order of ``split.train``."""
        scores = np.full(len(self.X), np.nan)
        for (_, held_out), (_, found) in zip(self.split.folds, folds, strict=True):
            scores[held_out] = found
        return scores[self.split.train]

    def assess_reference(
        self, score: Callable[[np.ndarray], np.ndarray], *, threshold: float | None = None
    ) -> Assessment:
        """Assess a rule that is not fitted.

        Parameters
        ----------
        score : gives the scores, shape (n_rows,), of the rows at the given positions.
        threshold : the rule's own, for 3 of 5 samples; None chooses the alarm as for a model.
        """
        start = perf_counter()
        cv_scores, test_scores = score(self.split.train), score(self.split.test)
        seconds = perf_counter() - start
        found = {"raw_cv_scores": cv_scores, "seconds": seconds}
        return self._report(cv_scores, test_scores, threshold=threshold, **found)

    def _report(
        self, cv_scores, test_scores, *, raw_cv_scores, seconds, model=None,
        calibration=NO_CALIBRATION, threshold=None,
    ) -> Assessment:  # fmt: skip
        cv = scores_frame(self.telemetry, self.split.train, cv_scores)
        test = scores_frame(self.telemetry, self.split.test, test_scores)
        rule = AlarmRule()
        if threshold is None:
            rule, threshold = self.choose_alarm(cv)
        options = {"threshold": threshold, "rule": rule, "seed": self.seed}
        metrics = evaluate(test, **options) | evaluate(cv, prefix="cv_", **options)
        if calibration.brier:  # that of the calibrated scores knows the rows it was fitted on
            metrics["cv_brier"] = calibration.brier[calibration.method]
        if self.split.kind == "row":
            # An alarm needs consecutive samples, and random rows are none.
            metrics = {k: v for k, v in metrics.items() if not _is_of_events(k)}
        metrics |= {
            name.replace("module_day", "site_day"): value * self.modules_per_site
            for name, value in metrics.items()
            if "false_alarms_per_module_day" in name
        }
        scores = {"cv_scores": cv, "test_scores": test, "raw_cv_scores": raw_cv_scores}
        return Assessment(model, calibration, rule, threshold, metrics, **scores, seconds=seconds)

    def choose_alarm(self, cv_scores: pd.DataFrame) -> tuple[AlarmRule, float]:
        """Choose the alarm's rule and threshold on a frame of out-of-fold scores."""
        return choose_alarm(
            cv_scores,
            max_false_alarms_per_module_day=(
                self.max_false_alarms_per_site_day / self.modules_per_site
            ),
            missed_event_costs=self.missed_event_costs,
            rules=self.rules,
        )

    def _fold_of_row(self) -> np.ndarray:
        """Number the fold that each row was held out in, -1 on the test rows."""
        fold = np.full(len(self.X), -1)
        for number, (_, valid_rows) in enumerate(self.split.folds):
            fold[valid_rows] = number
        return fold


def check_protocol(
    normal_stride: int,
    max_false_alarms_per_site_day: float,
    missed_event_costs: float,
    n_jobs: int,
) -> None:
    """Refuse settings of a `Protocol` that are out of range, with a ValueError."""
    if normal_stride < 1:
        raise ValueError(f"normal_stride must be at least 1, got {normal_stride}.")
    if not max_false_alarms_per_site_day > 0:
        raise ValueError(
            f"max_false_alarms_per_site_day must be above 0, got {max_false_alarms_per_site_day}."
        )
    if not missed_event_costs >= 0:
        raise ValueError(
            f"missed_event_costs must be 0 or more, got {missed_event_costs}: 0 keeps to the alarm "
            "budget."
        )
    if n_jobs == 0:
        raise ValueError("n_jobs must be 1 or more, or -1 for as many as cores, got 0.")


def _is_of_events(name: str) -> bool:
    return name.removeprefix("cv_").removesuffix("_low").removesuffix("_high") in EVENT_METRICS
