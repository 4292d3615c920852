"""Follow a hyper-parameter search candidate by candidate, while scikit-learn runs it."""

import sys
from collections.abc import Callable, Iterable
from threading import Lock

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import check_scoring
from tqdm import tqdm


class CandidateScorer:
    """A scorer that also reports each candidate as soon as its last fold is scored.

    Pass it as ``scoring`` to scikit-learn's searches, with joblib's threading backend: XGBoost
    releases the interpreter while it trains, and threads share the features instead of copying
    them.

    Parameters
    ----------
    scoring : name of a scikit-learn scorer, such as ``f1`` or ``average_precision``.
    names : the parameters that are searched; they tell the candidates apart.
    n_folds : scores that make a candidate complete.
    on_candidate : called with the candidate's number, its parameters and its scores, shape
        (n_folds,), in the order in which the folds ended.
    """

    def __init__(
        self,
        scoring: str,
        *,
        names: Iterable[str],
        n_folds: int,
        on_candidate: Callable[[int, dict, np.ndarray], None],
    ):
        self._scoring = scoring
        self._names = tuple(names)
        self._n_folds = n_folds
        self._on_candidate = on_candidate
        self._scores: dict[tuple, list[float]] = {}
        self._finished = 0
        self._lock = Lock()

    def __call__(self, estimator: BaseEstimator, X, y) -> float:
        """Score one fold of one candidate."""
        score = float(check_scoring(estimator, self._scoring)(estimator, X, y))
        params = {name: estimator.get_params()[name] for name in self._names}
        with self._lock:
            scores = self._scores.setdefault(tuple(params.values()), [])
            scores.append(score)
            if len(scores) == self._n_folds:
                self._finished += 1
                self._on_candidate(self._finished, params, np.array(scores))
        return score


def progress_bar(total: int, unit: str) -> tqdm:
    """Return a bar for the terminal or the notebook that vanishes when it is closed.

    It writes to standard output, since a notebook shows standard error as a warning, and seldom
    enough for a headless log.
    """
    return tqdm(total=total, unit=f" {unit}", file=sys.stdout, leave=False, mininterval=1, ncols=80)
