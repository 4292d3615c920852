import shutil

import mlflow
import numpy as np
import pandas as pd
import pytest
import skops.io
import yaml
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier
from xgboost import XGBClassifier

from hvs_lib.evaluation.calibration import CalibratedClassifier, fit_platt
from hvs_lib.models import make_pipeline
from hvs_lib.samplers import make_samplers
from hvs_lib.tracking.model_files import ModelError, load_model, types_to_trust

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
X = pd.DataFrame(RNG.normal(size=(300, 3)).astype(np.float32), columns=list("abc"))
Y = (RNG.random(300) < 0.2).astype(np.int8)
SAMPLERS = make_samplers([Y], thinning=18, k_neighbors=3, sampling_strategy=0.5, seed=0)
PIPELINES = {
    "logistic regression": make_pipeline(LogisticRegression(class_weight="balanced")),
    "random forest": make_pipeline(RandomForestClassifier(5, class_weight="balanced")),
    "XGBoost": make_pipeline(XGBClassifier(n_estimators=3, scale_pos_weight=np.float64(3))),
    **{
        name: make_pipeline(XGBClassifier(n_estimators=3), sampler=sampler)
        for name, sampler in SAMPLERS.items()
    },
}


def deployable(pipeline, method="platt"):
    pipeline.fit(X, Y)
    scores = pipeline.predict_proba(X)[:, 1].astype(float)
    calibrator = fit_platt(Y, scores) if method == "platt" else None
    model = CalibratedClassifier(pipeline, calibrator)
    fixed = FixedThresholdClassifier(FrozenEstimator(model), threshold=0.3, pos_label=1)
    return fixed.fit(X, Y)


def save(model, folder, **options):
    options = {"skops_trusted_types": types_to_trust(model)} | options
    # MLflow would find out what it needs by loading it in another process
    mlflow.sklearn.save_model(model, folder, pip_requirements=["scikit-learn"], **options)


@pytest.fixture
def saved(tmp_path):
    """Save a sound model, and return its folder."""
    save(deployable(PIPELINES["XGBoost"]), tmp_path / "model")
    return tmp_path / "model"


def edit(folder, **changes):
    """Change what the MLmodel file says of the scikit-learn flavor."""
    path = folder / "MLmodel"
    described = yaml.safe_load(path.read_text())
    described["flavors"]["sklearn"] |= changes
    path.write_text(yaml.safe_dump(described))


@pytest.mark.parametrize("method", ["none", "platt"])
@pytest.mark.parametrize("name", PIPELINES)
def test_what_the_notebooks_log_comes_back(tmp_path, name, method):
    model = deployable(PIPELINES[name], method)
    save(model, tmp_path / "model", metadata={"alarm_k": 3})
    loaded, metadata = load_model(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert metadata == {"alarm_k": 3}


class Bomb(ClassifierMixin, BaseEstimator):
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path=""):
        self.path = path

    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.zeros(len(X))

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_refused_and_not_opened(tmp_path):
    bomb, mark = tmp_path / "bomb", tmp_path / "mark"
    pickle_it = {"serialization_format": "cloudpickle"}
    mlflow.sklearn.save_model(Bomb(str(mark)), bomb, **pickle_it)
    mark.unlink(missing_ok=True)
    with pytest.raises(ModelError, match="not stored as skops"):
        load_model(bomb)
    edit(bomb, serialization_format="skops")  # a lie
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(bomb)
    assert not mark.exists()
    edit(bomb, serialization_format="cloudpickle")
    mlflow.sklearn.load_model(str(bomb)).close()
    assert mark.exists(), "the bomb is live: MLflow's own loader sets it off"


def test_types_that_the_file_itself_trusts_are_refused(saved):
    skops.io.dump(Bomb("x"), saved / "model.skops")
    strange = skops.io.get_untrusted_types(file=saved / "model.skops")
    edit(saved, skops_trusted_types=strange)
    with pytest.raises(ModelError, match=r"types that the workbook does not use, .*Bomb"):
        load_model(saved)


def test_a_model_with_code_of_its_own_is_refused(saved):
    edit(saved, code="code")
    with pytest.raises(ModelError, match="brings code of its own"):
        load_model(saved)


def test_a_file_outside_the_folder_is_refused(saved):
    shutil.copy(saved / "model.skops", saved.parent)
    edit(saved, pickled_model="../model.skops")
    with pytest.raises(ModelError, match="is refused"):
        load_model(saved)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 cut"])
def test_a_damaged_file_is_told(saved, content):
    (saved / "model.skops").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(saved)


@pytest.mark.parametrize(
    "content", ["", "[1, 2]", "flavors: 3", "flavors: {sklearn: 1}", "a: b: c"]
)
def test_a_damaged_description_is_told(saved, content):
    (saved / "MLmodel").write_text(content)
    with pytest.raises(ModelError):
        load_model(saved)


def test_an_absent_model_is_told(store, tmp_path):
    for uri in (tmp_path / "nothing", "models:/nothing@champion", "runs:/0/model"):
        with pytest.raises(ModelError, match="there is no model"):
            load_model(uri)


def test_what_would_be_refused_is_not_logged():
    with pytest.raises(ModelError, match=r"the model to log is refused: .*Bomb"):
        types_to_trust(Bomb())


def test_the_scaler_is_no_pickle(start_run, make_fleet):
    from hvs_lib.evaluation.protocol import Protocol
    from hvs_lib.evaluation.splits import split_fleet
    from hvs_lib.tracking.runs import log_assessment

    fleet = make_fleet(racks=8, rows=90, event_racks=(0, 1, 2, 3, 4))
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=2, seed=1)
    protocol = Protocol(fleet, split, normal_stride=3)
    start_run()
    run_id = log_assessment(
        protocol.assess(make_pipeline(LogisticRegression(C=0.01))), protocol, model_name="LR"
    )
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="scaler.skops")
    assert skops.io.get_untrusted_types(file=path) == []
    assert skops.io.load(path).mean_.shape == (protocol.training.X.shape[1],)
