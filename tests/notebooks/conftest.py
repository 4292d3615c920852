"""One run of the whole workbook, of which each test file gets a copy."""

import shutil
import subprocess

import mlflow
import pytest
from filelock import FileLock
from projects import BIN, environment_of, store_of


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
def finished_run(tmp_path_factory, worker_id):
    """Run the smoke profile once for all test processes; return its project and what it said."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent
    root, said = base / "smoke", base / "smoke.txt"
    with FileLock(base / "smoke.lock"):
        if not said.exists():
            root.mkdir()
            result = calling(root)("hvs", "run", "--profile", "smoke")
            assert result.returncode == 0, result.stdout + result.stderr
            said.write_text(result.stdout)
    return root, said.read_text()


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
    """Return the simulated telemetry of the run."""
    (path,) = (workplace.root / "data" / "raw").glob("*.parquet")
    return path
