"""Kill `hvs run` at random points, start it again, and compare with a run left in peace.

In CI one try of each kind on the search alone; `make torture` tries four notebooks 21 times.
"""

import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing

import nbformat
import numpy as np
import psutil
import pytest
from projects import copy_telemetry, results_of, runs_of, start, store_of

TRIES = int(os.environ.get("HVS_TORTURE", "0"))
NOTEBOOKS = [] if TRIES else ["02_tuning"]  # none named: all
CALL = ["hvs", "run", *NOTEBOOKS, "--profile", "smoke"]
STAGES = {"baseline", "tuning", "smote"} if TRIES else {"tuning"}
KINDS = ("runner", "kernel", "disk")
CASES = [(KINDS[k % 3], k) for k in range(max(TRIES, 3))]


def described(run):
    return json.dumps([run.data.tags["stage"], run.data.params], sort_keys=True)


def children_in(root):
    """Return the finished runs of models, references and candidates."""
    if not (root / "mlflow.db").exists():
        return []
    return [
        run
        for run in runs_of(store_of(root))
        if run.info.status == "FINISHED" and run.data.tags["role"] != "parent"
    ]


def results_in(root):
    """Map what was run, with all its parameters, to its metrics, times left out."""
    return {
        described(run): results_of(run)
        for run in children_in(root)
        if run.data.tags["stage"] in STAGES
    }


def undisturbed_seconds(root):
    """Sum what the notebooks took from the start of their runs; at least what a call takes."""
    parents = {
        run.data.tags["mlflow.runName"]: run.data.metrics["seconds"]
        for run in runs_of(store_of(root))
        if run.data.tags["role"] == "parent" and "completed" in run.data.tags
    }
    return sum(seconds for name, seconds in parents.items() if not NOTEBOOKS or name in NOTEBOOKS)


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


def assert_told(kind, process, said, complained):
    """The exit status and the last line tell what became of the run; what was executed is kept."""
    if kind == "runner":
        assert process.returncode == -signal.SIGKILL
        return
    if process.returncode == 0:  # it needed less of the disk, or its kernel had done its work
        assert said.rstrip().rsplit("\n", 1)[-1].startswith("Every run, figure and model")
        return
    assert process.returncode == 1
    assert "Traceback" not in complained
    assert complained.startswith("Error: ")
    last_line = complained.rstrip().rsplit("\n", 1)[-1]
    if kind == "kernel":
        assert "its kernel died" in complained
        assert "The notebook up to there: " in last_line
    if "The notebook up to there: " in last_line:
        nbformat.read(last_line.split("there: ")[1], 4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number"), CASES)
def test_killed_run_goes_on(kind, number, request, fleet, workplace, tmp_path):
    root, resize = tmp_path, None
    if kind == "disk":
        root, resize = request.getfixturevalue("small_disk")
    copy_telemetry(fleet, root)
    rng = np.random.default_rng(number)

    process = start(*CALL, root=root)
    if kind == "disk":
        used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        resize(int(used + rng.uniform(0.3, 40 if TRIES else 6) * 2**20))
    else:
        time.sleep(rng.uniform(2, 0.8 * undisturbed_seconds(workplace.root)))
        victim = process if kind == "runner" else kernel_of(process)
        victim.send_signal(signal.SIGKILL)
    said, complained = process.communicate(timeout=600)
    print(f"{kind} {number}: {process.returncode}, {said.splitlines()[-1:]}, {complained!r}")
    assert_told(kind, process, said, complained)
    if kind == "runner":
        time.sleep(2)  # its kernel looks for it every second
    if (root / "mlflow.db").exists():
        assert_sound(root)
    done = children_in(root)

    if kind == "disk":
        resize("2g")
    again = start(*CALL, root=root)
    said, complained = again.communicate(timeout=600)
    assert again.returncode == 0, complained
    assert_sound(root)
    statuses = {run.info.status for run in runs_of(store_of(root))}
    assert statuses <= {"FINISHED", "KILLED", "FAILED"}
    assert results_in(root) == results_in(workplace.root)
    assert_nothing_repeated(root, done, said)


def assert_nothing_repeated(root, done, said):
    """Neither a candidate nor a model of 01 and 03 that was done before the kill was fitted again.

    One that was taken over took as many seconds, to the last digit.
    """
    candidates = [run for run in done if run.data.tags["role"] == "candidate"]
    if candidates and "02_tuning done before" not in said:
        executed = max(root.glob("runs/*/02_tuning.ipynb")).read_text(encoding="utf-8")
        assert f"{len(candidates)} candidates were scored before" in executed
    fitted = {
        described(run): run.data.metrics["seconds"]
        for run in done
        if run.data.tags["role"] == "model" and run.data.tags["stage"] != "tuning"
    }
    for run in children_in(root):
        if described(run) in fitted:
            assert run.data.metrics["seconds"] == fitted[described(run)]
    print(f"taken over: {len(candidates)} candidates, {len(fitted)} models")
