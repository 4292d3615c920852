import numpy as np
import pandas as pd
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from hvs_lib.evaluation.calibration import (
    CalibratedClassifier,
    calibrate,
    choose_calibration,
    fit_platt,
    weigh_by_limits,
)
from hvs_lib.models import FIXED_LIMITS, fixed_threshold_score


def too_sure(p):
    """Distort probabilities as class weights and overfitting do."""
    return expit(2 * logit(p) + 3)


def sample(distort, n=20_000, seed=0):
    """Draw labels of known probabilities, and the scores of a model that distorts them."""
    rng = np.random.default_rng(seed)
    truth = expit(rng.normal(-3.0, 2.0, n))
    return rng.random(n) < truth, distort(truth), rng.integers(0, 3, n), truth


def test_honest_probabilities_stay_as_they_are():
    y, score, fold, truth = sample(lambda p: p)
    calibrator, brier = choose_calibration(y, score, fold)
    assert calibrator is None or brier["none"] - brier["platt"] < 1e-4
    assert set(brier) == {"none", "platt"}
    np.testing.assert_allclose(calibrate(calibrator, score), truth, atol=0.02)


def test_distorted_probabilities_are_mended():
    y, score, fold, truth = sample(too_sure)
    calibrator, brier = choose_calibration(y, score, fold)
    assert calibrator is not None and brier["platt"] < brier["none"]
    mended = calibrate(calibrator, score)
    assert np.abs(mended - truth).mean() < 0.2 * np.abs(score - truth).mean()
    assert brier_score_loss(y, mended) < brier_score_loss(y, score)


def test_brier_scores_are_of_folds_that_the_calibrator_has_not_seen():
    y, score, fold, _ = sample(too_sure, n=300)
    squares = [
        (calibrate(fit_platt(y[fold != k], score[fold != k]), score) - y) ** 2 * (fold == k)
        for k in range(3)
    ]
    _, brier = choose_calibration(y, score, fold)
    assert np.isclose(brier["platt"], np.sum(squares) / len(y))
    in_sample = calibrate(fit_platt(y, score), score)
    assert brier_score_loss(y, in_sample) < brier["platt"]


def test_the_order_of_the_rows_stays():
    y, score, _, _ = sample(lambda p: p**2)
    mapped = calibrate(fit_platt(y, score), np.linspace(0, 1, 1001))
    assert (np.diff(mapped) > 0).all()
    assert mapped[0] >= 0
    assert mapped[-1] <= 1


def test_a_row_of_weight_three_counts_as_three_rows():
    y, score, fold, _ = sample(too_sure, n=2000)
    weight = np.where(y, 1, 3)
    rows = (np.repeat(part, weight) for part in (y, score, fold))
    weighted, of_weighted = choose_calibration(y, score, fold, weight.astype(float))
    repeated, of_repeated = choose_calibration(*rows)
    plain, of_plain = choose_calibration(y, score, fold)
    for method in ("none", "platt"):
        assert np.isclose(of_weighted[method], of_repeated[method])
        assert not np.isclose(of_weighted[method], of_plain[method])
    mapped = calibrate(weighted, score)
    np.testing.assert_allclose(mapped, calibrate(repeated, score), atol=1e-5)
    assert np.abs(mapped - calibrate(plain, score)).max() > 0.01


def test_thinned_and_weighted_rows_calibrate_as_all_rows_do():
    y, score, fold, truth = sample(too_sure)
    kept = y | (np.arange(len(y)) % 10 == 0)
    weight = np.where(y, 1.0, 10.0)[kept]
    weighted, _ = choose_calibration(y[kept], score[kept], fold[kept], weight)
    assert weighted is not None
    assert np.abs(calibrate(weighted, score) - truth).mean() < 0.02
    unweighted, _ = choose_calibration(y[kept], score[kept], fold[kept])
    assert np.abs(calibrate(unweighted, score) - truth).mean() > 0.05


def test_a_model_that_is_wrong_throughout_is_not_turned_round():
    y, score, _, _ = sample(lambda p: 1 - p)
    assert fit_platt(y, score) is None


def test_one_class_has_no_calibration():
    assert fit_platt(np.zeros(5), np.linspace(0, 1, 5)) is None


def test_calibrated_classifier_maps_the_probabilities():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 2))
    y = (X[:, 0] + rng.normal(size=500) > 0).astype(int)
    inner = LogisticRegression().fit(X, y)
    scores = inner.predict_proba(X)[:, 1]
    calibrator = fit_platt(y, scores**3)
    model = CalibratedClassifier(inner, calibrator)
    expected = calibrate(calibrator, scores)
    np.testing.assert_array_equal(model.predict_proba(X)[:, 1], expected)
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1)


def readings(ratios):
    """Features of which the gas is at so many times its limit, and nothing else reads."""
    X = pd.DataFrame(np.nan, range(len(ratios)), list(FIXED_LIMITS))
    return X.assign(**{name: limit * np.array(ratios) for name, limit in FIXED_LIMITS.items()})


def test_limits_multiply_the_odds_by_a_power_of_the_reading():
    X, score = readings([0.5, 1.0, 2.0]), np.array([0.5, 0.2, 0.5])
    weighed = weigh_by_limits(score, X, 3.0)
    np.testing.assert_allclose(weighed / (1 - weighed), [1 / 8, 0.25, 8.0])
    np.testing.assert_array_equal(weigh_by_limits(score, X, 0.0), score)


def test_without_a_reading_that_has_a_limit_the_order_is_the_models():
    X, score = readings([np.nan, np.nan, 0.1]), np.array([0.3, 0.6, 0.6])
    assert (fixed_threshold_score(X) < 0.25).all()
    weighed = weigh_by_limits(score, X, 3.0)
    assert 0 < weighed[0] < weighed[1] == weighed[2]


def test_a_classifier_weighs_by_the_limits_before_it_calibrates():
    y, score, _, _ = sample(too_sure, n=500)
    X = readings(np.linspace(0.1, 3, 500))
    inner = LogisticRegression().fit(X, y)
    scores = weigh_by_limits(inner.predict_proba(X)[:, 1], X, 3.0)
    calibrator = fit_platt(y, score)
    model = CalibratedClassifier(inner, calibrator, limit_power=3.0)
    np.testing.assert_array_equal(model.predict_proba(X)[:, 1], calibrate(calibrator, scores))
