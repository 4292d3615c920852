"""Turn scores into probabilities, with a calibrator fitted on out-of-fold scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

METHODS = ("none", "platt", "isotonic")
_TINY = 1e-12  # a score of exactly 0 or 1 has no log-odds


class CalibratedClassifier(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose scores pass through a fitted calibrator.

    scikit-learn's CalibratedClassifierCV fits its own folds on all rows, and the workbook's folds
    are fitted on thinned ones; so the calibrator comes from outside.

    Parameters
    ----------
    classifier : fitted, with ``predict_proba``.
    calibrator : from `fit_calibrator`, or None for the scores as they are.
    """

    def __init__(self, classifier: BaseEstimator, calibrator: BaseEstimator | None):
        self.classifier = classifier
        self.calibrator = calibrator

    def fit(self, X, y) -> CalibratedClassifier:
        """Change nothing: both parts come fitted."""
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    @property
    def classes_(self) -> np.ndarray:
        """The labels 0 and 1."""
        return self.classifier.classes_

    def predict_proba(self, X) -> np.ndarray:
        """Return the probabilities of class 0 and 1, shape (n_samples, 2), float64."""
        scores = self.classifier.predict_proba(X)[:, 1].astype(np.float64)
        hazard = apply_calibrator(self.calibrator, scores)
        return np.column_stack([1 - hazard, hazard])

    def predict(self, X) -> np.ndarray:
        """Return the likelier class, shape (n_samples,)."""
        return self.classes_[(self.predict_proba(X)[:, 1] >= 0.5).astype(int)]


@dataclass(frozen=True)
class Calibration:
    """The calibration that suits a model best.

    Attributes
    ----------
    method : one of `METHODS`.
    calibrator : fitted on all out-of-fold scores; None for ``none``.
    brier : method to its Brier score on folds that its calibrator was not fitted on.
    """

    method: str
    calibrator: BaseEstimator | None
    brier: dict[str, float]

    def apply(self, y_score: np.ndarray) -> np.ndarray:
        """Map scores to probabilities, shape (n_samples,)."""
        return apply_calibrator(self.calibrator, y_score)


NO_CALIBRATION = Calibration("none", None, {})


def choose_calibration(y_true: np.ndarray, y_score: np.ndarray, fold: np.ndarray) -> Calibration:
    """Choose none, Platt or isotonic by the Brier score on folds that a calibrator has not seen.

    Parameters
    ----------
    y_true : array, shape (n_samples,), labels 0 and 1.
    y_score : array, shape (n_samples,), out-of-fold probabilities.
    fold : array, shape (n_samples,), number of the fold that each row was held out in.

    Returns
    -------
    Calibration; ties go to the first of `METHODS`.

    References
    ----------
    Platt, Advances in Large Margin Classifiers (1999) 61-74; Zadrozny and Elkan, KDD (2002)
    694-699; Oron and Flournoy, Statistics in Biopharmaceutical Research 9 (2017) 258-267 (centred
    isotonic); Brier, Monthly Weather Review 78 (1950) 1-3.
    """
    mapped = {method: np.empty_like(y_score) for method in METHODS}
    for number in np.unique(fold):
        held_out = fold == number
        for method, scores in mapped.items():
            calibrator = fit_calibrator(method, y_true[~held_out], y_score[~held_out])
            scores[held_out] = apply_calibrator(calibrator, y_score[held_out])
    brier = {method: brier_score_loss(y_true, scores) for method, scores in mapped.items()}
    best = min(METHODS, key=brier.__getitem__)
    return Calibration(best, fit_calibrator(best, y_true, y_score), brier)


def fit_calibrator(method: str, y_true: np.ndarray, y_score: np.ndarray) -> BaseEstimator | None:
    """Fit the map from scores to probabilities; None where scores stay as they are.

    Parameters
    ----------
    method : one of `METHODS`.
    y_true : array, shape (n_samples,), labels 0 and 1.
    y_score : array, shape (n_samples,), probabilities.

    Raises
    ------
    ValueError
        For an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    if method == "none" or y_true.min() == y_true.max():
        return None
    if method == "isotonic":
        return _fit_centred_isotonic(y_true, y_score)
    platt = LogisticRegression(C=np.inf).fit(_log_odds(y_score), y_true)
    return platt if platt.coef_[0, 0] > 0 else None  # never turn the order of the rows round


def apply_calibrator(calibrator: BaseEstimator | None, y_score: np.ndarray) -> np.ndarray:
    """Map scores to probabilities, shape (n_samples,)."""
    if calibrator is None:
        return y_score
    if isinstance(calibrator, IsotonicRegression):
        return calibrator.predict(y_score)
    return calibrator.predict_proba(_log_odds(y_score))[:, 1]


def _fit_centred_isotonic(y_true: np.ndarray, y_score: np.ndarray) -> IsotonicRegression:
    """Join the centres of the isotonic steps by straight lines, from (0, 0) to (1, 1).

    The steps themselves would tie rows that the model has put in order, and an alarm lives on the
    order of the highest scores.
    """
    steps = IsotonicRegression().fit(y_score, y_true).predict(y_score)
    step = np.unique(steps, return_inverse=True)[1]
    rows, hazardous = np.bincount(step), np.bincount(step, weights=y_true)
    centre = np.bincount(step, weights=y_score) / rows
    margin = 0.5 / len(y_true)  # keeps the outer steps from 0 and 1, so that they rise as well
    level = margin + (1 - 2 * margin) * hazardous / rows
    knots = np.concatenate([[0], centre, [1]]), np.concatenate([[0], level, [1]])
    return IsotonicRegression().fit(*knots)


def _log_odds(y_score: np.ndarray) -> np.ndarray:
    return logit(np.clip(y_score, _TINY, 1 - _TINY))[:, None]
