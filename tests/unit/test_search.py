from hvs_lib.models import make_pipeline
from hvs_lib.search import CandidateScorer, check_search, progress_bar

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.stats import loguniform
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RandomizedSearchCV, StratifiedKFold

SPACE = {"classify__C": loguniform(1e-3, 1e2)}


def search(scoring, **options):
    rng = np.random.default_rng(1)
    X = pd.DataFrame(rng.normal(size=(400, 3)))
    y = (X[0] + rng.normal(size=400) > 1.5).to_numpy().astype(int)
    folds = list(StratifiedKFold(3).split(X, y))
    found = RandomizedSearchCV(
        make_pipeline(LogisticRegression()), SPACE, n_iter=6, scoring=scoring, cv=folds,
        refit=False, random_state=3, error_score="raise", **options,
    )  # fmt: skip
    with joblib.parallel_config(backend="threading"):
        return found.fit(X, y).cv_results_


@pytest.mark.parametrize("scoring", ["f1", "average_precision"])
def test_same_candidates_and_scores_as_scikit_learn(scoring):
    seen = []
    scorer = CandidateScorer(
        scoring, names=SPACE, n_folds=3, on_candidate=lambda *found: seen.append(found)
    )
    ours, theirs = search(scorer, n_jobs=2), search(scoring)
    assert ours["params"] == theirs["params"]
    np.testing.assert_array_equal(ours["mean_test_score"], theirs["mean_test_score"])
    reported = {params["classify__C"]: scores.mean() for _, params, scores in seen}
    expected = dict(zip(theirs["param_classify__C"], theirs["mean_test_score"], strict=True))
    assert reported == pytest.approx(expected, abs=1e-15)
    assert [number for number, *_ in seen] == [1, 2, 3, 4, 5, 6]


def test_a_candidate_is_reported_before_the_next_begins():
    """One thread works candidate by candidate, so each is known when its last fold is."""
    order = []

    class Watch(CandidateScorer):
        def __call__(self, *args):
            score = super().__call__(*args)
            order.append("fold")
            return score

    search(Watch("f1", names=SPACE, n_folds=3, on_candidate=lambda *_: order.append("candidate")))
    assert order == ["fold", "fold", "candidate", "fold"] * 6


def test_progress_goes_to_standard_output(capsys):
    with progress_bar(2, "candidates") as bar:
        bar.update()
    captured = capsys.readouterr()
    assert "candidates" in captured.out
    assert captured.err == ""


def test_bad_search_is_refused_before_it_starts():
    check_search("f1", 1)
    with pytest.raises(ValueError, match="'averge_precision': did you mean 'average_precision'"):
        check_search("averge_precision", 1)
    with pytest.raises(ValueError, match="n_iter must be at least 1, got 0"):
        check_search("f1", 0)
