"""Draw XGBoost settings and score each on folds that are prepared once for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from imblearn.pipeline import Pipeline
from sklearn.base import clone
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import ParameterSampler
from sklearn.utils.validation import check_memory
from xgboost import QuantileDMatrix, train

from hvs_lib import cache
from hvs_lib.evaluation.outcomes import NOTHING
from hvs_lib.evaluation.protocol import Protocol, TrainingRows
from hvs_lib.models import sets_ratio
from hvs_lib.parallel import side_by_side
from hvs_lib.project import did_you_mean

SCORINGS = ("f1_class1", "pr_auc", "event_recall_5min")
_PREPARING = Lock()  # one fold at a time: all candidates need the same one first


@dataclass
class Folds:
    """The folds of a search, each prepared once per process, on first use.

    A fold has matrices of the rows to fit on and the held-out rows, and a lock, as only one thread
    may use them. Cluster workers get the rows, since XGBoost's matrices cannot leave their process.
    """

    pipeline: Pipeline
    rows: TrainingRows
    prepared: dict[int, tuple[QuantileDMatrix, QuantileDMatrix, Lock]] = field(default_factory=dict)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"prepared": {}}

    def __getitem__(self, number: int) -> tuple[QuantileDMatrix, QuantileDMatrix, Lock]:
        with _PREPARING:
            if number not in self.prepared:
                self.prepared[number] = self._prepare(number)
            return self.prepared[number]

    def _prepare(self, number: int) -> tuple[QuantileDMatrix, QuantileDMatrix, Lock]:
        rows, held = self.rows, self.rows.fold == number
        X, y, max_bin = rows.X[~held], rows.y[~held], self.pipeline[-1].max_bin
        weight = None if sets_ratio(self.pipeline) else rows.weight[~held]
        prepare = clone(self.pipeline[:-1]).fit(X)
        fitting = QuantileDMatrix(prepare.transform(X), label=y, weight=weight, max_bin=max_bin)
        whole = prepare.transform(rows.X_whole[held])
        return fitting, QuantileDMatrix(whole, ref=fitting, max_bin=max_bin), Lock()


def random_search(
    pipeline: Pipeline, protocol: Protocol, space: Mapping, *, n_iter: int, seed: int
) -> Iterator[tuple[dict, dict[str, float]]]:
    """Draw candidates and score them out of fold, as scikit-learn's RandomizedSearchCV does.

    Imputing, scaling and binning do not depend on what is searched, so they are done once per fold;
    only the trees are grown for each candidate.

    Parameters
    ----------
    pipeline : Pipeline
        From `make_pipeline`, with an XGBClassifier and without a sampler.
    protocol : Protocol
        Provides the folds, thinning, alarm budget, number of threads and cache.
    space : mapping of str to distribution
        Distributions to draw from, by pipeline parameter such as ``classify__max_depth``.
    n_iter : int
        Number of candidates to draw.
    seed : int
        Seed of the draws.

    Yields
    ------
    params, metrics : dict, dict
        For each candidate, as soon as it and all earlier ones are scored: for each of `SCORINGS`,
        the mean, the standard deviation and the score of each fold, see `score_candidate`.

    Examples
    --------
    >>> from scipy.stats import randint
    >>> pipeline, space = assessment.model, {"classify__max_depth": randint(2, 6)}
    >>> for params, metrics in random_search(pipeline, protocol, space, n_iter=2, seed=42):
    ...     print(params, round(metrics["cv_pr_auc"], 2))
    {'classify__max_depth': 4} 0.41
    {'classify__max_depth': 5} 0.41
    """
    folds, fold = Folds(pipeline, protocol.training), protocol.training.fold
    keys = [cache.key(protocol.key, pipeline, number) for number in range(protocol.split.n_folds)]
    predict = check_memory(protocol.memory).cache(_predict, ignore=["folds", "number"])

    def score(params: dict) -> tuple[dict, np.ndarray]:
        classifier = clone(pipeline).set_params(**params)[-1]
        settings = classifier.get_xgb_params(), classifier.n_estimators
        hazard = np.empty(len(fold))
        for number, key in enumerate(keys):
            hazard[fold == number] = predict(*settings, key, folds, number)
        return params, hazard

    drawn = ParameterSampler(space, n_iter, random_state=seed)
    for params, hazard in side_by_side(score, drawn, n_jobs=protocol.n_jobs):
        yield params, score_candidate(protocol, hazard)


def check_search(scoring: str, n_iter: int) -> None:
    """Refuse invalid search settings before anything is fitted.

    Raises
    ------
    ValueError
        For an unknown scoring (suggests the closest), or fewer than one candidate.

    Examples
    --------
    >>> check_search("f1", n_iter=20)
    Traceback (most recent call last):
    ValueError: scoring must be one of f1_class1, pr_auc, event_recall_5min, got 'f1': choose one.
    """
    if scoring not in SCORINGS:
        cure = did_you_mean(scoring, SCORINGS, "choose one.")
        raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, got {scoring!r}: {cure}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}.")


def _predict(
    params: dict, n_estimators: int, fold_key: str, folds: Folds, number: int
) -> np.ndarray:
    """Score the held-out rows of a fold with one candidate; `fold_key` stands for the fold."""
    fitting, held_out, lock = folds[number]
    with lock:
        return train(params, fitting, num_boost_round=n_estimators).predict(held_out)


def score_candidate(protocol: Protocol, hazard: np.ndarray) -> dict[str, float]:
    """Score a candidate on the thinned training rows, each weighted by the rows it stands for.

    F1 uses a threshold of 0.5. The recall of events 5 min ahead is at the alarm budget, estimated
    from these rows: a quiet row above the threshold stands for one nuisance alarm per refractory
    time, and an event is caught by one row above it, 5 min or more before the PNR.

    Parameters
    ----------
    protocol : Protocol
    hazard : array, shape (n_samples,)
        Out-of-fold scores of the protocol's training rows.

    Returns
    -------
    dict of str to float
        For each of `SCORINGS`, the mean over the folds, the standard deviation (``_std``) and the
        score of each fold (``_fold_1``...), all with the prefix ``cv_``.
    """
    rows, threshold = protocol.training, _threshold_at_budget(protocol, hazard)
    early = rows.lead_min >= 5
    caught = np.unique(rows.alarm_on[early & (hazard >= threshold)])
    scores = []
    for number in range(protocol.split.n_folds):
        held = rows.fold == number
        y, weight = rows.y[held], {"sample_weight": rows.weight[held]}
        events = np.unique(rows.alarm_on[held & (rows.alarm_on >= 0)])
        f1 = f1_score(y, hazard[held] >= 0.5, **weight)
        pr_auc = average_precision_score(y, hazard[held], **weight)
        scores.append((f1, pr_auc, np.mean(np.isin(events, caught))))
    metrics = {}
    for name, values in zip(SCORINGS, np.transpose(scores), strict=True):
        metrics |= {f"cv_{name}": values.mean(), f"cv_{name}_std": values.std()}
        metrics |= {f"cv_{name}_fold_{k}": value for k, value in enumerate(values, 1)}
    return metrics


def _threshold_at_budget(protocol: Protocol, hazard: np.ndarray) -> float:
    """Find the lowest threshold whose estimated nuisance alarms stay within the budget."""
    rows = protocol.training
    quiet = rows.alarm_on == NOTHING
    descending = np.argsort(-hazard[quiet], kind="stable")
    interval_s, refractory_s = protocol.interval_s, 60 * protocol.rules[0].refractory_min
    alarms_per_row = interval_s / max(refractory_s, interval_s)
    alarms = np.cumsum(rows.weight[quiet][descending]) * alarms_per_row
    over = alarms > protocol.max_nuisance_alarms_per_site_day * protocol.site_days
    if not over.any():
        return 0.0
    return np.nextafter(hazard[quiet][descending[over.argmax()]], np.inf)
