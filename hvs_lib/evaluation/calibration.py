"""Turn scores into probabilities, with Platt's calibration fitted on out-of-fold scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from hvs_lib.models import fixed_threshold_score

LEAST_RATIO = 0.25  # floor of reading / limit, as of a module at 15 degC; absent sensors get it too


def choose_calibration(
    y_true: np.ndarray, y_score: np.ndarray, fold: np.ndarray, weight: np.ndarray | None = None
) -> tuple[LogisticRegression | None, dict[str, float]]:
    """Choose no calibration or Platt's by the Brier score on folds the calibrator has not seen.

    Parameters
    ----------
    y_true : array, shape (n_samples,)
        Labels 0 and 1.
    y_score : array, shape (n_samples,)
        Out-of-fold probabilities.
    fold : array, shape (n_samples,)
        Number of the fold in which each row was held out.
    weight : array, shape (n_samples,), optional
        How many rows each stands for.

    Returns
    -------
    calibrator : LogisticRegression or None
        Platt's map fitted on all rows, for `calibrate`; None unless its Brier score is lower.
    brier : dict of str to float
        Brier score of "none" and "platt", on folds that the calibrator was not fitted on.

    References
    ----------
    Platt, Advances in Large Margin Classifiers (1999) 61-74; Brier, Monthly Weather Review 78
    (1950) 1-3.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> share = rng.uniform(size=3000)
    >>> y_true, fold = rng.uniform(size=3000) < share, rng.integers(0, 3, 3000)
    >>> calibrator, brier = choose_calibration(y_true, share**3, fold)
    >>> calibrator, {method: round(score, 2) for method, score in brier.items()}
    (LogisticRegression(C=inf), {'none': 0.24, 'platt': 0.17})
    """
    weight = np.ones(len(y_true)) if weight is None else weight
    mapped = np.empty_like(y_score)
    for number in np.unique(fold):
        held_out = fold == number
        calibrator = fit_platt(y_true[~held_out], y_score[~held_out], weight[~held_out])
        mapped[held_out] = calibrate(calibrator, y_score[held_out])
    brier = {
        "none": brier_score_loss(y_true, y_score, sample_weight=weight),
        "platt": brier_score_loss(y_true, mapped, sample_weight=weight),
    }
    is_better = brier["platt"] < brier["none"]
    return fit_platt(y_true, y_score, weight) if is_better else None, brier


def fit_platt(
    y_true: np.ndarray, y_score: np.ndarray, weight: np.ndarray | None = None
) -> LogisticRegression | None:
    """Fit Platt's map from scores to probabilities.

    Parameters
    ----------
    y_true : array, shape (n_samples,)
        Labels 0 and 1.
    y_score : array, shape (n_samples,)
        Probabilities of a model, on rows that it was not fitted on.
    weight : array, shape (n_samples,), optional
        How many rows each stands for.

    Returns
    -------
    LogisticRegression or None
        For `calibrate`; None if the map would not preserve the order of the scores.

    Examples
    --------
    >>> fit_platt(np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))
    LogisticRegression(C=inf)
    """
    if y_true.min() == y_true.max():
        return None
    platt = LogisticRegression(C=np.inf).fit(_log_odds(y_score), y_true, sample_weight=weight)
    return platt if platt.coef_[0, 0] > 0 else None


def calibrate(calibrator: LogisticRegression | None, y_score: np.ndarray) -> np.ndarray:
    """Map scores to probabilities with the result of `fit_platt`; None leaves them as they are.

    Examples
    --------
    >>> y_true, too_low = np.array([0, 0, 0, 1, 0, 1, 1, 1]), np.repeat([0.01, 0.1], 4)
    >>> calibrate(fit_platt(y_true, too_low), too_low)[[0, -1]].round(2).tolist()
    [0.25, 0.75]
    """
    if calibrator is None:
        return y_score
    return calibrator.predict_proba(_log_odds(y_score))[:, 1]


def weigh_by_limits(y_score: np.ndarray, X: pd.DataFrame, power: float) -> np.ndarray:
    """Multiply the odds of a model by a power of the largest reading relative to its fixed limit.

    Trees do not extrapolate beyond the readings they were fitted on and are overconfident on some
    harmless rows; under a strict budget, an alarm needs both the model and a high reading.

    Parameters
    ----------
    y_score : array, shape (n_samples,)
        Probabilities of a model.
    X : DataFrame, shape (n_samples, n_features)
        From `build_features`.
    power : float
        Exponent of `fixed_threshold_score`; at 3, a reading of half its limit divides the odds by
        8. 0 leaves the scores as they are.

    Examples
    --------
    >>> from hvs_lib.models import FIXED_LIMITS
    >>> readings = dict.fromkeys(FIXED_LIMITS, [0.0]) | {"Module_Max_Surface_Temp_C": [30.0]}
    >>> weigh_by_limits(np.array([0.5]), pd.DataFrame(readings), 3.0).round(3)
    array([0.111])
    """
    if power == 0:
        return y_score
    return expit(_log_odds(y_score)[:, 0] + limit_log_odds(X, power))


def limit_log_odds(X: pd.DataFrame, power: float) -> np.ndarray:
    """Return what `weigh_by_limits` adds to the log-odds, shape (n_samples,)."""
    return power * np.log(np.maximum(fixed_threshold_score(X), LEAST_RATIO))


def _log_odds(y_score: np.ndarray) -> np.ndarray:
    tiny = 1e-12  # a score of exactly 0 or 1 has no log-odds
    return logit(np.clip(np.asarray(y_score, dtype=np.float64), tiny, 1 - tiny))[:, None]


class CalibratedClassifier(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose scores pass through a fitted calibrator.

    scikit-learn's CalibratedClassifierCV fits its own folds on all rows, but the workbook's folds
    are fitted on thinned rows, so the calibrator is passed in.

    Parameters
    ----------
    classifier : BaseEstimator
        Fitted, with ``predict_proba``.
    calibrator : LogisticRegression or None
        From `fit_platt`, for `calibrate`.
    limit_power : float
        Power for `weigh_by_limits`.
    """

    def __init__(
        self,
        classifier: BaseEstimator,
        calibrator: LogisticRegression | None,
        limit_power: float = 0.0,
    ):
        self.classifier = classifier
        self.calibrator = calibrator
        self.limit_power = limit_power

    def fit(self, X, y) -> CalibratedClassifier:
        """Change nothing: both parts are already fitted."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def classes_(self) -> np.ndarray:
        """The labels 0 and 1."""
        return self.classifier.classes_

    def predict_proba(self, X) -> np.ndarray:
        """Return the probabilities of class 0 and 1, shape (n_samples, 2), float64."""
        hazard = self.classifier.predict_proba(X)[:, 1].astype(float)
        hazard = calibrate(self.calibrator, weigh_by_limits(hazard, X, self.limit_power))
        return np.column_stack([1 - hazard, hazard])
