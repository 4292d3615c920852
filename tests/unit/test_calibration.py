from hvs_lib.evaluation.calibration import (
    METHODS,
    CalibratedClassifier,
    apply_calibrator,
    choose_calibration,
    fit_calibrator,
)

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss


def sample(distort, n=20_000, seed=0):
    """Draw labels of known probabilities, and the scores of a model that distorts them."""
    rng = np.random.default_rng(seed)
    truth = expit(rng.normal(-3.0, 2.0, n))
    return rng.random(n) < truth, distort(truth), rng.integers(0, 3, n), truth


def test_honest_probabilities_stay_as_they_are():
    y, score, fold, _ = sample(lambda p: p)
    found = choose_calibration(y, score, fold)
    assert found.method == "none" or found.brier["none"] - found.brier[found.method] < 1e-4
    assert set(found.brier) == set(METHODS)


@pytest.mark.parametrize(
    ("method", "distort"),
    [
        ("platt", lambda p: expit(2 * logit(p) + 3)),  # as class weights and overfitting do
        ("isotonic", lambda p: np.where(p < 0.3, p / 3, 0.1 + 0.9 * p**4)),
    ],
)
def test_distorted_probabilities_are_mended(method, distort):
    y, score, fold, truth = sample(distort)
    found = choose_calibration(y, score, fold)
    assert found.method == method
    mended = found.apply(score)
    assert np.abs(mended - truth).mean() < 0.2 * np.abs(score - truth).mean()
    assert brier_score_loss(y, mended) < brier_score_loss(y, score)


def test_brier_scores_are_of_folds_that_the_calibrator_has_not_seen():
    y, score, fold, _ = sample(lambda p: expit(2 * logit(p) + 3), n=300)
    squares = [
        (apply_calibrator(fit_calibrator("isotonic", y[fold != k], score[fold != k]), score) - y)
        ** 2
        * (fold == k)
        for k in range(3)
    ]
    found = choose_calibration(y, score, fold)
    assert found.brier["isotonic"] == pytest.approx(np.sum(squares) / len(y))
    in_sample = apply_calibrator(fit_calibrator("isotonic", y, score), score)
    assert brier_score_loss(y, in_sample) < found.brier["isotonic"]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_rows_stays(method):
    y, score, _, _ = sample(lambda p: p**2)
    mapped = apply_calibrator(fit_calibrator(method, y, score), np.linspace(0, 1, 1001))
    assert (np.diff(mapped) > 0).all()
    assert mapped[0] >= 0
    assert mapped[-1] <= 1


def test_centred_isotonic_passes_through_the_steps_of_scikit_learn():
    y, score, _, _ = sample(lambda p: p**2)
    steps = IsotonicRegression().fit(score, y).predict(score)
    ours = apply_calibrator(fit_calibrator("isotonic", y, score), score)
    assert np.abs(ours - steps).mean() < 0.01


def test_a_model_that_is_wrong_throughout_is_not_turned_round():
    y, score, _, _ = sample(lambda p: 1 - p)
    assert fit_calibrator("platt", y, score) is None


def test_one_class_has_no_calibration():
    assert fit_calibrator("isotonic", np.zeros(5), np.linspace(0, 1, 5)) is None


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"method must be one of none, platt, isotonic, got 'x'"):
        fit_calibrator("x", np.array([0, 1]), np.array([0.1, 0.9]))


def test_calibrated_classifier_maps_the_probabilities():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 2))
    y = (X[:, 0] + rng.normal(size=500) > 0).astype(int)
    inner = LogisticRegression().fit(X, y)
    scores = inner.predict_proba(X)[:, 1]
    calibrator = fit_calibrator("platt", y, scores**3)
    model = CalibratedClassifier(inner, calibrator)
    expected = apply_calibrator(calibrator, scores)
    np.testing.assert_array_equal(model.predict_proba(X)[:, 1], expected)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    np.testing.assert_array_equal(model.predict(X), expected >= 0.5)
