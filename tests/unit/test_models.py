import numpy as np
import pandas as pd
import pytest
from imblearn.over_sampling import SMOTE
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib import models


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(3000, 4)), columns=list("abcd")).astype(np.float32)
    y = (np.arange(3000) % 10 == 0).astype(np.int8)
    return X.assign(a=X["a"] + 2 * y), y


def test_pipeline_samples_after_scaling_and_only_while_fitting(rows):
    X, y = rows
    seen = {}

    class Watch(LogisticRegression):
        def fit(self, X, y, **kwargs):
            seen["mean"], seen["share"] = X[:3000].mean(axis=0), y.mean()
            return super().fit(X, y, **kwargs)

    sampler = SMOTE(sampling_strategy=0.5, random_state=0)
    pipeline = models.make_pipeline(Watch(), sampler=sampler).fit(X, y)
    assert seen["share"] == pytest.approx(1 / 3, abs=0.01)
    assert np.abs(seen["mean"]).max() < 1e-6  # scaled before: SMOTE keeps the real rows first
    assert len(pipeline.predict_proba(X)) == len(X)


def test_absent_sensor_stays_a_column(rows):
    X, y = rows
    model = models.make_pipeline(LogisticRegression()).fit(X.assign(b=np.nan), y)
    assert model.named_steps["classify"].n_features_in_ == X.shape[1]


def test_negatives_per_positive():
    assert models.negatives_per_positive(np.array([0, 0, 0, 1])) == 3
    with pytest.raises(ValueError, match="at least one hazardous row"):
        models.negatives_per_positive(np.zeros(3))


def mean_score(pipeline, X, y, kept, *, weight):
    """Fit on some rows and score all."""
    model, seconds = models.fit(pipeline, X.iloc[kept], y[kept], weight[kept])
    assert seconds > 0
    return model.predict_proba(X)[:, 1].mean()


def test_balancing_weight_goes_from_no_weight_to_full_balance(rows):
    X, y = rows
    kept = np.flatnonzero((y == 1) | (np.arange(3000) % 3 == 1))
    assert models.balancing_weight(y) == 9
    assert models.balancing_weight(y[kept]) == pytest.approx(3)
    full, root, none = (
        models.balancing_weight(y[kept], power=power, thinning=3) for power in (1, 0.5, 0)
    )
    assert (full, root, none) == pytest.approx((3, 1, 1 / 3))
    weighted = models.make_pipeline(XGBClassifier(scale_pos_weight=none, min_child_weight=0))
    plain = models.make_pipeline(XGBClassifier(min_child_weight=0))
    mean = [
        mean_score(model, X, y, kept, weight=np.where(y == 1, 1.0, 3.0))
        for model in (weighted, plain)
    ]
    assert mean[0] == pytest.approx(mean[1], rel=0.1)


@pytest.mark.parametrize(
    ("pipeline", "sets"),
    [
        (models.make_pipeline(LogisticRegression()), False),
        (models.make_pipeline(XGBClassifier()), False),
        (models.make_pipeline(LogisticRegression(class_weight="balanced")), True),
        (models.make_pipeline(XGBClassifier(scale_pos_weight=9)), True),
        (models.make_pipeline(XGBClassifier(), sampler=SMOTE(random_state=0)), True),
    ],
)
def test_thinning_is_weighed_back_unless_the_pipeline_sets_the_ratio(rows, pipeline, sets):
    X, y = rows
    assert models.sets_ratio(pipeline) == sets
    X, y = X.head(300), y[:300]
    model, unweighted = (
        models.fit(pipeline, X, y, np.where(y == 1, 1.0, each))[0] for each in (50, 1)
    )
    same = np.array_equal(model.predict_proba(X), unweighted.predict_proba(X))
    assert same == sets


def test_thinned_and_weighed_back_gives_the_probabilities_of_all_rows(rows):
    X, y = rows
    pipeline = models.make_pipeline(LogisticRegression())
    place = pd.Series(y).groupby(y).cumcount().to_numpy()
    kept = np.flatnonzero(place % np.where(y == 1, 2, 6) == 0)
    weight = np.where(y == 1, 2.0, 6.0)
    everything = mean_score(pipeline, X, y, np.arange(3000), weight=np.ones(3000))
    thinned = mean_score(pipeline, X, y, kept, weight=weight)
    unweighed = mean_score(pipeline, X, y, kept, weight=np.ones(3000))
    assert thinned == pytest.approx(everything, rel=0.1)
    assert unweighed > 1.5 * everything


def test_fit_leaves_the_pipeline_unfitted(rows):
    X, y = rows
    pipeline = models.make_pipeline(LogisticRegression())
    models.fit(pipeline, X, y, np.ones(3000))
    assert not hasattr(pipeline.named_steps["scale"], "mean_")


def test_fixed_threshold_scores_one_at_a_limit():
    quiet = dict.fromkeys(models.FIXED_LIMITS, 0.0)
    X = pd.DataFrame([quiet] * 4).astype(np.float32)
    X.loc[1, col.TEMP_MAX] = 60.0
    X.loc[2, col.CO] = 200.0
    X.loc[3, list(quiet)] = np.nan
    assert models.fixed_threshold_score(X).tolist() == [0, 1, 2, 0]
