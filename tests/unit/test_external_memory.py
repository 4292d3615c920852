"""XGBoost on rows in partitions: all of them count, and no thread changes the model."""

from dataclasses import replace

import joblib
import numpy as np
import pytest
from distributed import LocalCluster
from imblearn.over_sampling import SMOTE
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import external_memory
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.external_memory import fits_in_parts
from hvs_lib.models import make_pipeline
from hvs_lib.parallel import cluster
from hvs_lib.progress import log_file


def xgboost(**params):
    return make_pipeline(XGBClassifier(max_depth=3, random_state=0, n_jobs=1, **params))


pytestmark = pytest.mark.filterwarnings("ignore:.*max_rows_in_memory")

PLAIN = xgboost(n_estimators=20)
RANDOM = xgboost(n_estimators=20, subsample=0.7, colsample_bytree=0.5, max_bin=64)


@pytest.fixture(scope="module")
def in_memory(make_telemetry, make_fleet):
    events = {"event_racks": tuple(range(8)), "event_rows": 45}
    fleet = make_fleet(make_telemetry(racks=12, rows=90, **events))
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=3, seed=1)
    return Protocol(fleet, split, normal_stride=3, hazard_stride=2, drop_sensors=0.04)


@pytest.fixture
def in_parts(in_memory):
    return replace(in_memory, max_rows_in_memory=len(in_memory.training.y) // 2 + 1)


def scores(protocol, pipeline):
    """Scores of the test rows, and of all others out of fold."""
    return protocol._score([protocol.fit(pipeline)])[0]


def test_partitions_give_the_model_that_memory_gives(in_memory, in_parts):
    """Without draws, only the bins' edges and the last digits of the sums can differ."""
    expected, found = (
        scores(replace(in_memory, drop_sensors=0.0), PLAIN),
        scores(replace(in_parts, drop_sensors=0.0), PLAIN),
    )
    assert np.abs(found - expected).max() < 0.02 < np.ptp(expected)


def test_all_training_rows_are_fitted_on_in_parts(in_memory, in_parts):
    n_rows = len(in_memory.training.y)
    assert in_parts.fit(PLAIN).n_rows == n_rows
    assert (
        in_parts.fit(PLAIN, build_up="left out").n_rows
        == in_memory.fit(PLAIN, build_up="left out").n_rows
    )
    assert in_parts.fit(PLAIN, share=0.5).n_rows == in_memory.fit(PLAIN, share=0.5).n_rows < n_rows


def test_what_needs_memory_gets_fewer_rows_and_says_so(in_memory, in_parts):
    with pytest.warns(UserWarning, match=r"get one in 2\. Larger strides"):
        assert len(in_parts.training.y) <= 1.05 * in_parts.max_rows_in_memory
    assert "get one in 2" in log_file().read_text()
    linear = make_pipeline(LogisticRegression())
    assert in_parts.fit(linear).n_rows == len(in_parts.training.y)
    share = in_parts.training.weight.sum() / in_memory.training.weight.sum()
    assert share == pytest.approx(1.0, rel=0.1)
    assert fits_in_parts(PLAIN) and not fits_in_parts(linear)
    assert not fits_in_parts(make_pipeline(PLAIN[-1], sampler=SMOTE()))


def test_neither_threads_nor_the_cache_change_the_model(in_parts, tmp_path, monkeypatch):
    expected = scores(replace(in_parts, n_jobs=1), RANDOM)
    cached = replace(in_parts, n_jobs=2, memory=joblib.Memory(tmp_path, verbose=0))
    np.testing.assert_array_equal(scores(cached, RANDOM), expected)
    monkeypatch.setattr(external_memory, "build_features", None)  # all are in the cache
    cached.fit(PLAIN)
    left = [path for path in external_memory.cache.folder().iterdir() if "tmp" in path.name]
    assert not left


def test_other_telemetry_is_fitted_again(in_parts, make_telemetry, make_fleet, tmp_path):
    memory = joblib.Memory(tmp_path, verbose=0)
    one = replace(in_parts, memory=memory)
    events = {"event_racks": tuple(range(8)), "event_rows": 45, "seed": 9}
    other = replace(one, fleet=make_fleet(make_telemetry(racks=12, rows=90, **events)))
    assert not np.array_equal(scores(one, PLAIN), scores(other, PLAIN))


def test_a_model_in_parts_is_logged_like_any_other(in_parts):
    (found,) = dict(in_parts.assess_all({"": in_parts.fit(PLAIN)})).values()
    X = in_parts.training.X_whole
    again = found.model[-1].__class__(**found.model[-1].get_params())
    again.load_model(found.model[-1].get_booster().save_raw())
    np.testing.assert_array_equal(
        again.predict_proba(found.model[0].transform(X)), found.model.predict_proba(X)
    )
    assert found.n_rows == len(in_parts._rows)
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
