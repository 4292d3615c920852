import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from projects import fitted_in
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import cache, models
from hvs_lib import columns as col
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import make_pipeline
from hvs_lib.samplers import make_samplers

pytestmark = pytest.mark.slow

PIPELINE = make_pipeline(LogisticRegression(C=0.01))
TABLE = {"racks": 8, "rows": 90, "event_racks": (0, 1, 2, 3, 4)}


@pytest.fixture
def protocol(make_telemetry, make_fleet, project):
    return protocol_of(make_fleet(make_telemetry(**TABLE)))


def protocol_of(fleet, **options):
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=2, seed=1, **options)
    strides = {"normal_stride": 3, "hazard_stride": 1}
    return Protocol(fleet, split, **strides, memory=cache.memory())


@pytest.fixture
def fits(monkeypatch):
    """List the fits that are not found in the cache."""
    done, fit = [], models.fit

    def counted(pipeline, X, y, weight, *, key=""):
        done.append(1)
        return fit(pipeline, X, y, weight, key=key)

    monkeypatch.setattr(models, "fit", counted)
    return done


@pytest.mark.parametrize(
    "pipeline",
    [
        PIPELINE,
        make_pipeline(RandomForestClassifier(n_estimators=9, max_depth=4, random_state=0)),
        make_pipeline(
            XGBClassifier(n_estimators=9, max_depth=3),
            sampler=make_samplers(
                [np.repeat([0, 1], [50, 9])], k_neighbors=2, sampling_strategy=0.5,
                thinning=3, seed=0,
            )["SMOTE"],
        ),
    ],
    ids=lambda pipeline: type(pipeline[-1]).__name__,
)  # fmt: skip
def test_what_was_fitted_comes_back_to_the_bit(protocol, fits, project, pipeline):
    fitted = replace(protocol, memory=Protocol.memory).assess(pipeline)
    fits.clear()
    protocol.assess(pipeline)
    assert len(fits) == 3  # two folds and all training racks
    kept = fitted_in(project)
    again = protocol.assess(pipeline)
    assert len(fits) == 3
    assert fitted_in(project) == kept
    assert again.metrics == fitted.metrics
    for name in ("cv_scores", "test_scores"):
        frames = getattr(again, name), getattr(fitted, name)
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    np.testing.assert_array_equal(again.raw_cv_scores, fitted.raw_cv_scores)
    X = protocol.training.X.head(50)
    np.testing.assert_array_equal(
        again.deployable().predict_proba(X), fitted.deployable().predict_proba(X)
    )


@pytest.mark.parametrize("build_up", ["left out", "hazard"])
def test_other_event_ids_are_another_build_up(make_telemetry, make_fleet, project, build_up):
    """The features and labels of both tables are the same, to the bit."""
    plain, longer = make_telemetry(**TABLE), make_telemetry(**TABLE)
    ids = [col.EVENT_ID, col.EVENT_TYPE]
    for row in longer.groupby(col.EVENT_ID, observed=True).head(1).index:
        longer.loc[row - 10 : row, ids] = longer.loc[row, ids].to_numpy()
    one, other = (protocol_of(make_fleet(table)) for table in (plain, longer))
    assert one.key == other.key
    one.fit(PIPELINE, build_up=build_up)
    found = other.fit(PIPELINE, build_up=build_up).models[-1]
    fresh = replace(other, memory=None).fit(PIPELINE, build_up=build_up).models[-1]
    np.testing.assert_array_equal(found[-1].coef_, fresh[-1].coef_)


def test_only_the_same_is_found_again(protocol, fits, make_telemetry, make_fleet):
    protocol.assess(PIPELINE)
    warmer, labelled = make_telemetry(**TABLE), make_telemetry(**TABLE)
    warmer[col.AMBIENT] += np.float32(1)
    labelled.loc[protocol.split.train[0], col.LABEL] ^= 1
    for other, pipeline in [
        (protocol, make_pipeline(LogisticRegression(C=9.0))),
        (protocol_of(protocol.fleet, split="row"), PIPELINE),
        (replace(protocol, normal_stride=4), PIPELINE),
        (replace(protocol, hazard_stride=2), PIPELINE),
        (protocol_of(make_fleet(warmer)), PIPELINE),
        (protocol_of(make_fleet(labelled)), PIPELINE),
    ]:
        fits.clear()
        other.assess(pipeline)
        assert len(fits) == 3
    fits.clear()
    protocol.assess(PIPELINE)
    assert fits == []


@pytest.mark.parametrize(("what", "other"), [("_CODE", "0"), ("package_versions", lambda: {})])
def test_code_and_packages_count(monkeypatch, what, other):
    first = cache.key("a")
    assert cache.key("a") == first != cache.key("b")
    monkeypatch.setattr(cache, what, other)
    assert cache.key("a") != first


def test_after_clear_all_is_fitted_again(protocol, fits, project):
    protocol.assess(PIPELINE)
    converted = project / "data" / "cache" / "telemetry"
    converted.mkdir()
    cache.clear()
    assert not fitted_in(project) and converted.exists()
    protocol.assess(PIPELINE)
    assert len(fits) == 6
    cache.clear()
    cache.clear()  # of nothing


@pytest.mark.parametrize("damage", [b"", b"no pickle", None])
def test_a_damaged_entry_is_computed_again(protocol, fits, project, damage):
    metrics = protocol.assess(PIPELINE).metrics
    for path in project.rglob("output.pkl"):
        path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    assert protocol.assess(PIPELINE).metrics == metrics
    assert len(fits) == 6
    protocol.assess(PIPELINE)
    assert len(fits) == 6


def test_what_a_killed_writer_left_is_not_taken_for_an_entry(protocol, fits, project):
    protocol.assess(PIPELINE)
    for path in project.rglob("output.pkl"):
        path.rename(path.with_name("output.pkl.thread-1-pid-1"))
    protocol.assess(PIPELINE)
    assert len(fits) == 6


def test_several_processes_meet_in_a_fresh_cache(project):
    script = (
        "import numpy as np\n"
        "from hvs_lib import cache\n"
        "from hvs_lib.models import balancing_weight\n"
        "weigh = cache.memory().cache(balancing_weight)\n"
        "for n in range(1, 200):\n"
        "    assert weigh(np.repeat([0, 1], [n, 1])) == n\n"
    )
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == [""] * 3
    assert len(fitted_in(project)) == 199


def test_code_that_is_edited_meanwhile_counts_from_the_next_start(monkeypatch):
    """What is fitted with the code in memory must not be found by the edited code."""
    before = cache.key("rows")
    monkeypatch.setattr(cache, "sources_sha256", lambda *_: "edited")
    assert cache.key("rows") == before


def test_an_estimator_that_is_written_in_a_notebook_is_always_fitted(protocol, fits):
    """The key holds no code of a notebook."""

    class Own(LogisticRegression):
        __module__ = "__main__"

    for _ in range(2):
        protocol.assess(make_pipeline(Own(C=0.01)))
    assert len(fits) == 6


def test_other_names_of_the_features_are_another_entry(protocol):
    before = protocol.key
    rows = protocol.training
    renamed = replace(protocol)
    renamed.__dict__["training"] = replace(rows, X=rows.X.add_prefix("other "))
    assert renamed.key != before
