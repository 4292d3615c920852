"""Samplers that work on every fold, and how long the slow ones would take."""

import math
from time import perf_counter

import numpy as np
from imblearn.base import BaseSampler
from imblearn.combine import SMOTEENN, SMOTETomek
from imblearn.over_sampling import ADASYN, SMOTE, BorderlineSMOTE
from imblearn.under_sampling import RandomUnderSampler

from hvs_lib.models import negatives_per_positive

# They search the neighbours of every row, so their time grows with the square of the row count.
SLOW = ("SMOTE-Tomek", "SMOTE-ENN")


def make_samplers(
    y_by_fold: list[np.ndarray],
    *,
    k_neighbors: int,
    sampling_strategy: float,
    thinning: float,
    seed: int,
) -> dict[str, BaseSampler]:
    """Make samplers by name, with fewer neighbours where a fold has few hazardous rows.

    The `SLOW` ones come last.

    Parameters
    ----------
    y_by_fold : list of array
        Labels of the rows that each fold is fitted on.
    k_neighbors : int
        Neighbours to interpolate between; the samplers may use fewer.
    sampling_strategy : float
        Minority/majority after resampling.
    thinning : float
        `normal_stride` over `hazard_stride` of the rows in the folds.
    seed : int

    Raises
    ------
    ValueError
        If a fold has fewer than two hazardous rows to interpolate between, or more than asked for.

    References
    ----------
    Chawla et al., J. Artif. Intell. Res. 16 (2002) 321-357 (SMOTE); Han, Wang, Mao, ICIC (2005)
    878-887 (borderline); He et al., IJCNN (2008) 1322-1328 (ADASYN); Batista, Prati, Monard,
    SIGKDD Explorations 6 (2004) 20-29 (SMOTE-Tomek, SMOTE-ENN).

    Examples
    --------
    >>> labels = [np.repeat([0, 1], [90, 4])]  # of one fold, with 4 hazardous rows
    >>> settings = {"k_neighbors": 5, "sampling_strategy": 0.5, "thinning": 1, "seed": 42}
    >>> make_samplers(labels, **settings)["SMOTE"].k_neighbors
    3
    """
    check_sampling(k_neighbors, sampling_strategy)
    check_folds(y_by_fold, sampling_strategy, thinning)
    k = min(k_neighbors, min(int(np.sum(y)) for y in y_by_fold) - 1)
    ratio = {"sampling_strategy": sampling_strategy, "random_state": seed}
    return {  # the types of a new one go into `TRUSTED_TYPES` of tracking/model_files.py, too
        "SMOTE": SMOTE(k_neighbors=k, **ratio),
        "BorderlineSMOTE": BorderlineSMOTE(k_neighbors=k, **ratio),
        "ADASYN": ADASYN(n_neighbors=k, **ratio),
        "random under-sampling": RandomUnderSampler(**ratio),
        "SMOTE-Tomek": SMOTETomek(smote=SMOTE(k_neighbors=k, **ratio), **ratio),
        "SMOTE-ENN": SMOTEENN(smote=SMOTE(k_neighbors=k, **ratio), **ratio),
    }


def estimate_seconds(
    sampler: BaseSampler, X: np.ndarray, y: np.ndarray, *, seed: int = 42
) -> float:
    """Estimate the time of one resampling by a `SLOW` sampler [s], from a trial on a fifth of it.

    Parameters
    ----------
    sampler : sampler
    X : array, shape (n_samples, n_features)
        Imputed and scaled.
    y : array, shape (n_samples,)
        Labels 0 and 1.
    seed : int
        Seed of the draw of rows.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(1000, 3)), np.repeat([0, 1], [950, 50])
    >>> estimate_seconds(SMOTEENN(), X, y) > 0
    True
    """
    rows = np.flatnonzero(np.random.default_rng(seed).random(len(y)) < 0.2)
    if y[rows].sum() < 30:
        rows = np.arange(len(y))  # too few to interpolate between
    start = perf_counter()
    sampler.fit_resample(X[rows], y[rows])
    return (perf_counter() - start) * (len(y) / len(rows)) ** 2


def check_sampling(smote_k_neighbors: int, sampling_strategy: float) -> None:
    """Raise a ValueError for settings of `make_samplers` that no telemetry allows."""
    if smote_k_neighbors < 1:
        raise ValueError(f"smote_k_neighbors must be at least 1, got {smote_k_neighbors}.")
    if not 0 < sampling_strategy <= 1:
        raise ValueError(
            f"sampling_strategy must be above 0 and at most 1, got {sampling_strategy}."
        )


def check_folds(y_by_fold: list[np.ndarray], sampling_strategy: float, thinning: float) -> None:
    """Raise a ValueError for folds that cannot be resampled, see `make_samplers`."""
    fewest = min(int(np.sum(y)) for y in y_by_fold)
    if fewest < 2:
        raise ValueError(
            f"SMOTE needs at least 2 hazardous rows in each fold, got {fewest}: "
            "use more telemetry or fewer folds."
        )
    present = max(1 / negatives_per_positive(y) for y in y_by_fold)
    if present < sampling_strategy:
        return
    cures = [f"raise it above {present:.3f}"] if present < 1 else []
    most = math.ceil(thinning * sampling_strategy / present) - 1
    cures += [f"lower normal_stride to {most:g} times hazard_stride"] if most >= 1 else []
    cures += [
        "run `hvs run 00_data 01_baseline 02_tuning 04_comparison 05_field_trial`, which leaves "
        "03_smote out"
    ]
    raise ValueError(
        f"sampling_strategy must be above {present:.3f}, the ratio of hazardous to normal rows "
        f"that the folds have after thinning, got {sampling_strategy}: {', or '.join(cures)}."
    )
