"""The smoke run, of which each test file gets a copy, and a smaller run to be disturbed."""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from projects import BIN, TORTURE, environment_of, store_of

from hvs_lib import columns as col

# With `--dist loadfile` each process takes the next file: the longest come first, but those that
# wait for the smoke run, the browser's and nbval's, after long ones that do not.
FIRST = ["test_smoke", "test_torture", "test_remote", "test_side_by_side", "test_browser"]
FIRST += ["test_nbval", "test_fleet", "test_tracking", "test_parallel", "test_doubts"]
FIRST += ["test_portability", "test_addresses", "test_cli", "test_external_memory", "test_cache"]


def pytest_collection_modifyitems(items):
    """Put the long files first."""
    place = {f"{name}.py": number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))


def calling(root):
    """Return a function that calls a command in a project; its output is captured."""

    def call(command, *arguments, cwd=root):
        words = [str(BIN / command), *map(str, arguments)]
        return subprocess.run(
            words, cwd=cwd, env=environment_of(root), capture_output=True, text=True
        )

    call.root = root
    return call


@pytest.fixture(scope="session")
def run_once(tmp_path_factory, worker_id):
    """Return a function that calls `hvs run` in a new project, once for all test processes.

    It returns the project and what the run said.
    """
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def run(name, *arguments):
        root, said = base / name, base / f"{name}.txt"
        with FileLock(base / f"{name}.lock"):
            if not said.exists():
                root.mkdir()
                result = calling(root)("hvs", "run", *arguments)
                assert result.returncode == 0, result.stdout + result.stderr
                said.write_text(result.stdout)
        return root, said.read_text()

    return run


@pytest.fixture(scope="session")
def finished_run(run_once):
    """Run the smoke profile; return its project and what it said."""
    return run_once("smoke", "--profile", "smoke")


class SmallRun(NamedTuple):
    """A finished run, its telemetry, and what `hvs run` must be told to make it again."""

    root: Path
    telemetry: Path | str  # "" is the simulated fleet
    options: list


@pytest.fixture(scope="session")
def small_run(request, run_once, make_telemetry, tmp_path_factory):
    """Run 01_baseline and 02_tuning on a few thousand rows, for runs that are disturbed.

    What they find does not matter, only that it comes out again. `make torture` takes the smoke
    run instead, where more is under way when something stops.
    """
    if TORTURE:
        root, _ = request.getfixturevalue("finished_run")
        return SmallRun(root, "", ["--profile", "smoke"])
    telemetry = tmp_path_factory.mktemp("small") / "small.parquet"
    made = make_telemetry(racks=12, rows=200, event_racks=tuple(range(8)))
    # Without noise a column gives the label away, and nothing is registered.
    noise = np.abs(np.random.default_rng(0).normal(0, 3, len(made))).astype(np.float32)
    made.assign(**{col.TEMP_MAX: made[col.TEMP_MAX] + noise}).to_parquet(telemetry)
    options = ["--profile", "smoke", "-p", "normal_stride", 4, "-p", "data_path", telemetry]
    root, _ = run_once("small", "01_baseline", "02_tuning", *options)
    return SmallRun(root, telemetry, options)


@pytest.fixture(scope="session")
def without_ids(small_run, tmp_path_factory):
    """Return the telemetry of the small run without event ids, as few loggers write them."""
    if not small_run.telemetry:
        return ""
    path = tmp_path_factory.mktemp("without_ids") / "own.parquet"
    telemetry = pd.read_parquet(small_run.telemetry)
    telemetry.drop(columns=[col.EVENT_ID, col.EVENT_TYPE]).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def workplace(finished_run, tmp_path_factory):
    """Copy the run's project for a test file; return a function that calls a command in it."""
    root = tmp_path_factory.mktemp("workplace") / "project"
    shutil.copytree(finished_run[0], root)
    return calling(root)


@pytest.fixture(scope="module")
def smoke(finished_run, workplace):
    """Point MLflow at the store of the copied run; return what the run has said."""
    mlflow.set_tracking_uri(store_of(workplace.root))
    return finished_run[1]


@pytest.fixture(scope="module")
def fleet(workplace):
    """Return the folder of the sites that the run trains on; those of the trial lie beside."""
    return workplace.root / "data" / "raw" / "fleet_mix_seed42"
