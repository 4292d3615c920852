"""The notebooks run headless, small, in order, into one store; then the store is looked at."""

import ast
import json
import re
import shutil
import subprocess

import mlflow
import nbformat
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from projects import start, store_of
from sklearn.metrics import average_precision_score

from hvs_lib import columns as col
from hvs_lib import reproduce as reproduction
from hvs_lib import runner
from hvs_lib.cli import main
from hvs_lib.evaluation.metrics import EVENT_METRICS, METRICS, ROW_METRICS
from hvs_lib.tracking.model_files import load_model
from hvs_lib.tracking.runs import read_alarm, read_audit, read_scores

pytestmark = pytest.mark.slow

EXPERIMENTS = ["Data", "Baseline", "Tuning", "SMOTE", "Comparison", "Field_Trial"]
MODEL_ARTIFACTS = {
    "classification_report.txt", "confusion_matrix.png", "cv_scores.parquet", "pr_curve.png",
    "scaler.skops", "splits.json", "test_scores.parquet",
}  # fmt: skip


# A model whose scores all stay below its threshold has none of these.
NEED_AN_ALARM = {"alarm_precision", "lead_time_median_min", "lead_time_p10_min"}
NEED_AN_ALARM |= {"precision_class1", "precision_macro"}


def runs_in(experiment, role):
    name = f"HVS_Fire_Prediction_{experiment}"
    filter_string = f"tags.role = '{role}'"
    return mlflow.search_runs(
        experiment_names=[name], filter_string=filter_string, output_format="list"
    )


def parent_of(experiment):
    return runs_in(experiment, "parent")[-1]  # the first one: later tests add to the store


def children_of(experiment, role):
    parent = parent_of(experiment).info.run_id
    return [
        run for run in runs_in(experiment, role) if run.data.tags["mlflow.parentRunId"] == parent
    ]


def artifacts_of(run):
    return {artifact.path for artifact in MlflowClient().list_artifacts(run.info.run_id)}


@pytest.mark.parametrize(("number", "experiment"), list(enumerate(EXPERIMENTS)))
def test_each_notebook_is_one_finished_parent_run(smoke, number, experiment):
    parent = parent_of(experiment)
    assert parent.info.status == "FINISHED"
    (notebook,) = (path for name, path in runner.notebooks().items() if name[1] == str(number))
    cells = nbformat.read(notebook, 4).cells
    names = [node.targets[0].id for node in ast.parse(cells[1].source).body]
    assert set(parent.data.params) == set(names)
    assert notebook.name in artifacts_of(parent)


@pytest.mark.parametrize(
    ("experiment", "models", "references", "candidates"),
    [
        ("Baseline", 7, 4, 0),
        ("Tuning", 2, 0, 3),
        ("SMOTE", 11, 0, 0),
        ("Comparison", 0, 0, 0),
        ("Field_Trial", 0, 0, 0),
    ],
)
def test_children(smoke, experiment, models, references, candidates):
    found = {role: children_of(experiment, role) for role in ("model", "reference", "candidate")}
    assert {role: len(runs) for role, runs in found.items()} == {
        "model": models,
        "reference": references,
        "candidate": candidates,
    }
    assert {run.info.status for runs in found.values() for run in runs} <= {"FINISHED"}


def tuned_by(scoring):
    """Return the run of the candidate that leads by a score."""
    (run,) = (
        run
        for run in children_of("Tuning", "model")
        if run.data.tags["model_name"] == f"XGBoost tuned by {scoring}"
    )
    return run


@pytest.mark.parametrize("experiment", ["Baseline", "Tuning", "SMOTE"])
def test_model_runs_hold_every_metric_and_artifact(smoke, experiment):
    for run in children_of(experiment, "model"):
        leaky = run.data.tags["leaky"] == "true"
        names = ROW_METRICS if leaky else METRICS
        expected = {prefix + name for prefix in ("", "cv_") for name in names}
        undefined = expected - set(run.data.metrics)
        assert {name.removeprefix("cv_") for name in undefined} <= NEED_AN_ALARM
        assert not (leaky and set(run.data.metrics) & set(EVENT_METRICS))
        assert np.isfinite(list(run.data.metrics.values())).all()
        assert artifacts_of(run) - {"model_card.md", "sensor_sets.json"} == MODEL_ARTIFACTS
        tags = {"stage", "model_name", "imbalance_technique", "split", "data_sha256"}
        assert tags | {"git_commit", "git_dirty", "workbook_version"} <= set(run.data.tags)


def test_one_model_is_logged_by_hand(smoke):
    """With MLflow's own call, in the run of the notebook."""
    (logged,) = parent_of("Baseline").outputs.model_outputs
    model, _ = load_model(f"models:/{logged.model_id}")
    assert [name for name, _ in model.steps] == ["impute", "scale", "classify"]
    assert parent_of("Baseline").data.metrics["one_fold_pr_auc"] > 0


def test_class_weight_and_smote_say_what_they_did(smoke):
    by_technique = {
        run.data.tags["imbalance_technique"]: run for run in children_of("SMOTE", "model")
    }
    assert set(by_technique) == {
        "none", "class weight", "square-root weight", "SMOTE", "BorderlineSMOTE", "ADASYN",
        "random under-sampling",
    }  # fmt: skip
    assert float(by_technique["class weight"].data.params["classify__scale_pos_weight"]) > 1
    assert "classify__scale_pos_weight" not in by_technique["SMOTE"].data.params
    assert by_technique["SMOTE"].data.params["sample__k_neighbors"] == "5"


def test_row_split_is_marked_leaky_and_looks_too_good(smoke):
    runs = children_of("Baseline", "model")
    (leaky,) = [run for run in runs if run.data.tags["leaky"] == "true"]
    honest = [run.data.metrics["cv_pr_auc"] for run in runs if run is not leaky]
    assert leaky.data.tags["split"] == "row"
    assert leaky.data.metrics["cv_pr_auc"] > max(honest)


def test_champion_is_registered_and_scores_alike(smoke, workplace):
    tags = parent_of("Comparison").data.tags
    number = tags["champion_version"]
    version = MlflowClient().get_model_version("hvs-fire-prediction", number)
    assert version.run_id == tags["champion_run_id"]
    assert version.run_id in smoke
    assert MlflowClient().get_model_version_by_alias("hvs-fire-prediction", "champion")
    executed = min(workplace.root.glob("runs/*/04_comparison.ipynb")).read_text(encoding="utf-8")
    said = re.search(r"rows: (\d+), largest difference: ([^\\]+)", executed)
    assert int(said[1]) > 100 and float(said[2]) < 1e-6


def test_champion_has_a_card_and_its_settings(smoke):
    tags = parent_of("Comparison").data.tags
    uri = f"models:/hvs-fire-prediction/{tags['champion_version']}"
    with open(mlflow.artifacts.download_artifacts(f"{uri}/model_card.md")) as file:
        card = file.read()
    assert tags["champion_run_id"] in card
    assert MlflowClient().get_run(tags["champion_run_id"]).data.tags["data_sha256"] in card
    alarm = read_alarm(mlflow.models.get_model_info(uri).metadata)
    assert f"{alarm.rule.k} of the last {alarm.rule.n} samples" in card


def test_the_audit_of_the_baseline_names_the_row_split(smoke):
    audited = read_audit(parent_of("Baseline").data.tags["data_sha256"])
    assert audited["result"].tolist() == ["row split leaks", "ok", "ok"]


def test_the_trial_logs_both_rules_and_its_figures(smoke):
    trial = parent_of("Field_Trial")
    both = {"nuisance_alarms_per_site_day", "event_recall", "n_events"}
    expected = both | {f"fixed_{name}" for name in both}
    assert expected | {"share_outside_range", "rules_broken"} <= set(trial.data.metrics)
    assert "outside_ranges.png" in artifacts_of(trial)
    assert trial.data.metrics["share_outside_range"] > 0.05, "the trial is of other batteries"


def test_telemetry_without_a_label_is_tried(smoke, workplace, fleet):
    telemetry = pd.read_parquet(fleet / "Site01.parquet")
    path = workplace.root / "unlabelled.parquet"
    telemetry.drop(columns=[col.LABEL, col.EVENT_ID, col.EVENT_TYPE]).to_parquet(path)
    result = workplace("hvs", "run", "05_field_trial", "-p", "data_path", path)
    assert result.returncode == 0, result.stderr
    assert "Field trial: " in result.stdout
    newest = runs_in("Field_Trial", "parent")[0]
    assert "alarms_per_site_day" in newest.data.metrics
    assert "event_recall" not in newest.data.metrics


def test_a_leak_that_the_audit_found_stops_the_registration(smoke, workplace, tmp_path):
    """In a copy of the project, whose model that is registered already is taken out."""
    # By another process: to close the store's file in this one would drop SQLite's locks on it.
    subprocess.run(["cp", "-r", workplace.root, tmp_path / "leaky"], check=True)
    tags = {"audited": "true", "data_sha256": parent_of("Baseline").data.tags["data_sha256"]}
    audited = "check,found,result\nbest single feature,0.93,label given away\n"
    client = MlflowClient(store_of(tmp_path / "leaky"))
    client.delete_registered_model("hvs-fire-prediction")
    baseline = client.get_experiment_by_name("HVS_Fire_Prediction_Baseline").experiment_id
    run_id = client.create_run(baseline, tags=tags).info.run_id
    client.log_text(run_id, audited, "leakage_audit.csv")
    client.set_terminated(run_id)
    options = ["04_comparison", "05_field_trial", "--profile", "smoke"]
    said, complained = start("hvs", "run", *options, root=tmp_path / "leaky").communicate()
    assert "No version was registered" in said, complained
    assert "label given away (best single feature: 0.93)" in said
    assert "05_field_trial left out: no champion is registered" in said
    assert client.search_registered_models() == []
    comparison = client.get_experiment_by_name("HVS_Fire_Prediction_Comparison").experiment_id
    newest = client.search_runs([comparison])[0]
    assert newest.info.status == "FINISHED"
    assert newest.data.tags["registration_stopped_by"].startswith("label given away")
    assert "champion_version" not in newest.data.tags


def test_telemetry_is_scored_with_the_champion(fleet, workplace):
    result = workplace("hvs", "score", fleet / "Site01.parquet")
    assert result.returncode == 0, result.stderr
    alarms = pd.read_csv(workplace.root / "alarms.csv")
    for rule, count in alarms["rule"].value_counts().items():
        assert f"{count} by {rule}" in result.stdout
    assert alarms["score"][alarms["rule"] == "model"].between(0, 1).all()


def test_a_notebook_is_reproduced_to_the_last_digit(smoke, workplace):
    """All its models are fitted again, samplers and all, in a project of their own."""
    result = workplace("hvs", "reproduce", parent_of("SMOTE").info.run_id)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[-1].startswith("reproduced: all")
    names = {run.info.run_name for run in children_of("SMOTE", "model")}
    assert len(names) == 11 and names <= set(lines)
    assert "cv_pr_auc" in result.stdout


def test_a_run_that_cannot_be_reproduced_is_told(smoke, monkeypatch):
    """The logged metric and commit are changed behind its back; the execution itself is spared."""
    tuned = tuned_by("f1_class1")
    client, value = MlflowClient(), tuned.data.metrics["pr_auc"]
    parent = client.get_run(tuned.data.tags["mlflow.parentRunId"])
    monkeypatch.setattr(reproduction, "_execute", lambda *_: [parent, tuned])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.get_tracking_uri())
    client.log_metric(tuned.info.run_id, "pr_auc", value + 1e-6)
    client.set_tag(parent.info.run_id, "git_commit", "another")
    result = CliRunner().invoke(main, ["reproduce", tuned.info.run_id])
    client.log_metric(tuned.info.run_id, "pr_auc", value)
    client.set_tag(parent.info.run_id, "git_commit", parent.data.tags["git_commit"])
    assert result.exit_code == 1
    assert "Warning: git_commit was another" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("1 of ") and last.endswith("metrics differ by more than 1e-09")


def test_last_lines_are_the_leaderboard_the_champion_and_the_shares(smoke):
    said = smoke
    verdict = parent_of("Field_Trial").data.tags["verdict"]
    place = [said.index(text) for text in ("cv AP", "Champion:", verdict, "share")]
    assert place == sorted(place)
    assert "make ui" in said


def title_of(run):
    return run.data.tags["model_name"], run.data.tags["imbalance_technique"]


def test_plain_papermill_writes_to_the_same_store_with_equal_metrics(
    smoke, workplace, tmp_path_factory
):
    """From another working directory, and fitted again, the parameters give the same numbers."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.rmtree(workplace.root / "data" / "cache")
    before = {run.info.run_id for run in runs_in("Tuning", "model")}
    first = {title_of(run): run for run in children_of("Tuning", "model")}
    params = runner.NOTEBOOKS / "params" / "smoke.yaml"
    notebook = runner.notebooks()["02_tuning"]
    result = workplace("papermill", notebook, "out.ipynb", "-f", params, cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in elsewhere.iterdir()} == {"out.ipynb"}
    again = [run for run in runs_in("Tuning", "model") if run.info.run_id not in before]
    assert len(again) == len(first) == 2
    for run in again:
        twin = first[title_of(run)].data.metrics
        assert {k: v for k, v in run.data.metrics.items() if k != "seconds"} == {
            k: v for k, v in twin.items() if k != "seconds"
        }


@pytest.fixture(scope="module")
def one_event_file(make_telemetry, workplace):
    """Make one site with one event, in the 13 columns of the original project's file."""
    site = make_telemetry(racks=8, rows=200, event_racks=(2,), event_rows=60)
    path = workplace.root / "one_event.csv"
    kept = [col.TIMESTAMP, col.RACK, col.MODULE, *col.SENSORS, col.LABEL]
    site[kept].to_csv(path, index=False)
    return path


def test_one_event_stops_the_baseline_with_the_reason_and_the_way_out(
    smoke, workplace, one_event_file, monkeypatch
):
    monkeypatch.setenv("HVS_PROJECT_ROOT", str(workplace.root))
    before = len(runs_in("Baseline", "parent"))
    call = ["run", "01_baseline", "-p", "data_path", str(one_event_file)]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 1
    assert 'split="row"' in result.stderr
    assert "Traceback" not in result.stderr
    assert len(runs_in("Baseline", "parent")) == before, "no run is left behind"


def test_one_event_can_be_looked_at_on_a_row_split(smoke, workplace, one_event_file):
    arguments = ["--profile", "smoke", "-p", "split", "row", "-p", "data_path", one_event_file]
    result = workplace("hvs", "run", "01_baseline", *arguments)
    assert result.returncode == 0, result.stderr
    assert runs_in("Baseline", "parent")[0].data.tags["split"] == "row"


def test_the_refitted_model_is_the_candidate_that_won(smoke):
    """Its average precision comes out again from the out-of-fold scores of the refitted model.

    Not its F1, since the scores are calibrated by then, which keeps their order. Nearly, since the
    candidates were scored on thinned rows.
    """
    tuned = tuned_by("f1_class1")
    scores = read_scores(tuned.info.run_id, "cv_scores.parquet")
    path = mlflow.artifacts.download_artifacts(
        run_id=tuned.info.run_id, artifact_path="splits.json"
    )
    with open(path) as file:
        parts = json.load(file)["parts"]
    rack = scores[col.SITE].astype(str) + "/" + scores[col.RACK].astype(str)
    of_folds = [
        average_precision_score(fold[col.LABEL], fold["y_score"])
        for name, part in parts.items()
        if name.startswith("fold")
        for fold in [scores[rack.isin(part["racks"])]]
    ]
    candidates = [run.data.metrics for run in children_of("Tuning", "candidate")]
    winner = max(candidates, key=lambda metrics: metrics["cv_f1_class1"])
    assert np.mean(of_folds) == pytest.approx(winner["cv_pr_auc"], abs=0.02)


def test_candidates_can_be_made_again_from_their_runs(smoke):
    for run in children_of("Tuning", "candidate"):
        assert run.data.tags["imbalance_technique"] == "none"
        assert {"classify__min_child_weight", "classify__random_state"} <= set(run.data.params)


def test_models_have_one_thread_so_that_their_scores_are_the_same_to_the_bit(smoke):
    """The threads of a forest add up in any order."""
    for stage in ("Baseline", "Tuning", "SMOTE"):
        threads = {run.data.params.get("classify__n_jobs") for run in children_of(stage, "model")}
        assert threads <= {"1", None}  # None: logistic regression


def test_executed_notebooks_say_what_the_run_found(smoke, workplace):
    executed = min(workplace.root.glob("runs/*/04_comparison.ipynb"))  # of the first run
    text = json.dumps(nbformat.read(executed, 4))
    assert parent_of("Comparison").data.tags["champion_run_id"] in text


def test_a_treatment_that_cannot_be_applied_is_a_row_of_the_table(make_telemetry, tmp_path):
    """The hazardous rows lie apart from all others, where ADASYN finds nothing to draw from.

    Without event ids, so that 03 has been executed so, too.
    """
    events = {"event_racks": tuple(range(8)), "event_ids": False}
    telemetry = make_telemetry(racks=12, rows=200, **events)
    hazard = telemetry[col.LABEL] == 1
    telemetry.loc[hazard, [col.TEMP_AVG, col.TEMP_MAX]] += 100.0  # from 150 degC on it burns
    telemetry.loc[hazard, [col.CO, col.H2, col.VOC]] += 20000.0
    telemetry.to_parquet(tmp_path / "apart.parquet")
    options = ["-p", "data_path", "apart.parquet", "-p", "normal_stride", "1"]
    options += ["-p", "drop_sensors", "0.0"]
    process = start("hvs", "run", "03_smote", *options, root=tmp_path)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    (path,) = tmp_path.glob("runs/*/03_smote.ipynb")
    assert "cannot be applied: Not any neigbours" in path.read_text(encoding="utf-8")
