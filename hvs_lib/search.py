"""Follow a hyper-parameter search candidate by candidate, while scikit-learn runs it."""

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from threading import Lock

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import check_scoring, get_scorer_names
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


def check_search(scoring: str, n_iter: int) -> None:
    """Refuse what scikit-learn would refuse only after the first fits.

    Raises
    ------
    ValueError
        For an unknown scorer, with the nearest name, or less than one candidate.
    """
    if scoring not in get_scorer_names():
        near = get_close_matches(scoring, get_scorer_names(), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}?" if near else "f1 and average_precision are two."
        raise ValueError(f"scoring must be a scikit-learn scorer, got {scoring!r}: {hint}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}.")
