"""Several executions at once on one fresh store; `make torture` takes whole runs."""

import pytest
from projects import TORTURE, results_of, runs_of, start, store_of

from hvs_lib import runner


def together(root, command):
    """Start a command four times at once, and return what the runs have left in the store."""
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
def test_four_runs_at_once(small_run, tmp_path):
    notebooks = [] if TORTURE else ["02_tuning", "-p", "n_iter", "2"]
    call = ["hvs", "run", *notebooks, *small_run.options]
    found = assert_complete(together(tmp_path, lambda _: call))
    assert len(found["tuning"][0]) == (4 if TORTURE else 3)  # the candidates and the best model
    assert len(list(tmp_path.glob("runs/*/02_tuning.ipynb"))) == 4


@pytest.mark.slow
def test_four_papermills_of_one_notebook_at_once(without_ids, tmp_path):
    notebook = runner.notebooks()["01_baseline" if TORTURE else "00_data"]
    smoke = runner.NOTEBOOKS / "params" / "smoke.yaml"
    options = ["-f", smoke, "-p", "data_path", without_ids, "-k", "python3"]
    runs = together(tmp_path, lambda k: ["papermill", notebook, f"{k}.ipynb", *options])
    assert_complete(runs)
    assert sum(run.data.tags["role"] == "parent" for run in runs) == 4
