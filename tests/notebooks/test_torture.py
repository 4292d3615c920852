"""Kill `hvs run` at random points, start it again, and compare with a run left in peace.

In CI one try of each kind on the search alone; `make torture` tries four notebooks 21 times.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

HVS = Path(sys.executable).parent / "hvs"
TRIES = int(os.environ.get("HVS_TORTURE", "0"))
# 03_smote is of the same kind as 01_baseline.
NOTEBOOKS = ["00_data", "01_baseline", "02_tuning", "04_comparison"] if TRIES else ["02_tuning"]
CALL = [str(HVS), "run", *NOTEBOOKS, "--profile", "smoke"]
KINDS = ("runner", "kernel", "disk")
CASES = [(KINDS[k % 3], k) for k in range(max(TRIES, 3))]


def start(root):
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    environment["HVS_PROJECT_ROOT"] = str(root)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(CALL, env=environment, cwd=root, **pipes)


def runs_in(root):
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=5000))


def results_in(root, stages):
    """Map what was run, with all its parameters, to its metrics, times left out."""
    finished = [run for run in runs_in(root) if run.info.status == "FINISHED"]
    return {
        json.dumps([run.data.tags["stage"], run.data.params], sort_keys=True): {
            name: value for name, value in run.data.metrics.items() if "seconds" not in name
        }
        for run in finished
        if run.data.tags["stage"] in stages and run.data.tags["role"] != "parent"
    }


def undisturbed_seconds(root):
    """Sum what the notebooks took from the start of their runs; at least what a call takes."""
    return sum(
        run.data.metrics["seconds"]
        for run in runs_in(root)
        if run.data.tags["role"] == "parent"
        and run.data.tags["mlflow.runName"] in NOTEBOOKS
        and "seconds" in run.data.metrics
    )


def candidates_in(root):
    """Count the finished runs of each candidate."""
    return Counter(
        json.dumps(run.data.params, sort_keys=True)
        for run in runs_in(root)
        if run.data.tags["role"] == "candidate" and run.info.status == "FINISHED"
    )


def kernel_of(process):
    """Wait for the runner's kernel."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children():
            if "ipykernel_launcher" in " ".join(child.cmdline()):
                return child
        time.sleep(0.05)
    raise AssertionError("it ended before there was a kernel to kill")


def assert_sound(root):
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system in memory, or skip where we may not; return a function to resize it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    if mount("size=1g").returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder, lambda size: mount(f"remount,size={size}").check_returncode()
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def fleet(smoke, workplace):
    """Return the simulated telemetry, to save its simulation."""
    (path,) = (workplace.root / "data" / "raw").glob("*.parquet")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), CASES)
def test_killed_run_goes_on(kind, number, request, fleet, workplace, tmp_path):
    root, resize = tmp_path, None
    if kind == "disk":
        root, resize = request.getfixturevalue("small_disk")
    (root / "data" / "raw").mkdir(parents=True)
    shutil.copy(fleet, root / "data" / "raw")
    rng = np.random.default_rng(number)

    process = start(root)
    if kind == "disk":
        used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        resize(int(used + rng.uniform(0.3, 60 if TRIES else 6) * 2**20))
    else:
        time.sleep(rng.uniform(2, 0.8 * undisturbed_seconds(workplace.root)))
        victim = process if kind == "runner" else kernel_of(process)
        victim.send_signal(signal.SIGKILL)
    said, complained = process.communicate(timeout=600)
    last_line = (complained or said).rstrip().rsplit("\n", 1)[-1]
    print(f"{kind} {number}: {process.returncode}, {said.splitlines()[-1:]}, {complained!r}")
    if kind == "runner":
        assert process.returncode == -signal.SIGKILL
        time.sleep(2)  # its kernel looks for it every second
    else:
        assert process.returncode == 1
        assert "Traceback" not in complained
        assert complained.startswith("Error: ")
        if "The notebook up to there: " in last_line:
            nbformat.read(last_line.split("there: ")[1], 4)
    if kind == "kernel":
        assert "its kernel died" in complained
        assert "The notebook up to there: " in last_line
    if (root / "mlflow.db").exists():
        assert_sound(root)
    scored = candidates_in(root) if (root / "mlflow.db").exists() else Counter()

    if kind == "disk":
        resize("2g")
    again = start(root)
    said, complained = again.communicate(timeout=600)
    assert again.returncode == 0, complained
    assert_sound(root)
    assert {run.info.status for run in runs_in(root)} <= {"FINISHED", "KILLED", "FAILED"}
    stages = {"baseline", "tuning"} if TRIES else {"tuning"}
    assert results_in(root, stages) == results_in(workplace.root, stages)
    executed = max(root.glob("runs/*/02_tuning.ipynb"))
    text = json.dumps(nbformat.read(executed, 4))
    finished = any("02_tuning done before" in line for line in said.splitlines())
    if scored and not finished:
        assert f"{len(scored)} candidates were scored before" in text
