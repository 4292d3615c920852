"""Executions of notebooks: whose process has died, and which need not be done again."""

import os
import platform
from pathlib import Path

from hvs_lib.tracking.store import search_runs

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException


def this_process() -> str:
    """Name this process so that a later one with the same number is not taken for it."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.0f}"


def close_killed_runs() -> list[str]:
    """Close, as KILLED, the runs that this machine's dead processes left RUNNING.

    Returns
    -------
    list of the Run IDs closed.
    """
    client = MlflowClient()
    closed = []
    for run in search_runs("attributes.status = 'RUNNING'"):
        process = run.data.tags.get("process")
        if process and _is_dead(process):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_id)
    return closed


def _is_dead(process: str) -> bool:
    """Tell whether a process of `this_process` has ended; of other machines we cannot know."""
    node, pid, created = process.rsplit(" ", 2)
    if node != platform.node():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != created
    except psutil.NoSuchProcess:
        return True


def parent_of_execution(execution_id: str) -> Run | None:
    """Find the parent run of one execution by the runner, if it came so far."""
    runs = search_runs(f"tags.execution_id = '{execution_id}' and tags.role = 'parent'")
    return runs[0] if runs else None


def log_notebook(run_id: str, executed: Path, *, completed: str = "") -> None:
    """Log an executed notebook as an artifact of its parent run.

    Parameters
    ----------
    run_id : of the parent.
    executed : its file, if it came so far.
    completed : fingerprint of what was executed to its end, for `executed_before`.
    """
    if executed.exists():
        MlflowClient().log_artifact(run_id, str(executed))
        if completed:
            MlflowClient().set_tag(run_id, "completed", completed)


def executed_before(fingerprint: str, notebook: str) -> tuple[str, Path] | None:
    """Find the newest execution of a notebook, if it is of this fingerprint and was completed.

    An older one does not count: the comparison looks at the newest runs.

    Parameters
    ----------
    fingerprint : from `hvs_lib.resume.fingerprint`.
    notebook : its name, ``01_baseline``.

    Returns
    -------
    The Run ID of the parent and a copy of the executed notebook; None if there is none, or its file
    is gone.
    """
    runs = search_runs(f"tags.role = 'parent' and attributes.run_name = '{notebook}'")
    if not runs or runs[0].data.tags.get("completed") != fingerprint:
        return None
    run_id, name = runs[0].info.run_id, f"{notebook}.ipynb"
    try:
        path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)
    except (MlflowException, OSError):
        return None  # somebody has cleared the artifacts away
    return run_id, Path(path)
