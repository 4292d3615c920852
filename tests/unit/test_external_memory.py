"""XGBoost on rows in parts: all of them count, and neither threads nor workers change the model."""

import pickle
import tempfile
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
from distributed import LocalCluster
from imblearn.over_sampling import SMOTE
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib import external_memory
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.external_memory import fits_in_parts
from hvs_lib.models import make_pipeline
from hvs_lib.parallel import cluster
from hvs_lib.progress import log_file

pytestmark = pytest.mark.slow


def xgboost(**params):
    return make_pipeline(XGBClassifier(max_depth=3, random_state=0, n_jobs=1, **params))


PLAIN = xgboost(n_estimators=20)
RANDOM = xgboost(n_estimators=20, subsample=0.7, colsample_bytree=0.5, max_bin=64)
EVENTS = {"racks": 12, "rows": 90, "event_racks": tuple(range(8)), "event_rows": 45}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(external_memory, "ROWS_IN_PARTS", 100)


@pytest.fixture(scope="module")
def telemetry(make_telemetry):
    """The last racks have no gas sensor."""
    made = make_telemetry(**EVENTS)
    lacks = made[col.RACK].isin(sorted(made[col.RACK].unique())[-2:])
    made.loc[lacks, [col.CO, col.H2, col.VOC]] = np.nan
    return made


@pytest.fixture(scope="module")
def in_memory(telemetry, make_fleet):
    fleet = make_fleet(telemetry)
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=3, seed=1)
    return Protocol(fleet, split, normal_stride=3, hazard_stride=2)


@pytest.fixture
def in_parts(in_memory):
    return replace(in_memory, max_rows_in_memory=len(in_memory.training.y) // 2 + 1)


def scores(protocol, pipeline):
    """Scores of the test rows, and of all others out of fold."""
    return protocol._score([protocol.fit(pipeline)])[0]


def weighed(fits):
    """Sum of the weights that each model's first tree was grown on, but for a factor."""
    return [model[-1].get_booster().trees_to_dataframe()["Cover"][0] for model in fits.models]


def test_parts_give_the_model_that_memory_gives(in_memory, in_parts):
    """Without draws, only the bins' edges and the last digits of the sums can differ."""
    assert len(list(in_parts.rows_of(PLAIN).X.parts())) > 3
    expected, found = scores(in_memory, PLAIN), scores(in_parts, PLAIN)
    assert np.abs(found - expected).max() < 0.02 < np.ptp(expected)


@pytest.mark.parametrize("options", [{}, {"build_up": "left out"}, {"share": 0.5}])
def test_all_training_rows_are_fitted_on_in_parts(in_memory, in_parts, options):
    expected, found = (each.fit(PLAIN, **options) for each in (in_memory, in_parts))
    assert found.n_rows == expected.n_rows > len(in_parts.training.y) / 2
    assert weighed(found) == pytest.approx(weighed(expected), rel=1e-4)


def test_what_needs_memory_gets_fewer_rows_and_says_so(in_memory, in_parts):
    assert len(in_parts.training.y) <= in_parts.max_rows_in_memory
    assert "get one in 2" in log_file().read_text()
    linear = make_pipeline(LogisticRegression())
    assert in_parts.fit(linear).n_rows == len(in_parts.training.y)
    share = in_parts.training.weight.sum() / in_memory.training.weight.sum()
    assert share == pytest.approx(1.0, rel=0.1)
    assert fits_in_parts(PLAIN) and not fits_in_parts(linear)
    assert not fits_in_parts(make_pipeline(PLAIN[-1], sampler=SMOTE()))
    with pytest.raises(ValueError, match=r"max_rows_in_memory must leave rows .*got 10: raise it"):
        _ = replace(in_memory, max_rows_in_memory=10).training


def test_neither_threads_nor_the_cache_change_the_model(in_parts, tmp_path, monkeypatch):
    dropping = replace(in_parts, drop_sensors=0.2, seed=3)
    expected = scores(replace(dropping, n_jobs=1), RANDOM)
    cached = replace(dropping, n_jobs=2, memory=joblib.Memory(tmp_path, verbose=0))
    np.testing.assert_array_equal(scores(cached, RANDOM), expected)
    monkeypatch.setattr(external_memory, "build_features", None)  # all are in the cache
    cached.fit(PLAIN)
    assert not list(Path(tempfile.gettempdir()).glob("hvs-xgboost-*"))


def test_other_telemetry_is_fitted_again(in_parts, make_telemetry, make_fleet, tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    scores(replace(in_parts, memory=memory), PLAIN)
    fleet = make_fleet(make_telemetry(**EVENTS, seed=9))
    fleet = replace(fleet, sha256=in_parts.fleet.sha256)  # as with other fill values
    other = replace(in_parts, fleet=fleet)
    np.testing.assert_array_equal(
        scores(replace(other, memory=memory), PLAIN), scores(other, PLAIN)
    )


def test_a_model_in_parts_is_like_any_other(in_parts):
    ((_, found),) = in_parts.assess_all({"": in_parts.fit(RANDOM)})
    X = in_parts.training.X_whole
    logged = pickle.loads(pickle.dumps(found.model))
    np.testing.assert_array_equal(logged.predict_proba(X), found.model.predict_proba(X))
    assert str(clone(found.model)) == str(clone(RANDOM))  # and is fitted again from its settings
    assert clone(found.model)[-1].get_params() == RANDOM[-1].get_params()
    assert found.fits.n_rows == len(in_parts.rows)
    assert found.deployable().predict_proba(X).shape == (len(X), 2)


@pytest.fixture(scope="module")
def workers():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as both:
        yield both


def test_workers_fit_the_same_model(in_parts, workers):
    expected = scores(in_parts, RANDOM)
    with cluster(workers.scheduler_address):
        found = in_parts.fit(RANDOM)
    np.testing.assert_array_equal(in_parts._score([found])[0], expected)  # scored without Dask
