import json
import os
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace

from hvs_lib import tracking
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.splits import split_by_rack
from hvs_lib.features import build_features
from hvs_lib.models import make_pipeline
from hvs_lib.progress import log_file
from hvs_lib.project import StoreError
from hvs_lib.sqlite_store import BesideTheStore
from hvs_lib.telemetry.files import sha256_of_file
from hvs_lib.tracking import notebook_run
from hvs_lib.tracking.model_files import ModelError, load_model
from hvs_lib.tracking.store import search_runs, wait_for_server

import mlflow
import numpy as np
import pandas as pd
import pytest
from imblearn.over_sampling import SMOTE
from IPython.core.interactiveshell import InteractiveShell
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from urllib3.util.retry import Retry
from xgboost import XGBClassifier


@pytest.fixture
def data_file(tmp_path):
    path = tmp_path / "telemetry.csv"
    path.write_text("some telemetry")
    return path


@pytest.fixture
def run(store, data_file):
    return tracking.start(
        "01_baseline", stage="baseline", params={"seed": 7, "split": "rack"}, data_path=data_file
    )


@pytest.fixture
def protocol(make_telemetry):
    telemetry = make_telemetry(racks=8, rows=90, event_racks=(0, 1, 2, 3, 4))
    split = split_by_rack(telemetry, test_size=0.25, n_folds=2, seed=1)
    return Protocol(telemetry, build_features(telemetry), split, normal_stride=3)


def log(run, protocol, classifier=None, *, sampler=None, **tags):
    classifier = LogisticRegression(C=0.01) if classifier is None else classifier
    found = protocol.assess(make_pipeline(classifier, sampler=sampler))
    return run.log_assessment(found, protocol, **({"model_name": "a model"} | tags)), found


def test_store_is_at_the_project_root_whatever_the_working_directory(run, store, tmp_path_factory):
    assert mlflow.get_tracking_uri() == f"sqlite+pysqlite:///{store / 'mlflow.db'}"
    experiment = mlflow.get_experiment_by_name("HVS_Fire_Prediction_Baseline")
    assert experiment.artifact_location == "hvs:/mlartifacts"
    MlflowClient().log_text(run.run_id, "a note", "note.txt")
    artifacts = MlflowClient().get_run(run.run_id).info.artifact_uri
    assert mlflow.artifacts.download_artifacts(artifacts).startswith(str(store / "mlartifacts"))
    with sqlite3.connect(store / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("name", ["moved", "a%20b", "what? now", "#;&ü [x]", "a+b=c"])
def test_store_goes_where_its_folder_goes(
    run, protocol, store, tmp_path_factory, monkeypatch, name
):
    run_id, _ = log(run, protocol)
    tracking.register_champion(run_id)
    scores = tracking.read_scores(run_id)
    folder = tmp_path_factory.mktemp("elsewhere") / name
    shutil.move(store, folder)
    monkeypatch.setenv("HVS_PROJECT_ROOT", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow has set it for child processes
    tracking.connect()
    pd.testing.assert_frame_equal(tracking.read_scores(run_id), scores)
    load_model("models:/hvs-fire-prediction@champion")
    log(tracking.start("01_baseline", stage="baseline", params={}), protocol)
    assert len(search_runs("tags.role = 'model'")) == 2
    assert [path.name for path in folder.parent.iterdir()] == [name]  # nothing lands beside it


def test_a_new_store_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HVS_PROJECT_ROOT", str(tmp_path / "what? now" / "100%25"))
    tracking.connect()
    assert (tmp_path / "what? now" / "100%25" / "mlflow.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["what? now"]


def test_a_relative_store_is_that_of_the_project(project, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    tracking.connect()
    assert (project / "own.db").exists()


def test_the_options_of_a_sqlite_store_are_kept(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db?timeout=60")
    tracking.connect()
    assert mlflow.get_tracking_uri() == f"sqlite+pysqlite:///{project / 'own.db'}?timeout=60"
    assert [path.name for path in project.glob("*.db")] == ["own.db"]


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a?uri=true"])
def test_a_store_that_is_no_file_is_refused(project, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match="must be a file"):
        tracking.connect()


def test_a_relative_registry_is_that_of_the_project(project, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///registry.db")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    tracking.connect()
    assert (project / "registry.db").exists()


def test_files_beside_a_sqlite_store_are_not_looked_for_elsewhere(run):
    artifacts = MlflowClient().get_run(run.run_id).info.artifact_uri
    with pytest.raises(MlflowException, match=r"which http://127.+ does not show"):
        BesideTheStore(artifacts, "http://127.0.0.1:9")


def test_a_foreign_run_is_never_written_to(run, protocol, monkeypatch):
    run.finish()
    before = MlflowClient().get_run(run.run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run.run_id)
    other = tracking.start("03_smote", stage="smote", params={})
    child, _ = log(other, protocol)
    assert child != run.run_id
    assert MlflowClient().get_run(run.run_id).to_dictionary() == before
    assert f"MLFLOW_RUN_ID={run.run_id} is ignored" in log_file().read_text()


@pytest.mark.parametrize("name", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_an_experiment_of_the_environment_gets_nothing(store, protocol, monkeypatch, name):
    other = MlflowClient().create_experiment("other")
    monkeypatch.setenv(name, other if name.endswith("ID") else "other")
    log(tracking.start("01_baseline", stage="baseline", params={}), protocol)
    assert not MlflowClient().search_runs([other])
    assert not MlflowClient().search_logged_models([other])


def test_a_file_store_is_refused(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{project}/mlruns")
    with pytest.raises(StoreError, match="failed: The filesystem tracking backend"):
        tracking.connect()


def test_a_registry_that_is_away_is_told_at_once(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:////proc/nothing/registry.db")
    with pytest.raises(StoreError, match="/proc/nothing"):
        tracking.connect()


def test_a_deleted_experiment_is_told_with_the_cure(run):
    MlflowClient().delete_experiment(run.experiment_id)
    with pytest.raises(StoreError, match="is deleted: restore it with") as refusal:
        tracking.start("01_baseline", stage="baseline", params={})
    command = str(refusal.value).split("`")[1]  # for a shell that knows nothing of the store
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW")}
    subprocess.run(command, shell=True, env=clean, check=True, capture_output=True)
    tracking.start("01_baseline", stage="baseline", params={})


def test_a_champion_whose_run_is_deleted_is_no_incumbent(run, protocol):
    run_id, _ = log(run, protocol)
    tracking.register_champion(run_id)
    MlflowClient().delete_run(run_id)
    assert tracking.incumbent() is None
    assert "is deleted" in log_file().read_text()


def test_a_deleted_model_is_not_registered(run, protocol):
    run_id, _ = log(run, protocol)
    client = MlflowClient()
    client.delete_logged_model(client.get_run(run_id).outputs.model_outputs[0].model_id)
    with pytest.raises(StoreError, match="is deleted: delete the run too"):
        tracking.register_champion(run_id)
    assert not client.search_registered_models()


def test_digests_tell_where_two_machines_begin_to_differ(run, protocol):
    logged = [MlflowClient().get_run(log(run, protocol)[0]).data.tags for _ in range(2)]
    names = ("digest_telemetry", "digest_features", "digest_training_rows", "digest_model")
    assert [logged[0][name] for name in names] == [logged[1][name] for name in names]
    assert logged[0]["digest_features"] in log_file().read_text()
    telemetry = protocol.telemetry.assign(Module_Voltage_V=1.0)
    other = replace(protocol, telemetry=telemetry, X=build_features(telemetry))
    tags = MlflowClient().get_run(log(run, other)[0]).data.tags
    same = [tags[name] == logged[0][name] for name in names]
    assert same == [False, False, True, False]


def test_tracking_uri_of_the_environment_wins(project, tmp_path, monkeypatch, fresh_database):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(fresh_database, elsewhere / "own.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'own.db'}")
    tracking.connect()
    run = tracking.start("01_baseline", stage="baseline", params={})
    MlflowClient().log_text(run.run_id, "a note", "note.txt")
    assert len(list((elsewhere / "mlartifacts").rglob("note.txt"))) == 1


def test_parent_run_says_where_it_comes_from(run, data_file):
    found = MlflowClient().get_run(run.run_id)
    assert found.data.params == {"seed": "7", "split": "rack"}
    tags = found.data.tags
    assert (tags["stage"], tags["split"], tags["role"]) == ("baseline", "rack", "parent")
    assert tags["data_sha256"] == sha256_of_file(data_file)
    assert tags["mlflow.source.name"] == "notebooks/01_baseline.ipynb"
    assert tags["git_dirty"] in ("true", "false", "unknown")
    assert {"git_commit", "workbook_version"} <= set(tags)


def test_finish_closes_the_run_and_says_how_long_tracking_took(run):
    run.finish()
    found = MlflowClient().get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert 0 <= found.data.metrics["seconds_tracking"] <= found.data.metrics["seconds"]


def test_model_run_is_complete(run, protocol):
    run_id, found = log(run, protocol, model_name="LR", imbalance_technique="none")
    child = MlflowClient().get_run(run_id)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == run.run_id
    assert (child.data.tags["model_name"], child.data.tags["leaky"]) == ("LR", "false")
    assert child.data.params["classify__C"] == "0.01"
    assert child.data.params["n_features"] == str(protocol.X.shape[1])
    split = protocol.split
    events = [int(child.data.params[f"events_{part}"]) for part in ("train", "test")]
    assert sum(events) == 5
    assert child.data.params["rows_test"] == str(len(split.test))
    logged = {k: v for k, v in child.data.metrics.items() if k != "seconds"}
    assert logged == pytest.approx(found.metrics)
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    assert names == {
        "check_rows.parquet", "classification_report.txt", "confusion_matrix.png",
        "cv_scores.parquet", "pr_curve.png", "raw_cv_scores.parquet", "scaler.skops", "splits.json",
        "test_scores.parquet",
    }  # fmt: skip
    scores = tracking.read_scores(run_id)
    pd.testing.assert_frame_equal(scores, found.test_scores)


@pytest.mark.parametrize("classifier", [LogisticRegression(), XGBClassifier(n_estimators=5)])
def test_logged_model_scores_alike_and_says_what_it_needs(run, protocol, classifier):
    sampler = SMOTE(k_neighbors=2, sampling_strategy=0.5, random_state=0)
    run_id, _ = log(run, protocol, classifier, sampler=sampler)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    kept = tracking.read_scores(run_id, "check_rows.parquet")
    again = loaded.predict(kept.drop(columns="y_score"))[:, 1]
    np.testing.assert_allclose(again, kept["y_score"], rtol=0, atol=1e-6)  # float32 sums
    assert loaded.metadata.signature.inputs.input_names() == list(protocol.X.columns)
    assert len(loaded.input_example) == 3
    path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model/requirements.txt")
    with open(path) as file:
        assert all("==" in line for line in file.read().split())


class Foreign(LogisticRegression):
    """No type of the workbook's."""


def test_foreign_types_are_not_logged(run, protocol):
    with pytest.raises(ModelError, match="types that the workbook does not use"):
        log(run, protocol, Foreign())


def test_undefined_metrics_are_named_and_left_out(run, protocol):
    silent = protocol.assess_reference(lambda rows: np.zeros(len(rows)), threshold=1.0)
    run_id = run.log_assessment(silent, protocol, model_name="silent")
    child = MlflowClient().get_run(run_id)
    assert child.data.tags["role"] == "reference"
    assert "alarm_precision" in child.data.tags["undefined_metrics"].split(",")
    assert "alarm_precision" not in child.data.metrics
    assert np.isfinite(list(child.data.metrics.values())).all()


def test_candidates_are_children(run):
    candidate = make_pipeline(LogisticRegression(C=0.1, tol=0.5))
    run_id = run.log_candidate("candidate 01", candidate, {"cv_f1": 0.5}, model_name="LR")
    child = MlflowClient().get_run(run_id)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == run.run_id
    assert child.data.tags["role"] == "candidate"
    assert (child.data.params["classify__C"], child.data.params["classify__tol"]) == ("0.1", "0.5")
    assert child.data.metrics == {"cv_f1": 0.5}


def test_runs_of_killed_processes_are_closed_at_the_next_start(store):
    script = "import os, sys\nfrom hvs_lib import tracking\n"
    script += "print(tracking.start('01_baseline', stage='baseline', params={}).run_id, flush=True)"
    script += "\nos.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9
    left = killed.stdout.strip()
    assert MlflowClient().get_run(left).info.status == "RUNNING"
    alive = tracking.start("02_tuning", stage="tuning", params={})
    assert MlflowClient().get_run(left).info.status == "KILLED"
    tracking.close_killed_runs()
    assert MlflowClient().get_run(alive.run_id).info.status == "RUNNING"


def test_status_follows_the_last_cell(store, monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(notebook_run, "get_ipython", lambda: shell)
    run = tracking.start("01_baseline", stage="baseline", params={})

    def status():
        found = MlflowClient().get_run(run.run_id)
        return found.info.status, found.data.tags.get("error")

    shell.run_cell("1 / 0")
    assert status() == ("FAILED", "ZeroDivisionError: division by zero")
    shell.run_cell("1 + 1")
    assert status() == ("RUNNING", None)
    run.finish()
    shell.run_cell("1 / 0")
    assert status() == ("FINISHED", None)


def test_a_start_that_is_repeated_closes_the_run_before(store, monkeypatch):
    shell = InteractiveShell.instance()
    monkeypatch.setattr(notebook_run, "get_ipython", lambda: shell)
    runs = [tracking.start("01_baseline", stage="baseline", params={}) for _ in range(2)]
    found = [MlflowClient().get_run(run.run_id).info.status for run in runs]
    assert found == ["KILLED", "RUNNING"]
    runs[1].finish()


def test_comparable_runs(run, protocol, data_file):
    first, _ = log(run, protocol)
    second, _ = log(run, protocol)
    other, _ = log(run, protocol, LogisticRegression(C=9.0), imbalance_technique="class weight")
    rows = split_by_rack(protocol.telemetry, test_size=0.25, n_folds=2, seed=1, split="row")
    leaky, _ = log(run, Protocol(protocol.telemetry, protocol.X, rows), model_name="on rows")
    found = tracking.comparable_runs().set_index("run_id")
    assert first not in found.index, "the newest of equal runs counts"
    assert found["name"].to_dict() == {
        second: "a model, none",
        other: "a model, class weight",
        leaky: "on rows, none",
    }
    assert found["leaky"].to_dict() == {second: "false", other: "false", leaky: "true"}
    assert tracking.comparable_runs(data_sha256=sha256_of_file(data_file)).shape[0] == 3


def test_runs_judged_otherwise_are_not_comparable(run, protocol):
    log(run, protocol)
    split = split_by_rack(protocol.telemetry, test_size=0.25, n_folds=2, seed=5)
    newest, _ = log(run, Protocol(protocol.telemetry, protocol.X, split), model_name="newest")
    assert tracking.comparable_runs()["run_id"].tolist() == [newest]


def test_row_split_alone_is_no_comparison(run, protocol, store, tmp_path):
    """Not even where an older honest run on other telemetry is there."""
    log(run, protocol)
    other = tmp_path / "other.csv"
    other.write_text("other telemetry")
    newer = tracking.start("01_baseline", stage="baseline", params={}, data_path=other)
    rows = split_by_rack(protocol.telemetry, test_size=0.25, n_folds=2, seed=1, split="row")
    log(newer, Protocol(protocol.telemetry, protocol.X, rows))
    with pytest.raises(ValueError, match="all on a random row split"):
        tracking.comparable_runs()


def test_nothing_to_compare(store):
    with pytest.raises(ValueError, match="no run to compare: run 01_baseline"):
        tracking.comparable_runs()


def test_champion_is_registered_once(run, protocol):
    first, _ = log(run, protocol)
    second, _ = log(run, protocol)
    assert tracking.register_champion(first) == "1"
    assert tracking.register_champion(second) == "2"
    assert tracking.register_champion(first) == "1"
    version = MlflowClient().get_model_version_by_alias("hvs-fire-prediction", "champion")
    assert version.run_id == first
    loaded = mlflow.pyfunc.load_model("models:/hvs-fire-prediction@champion")
    assert loaded.predict(loaded.input_example).shape == (3, 2)


def test_logged_model_carries_its_threshold_and_its_alarm(run, protocol):
    run_id, found = log(run, protocol)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert tracking.read_alarm(loaded.metadata.metadata) == found.alarm
    assert tracking.read_alarm(MlflowClient().get_run(run_id).data.params) == found.alarm
    assert loaded.metadata.metadata["calibration"] == found.calibration.method
    model = mlflow.sklearn.load_model(f"runs:/{run_id}/model")
    assert (type(model).__name__, model.threshold) == ("FixedThresholdClassifier", found.threshold)


def test_incumbent_is_the_run_of_the_registered_champion(run, protocol):
    assert tracking.incumbent() is None
    run_id, found = log(run, protocol)
    tracking.register_champion(run_id)
    incumbent = tracking.incumbent()
    listed = tracking.comparable_runs().iloc[0]
    assert incumbent["name"] == "a model, none"
    for name in ("run_id", "data_sha256", "protocol_digest", "alarm", "cv_pr_auc"):
        assert incumbent[name] == listed[name]
    assert incumbent["alarm"] == found.alarm
    MlflowClient().delete_registered_model_alias("hvs-fire-prediction", "champion")
    assert tracking.incumbent() is None


def test_model_card_is_an_artifact_of_the_registered_version(run, protocol):
    run_id, _ = log(run, protocol)
    version = tracking.register_champion(run_id)
    tracking.log_model_card(version, "# The card")
    for uri in (
        f"models:/hvs-fire-prediction/{version}/model_card.md",
        f"runs:/{run_id}/model_card.md",
    ):
        with open(mlflow.artifacts.download_artifacts(uri)) as file:
            assert file.read() == "# The card"
    found = MlflowClient().get_model_version("hvs-fire-prediction", version)
    assert found.description == "# The card"


def test_audit_is_found_by_the_telemetry(run, data_file):
    sha256 = sha256_of_file(data_file)
    assert tracking.read_audit(sha256) is None
    run.log_audit(pd.DataFrame({"check": ["a"], "found": [0.5]}))
    assert tracking.read_audit(sha256).to_dict("list") == {"check": ["a"], "found": [0.5]}
    assert tracking.read_audit("0" * 64) is None


def test_splits_artifact_names_the_racks(run, protocol):
    run_id, _ = log(run, protocol)
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="splits.json")
    with open(path) as file:
        assert json.load(file) == json.loads(json.dumps(protocol.split.to_dict()))


@pytest.mark.slow
def test_several_processes_meet_on_a_fresh_store(project):
    """Creating the tables of one SQLite file at once breaks it, unless it is done under a lock."""
    script = "from hvs_lib import tracking\nfor i in range(3):\n"
    script += " tracking.connect(); tracking.start('x', stage='baseline', params={}).finish()\n"
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == [b""] * 3
    tracking.connect()
    assert len(search_runs("attributes.status = 'FINISHED'")) == 9


@pytest.fixture
def start(store, data_file, monkeypatch):
    """Return a function that starts a notebook as the runner does, with a fingerprint."""

    def start(fingerprint):
        monkeypatch.setenv("HVS_FINGERPRINT", fingerprint)
        return tracking.start("02_tuning", stage="tuning", params={}, data_path=data_file)

    return start


NAMED = {"model_name": "a model", "imbalance_technique": "none"}


@pytest.mark.parametrize(
    "pipeline",
    [
        make_pipeline(LogisticRegression(C=0.01)),
        make_pipeline(RandomForestClassifier(n_estimators=9, max_depth=4, random_state=0)),
        make_pipeline(
            XGBClassifier(n_estimators=9, max_depth=3),
            sampler=SMOTE(k_neighbors=2, sampling_strategy=0.5, random_state=0),
        ),
    ],
    ids=lambda pipeline: type(pipeline[-1]).__name__,
)
def test_models_of_the_same_notebook_are_taken_over_to_the_bit(start, protocol, pipeline):
    fitted = protocol.assess(pipeline)
    first = start("one").log_assessment(fitted, protocol, **NAMED)
    second = start("one")
    again = second.assessed_before(pipeline, protocol, **NAMED)
    assert again.taken_over_from == first
    assert again.metrics == fitted.metrics
    assert (again.alarm, again.seconds) == (fitted.alarm, fitted.seconds)
    assert again.calibration.brier == fitted.calibration.brier
    for name in ("cv_scores", "test_scores"):
        frames = getattr(again, name), getattr(fitted, name)
        pd.testing.assert_frame_equal(*frames, check_exact=True)
    np.testing.assert_array_equal(again.raw_cv_scores, fitted.raw_cv_scores)
    one, two = (
        MlflowClient().get_run(run_id).data
        for run_id in (first, second.log_assessment(again, protocol, **NAMED))
    )
    assert (one.params, one.metrics) == (two.params, two.metrics)
    assert two.tags["taken_over_from"] == first


def test_only_the_same_model_is_taken_over(start, protocol, data_file, monkeypatch):
    pipeline = make_pipeline(LogisticRegression(C=0.01))
    run = start("one")
    run_id = run.log_assessment(protocol.assess(pipeline), protocol, **NAMED)
    assert run.assessed_before(pipeline, protocol, **NAMED) is None, "not another execution"
    rows = split_by_rack(protocol.telemetry, test_size=0.25, n_folds=2, seed=1, split="row")
    on_rows = Protocol(protocol.telemetry, protocol.X, rows, normal_stride=3)
    for other in [
        (make_pipeline(LogisticRegression(C=9.0)), protocol, NAMED),
        (pipeline, on_rows, NAMED),
        (pipeline, protocol, NAMED | {"imbalance_technique": "SMOTE"}),
        (pipeline, protocol, NAMED | {"model_name": "Platt's"}),
    ]:
        assert start("one").assessed_before(*other[:2], **other[2]) is None
    assert start("two").assessed_before(pipeline, protocol, **NAMED) is None
    assert start("").assessed_before(pipeline, protocol, **NAMED) is None
    MlflowClient().set_terminated(run_id, "KILLED")
    assert start("one").assessed_before(pipeline, protocol, **NAMED) is None
    MlflowClient().set_terminated(run_id, "FINISHED")
    assert start("one").assessed_before(pipeline, protocol, **NAMED) is not None
    monkeypatch.setenv("HVS_FRESH", "1")
    assert start("one").assessed_before(pipeline, protocol, **NAMED) is None
    monkeypatch.delenv("HVS_FRESH")
    data_file.write_text("other telemetry")
    assert start("one").assessed_before(pipeline, protocol, **NAMED) is None


@pytest.mark.parametrize("lost", ["**/raw_cv_scores.parquet", "**/model.skops", "*"])
@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_model_whose_files_are_lost_is_fitted_again(start, store, protocol, lost, how):
    pipeline = make_pipeline(LogisticRegression(C=0.01))
    start("one").log_assessment(protocol.assess(pipeline), protocol, **NAMED)
    found = list((store / "mlartifacts").glob(lost))
    assert found
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        elif how == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-100])
    assert start("one").assessed_before(pipeline, protocol, **NAMED) is None


def test_candidates_of_the_same_search_are_found_again(start, monkeypatch):
    candidate = make_pipeline(XGBClassifier(max_depth=3, learning_rate=0.1 + 0.2))
    score = {"cv_pr_auc": 1 / 3}
    first = start("one")
    assert first.scored_candidates() == []
    first.log_candidate("candidate 1", candidate, score, model_name="XGBoost candidate")
    ((params, metrics),) = start("one").scored_candidates()
    assert float(params["classify__learning_rate"]) == 0.1 + 0.2  # to the bit, as the scores
    assert metrics == score
    assert start("two").scored_candidates() == []
    assert start("").scored_candidates() == []
    monkeypatch.setenv("HVS_FRESH", "1")
    assert start("one").scored_candidates() == []


def test_what_the_store_does_not_take_is_kept_and_pushed(store, protocol):
    """The store's table of metrics is away for a while."""
    run = tracking.start("01_baseline", stage="baseline", params={})

    def rename(one, other):
        with sqlite3.connect(store / "mlflow.db") as database:
            database.execute(f"ALTER TABLE {one} RENAME TO {other}")

    rename("metrics", "away")
    with pytest.raises(StoreError, match=r"`hvs push .*runs` logs it when the store answers"):
        log(run, protocol)
    (kept,) = (store / "runs" / "unlogged").glob("*/run.json")
    with pytest.raises(StoreError):
        list(tracking.push_unlogged(store / "runs"))
    assert kept.exists()
    rename("away", "metrics")
    (run_id,) = tracking.push_unlogged(store / "runs")
    pushed = MlflowClient().get_run(run_id)
    assert pushed.data.tags["mlflow.parentRunId"] == run.run_id
    assert not kept.exists()
    again, _ = log(run, protocol)
    other = MlflowClient().get_run(again)
    assert pushed.data.params == other.data.params
    assert pushed.data.metrics | {"seconds": 0} == other.data.metrics | {"seconds": 0}
    paths = [
        {artifact.path for artifact in MlflowClient().list_artifacts(found)}
        for found in (run_id, again)
    ]
    assert paths[0] == paths[1]
    X = protocol.X.head(20)
    np.testing.assert_array_equal(
        load_model(f"runs:/{run_id}/model")[0].predict_proba(X),
        load_model(f"runs:/{again}/model")[0].predict_proba(X),
    )


SOUND = {
    "name": "a", "experiment": "HVS_Fire_Prediction_Tuning", "params": {"p": "1"},
    "metrics": {"m": 0.5}, "tags": {"role": "candidate", "mlflow.parentRunId": "1" * 32},
}  # fmt: skip
UNSOUND = {
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "too deep": "[" * 100_000,
    "another entry": json.dumps(SOUND | {"code": "x"}),
    "a missing entry": json.dumps({"name": "a"}),
    "no parent run": json.dumps(SOUND | {"tags": {}}),
    "a text for a metric": json.dumps(SOUND | {"metrics": {"m": "1"}}),
    "a list for a parameter": json.dumps(SOUND | {"params": {"p": []}}),
    "another experiment": json.dumps(SOUND | {"experiment": "../x"}),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_a_kept_run_that_is_unsound_is_named_and_nothing_is_pushed(store, case):
    parent = tracking.start("02_tuning", stage="tuning", params={}).run_id
    for number, text in enumerate([json.dumps(SOUND), UNSOUND[case]]):
        folder = store / "runs" / "unlogged" / str(number)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text.replace("1" * 32, parent))
    with pytest.raises(ValueError, match=r"1/run\.json must be what the workbook kept of a run"):
        list(tracking.push_unlogged(store / "runs"))
    assert search_runs("tags.role = 'candidate'") == []
    shutil.rmtree(folder)
    assert len(list(tracking.push_unlogged(store / "runs"))) == 1


@pytest.mark.parametrize("link", ["folder", "artifacts"])
def test_a_kept_run_with_a_link_is_not_pushed(store, tmp_path_factory, link):
    elsewhere, folder = tmp_path_factory.mktemp("else"), store / "runs" / "unlogged" / "a"
    (elsewhere / "run.json").write_text(json.dumps(SOUND))
    if link == "folder":
        folder.parent.mkdir(parents=True)
        folder.symlink_to(elsewhere)
    else:
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(SOUND))
        (folder / "artifacts").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="must hold no link"):
        list(tracking.push_unlogged(store / "runs"))


def test_a_password_is_not_told(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(StoreError) as refused:
        tracking.connect()
    assert "secret" not in str(refused.value)
    assert "//127.0.0.1:9" in str(refused.value)


def test_a_process_killed_while_it_makes_the_store_leaves_none(project):
    """The tables come one by one; half of them would be refused by the next start."""
    kill = (
        "import os, signal, threading, time, pathlib\n"
        "def kill():\n"
        f"    root = pathlib.Path({str(project)!r})\n"
        "    while sum(f.stat().st_size for f in root.glob('.*mlflow.db')) < 100_000:\n"
        "        time.sleep(0.001)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "threading.Thread(target=kill).start()\n"
        "from hvs_lib import tracking\n"
        "tracking.connect()\n"
    )
    result = subprocess.run([sys.executable, "-c", kill], capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert not (project / "mlflow.db").exists()
    tracking.connect()
    assert len(MlflowClient().search_experiments()) == 1
    assert not list(project.glob(".*mlflow.db*"))


def test_a_store_that_is_no_database_is_told(project):
    (project / "mlflow.db").write_text("something else, and long enough to be a header" * 9)
    with pytest.raises(StoreError, match=r"the tracking store sqlite.*mlflow\.db failed: "):
        tracking.connect()


@pytest.mark.parametrize("said", ["soon", "nan", "inf", "-1", "601"])
def test_a_bad_waiting_time_is_told(monkeypatch, said):
    monkeypatch.setenv("HVS_STORE_WAIT_S", said)
    with pytest.raises(StoreError, match=f"HVS_STORE_WAIT_S must be a number .* got '{said}'"):
        wait_for_server()


@pytest.mark.parametrize("wait_s", [0, 4, 12, 60, 124, 600])
def test_the_waiting_time_is_that_of_the_tries(monkeypatch, wait_s):
    """As urllib3 counts it, with MLflow's factor."""
    monkeypatch.setenv("HVS_STORE_WAIT_S", str(wait_s))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    wait_for_server()
    retries = int(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    factor = mlflow.environment_variables.MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get()
    waited, retry = 0.0, Retry(total=retries, backoff_factor=factor)
    for _ in range(retries):
        retry = retry.increment("GET", "/", error=OSError())
        waited += retry.get_backoff_time()
    assert waited == pytest.approx(wait_s, rel=0.4)
