"""Kill `hvs run` at random points, run it again, and compare with an uninterrupted run.

In CI one try of each kind on one notebook; `make torture` tries all notebooks 21 times.
"""

import json
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, suppress

import nbformat
import numpy as np
import psutil
import pytest
from mlflow.exceptions import MlflowException
from projects import TORTURE, fitted_in, results_of, runs_of, start, store_of

KINDS = ("runner", "kernel", "disk")
if TORTURE:
    CASES = [(KINDS[k % 3], k, None) for k in range(TORTURE)]
else:
    CASES = [("runner", 0, "02_tuning"), ("kernel", 1, "01_baseline"), ("disk", 2, "02_tuning")]
DISK_FULL = ("No space left", "disk is full", "disk I/O error")


def children_in(root):
    """Return the finished runs of models, references and candidates."""
    if not (root / "mlflow.db").exists():
        return []
    return [
        run
        for run in runs_of(store_of(root))
        if run.info.status == "FINISHED" and run.data.tags["role"] != "parent"
    ]


def results_in(root, notebook):
    """Map what the finished notebooks have run, with all parameters, to its metrics but times.

    Of a notebook that was finished more than once, the first counts.
    """
    finished = {
        run.data.tags["mlflow.runName"]: run.info.run_id
        for run in runs_of(store_of(root))  # the newest first
        if run.data.tags["role"] == "parent" and run.info.status == "FINISHED"
    }
    parents = {run_id for name, run_id in finished.items() if notebook in (None, name)}
    children = [run for run in children_in(root) if run.data.tags["mlflow.parentRunId"] in parents]
    results = {
        json.dumps([run.data.tags["stage"], run.data.params], sort_keys=True): results_of(run)
        for run in children
    }
    assert len(results) == len(children)
    return results


def wait_for_children(process, root, count):
    """Wait until the store has so many children, or the process has ended."""
    while process.poll() is None:
        with suppress(MlflowException):  # the store is being made
            if len(children_in(root)) >= count:
                return
        time.sleep(0.3)


def kernel_of(process):
    """Wait for the runner's kernel."""
    while process.poll() is None:
        for child in psutil.Process(process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
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
    if process.returncode == 0:  # the kernel had done its work already
        assert kind == "kernel"
        assert said.rstrip().rsplit("\n", 1)[-1].startswith("Every run, figure and model")
        return
    assert process.returncode == 1
    assert "Traceback" not in complained
    assert complained.startswith("Error: ")
    last_line = complained.rstrip().rsplit("\n", 1)[-1]
    if kind == "kernel":
        assert "its kernel died" in complained
        assert "The notebook up to there: " in last_line
    else:
        assert any(reason in complained for reason in DISK_FULL)
    if "The notebook up to there: " in last_line:
        nbformat.read(last_line.split("there: ")[1], 4)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "number", "notebook"), CASES)
def test_what_was_fitted_before_a_kill_is_not_fitted_again(
    kind, number, notebook, request, small_run, tmp_path
):
    root, resize = tmp_path, None
    if kind == "disk":
        root, resize = request.getfixturevalue("small_disk")
    call = ["hvs", "run", *([notebook] if notebook else []), *small_run.options]
    undisturbed = results_in(small_run.root, notebook)
    rng = np.random.default_rng(number)

    process = start(*call, root=root)
    if kind == "disk":
        used = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        resize(int(used + rng.uniform(0.3, 6 if notebook else 40) * 2**20))
    else:
        count = rng.integers(2 if notebook else 0, len(undisturbed))  # in CI there is some to lose
        wait_for_children(process, root, count)
        time.sleep(rng.uniform(0, 4))
        victim = process if kind == "runner" else kernel_of(process)
        victim.send_signal(signal.SIGKILL)
    said, complained = process.communicate(timeout=600)
    print(f"{kind} {number}: {process.returncode}, {said.splitlines()[-1:]}, {complained!r}")
    assert_told(kind, process, said, complained)
    if kind == "runner":
        time.sleep(2)  # its kernel looks for it every second
    if (root / "mlflow.db").exists():
        assert_sound(root)
    fitted = fitted_in(root)

    if kind == "disk":
        resize("2g")
    again = start(*call, root=root)
    said, complained = again.communicate(timeout=600)
    assert again.returncode == 0, complained
    assert_sound(root)
    statuses = {run.info.status for run in runs_of(store_of(root))}
    assert statuses <= {"FINISHED", "KILLED", "FAILED"}
    assert results_in(root, notebook) == undisturbed
    assert fitted.items() <= fitted_in(root).items(), "an entry was written again"
    assert fitted_in(root).keys() <= fitted_in(small_run.root).keys(), "a fit was not needed"
    print(f"{len(fitted)} of {len(fitted_in(root))} fits were done before the kill")
