"""How the tests start commands in a project folder of their own, and read its store."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow.entities import Run

BIN = Path(sys.executable).parent
TORTURE = int(os.environ.get("HVS_TORTURE", "0"))  # tries that `make torture` asks for


def environment_of(root: Path, **variables: str) -> dict[str, str]:
    """Return the environment of a process whose project is the folder, with its own store."""
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return inherited | {"HVS_PROJECT_ROOT": str(root)} | variables


def start(command: str, *arguments: object, root: Path, **variables: str) -> subprocess.Popen:
    """Start a command of the virtual environment in the folder; its output goes to pipes."""
    return subprocess.Popen(
        [BIN / command, *map(str, arguments)],
        env=environment_of(root, **variables), cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def copy_telemetry(fleet: Path, root: Path) -> None:
    """Give the project its telemetry, which spares it the simulation."""
    shutil.copytree(fleet, root / "data" / "raw" / fleet.name)


def free_port() -> int:
    """Return a port of the loopback address that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def store_of(root: Path) -> str:
    """Return the URI of the project's own store."""
    return f"sqlite:///{root / 'mlflow.db'}"


def runs_of(uri: str) -> list[Run]:
    """Return all runs of a store."""
    from mlflow import MlflowClient  # takes seconds to load; few tests need it

    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, max_results=5000))


def results_of(run: Run) -> dict[str, float]:
    """Return the metrics of a run that another one must have too: all but times."""
    return {name: value for name, value in run.data.metrics.items() if "seconds" not in name}


def fitted_in(root: Path) -> dict[Path, int]:
    """Map each fit and score in the project's cache to the time it was written."""
    cache = root / "data" / "cache"
    return {path.relative_to(cache): path.stat().st_mtime_ns for path in cache.rglob("output.pkl")}
