import numpy as np
import pytest
from sklearn.base import clone

from hvs_lib.samplers import SLOW, estimate_seconds, make_samplers

SETTINGS = {"k_neighbors": 5, "sampling_strategy": 0.5, "thinning": 18, "seed": 1}
FOLDS = [np.repeat([0, 1], [90, 10]), np.repeat([0, 1], [80, 4])]


def blob(n_normal=400, n_hazard=40, seed=0):
    rng = np.random.default_rng(seed)
    X = np.vstack([rng.normal(size=(n_normal, 3)), rng.normal(1.0, size=(n_hazard, 3))])
    return X, np.repeat([0, 1], [n_normal, n_hazard])


@pytest.mark.parametrize(
    "name",
    ["SMOTE", "BorderlineSMOTE", "ADASYN", "random under-sampling", "SMOTE-Tomek", "SMOTE-ENN"],
)
def test_each_sampler_reaches_about_the_ratio_and_repeats_itself(name):
    X, y = blob()
    sampler = make_samplers([y], **(SETTINGS | {"seed": 3}))[name]
    X_new, y_new = clone(sampler).fit_resample(X, y)
    again = clone(sampler).fit_resample(X, y)[0]
    np.testing.assert_array_equal(X_new, again)
    assert 0.4 < y_new.sum() / (y_new == 0).sum() < 0.75
    assert (len(y_new) < len(y)) == (name == "random under-sampling")


def test_the_slow_ones_come_last():
    assert tuple(make_samplers(FOLDS, **SETTINGS))[-2:] == SLOW


@pytest.mark.parametrize("name", ["SMOTE", "BorderlineSMOTE", "SMOTE-Tomek", "SMOTE-ENN"])
def test_no_more_neighbours_than_the_smallest_fold_has(name):
    def neighbours(folds):
        made = make_samplers(folds, **SETTINGS)[name]
        return getattr(made, "smote", made).k_neighbors

    assert neighbours(FOLDS) == 3
    assert neighbours(FOLDS[:1]) == 5


def test_estimate_grows_with_the_square_of_the_share(monkeypatch):
    """A sampler that reports how many rows it got, on a clock that this number drives."""
    clock = [0.0]

    class Square:
        def fit_resample(self, X, y):
            clock[0] += len(X) ** 2 / 1e6
            return X, y

    monkeypatch.setattr("hvs_lib.samplers.perf_counter", lambda: clock[0])
    X, y = blob(4000, 400)
    assert estimate_seconds(Square(), X, y) == pytest.approx(4400**2 / 1e6)


@pytest.mark.parametrize(
    ("folds", "options", "message"),
    [
        (FOLDS, {"k_neighbors": 0}, "smote_k_neighbors must be at least 1, got 0"),
        ([np.array([0, 1])], {}, "at least 2 hazardous rows in each fold, got 1"),
        (
            FOLDS,
            {"sampling_strategy": 0.1},
            r"must be above 0\.111, .*got 0\.1: raise it above 0\.111, or lower normal_stride to 16"
            " times hazard_stride,",
        ),
        (
            [np.repeat([0, 1], [40, 60])],
            {},
            r"must be above 1\.500, .*got 0\.5: lower normal_stride to 5 times .*, or run `hvs run",
        ),
        (
            [np.repeat([0, 1], [40, 60])],
            {"thinning": 1},
            r"must be above 1\.500, .*got 0\.5: run `hvs run 00_data",
        ),
        (FOLDS, {"sampling_strategy": 1.5}, r"at most 1, got 1\.5"),
    ],
)
def test_samplers_that_cannot_work_are_refused(folds, options, message):
    with pytest.raises(ValueError, match=message):
        make_samplers(folds, **(SETTINGS | options))


def test_a_try_on_few_hazardous_rows_takes_all_rows():
    sampler = make_samplers([np.repeat([0, 1], [90, 10])], **SETTINGS)["SMOTE-Tomek"]
    assert estimate_seconds(sampler, *blob(90, 10)) > 0
