import json
import time

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from sklearn.linear_model import LogisticRegression

from hvs_lib import reproduce as reproduction
from hvs_lib.cli import main
from hvs_lib.models import make_pipeline
from hvs_lib.reproduce import compare, reproduce, version_warnings
from hvs_lib.runner import RunError
from hvs_lib.telemetry.mapped import telemetry_sha256
from hvs_lib.tracking.runs import log_candidate
from hvs_lib.tracking.store import search_runs

pytestmark = pytest.mark.slow


@pytest.fixture
def notebook(start_run):
    """Return a function that logs a notebook with a model and two candidates."""

    def log(*, name="02_tuning", candidates=(0.1, 0.2), data_path=None, columns=None, finish=True):
        params = {"data_path": data_path or "", "columns": columns or "", "n_iter": 2}
        digest = telemetry_sha256(data_path, columns) if data_path else "of the simulated fleet"
        parent = start_run(name, params=params, data_sha256=digest)
        for number, C in enumerate(candidates):
            settings = make_pipeline(LogisticRegression(C=C))
            metrics = {"cv_f1_class1": C, "seconds": time.perf_counter()}
            log_candidate(f"candidate {number}", settings, metrics, model_name="candidate")
        tags = {"role": "model", "model_name": "LR", "stage": "tuning"}
        with mlflow.start_run(run_name="LR, none", nested=True, tags=tags) as child:
            mlflow.log_metric("cv_pr_auc", 0.5)
        if finish:
            mlflow.end_run()
        return parent, child.info.run_id

    return log


def children(run_id):
    return search_runs(f"tags.mlflow.parentRunId = '{run_id}'")


def test_equal_runs_agree_whatever_the_order_of_the_candidates(notebook):
    one, other = notebook()[0], notebook(candidates=(0.2, 0.1))[0]
    table = compare(children(one), children(other))
    assert table["same"].all()
    assert set(table["run"]) == {"candidate 0", "candidate 1", "LR, none"}
    assert not table["metric"].str.startswith("seconds").any()
    assert (table["difference"] == 0).all()


def test_a_millionth_is_a_difference(notebook):
    one, (other, child) = notebook()[0], notebook()
    client = MlflowClient()
    value = client.get_run(child).data.metrics["cv_pr_auc"]
    client.log_metric(child, "cv_pr_auc", value + 1e-6)
    table = compare(children(one), children(other))
    assert table.loc[~table["same"], ["run", "metric"]].to_numpy().tolist() == [
        ["LR, none", "cv_pr_auc"]
    ]


def test_a_run_or_metric_that_is_missing_is_a_difference(notebook):
    one, other = notebook()[0], notebook(candidates=(0.1,))[0]
    table = compare(children(one), children(other))
    assert table.loc[~table["same"], "run"].tolist() == ["candidate 1"]
    assert table["again"].isna().sum() == 1


def test_all_runs_of_a_notebook_are_compared(notebook, monkeypatch):
    parent, _ = notebook()
    again = [MlflowClient().get_run(parent), *children(parent)]
    monkeypatch.setattr(reproduction, "_execute", lambda *_: again)
    said = []
    table = reproduce(parent, say=said.append)
    assert table["run"].unique().tolist() == ["candidate 0", "candidate 1", "LR, none"]
    assert table["same"].all()
    assert said[-1] == "Executing 02_tuning again, in a store of its own"


def test_versions_that_differ_are_named(monkeypatch):
    now = {"git_commit": "b", "git_dirty": "false", "workbook_version": "2"}
    monkeypatch.setattr(reproduction, "code_version", lambda: now)
    packages = {"python": "3.11", "xgboost": "3"}
    monkeypatch.setattr(reproduction, "package_versions", lambda: packages)
    then = now | {"packages": json.dumps(packages)}
    assert version_warnings(then) == []
    then |= {"git_commit": "a", "packages": json.dumps({"python": "3.11", "xgboost": "2"})}
    assert version_warnings(then) == ["git_commit was a and is b", "xgboost was 2 and is 3"]
    assert "uncommitted" in version_warnings(then | {"git_dirty": "true"})[-1]
    assert "python was not logged and is 3.11" in version_warnings({})


def test_telemetry_that_cannot_be_read_is_not_the_stores_fault(notebook, tmp_path, monkeypatch):
    path = tmp_path / "own.parquet"
    path.write_bytes(b"telemetry")
    parent, _ = notebook(data_path=str(path))

    def locked(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(reproduction, "telemetry_sha256", locked)
    result = CliRunner().invoke(main, ["reproduce", parent])
    assert result.exit_code == 1
    assert result.stderr == f"Error: [Errno 13] Permission denied: '{path}'\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "04_comparison"}, r"trained nothing \(comparison\)"),
        ({"name": "05_field_trial"}, r"trained nothing \(field_trial\)"),
        ({"finish": False}, "is RUNNING: only a finished notebook"),
    ],
)
def test_runs_that_cannot_be_executed_again_are_refused(notebook, options, message):
    run_id, _ = notebook(**options)
    with pytest.raises(RunError, match=message):
        reproduce(run_id, say=print)


def test_unknown_and_foreign_runs_are_refused(store):
    with pytest.raises(RunError, match="there is no run 'f00'"):
        reproduce("f00", say=print)
    foreign = MlflowClient().create_run("0").info.run_id
    with pytest.raises(RunError, match="is not a run of the workbook"):
        reproduce(foreign, say=print)


def test_deleted_runs_are_refused(notebook):
    client = MlflowClient()
    parent, child = notebook()
    client.delete_experiment(client.get_run(parent).info.experiment_id)
    for run_id in (parent, child):
        with pytest.raises(RunError, match=f"runs restore --run-id {run_id}`"):
            reproduce(run_id, say=print)


def test_telemetry_that_changed_or_went_is_refused(notebook, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("one")
    run_id, _ = notebook(data_path=str(path))
    path.write_text("other")
    with pytest.raises(RunError, match="has changed: its SHA-256 was"):
        reproduce(run_id, say=print)
    path.unlink()
    with pytest.raises(RunError, match=r"is gone: restore the file \(SHA-256"):
        reproduce(run_id, say=print)


def test_a_map_that_changed_or_went_is_refused(notebook, tmp_path):
    path, columns = tmp_path / "own.csv", tmp_path / "map.yaml"
    path.write_text("one")
    columns.write_text("a: b")
    run_id, _ = notebook(data_path=str(path), columns=str(columns))
    columns.write_text("a: c")
    with pytest.raises(RunError, match=r"or its map .*map.yaml has changed: its SHA-256 was"):
        reproduce(run_id, say=print)
    columns.unlink()
    with pytest.raises(RunError, match=r"map.yaml is gone: restore the file and its map"):
        reproduce(run_id, say=print)


@pytest.mark.parametrize(
    ("of_parent", "tag"),
    [(False, "mlflow.parentRunId"), (True, "mlflow.source.name"), (True, "data_sha256")],
)
def test_a_run_that_lacks_what_the_workbook_logs_is_told(notebook, of_parent, tag):
    parent, child = notebook()
    MlflowClient().delete_tag(parent if of_parent else child, tag)
    with pytest.raises(RunError, match=f"lacks {tag}"):
        reproduce(child, say=print)
