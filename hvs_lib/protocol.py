"""The evaluation protocol: the same folds, thinning, threshold rule and metrics for every model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

from hvs_lib import columns as col
from hvs_lib import models
from hvs_lib.metrics import EVENT_METRICS, AlarmRule, choose_threshold, evaluate, scores_frame
from hvs_lib.splits import Split, thin_normal_rows

import numpy as np
import pandas as pd
from imblearn.pipeline import Pipeline


@dataclass(frozen=True)
class Assessment:
    """What the protocol found out about one model.

    Attributes
    ----------
    model : fitted on all training racks; None for a reference that is not fitted.
    threshold : of the alarm, chosen on the out-of-fold scores.
    metrics : on the test racks; with the prefix ``cv_`` out of fold on the training racks.
    cv_scores, test_scores : scores frames.
    seconds : spent on fitting and scoring [s].
    """

    model: Pipeline | None
    threshold: float
    metrics: dict[str, float]
    cv_scores: pd.DataFrame
    test_scores: pd.DataFrame
    seconds: float


@dataclass(frozen=True)
class Protocol:
    """Judge every model in the same way.

    Fit on the thinned rows of each fold, score every row of the fold left out, choose the
    threshold there within the alarm budget, fit once more on all training racks, and score the
    test racks once.

    Parameters
    ----------
    telemetry : frame, shape (n_samples, ...), labelled.
    X : frame, shape (n_samples, n_features), from `build_features`.
    split : from `split_by_rack`.
    normal_stride : fit on every how many normal rows of a module; all rows are evaluated.
    alarm_budget : false alarms per module and day allowed out of fold [1/d].
    seed : of the bootstrap.
    """

    telemetry: pd.DataFrame
    X: pd.DataFrame
    split: Split
    normal_stride: int = 6
    alarm_budget: float = 0.1
    seed: int = 42
    rule: AlarmRule = field(default_factory=AlarmRule)

    def __post_init__(self):
        if self.normal_stride < 1:
            raise ValueError(f"normal_stride must be at least 1, got {self.normal_stride}.")
        if self.alarm_budget <= 0:
            raise ValueError(f"alarm_budget must be above 0, got {self.alarm_budget}.")

    @property
    def y(self) -> np.ndarray:
        """Labels, shape (n_samples,)."""
        return self.telemetry[col.LABEL].to_numpy()

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
        scores = np.full(len(self.X), np.nan)
        for fit_rows, valid_rows in self.split.folds:
            model = self.fit(pipeline, fit_rows)
            scores[valid_rows] = models.hazard_score(model, self.X.iloc[valid_rows])
        return scores[self.split.train]

    def assess(self, pipeline: Pipeline) -> Assessment:
        """Assess a pipeline; see the class."""
        start = perf_counter()
        cv_scores = self.out_of_fold_scores(pipeline)
        model = self.fit(pipeline, self.split.train)
        test_scores = models.hazard_score(model, self.X.iloc[self.split.test])
        return self._report(cv_scores, test_scores, model=model, start=start)

    def assess_reference(
        self, score: Callable[[np.ndarray], np.ndarray], *, threshold: float | None = None
    ) -> Assessment:
        """Assess a rule that is not fitted.

        Parameters
        ----------
        score : gives the scores, shape (n_rows,), of the rows at the given positions.
        threshold : the rule's own; None chooses it as for a model.
        """
        start = perf_counter()
        cv_scores, test_scores = score(self.split.train), score(self.split.test)
        return self._report(cv_scores, test_scores, threshold=threshold, start=start)

    def _report(self, cv_scores, test_scores, *, start, model=None, threshold=None) -> Assessment:
        seconds = perf_counter() - start
        cv = scores_frame(self.telemetry, self.split.train, cv_scores)
        test = scores_frame(self.telemetry, self.split.test, test_scores)
        if threshold is None:
            threshold = choose_threshold(
                cv, max_false_alarms_per_module_day=self.alarm_budget, rule=self.rule
            )
        options = {"threshold": threshold, "rule": self.rule, "seed": self.seed}
        metrics = evaluate(test, **options) | evaluate(cv, prefix="cv_", **options)
        if self.split.kind == "row":
            # An alarm needs consecutive samples, and random rows are none.
            metrics = {k: v for k, v in metrics.items() if not _is_of_events(k)}
        return Assessment(model, threshold, metrics, cv, test, seconds)


def _is_of_events(name: str) -> bool:
    return name.removeprefix("cv_").removesuffix("_low").removesuffix("_high") in EVENT_METRICS
