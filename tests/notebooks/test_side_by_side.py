"""Several executions at once on one fresh store; `make torture` takes whole runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from hvs_lib import runner

import pytest
from mlflow import MlflowClient

BIN = Path(sys.executable).parent
WHOLE = bool(os.environ.get("HVS_TORTURE"))


def together(root, fleet, command):
    """Start a command four times at once, and return what the runs have left in the store."""
    (root / "data" / "raw").mkdir(parents=True)
    shutil.copy(fleet, root / "data" / "raw")
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment["HVS_PROJECT_ROOT"] = str(root)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [
        subprocess.Popen(command(number), env=environment, cwd=root, **pipes) for number in range(4)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=1800)
        assert process.returncode == 0, said
        assert "locked" not in said
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=5000))


def assert_complete(runs):
    """Four of everything, and all the same."""
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {}
    for run in runs:
        if run.data.tags["role"] != "parent":
            parent = run.data.tags["mlflow.parentRunId"]
            metrics = {k: v for k, v in run.data.metrics.items() if "seconds" not in k}
            children.setdefault((run.data.tags["stage"], parent), []).append(str(metrics))
    by_stage = {}
    for (stage, _), metrics in children.items():
        by_stage.setdefault(stage, []).append(sorted(metrics))
    for results in by_stage.values():
        assert results == [results[0]] * 4
    return by_stage


@pytest.fixture
def fleet(smoke, workplace):
    (path,) = (workplace.root / "data" / "raw").glob("*.parquet")
    return path


@pytest.mark.slow
def test_four_runs_at_once(fleet, tmp_path):
    notebooks = [] if WHOLE else ["02_tuning", "-p", "n_iter", "2"]
    call = [BIN / "hvs", "run", *notebooks, "--profile", "smoke", "--fresh"]
    found = assert_complete(together(tmp_path, fleet, lambda _: call))
    assert len(found["tuning"][0]) == (4 if WHOLE else 3)  # the candidates and the best model
    assert len(list(tmp_path.glob("runs/*/02_tuning.ipynb"))) == 4


@pytest.mark.slow
def test_four_papermills_of_one_notebook_at_once(fleet, tmp_path):
    notebook = runner.notebooks()["01_baseline" if WHOLE else "00_data"]
    smoke = runner.NOTEBOOKS / "params" / "smoke.yaml"
    runs = together(
        tmp_path,
        fleet,
        lambda k: [BIN / "papermill", notebook, f"{k}.ipynb", "-f", smoke, "-k", "python3"],
    )
    assert_complete(runs)
    assert sum(run.data.tags["role"] == "parent" for run in runs) == 4
