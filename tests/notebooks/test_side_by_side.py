"""Several executions at once on one fresh store; `make torture` takes whole runs."""

import os

import pytest
from projects import copy_telemetry, results_of, runs_of, start, store_of

from hvs_lib import runner

WHOLE = bool(os.environ.get("HVS_TORTURE"))


def together(root, fleet, command):
    """Start a command four times at once, and return what the runs have left in the store."""
    copy_telemetry(fleet, root)
    processes = [start(*command(number), root=root) for number in range(4)]
    for process in processes:
        said, complained = process.communicate(timeout=1800)
        assert process.returncode == 0, complained
        assert "locked" not in said + complained
    return runs_of(store_of(root))


def assert_complete(runs):
    """Four of everything, and all the same."""
    assert {run.info.status for run in runs} == {"FINISHED"}
    children = {}
    for run in runs:
        if run.data.tags["role"] != "parent":
            parent = run.data.tags["mlflow.parentRunId"]
            key = run.data.tags["stage"], parent
            children.setdefault(key, []).append(str(results_of(run)))
    by_stage = {}
    for (stage, _), metrics in children.items():
        by_stage.setdefault(stage, []).append(sorted(metrics))
    for results in by_stage.values():
        assert results == [results[0]] * 4
    return by_stage


@pytest.mark.slow
def test_four_runs_at_once(fleet, tmp_path):
    notebooks = [] if WHOLE else ["02_tuning", "-p", "n_iter", "2"]
    call = ["hvs", "run", *notebooks, "--profile", "smoke"]
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
        lambda k: ["papermill", notebook, f"{k}.ipynb", "-f", smoke, "-k", "python3"],
    )
    assert_complete(runs)
    assert sum(run.data.tags["role"] == "parent" for run in runs) == 4
