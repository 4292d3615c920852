"""Search settings of XGBoost, with what all candidates have in common done once for each fold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from threading import Lock

from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.models import row_weights

import numpy as np
from imblearn.pipeline import Pipeline
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.metrics import average_precision_score, f1_score
from xgboost import QuantileDMatrix, XGBClassifier, train

SCORINGS = ("f1_class1", "pr_auc")


@dataclass
class PreparedFold:
    """One fold, imputed, scaled and binned; the lock keeps two threads off its matrices.

    Attributes
    ----------
    number : of the fold, from 0.
    rows : array of int, shape (n_rows,), positions of the rows to fit on.
    fitting, held_out : the binned features of these rows and of the rows to score.
    """

    number: int
    rows: np.ndarray
    fitting: QuantileDMatrix
    held_out: QuantileDMatrix
    lock: Lock = field(default_factory=Lock)


class SharedFolds:
    """The folds of a protocol, prepared and binned once for all candidates of a search.

    Imputing, scaling and binning do not depend on what is searched, so only the trees are grown for
    each candidate. The scores are those of the whole pipeline.

    Parameters
    ----------
    pipeline : from `make_pipeline`, with an XGBClassifier and without a sampler.
    protocol : its folds, thinning and row weights.
    names : the parameters that are searched; they tell the candidates apart.
    scored : parameters and metrics of the candidates that an earlier search has scored on these
        folds, from ``run.scored_candidates``: they are not fitted again.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        protocol: Protocol,
        *,
        names: Iterable[str],
        scored: Iterable[tuple[Mapping, Mapping]] = (),
    ):
        self.names = tuple(names)
        self.cv = [(protocol.fitting_rows(rows), held) for rows, held in protocol.split.folds]
        self.folds = [
            _prepare(pipeline, protocol, number, *rows) for number, rows in enumerate(self.cv)
        ]
        self._scored = {self._key(params): metrics for params, metrics in scored}

    def __sklearn_clone__(self) -> SharedFolds:
        return self  # each candidate clones its parameters, and this is what they share

    def fitted_on(self, rows: np.ndarray) -> PreparedFold:
        """Find the fold by the rows that it is fitted on."""
        return next(fold for fold in self.folds if np.array_equal(fold.rows, rows))

    def scored_before(self, params: Mapping, fold: int) -> tuple[float, float] | None:
        """Return a candidate's `SCORINGS` on a fold from an earlier search, if it has them."""
        metrics = self._scored.get(self._key(params), {})
        names = [_fold_metric(name, fold) for name in SCORINGS]
        return tuple(metrics[name] for name in names) if metrics.keys() >= set(names) else None

    def _key(self, params: Mapping) -> tuple[str, ...]:
        return tuple(str(params[name]) for name in self.names)  # MLflow keeps parameters as text


class SharedFoldClassifier(ClassifierMixin, BaseEstimator):
    """XGBoost on prepared folds, for scikit-learn's searches.

    Hand the search the positions of the rows, shape (n_samples, 1), as its X and ``folds.cv`` as
    its folds. Parameters are searched under their names in the pipeline, such as
    ``classify__max_depth``.

    Parameters
    ----------
    classify : XGBClassifier with the parameters that are not searched.
    folds : SharedFolds.
    """

    def __init__(self, classify: XGBClassifier, folds: SharedFolds):
        self.classify = classify
        self.folds = folds

    def fit(self, rows: np.ndarray, y: np.ndarray) -> SharedFoldClassifier:
        """Grow the trees; none where the scores are known."""
        self.classes_ = np.array([0, 1])
        self.fold_ = self.folds.fitted_on(rows[:, 0])
        self.booster_ = None
        self.scores_ = self.folds.scored_before(self.get_params(), self.fold_.number)
        if self.scores_ is None:
            with self.fold_.lock:
                self.booster_ = train(
                    self.classify.get_xgb_params(),
                    self.fold_.fitting,
                    num_boost_round=self.classify.n_estimators,
                )
        return self

    def predict_proba(self, rows: np.ndarray) -> np.ndarray:
        """Score the rows held out, shape (n_samples, 2)."""
        with self.fold_.lock:
            hazard = self.booster_.predict(self.fold_.held_out)
        return np.column_stack([1 - hazard, hazard])


class CandidateScorer:
    """A scorer that reports each candidate, by both metrics, as soon as its last fold is scored.

    Pass it as ``scoring`` to scikit-learn's searches, with joblib's threading backend: XGBoost
    releases the interpreter while it trains, and threads share the prepared folds.

    Parameters
    ----------
    scoring : one of `SCORINGS`, what the search maximises.
    folds : what the candidates are fitted on.
    on_candidate : called with the candidate's number, its parameters and its metrics: of each of
        `SCORINGS` the mean, the standard deviation and the score of each fold.
    """

    def __init__(
        self,
        scoring: str,
        folds: SharedFolds,
        *,
        on_candidate: Callable[[int, dict, dict[str, float]], None],
    ):
        self._scoring = scoring
        self._folds = folds
        self._on_candidate = on_candidate
        self._scores: dict[tuple, dict[int, tuple[float, float]]] = {}
        self._finished = 0
        self._lock = Lock()

    def __call__(self, estimator: BaseEstimator, X, y) -> float:
        """Score one fold of one candidate."""
        score = estimator.scores_
        if score is None:
            hazard = estimator.predict_proba(X)[:, 1]
            score = f1_score(y, hazard >= 0.5), average_precision_score(y, hazard)
        params = {name: estimator.get_params()[name] for name in self._folds.names}
        with self._lock:
            scores = self._scores.setdefault(tuple(params.values()), {})
            scores[estimator.fold_.number] = score
            if len(scores) == len(self._folds.folds):
                self._finished += 1
                self._on_candidate(self._finished, params, _candidate_metrics(scores))
        return score[SCORINGS.index(self._scoring)]


def check_search(scoring: str, n_iter: int) -> None:
    """Refuse what could not be searched, before anything is fitted.

    Raises
    ------
    ValueError
        For an unknown scoring, with the nearest name, or less than one candidate.
    """
    if scoring not in SCORINGS:
        near = get_close_matches(scoring, SCORINGS, n=1, cutoff=0.3)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"scoring must be one of {', '.join(SCORINGS)}, got {scoring!r}{hint}")
    if n_iter < 1:
        raise ValueError(f"n_iter must be at least 1, got {n_iter}.")


def _candidate_metrics(scores: Mapping[int, tuple[float, float]]) -> dict[str, float]:
    metrics = {}
    for place, name in enumerate(SCORINGS):
        of_folds = {fold: scores[fold][place] for fold in sorted(scores)}
        values = list(of_folds.values())
        metrics |= {f"cv_{name}": np.mean(values), f"cv_{name}_std": np.std(values)}
        metrics |= {_fold_metric(name, fold): value for fold, value in of_folds.items()}
    return metrics


def _fold_metric(name: str, fold: int) -> str:
    return f"cv_{name}_fold_{fold + 1}"


def _prepare(
    pipeline: Pipeline, protocol: Protocol, number: int, rows: np.ndarray, held: np.ndarray
) -> PreparedFold:
    X, y = protocol.X, protocol.y
    prepare = clone(pipeline[:-1]).fit(X.iloc[rows])
    bins = {"max_bin": pipeline[-1].max_bin} if pipeline[-1].max_bin else {}
    fitting = QuantileDMatrix(
        prepare.transform(X.iloc[rows]),
        label=y[rows],
        weight=row_weights(pipeline, y[rows], normal_stride=protocol.normal_stride),
        **bins,
    )
    held_out = QuantileDMatrix(prepare.transform(X.iloc[held]), ref=fitting)
    return PreparedFold(number, rows, fitting, held_out)
