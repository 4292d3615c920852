"""Real runs of the workbook, shared by the tests that look at what they left behind."""

import subprocess

import mlflow
import pytest
from projects import BIN, environment_of, store_of


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """Return a project root of its own, and a function that calls a command in it."""
    root = tmp_path_factory.mktemp("workplace")
    environment = environment_of(root)

    def call(command, *arguments, cwd=root):
        words = [str(BIN / command), *map(str, arguments)]
        return subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True)

    call.root = root
    return call


@pytest.fixture(scope="session")
def smoke(workplace):
    """Run the whole workbook once with the smoke profile; MLflow then points at its store."""
    result = workplace("hvs", "run", "--profile", "smoke")
    assert result.returncode == 0, result.stdout + result.stderr
    mlflow.set_tracking_uri(store_of(workplace.root))
    return result


@pytest.fixture(scope="session")
def fleet(smoke, workplace):
    """Return the simulated telemetry of the smoke profile."""
    (path,) = (workplace.root / "data" / "raw").glob("*.parquet")
    return path
