"""Self-contained model pipelines, and the alarm that sites use today."""

from collections.abc import Iterator
from time import perf_counter

import numpy as np
import pandas as pd
from imblearn.base import BaseSampler
from imblearn.pipeline import Pipeline
from scipy.stats import loguniform, randint, uniform
from sklearn import config_context
from sklearn.base import BaseEstimator, clone
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib.external_memory import PartitionedFeatures, fit_in_parts
from hvs_lib.features import ROWS_IN_PARTS, features_in_parts, with_sensor_set

# Each of these alone raises an alarm [degC, degC per min, ppm]; a reading at its limit scores 1.
# The limits are engineering estimates of common practice, set above the everyday readings.
FIXED_LIMITS = {
    col.TEMP_MAX: 60.0,
    f"{col.TEMP_MAX}__slope_5min": 1.0,
    col.CO: 100.0,
    col.H2: 100.0,
    col.VOC: 1000.0,
}

# Hand-set XGBoost: few shallow trees and large leaves, since thousands of hazardous rows come from
# only dozens of events. 64 bins rank as well as XGBoost's 256, in two thirds of the time.
XGBOOST_BY_HAND = {
    "n_estimators": 200,
    "learning_rate": 0.05,
    "max_depth": 4,
    "min_child_weight": 10,
    "subsample": 0.7,
    "colsample_bytree": 0.5,
    "max_bin": 64,
}

# The ranges that 02_tuning draws from; scikit-learn's names, prefixed with the pipeline step.
XGBOOST_SEARCH_SPACE = {
    "classify__n_estimators": randint(60, 251),
    "classify__learning_rate": loguniform(0.02, 0.3),
    "classify__max_depth": randint(2, 7),
    "classify__min_child_weight": loguniform(1, 100),
    "classify__subsample": uniform(0.5, 0.5),
    "classify__colsample_bytree": uniform(0.3, 0.7),
    "classify__gamma": loguniform(1e-3, 5.0),
    "classify__reg_alpha": loguniform(1e-3, 10.0),
    "classify__reg_lambda": loguniform(1e-1, 30.0),
}


def make_pipeline(classifier: BaseEstimator, *, sampler: BaseSampler | None = None) -> Pipeline:
    """Chain [impute], scale, [sample] and classify, so that each is fitted on training rows only.

    Parameters
    ----------
    classifier : estimator
        With ``predict_proba``. XGBoost takes missing values as they are, unless a sampler needs
        them imputed.
    sampler : imbalanced-learn sampler
        Applied when fitting, never when predicting.

    Returns
    -------
    Pipeline
        Steps [``impute``], ``scale``, [``sample``] and ``classify``.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> list(make_pipeline(LogisticRegression()).named_steps)
    ['impute', 'scale', 'classify']
    """
    steps = [("scale", StandardScaler()), ("classify", classifier)]
    if sampler is not None:
        steps.insert(1, ("sample", sampler))
    if sampler is not None or not isinstance(classifier, XGBClassifier):
        # A sensor that a site lacks remains a column, so that the signature stays the same.
        impute = SimpleImputer(strategy="median", keep_empty_features=True)
        steps.insert(0, ("impute", impute))
    return Pipeline(steps)


def negatives_per_positive(y: np.ndarray) -> float:
    """Return the number of normal rows per hazardous row, the balanced ``scale_pos_weight``.

    Parameters
    ----------
    y : array, shape (n_samples,)
        Labels 0 and 1.

    Raises
    ------
    ValueError
        If there is no hazardous row.

    Examples
    --------
    >>> negatives_per_positive(np.array([0, 0, 0, 1]))
    3.0
    """
    positives = int(np.sum(y))
    if positives == 0:
        raise ValueError("y must hold at least one hazardous row, got none: use more telemetry.")
    return (len(y) - positives) / positives


def balancing_weight(y: np.ndarray, *, power: float = 1.0, thinning: float = 1.0) -> float:
    """Return the ``scale_pos_weight`` that corrects the imbalance fully or partly.

    Parameters
    ----------
    y : array, shape (n_samples,)
        Labels 0 and 1 of the thinned rows.
    power : float
        Exponent of the ratio of normal to hazardous rows before thinning: 1 balances the classes,
        0.5 takes the square root, 0 leaves the ratio as it was.
    thinning : float
        Factor by which normal rows were thinned more than hazardous ones: `normal_stride` over
        `hazard_stride`.

    Examples
    --------
    >>> balancing_weight(np.array([0, 0, 0, 1]), power=0.5, thinning=12)
    0.5
    """
    return (negatives_per_positive(y) * thinning) ** power / thinning


def sets_ratio(pipeline: Pipeline) -> bool:
    """Tell whether a pipeline sets the ratio of the classes itself, by a sampler or a class weight.

    Weights then do not make up for thinned-out rows: the ratio is what the pipeline sets.
    """
    classifier = pipeline.named_steps["classify"].get_params()
    weights = (classifier.get("class_weight"), classifier.get("scale_pos_weight"))
    return "sample" in pipeline.named_steps or any(weight is not None for weight in weights)


def fit(
    pipeline: Pipeline,
    X: pd.DataFrame | PartitionedFeatures,
    y: np.ndarray,
    weight: np.ndarray,
    *,
    key: str = "",
) -> tuple[Pipeline, float]:
    """Fit a clone of the pipeline, so that it can be cached.

    Parameters
    ----------
    pipeline : Pipeline
        From `make_pipeline`; stays unfitted.
    X : DataFrame, shape (n_samples, n_features), or PartitionedFeatures
        The features; in partitions for a pipeline that `fits_in_parts`.
    y : array, shape (n_samples,)
        Labels 0 and 1.
    weight : array, shape (n_samples,)
        Number of rows that each row stands for; unused if the pipeline `sets_ratio`.
    key : str
        From `hvs_lib.cache.key`; stands for the other arguments and the code in a cache.

    Returns
    -------
    model : Pipeline
        The fitted clone.
    seconds : float
        Fitting time [s].
    """
    start = perf_counter()
    if isinstance(X, PartitionedFeatures):
        weight = np.ones(len(y)) if sets_ratio(pipeline) else weight
        return fit_in_parts(pipeline, X, y, weight), perf_counter() - start
    arguments = {} if sets_ratio(pipeline) else {"classify__sample_weight": weight}
    return clone(pipeline).fit(X, y, **arguments), perf_counter() - start


def before_scoring(model: Pipeline) -> Pipeline:
    """Return the steps that a fitted pipeline applies to features before its classifier."""
    return Pipeline([step for step in model.steps[:-1] if step[0] != "sample"])


def score_in_parts(
    model: BaseEstimator, telemetry: pd.DataFrame, sensor_set: str
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame, np.ndarray]]:
    """Score each row of telemetry with the sensors of a set, a few whole modules at a time.

    Yields
    ------
    whole, X, y_score : DataFrame, DataFrame, array
        Features of the next rows, the same features as the model sees them, and its scores.
    """
    for whole in features_in_parts(telemetry):
        X = with_sensor_set(whole, sensor_set)
        # In slices: each pipeline step copies its input, and a module may be long.
        slices = [X.iloc[k : k + ROWS_IN_PARTS] for k in range(0, len(X), ROWS_IN_PARTS)]
        with config_context(assume_finite=True):  # except for NaN
            y_score = np.concatenate([model.predict_proba(part)[:, 1] for part in slices])
        yield whole, X, y_score


def fixed_threshold_score(X: pd.DataFrame) -> np.ndarray:
    """Score rows as the fixed-threshold alarm does: the largest reading relative to its limit.

    Parameters
    ----------
    X : DataFrame, shape (n_samples, n_features)
        From `build_features`.

    Returns
    -------
    array, shape (n_samples,)
        1 or more where any of `FIXED_LIMITS` is reached; 0 where none of these has a reading.

    Examples
    --------
    >>> readings = dict.fromkeys(FIXED_LIMITS, [0.0]) | {col.TEMP_MAX: [30.0]}
    >>> fixed_threshold_score(pd.DataFrame(readings))
    array([0.5])
    """
    ratios = [X[name].to_numpy(np.float64) / limit for name, limit in FIXED_LIMITS.items()]
    return np.nan_to_num(np.fmax.reduce(ratios), nan=0.0)
