import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest
from imblearn.over_sampling import SMOTE
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import cache
from hvs_lib import columns as col
from hvs_lib.evaluation.calibration import calibrate
from hvs_lib.evaluation.protocol import Fits, Protocol
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.features import features_of
from hvs_lib.models import make_pipeline
from hvs_lib.progress import log_file
from hvs_lib.project import StoreError
from hvs_lib.sqlite_store import artifact_repository
from hvs_lib.tracking import champion
from hvs_lib.tracking.model_files import ModelError, load_model
from hvs_lib.tracking.runs import (
    close_execution,
    close_killed_runs,
    comparable_runs,
    fit_again,
    log_assessment,
    log_candidate,
    prepare,
    read_alarm,
    read_audit,
    read_scores,
    stops_registration,
)
from hvs_lib.tracking.store import connect, search_runs, without_password

pytestmark = pytest.mark.slow


DATA = "0123abcd" * 8  # the telemetry's SHA-256
TABLE = {"racks": 8, "rows": 90, "event_racks": (0, 1, 2, 3, 4)}


@pytest.fixture
def run(start_run):
    return start_run(params={"seed": 7, "split": "auto"}, data_sha256=DATA, split="rack")


@pytest.fixture
def protocol(make_fleet):
    return protocol_of(make_fleet(**TABLE))


def protocol_of(fleet, *, seed=1, **options):
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=2, seed=seed, **options)
    return Protocol(fleet, split, normal_stride=3, hazard_stride=2)


def log(protocol, classifier=None, *, sampler=None, **tags):
    classifier = LogisticRegression(C=0.01) if classifier is None else classifier
    found = protocol.assess(make_pipeline(classifier, sampler=sampler))
    return log_assessment(found, protocol, **({"model_name": "a model"} | tags)), found


def crown(run_id):
    version = champion.register_version(run_id)
    champion.promote(version, {}, "# The card")
    return version


def test_store_is_at_the_project_root_whatever_the_working_directory(run, store, tmp_path_factory):
    assert mlflow.get_tracking_uri() == f"sqlite+pysqlite:///{store / 'mlflow.db'}"
    experiment = mlflow.get_experiment_by_name("HVS_Fire_Prediction_Baseline")
    assert experiment.artifact_location == "hvs:/mlartifacts"
    MlflowClient().log_text(run, "a note", "note.txt")
    artifacts = MlflowClient().get_run(run).info.artifact_uri
    assert mlflow.artifacts.download_artifacts(artifacts).startswith(str(store / "mlartifacts"))
    with sqlite3.connect(store / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_rows_that_a_model_was_fitted_on_are_counted(run, make_fleet):
    """Without Event_ID the build-up is the hour before the PNR, which is left out here."""
    protocol = protocol_of(make_fleet(**TABLE, event_ids=False))
    fits = protocol.fit(make_pipeline(LogisticRegression(C=0.01)), build_up="left out")
    ((_, found),) = protocol.assess_all({"a model": fits})
    rows = protocol.training
    build_up = (rows.alarm_on >= 0) & (rows.y == 0)
    params = MlflowClient().get_run(log_assessment(found, protocol, model_name="a")).data.params
    assert build_up.any()
    assert params["rows_fitted"] == str(len(rows.y) - build_up.sum())
    assert params["build_up"] == "left out"


@pytest.mark.parametrize("name", ["moved", "a%20b", "what? now", "#;&ü [x]", "a+b=c"])
def test_store_goes_where_its_folder_goes(
    start_run, protocol, store, tmp_path_factory, monkeypatch, name
):
    start_run()
    run_id, _ = log(protocol)
    crown(run_id)
    mlflow.end_run()
    scores = read_scores(run_id)
    folder = tmp_path_factory.mktemp("elsewhere") / name
    shutil.move(store, folder)
    monkeypatch.setenv("HVS_PROJECT_ROOT", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # MLflow has set it for child processes
    connect()
    pd.testing.assert_frame_equal(read_scores(run_id), scores)
    load_model("models:/hvs-fire-prediction@champion")
    start_run()
    log(protocol)
    assert len(search_runs("tags.role = 'model'")) == 2
    assert [path.name for path in folder.parent.iterdir()] == [name]  # nothing lands beside it


@pytest.mark.parametrize("variables", [{}, {"HVS_EXECUTION_ID": "of a runner"}])
def test_a_kernel_of_the_runner_frees_little_at_exit_but_closes_its_store(tmp_path, variables):
    """Whoever copies `mlflow.db` alone would lose what is in a log beside it."""
    program = (
        "import mlflow\n"
        "from hvs_lib.tracking.store import connect\n"
        "class Cycle:\n"
        "    def __init__(self): self.itself = self\n"
        "    def __del__(self): print('freed')\n"
        "cycle = Cycle()\n"
        "connect()\n"
        "mlflow.set_experiment('one')\n"
    )
    own = os.environ | {"HVS_PROJECT_ROOT": str(tmp_path)} | variables
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=own, capture_output=True, text=True, check=True)
    assert done.stdout == ("" if variables else "freed\n")
    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


def test_a_new_store_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HVS_PROJECT_ROOT", str(tmp_path / "what? now" / "100%25"))
    connect()
    assert (tmp_path / "what? now" / "100%25" / "mlflow.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["what? now"]


def test_a_relative_store_is_that_of_the_project(project, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    connect()
    assert (project / "own.db").exists()


def test_the_options_of_a_sqlite_store_are_kept(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db?timeout=60")
    connect()
    assert mlflow.get_tracking_uri() == f"sqlite+pysqlite:///{project / 'own.db'}?timeout=60"
    assert [path.name for path in project.glob("*.db")] == ["own.db"]


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a?uri=true"])
def test_a_store_that_is_no_file_is_refused(project, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(StoreError, match="must be a file"):
        connect()


def test_a_relative_registry_is_that_of_the_project(project, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///registry.db")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    connect()
    assert (project / "registry.db").exists()


def test_files_beside_a_sqlite_store_are_not_looked_for_elsewhere(run):
    artifacts = MlflowClient().get_run(run).info.artifact_uri
    with pytest.raises(MlflowException, match=r"that http://127.+ does not name"):
        artifact_repository(artifacts, "http://127.0.0.1:9")


def test_a_foreign_run_is_never_written_to(run, start_run, protocol, monkeypatch):
    mlflow.end_run()
    before = MlflowClient().get_run(run).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run)
    assert start_run("03_smote") != run
    child, _ = log(protocol)
    assert child != run
    assert MlflowClient().get_run(run).to_dictionary() == before
    assert f"MLFLOW_RUN_ID={run} is ignored" in log_file().read_text()


@pytest.mark.parametrize("name", ["MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"])
def test_an_experiment_of_the_environment_gets_nothing(start_run, protocol, monkeypatch, name):
    other = MlflowClient().create_experiment("other")
    monkeypatch.setenv(name, other if name.endswith("ID") else "other")
    start_run()
    log(protocol)
    assert not MlflowClient().search_runs([other])
    assert not MlflowClient().search_logged_models([other])


def test_a_file_store_is_refused(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{project}/mlruns")
    with pytest.raises(StoreError, match="failed: The filesystem tracking backend"):
        connect()


def test_a_registry_that_is_away_is_told_at_once(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:////proc/nothing/registry.db")
    start = time.perf_counter()
    with pytest.raises(StoreError, match="/proc/nothing"):
        connect()
    assert time.perf_counter() - start < 10


def test_a_deleted_experiment_is_told_with_the_cure(run):
    MlflowClient().delete_experiment(MlflowClient().get_run(run).info.experiment_id)
    with pytest.raises(StoreError, match="is deleted: restore it with") as refusal:
        prepare()
    command = str(refusal.value).split("`")[1]  # for a shell that knows nothing of the store
    clean = {name: text for name, text in os.environ.items() if not name.startswith("MLFLOW")}
    subprocess.run(command, shell=True, env=clean, check=True, capture_output=True)
    prepare()


def test_a_champion_whose_run_is_deleted_is_no_incumbent(run, protocol):
    run_id, _ = log(protocol)
    crown(run_id)
    MlflowClient().delete_run(run_id)
    assert champion.incumbent() is None
    assert "is deleted" in log_file().read_text()


def test_a_deleted_model_is_not_registered(run, protocol):
    run_id, _ = log(protocol)
    client = MlflowClient()
    client.delete_logged_model(client.get_run(run_id).outputs.model_outputs[0].model_id)
    with pytest.raises(StoreError, match="is deleted: delete the run too"):
        champion.register_version(run_id)
    assert not client.search_registered_models()


def test_digests_tell_where_two_machines_begin_to_differ(run, protocol, make_telemetry, make_fleet):
    logged = [MlflowClient().get_run(log(protocol)[0]).data.tags for _ in range(2)]
    names = ("digest_telemetry", "digest_features", "digest_training_rows", "digest_model")
    assert [logged[0][name] for name in names] == [logged[1][name] for name in names]
    assert logged[0]["digest_features"] in log_file().read_text()
    other = make_telemetry(**TABLE)
    other[col.VOLTAGE] = np.float32(50.0)
    tags = MlflowClient().get_run(log(protocol_of(make_fleet(other)))[0]).data.tags
    same = [tags[name] == logged[0][name] for name in names]
    assert same == [False, False, True, False]


def test_tracking_uri_of_the_environment_wins(
    store, tmp_path, monkeypatch, fresh_database, start_run
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(fresh_database, elsewhere / "own.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'own.db'}")
    connect()
    run = start_run()
    MlflowClient().log_text(run, "a note", "note.txt")
    assert len(list((elsewhere / "mlartifacts").rglob("note.txt"))) == 1


def test_parent_run_says_where_it_comes_from(run):
    found = MlflowClient().get_run(run)
    assert found.data.params == {"seed": "7", "split": "auto"}
    tags = found.data.tags
    assert (tags["stage"], tags["split"], tags["role"]) == ("baseline", "rack", "parent")
    assert tags["data_sha256"] == DATA
    assert tags["mlflow.source.name"] == "notebooks/01_baseline.ipynb"
    assert tags["git_dirty"] in ("true", "false", "unknown")
    assert {"git_commit", "workbook_version"} <= set(tags)


def test_model_run_is_complete(run, protocol):
    run_id, found = log(protocol, model_name="LR", imbalance_technique="none")
    child = MlflowClient().get_run(run_id)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == run
    assert (child.data.tags["model_name"], child.data.tags["leaky"]) == ("LR", "false")
    assert child.data.params["classify__C"] == "0.01"
    assert child.data.params["n_features"] == str(protocol.training.X.shape[1])
    assert child.data.params["rows_fitted"] == str(len(protocol.training.y))
    strides = [child.data.params[f"{kind}_stride"] for kind in ("normal", "hazard")]
    assert strides == ["3", "2"]
    split = protocol.split
    events = [int(child.data.params[f"events_{part}"]) for part in ("train", "test")]
    assert sum(events) == 5
    assert child.data.params["rows_test"] == str(len(split.test))
    logged = {k: v for k, v in child.data.metrics.items() if k != "seconds"}
    assert logged == pytest.approx(found.metrics)
    names = {artifact.path for artifact in MlflowClient().list_artifacts(run_id)}
    assert names == {
        "classification_report.txt", "confusion_matrix.png", "cv_scores.parquet", "pr_curve.png",
        "scaler.skops", "splits.json", "test_scores.parquet",
    }  # fmt: skip
    scores = read_scores(run_id)
    pd.testing.assert_frame_equal(scores, found.test_scores)


@pytest.mark.parametrize("classifier", [LogisticRegression(), XGBClassifier(n_estimators=5)])
def test_logged_model_scores_alike_and_says_what_it_needs(run, protocol, classifier):
    sampler = SMOTE(k_neighbors=2, sampling_strategy=0.5, random_state=0)
    run_id, _ = log(protocol, classifier, sampler=sampler)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    again = loaded.predict(features_of(protocol.fleet, protocol.split.test))[:, 1]
    logged = read_scores(run_id)["y_score"]
    np.testing.assert_allclose(again, logged, rtol=0, atol=1e-6)  # float32 sums
    assert loaded.metadata.signature.inputs.input_names() == list(protocol.training.X.columns)
    assert len(loaded.input_example) == 3
    path = mlflow.artifacts.download_artifacts(f"runs:/{run_id}/model/requirements.txt")
    with open(path) as file:
        assert all("==" in line for line in file.read().split())


class Foreign(LogisticRegression):
    """No type of the workbook's."""


def test_foreign_types_are_not_logged(run, protocol):
    with pytest.raises(ModelError, match="types that the workbook does not use"):
        log(protocol, Foreign())


def test_undefined_metrics_are_named_and_left_out(run, protocol):
    rule = Fits(reference=lambda X: np.zeros(len(X)), threshold=1.0)
    ((_, silent),) = protocol.assess_all({"silent": rule})
    run_id = log_assessment(silent, protocol, model_name="silent")
    child = MlflowClient().get_run(run_id)
    assert child.data.tags["role"] == "reference"
    assert "alarm_precision" in child.data.tags["undefined_metrics"].split(",")
    assert "alarm_precision" not in child.data.metrics
    assert np.isfinite(list(child.data.metrics.values())).all()


def test_candidates_are_children(run):
    candidate = make_pipeline(LogisticRegression(C=0.1, tol=0.5))
    run_id = log_candidate("candidate 01", candidate, {"cv_f1": 0.5}, model_name="LR")
    child = MlflowClient().get_run(run_id)
    assert child.info.status == "FINISHED"
    assert child.data.tags["mlflow.parentRunId"] == run
    assert child.data.tags["role"] == "candidate"
    assert (child.data.params["classify__C"], child.data.params["classify__tol"]) == ("0.1", "0.5")
    assert child.data.metrics == {"cv_f1": 0.5}


START = (
    "import mlflow, os\n"
    "from hvs_lib.tracking.runs import prepare, tags_of\n"
    "prepare()\n"
    "mlflow.set_experiment('HVS_Fire_Prediction_Baseline')\n"
    "run = mlflow.start_run(run_name='01_baseline', tags=tags_of('01_baseline'))\n"
    "print(run.info.run_id, flush=True)\n"
)


def test_runs_of_killed_processes_are_closed_at_the_next_start(start_run):
    script = START + "os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -9
    left = killed.stdout.strip()
    assert MlflowClient().get_run(left).info.status == "RUNNING"
    alive = start_run("02_tuning")
    assert MlflowClient().get_run(left).info.status == "KILLED"
    close_killed_runs()
    assert MlflowClient().get_run(alive).info.status == "RUNNING"


def test_a_process_that_ends_early_has_not_finished_its_run(store):
    """As where a cell fails in plain papermill: MLflow by itself would call the run FINISHED."""
    ended = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True)
    assert MlflowClient().get_run(ended.stdout.strip()).info.status == "KILLED", ended.stderr


def test_a_start_that_is_repeated_closes_the_run_before(start_run):
    runs = [start_run() for _ in range(2)]
    found = [MlflowClient().get_run(run).info.status for run in runs]
    assert found == ["KILLED", "RUNNING"]


def test_a_failed_execution_is_closed_with_its_error(start_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HVS_EXECUTION_ID", "one")
    run = start_run()
    executed = tmp_path / "01_baseline.ipynb"
    executed.write_text("{}")
    close_execution("another", executed, status="FAILED", error="ValueError: no")
    assert MlflowClient().get_run(run).info.status == "RUNNING"
    close_execution("one", executed, status="FAILED", error="ValueError: too hot")
    found = MlflowClient().get_run(run)
    assert (found.info.status, found.data.tags["error"]) == ("FAILED", "ValueError: too hot")
    assert [artifact.path for artifact in MlflowClient().list_artifacts(run)] == [executed.name]


def test_nothing_is_logged_beside_a_run(store, protocol):
    with pytest.raises(RuntimeError, match="the notebook's run must be active"):
        log(protocol)


def test_comparable_runs(run, protocol):
    first, _ = log(protocol)
    second, _ = log(protocol)
    other, _ = log(protocol, LogisticRegression(C=9.0), imbalance_technique="class weight")
    leaky, _ = log(protocol_of(protocol.fleet, split="row"), model_name="on rows")
    found = comparable_runs().set_index("run_id")
    assert first not in found.index, "the newest of equal runs counts"
    assert found["name"].to_dict() == {
        second: "a model, none",
        other: "a model, class weight",
        leaky: "on rows, none",
    }
    assert found["leaky"].to_dict() == {second: "false", other: "false", leaky: "true"}
    assert comparable_runs(data_sha256=DATA).shape[0] == 3


def test_runs_judged_otherwise_are_not_comparable(run, protocol):
    log(protocol)
    newest, _ = log(protocol_of(protocol.fleet, seed=5), model_name="newest")
    assert comparable_runs()["run_id"].tolist() == [newest]


def test_row_split_alone_is_no_comparison(run, start_run, protocol):
    """Not even where an older honest run on other telemetry is there."""
    log(protocol)
    start_run(data_sha256="f" * 64)
    log(protocol_of(protocol.fleet, split="row"))
    with pytest.raises(ValueError, match="all on a random row split"):
        comparable_runs()


def test_nothing_to_compare(store):
    with pytest.raises(ValueError, match="no run to compare: run 01_baseline"):
        comparable_runs()


def test_champion_is_registered_once(run, protocol):
    first, _ = log(protocol)
    second, _ = log(protocol)
    assert crown(first) == "1"
    assert crown(second) == "2"
    assert crown(first) == "1"
    version = MlflowClient().get_model_version_by_alias("hvs-fire-prediction", "champion")
    assert version.run_id == first
    loaded = mlflow.pyfunc.load_model("models:/hvs-fire-prediction@champion")
    assert loaded.predict(loaded.input_example).shape == (3, 2)


def test_logged_model_carries_its_threshold_and_its_alarm(run, protocol):
    run_id, found = log(protocol)
    loaded = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    assert read_alarm(loaded.metadata.metadata) == found.alarm
    assert read_alarm(MlflowClient().get_run(run_id).data.params) == found.alarm
    chosen = found.calibration
    assert loaded.metadata.metadata["calibration"] == chosen
    model = mlflow.sklearn.load_model(f"runs:/{run_id}/model")
    assert (type(model).__name__, model.threshold) == (
        "FixedThresholdClassifier",
        found.alarm.threshold,
    )


@pytest.mark.parametrize(("costs", "budget"), [(0.0, 0.7), (20.0, None)])
def test_a_model_is_held_to_the_budget_that_its_alarm_was_chosen_by(run, protocol, costs, budget):
    protocol = replace(protocol, max_nuisance_alarms_per_site_day=0.7, missed_event_costs=costs)
    _, metadata = load_model(f"runs:/{log(protocol)[0]}/model")
    assert metadata.get("max_nuisance_alarms_per_site_day") == budget


def test_a_candidate_for_another_device_is_logged_before_it_is_fitted(run):
    candidate = make_pipeline(XGBClassifier(device="cuda"))
    run_id = log_candidate("candidate", candidate, {"cv_pr_auc": 0.5}, model_name="XGBoost")
    assert MlflowClient().get_run(run_id).data.params["classify__device"] == "cuda"


def test_incumbent_is_the_run_of_the_registered_champion(run, protocol):
    assert champion.incumbent() is None
    run_id, found = log(protocol)
    crown(run_id)
    incumbent = champion.incumbent()
    listed = comparable_runs().iloc[0]
    assert incumbent["name"] == "a model, none"
    for name in ("run_id", "data_sha256", "protocol_digest", "alarm", "cv_pr_auc"):
        assert incumbent[name] == listed[name]
    assert incumbent["alarm"] == found.alarm
    MlflowClient().delete_registered_model_alias("hvs-fire-prediction", "champion")
    assert champion.incumbent() is None


def test_sensor_sets_and_card_go_with_the_registered_version(run, protocol):
    run_id, _ = log(protocol)
    version = champion.register_version(run_id)
    assert not champion.champion_is_registered()
    sets = {"no gas": {"threshold": 0.25, "event_recall": 0.5}}
    champion.promote(version, sets, "# The card")
    _, metadata = load_model("models:/hvs-fire-prediction@champion")
    assert metadata["sensor_sets"] == sets
    for uri in (
        f"models:/hvs-fire-prediction/{version}/model_card.md",
        f"runs:/{run_id}/model_card.md",
    ):
        with open(mlflow.artifacts.download_artifacts(uri)) as file:
            assert file.read() == "# The card"
    found = MlflowClient().get_model_version("hvs-fire-prediction", version)
    assert found.description == "# The card"


def test_a_version_that_cannot_be_completed_does_not_become_champion(run, protocol, monkeypatch):
    version = champion.register_version(log(protocol)[0])

    def stop(*_, **__):
        raise OSError("stopped")

    monkeypatch.setattr(MlflowClient, "update_model_version", stop)
    with pytest.raises(OSError, match="stopped"):
        champion.promote(version, {}, "# The card")
    assert not champion.champion_is_registered()


def test_of_a_long_card_the_registry_shows_what_its_tables_hold(run, protocol):
    run_id, _ = log(protocol)
    version = champion.register_version(run_id)
    champion.promote(version, {}, "one line of many\n" * 500)
    shown = MlflowClient().get_model_version("hvs-fire-prediction", version).description
    assert 4900 < len(shown) <= 5000 and set(shown.splitlines()) == {"one line of many"}


def test_a_logged_model_is_had_again_without_each_fold(run, protocol, monkeypatch):
    protocol = replace(protocol, memory=cache.memory(), drop_sensors=0.1, seed=1)
    run_id, found = log(protocol, XGBClassifier(n_estimators=5, scale_pos_weight=2.0))
    monkeypatch.setattr(XGBClassifier, "fit", None)  # all of it is cached
    again, without_fold = fit_again(run_id, protocol.fleet, n_jobs=1)
    assert again.digests == protocol.digests
    assert again.faults == protocol.faults
    rows = protocol.training
    expected = calibrate(found.calibrator, found.raw_cv_scores)
    for number, model in enumerate(without_fold):
        held = rows.fold == number
        scores = model.predict_proba(rows.X_whole[held])[:, 1]
        np.testing.assert_allclose(scores, expected[held], rtol=1e-6)
    assert number == 1


def test_audit_is_found_by_the_telemetry(run):
    assert read_audit(DATA) is None
    audit = pd.DataFrame({"check": ["a"], "found": [0.5]})
    mlflow.log_text(audit.to_csv(index=False), "leakage_audit.csv")
    mlflow.set_tag("audited", "true")
    assert read_audit(DATA).to_dict("list") == {"check": ["a"], "found": [0.5]}
    assert read_audit("0" * 64) is None


def test_what_the_audits_find_and_a_single_event_stop_the_registration(start_run, make_fleet):
    protocol = protocol_of(make_fleet(**TABLE | {"racks": 12, "event_racks": tuple(range(8))}))
    start_run(data_sha256=DATA)
    run_id, _ = log(protocol)
    assert stops_registration(run_id) == []
    audit = pd.DataFrame(
        [("a", 0.9, "label given away"), ("b", 0.3, "row split leaks"), ("c", 2.0, "future used")],
        columns=["check", "found", "result"],
    )
    mlflow.log_text(audit.to_csv(index=False), "leakage_audit.csv")
    mlflow.set_tag("audited", "true")
    expected = ["label given away (a: 0.9)", "future used (c: 2)"]
    assert stops_registration(run_id) == expected
    mlflow.end_run()
    start_run("00_data", data_sha256=DATA)
    mlflow.log_metric("single_column_pr_auc_max", 0.85)
    mlflow.end_run()
    start_run("00_data", data_sha256=DATA)  # unfinished, it has found nothing yet
    expected.append("leak suspected (single column of 00_data: 0.850)")
    assert stops_registration(run_id) == expected


def test_a_test_part_of_one_event_stops_the_registration(run, protocol):
    run_id, _ = log(protocol)
    assert protocol.split.parts["test"]["events"] == 1
    assert stops_registration(run_id) == [
        "the test part holds 1 event: that is too few to judge a model",
    ]


def test_splits_artifact_names_the_racks(run, protocol):
    run_id, _ = log(protocol)
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="splits.json")
    with open(path) as file:
        assert json.load(file) == json.loads(json.dumps(protocol.split.to_dict()))


def test_several_processes_meet_on_a_fresh_store(project):
    """Creating the tables of one SQLite file at once breaks it, unless it is done under a lock."""
    script = (
        "import mlflow\n"
        "from hvs_lib.tracking.store import connect, make_experiments\n"
        "connect()\n"
        "make_experiments()\n"
        "mlflow.set_experiment('HVS_Fire_Prediction_Baseline')\n"
        "for i in range(3):\n"
        "    mlflow.start_run()\n"
        "    mlflow.end_run()\n"
    )
    command = [sys.executable, "-c", script]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[1] for process in running] == [b""] * 3
    connect()
    assert len(search_runs("attributes.status = 'FINISHED'")) == 9


def test_a_password_is_not_told(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    with pytest.raises(StoreError) as refused:
        connect()
    assert "secret" not in str(refused.value)
    assert "//127.0.0.1:9" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:se/cret@db/hvs", "postgresql://db/hvs"),
        ("http://me:se@cret@host:9: refused", "http://host:9: refused"),
        ("postgresql://me:se cret@db/hvs", "postgresql://db/hvs"),
        ("s3://bucket/site@1/x.csv cannot be read", "s3://bucket/site@1/x.csv cannot be read"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
    ],
)
def test_nothing_of_an_odd_password_is_told(text, shown):
    assert without_password(text) == shown


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
        "from hvs_lib.tracking.store import connect\n"
        "connect()\n"
    )
    result = subprocess.run([sys.executable, "-c", kill], capture_output=True, text=True)
    assert result.returncode == -9, result.stderr
    assert not (project / "mlflow.db").exists()
    connect()
    assert len(MlflowClient().search_experiments()) == 1
    assert not list(project.glob(".*mlflow.db*"))


def test_a_store_that_is_no_database_is_told(project):
    (project / "mlflow.db").write_text("something else, and long enough to be a header" * 9)
    with pytest.raises(StoreError, match=r"the tracking store sqlite.*mlflow\.db failed: "):
        connect()


def test_what_is_logged_after_the_last_cell_is_no_run_to_compare(run, protocol):
    log(protocol)
    mlflow.end_run()
    mlflow.log_metric("of a cell that is run again", 1.0)  # MLflow starts a run of its own
    with pytest.raises(RuntimeError, match="the notebook's run must be active"):
        log(protocol)
    assert len(comparable_runs()) == 1


def test_a_notebook_starts_again_after_its_run_was_deleted(start_run):
    MlflowClient().delete_run(start_run())
    assert MlflowClient().get_run(start_run()).info.status == "RUNNING"


def test_the_commit_is_where_mlflow_shows_it(run):
    tags = MlflowClient().get_run(run).data.tags
    assert tags["mlflow.source.git.commit"] == tags["git_commit"]
