"""Execute a logged run again, in a separate store, and compare its metrics with the logged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from hvs_lib.project import code_version, is_address, package_versions
from hvs_lib.runner import RunError, plan
from hvs_lib.sqlite_store import sqlite_uri
from hvs_lib.telemetry.mapped import telemetry_sha256
from hvs_lib.tracking.store import as_store_errors, connect, mlflow_command, search_runs

TOLERANCE = 1e-9


def reproduce(run_id: str, *, say: Callable[[str], None]) -> pd.DataFrame:
    """Execute the notebook of a run again and compare the metrics.

    Parameters
    ----------
    run_id : str
        Run of a model, reference or candidate; or of a notebook, for all of its runs.
    say : callable
        Called with each line for the user.

    Returns
    -------
    DataFrame, shape (n_metrics, 6)
        ``run``, ``metric``, ``logged``, ``again``, ``difference`` (NaN where either is missing)
        and ``same`` (within `TOLERANCE`).

    Raises
    ------
    RunError
        If the run is missing, unfinished or trains nothing, the telemetry has changed, or the
        notebook fails.
    """
    connect(create=False)
    with as_store_errors():
        run, parent = _find(run_id)
        logged = search_runs(f"tags.mlflow.parentRunId = '{run_id}'") if run is parent else [run]
    tags, params = parent.data.tags, parent.data.params
    _check_data(params["data_path"], params["columns"], tags["data_sha256"])
    for warning in version_warnings(tags):
        say(f"Warning: {warning}")
    notebook = Path(tags["mlflow.source.name"]).stem
    parameters = plan([notebook], parameters=params)[notebook]
    say(f"Executing {notebook} again, in a store of its own")
    again = _execute(notebook, parameters)
    twin = next(each for each in again if each.data.tags["role"] == "parent")
    before, now = tags["data_sha256"], twin.data.tags["data_sha256"]
    if before != now:
        say(f"Warning: the telemetry differs: the run had SHA-256 {before}, now it is {now}")
    return compare(logged, again)


def version_warnings(tags: dict[str, str]) -> list[str]:
    """List the differences between the code and packages of a run and the current ones."""
    now = code_version() | package_versions()
    then = tags | json.loads(tags.get("packages", "{}"))
    warnings = [
        f"{name} was {then.get(name, 'not logged')} and is {value}"
        for name, value in now.items()
        if then.get(name) != value and name != "git_dirty"
    ]
    if "true" in (then.get("git_dirty"), now["git_dirty"]):
        warnings.append("the code had uncommitted changes, in the run or now")
    return warnings


def compare(logged: list[Run], again: list[Run]) -> pd.DataFrame:
    """Compare the metrics of runs with those of their twins, see `reproduce`."""
    twins = {_key(run): run.data.metrics for run in again}
    rows = []
    for run in sorted(logged, key=lambda run: run.info.start_time):
        before, after = run.data.metrics, twins.get(_key(run), {})
        rows += [
            (run.info.run_name, name, before.get(name), after.get(name))
            for name in sorted((before.keys() | after.keys()) - {"seconds"})
        ]
    table = pd.DataFrame(rows, columns=["run", "metric", "logged", "again"])
    table[["logged", "again"]] = table[["logged", "again"]].astype(float)
    table["difference"] = table["again"] - table["logged"]
    table["same"] = table["difference"].abs() <= TOLERANCE
    return table


def _find(run_id: str) -> tuple[Run, Run]:
    """Return a run that can be executed again, and the run of its notebook."""
    run = parent = _get(run_id)
    role, stage = run.data.tags.get("role"), run.data.tags.get("stage")
    if role is None:
        raise RunError(f"run {run_id} is not a run of the workbook: name one of its runs.")
    if stage in ("comparison", "data", "field_trial"):
        raise RunError(f"run {run_id} trained nothing ({stage}): name a model's run.")
    if role != "parent":
        _check_complete(run, "mlflow.parentRunId")
        parent = _get(run.data.tags["mlflow.parentRunId"])
    _check_complete(parent, "mlflow.source.name", "data_sha256", "data_path", "columns")
    for each in (run, parent):
        if each.info.status != "FINISHED":
            state = f"run {each.info.run_id} is {each.info.status}"
            raise RunError(f"{state}: only a finished notebook can be reproduced.")
    return run, parent


def _get(run_id: str) -> Run:
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        message = f"there is no run {run_id!r} in the store: look it up in `make ui`."
        raise RunError(message) from error
    if run.info.lifecycle_stage == "deleted":
        command = mlflow_command("runs restore")
        raise RunError(f"run {run_id} is deleted: restore it with `{command} --run-id {run_id}`.")
    return run


def _check_complete(run: Run, *names: str) -> None:
    """Refuse a run that lacks a tag or parameter that the workbook logs."""
    missing = [name for name in names if name not in run.data.tags | run.data.params]
    if missing:
        raise RunError(f"run {run.info.run_id} lacks {', '.join(missing)}: name another run.")


def _check_data(path: str, columns: str, expected: str) -> None:
    """Refuse the user's telemetry if it is gone or has changed; a simulated fleet is made again."""
    for each in filter(None, (path, columns)):
        if not (is_address(each) or Path(each).exists()):
            told = "file and its map" if columns else "file"
            raise RunError(
                f"the run's telemetry {each} is gone: restore the {told} (SHA-256 {expected})."
            )
    if path and (found := telemetry_sha256(path, columns)) != expected:
        told = f"{path} or its map {columns}" if columns else path
        raise RunError(
            f"the run's telemetry {told} has changed: its SHA-256 was {expected} and is {found}."
        )


def _execute(notebook: str, parameters: dict[str, object]) -> list[Run]:
    """Run the notebook in another process, with its own project and store; return its runs."""
    words = [sys.executable, "-c", "from hvs_lib.cli import main; main()", "run", notebook]
    for name, value in parameters.items():
        words += ["-p", name, str(value)]
    with tempfile.TemporaryDirectory(prefix="hvs-reproduce-") as folder:
        uri = sqlite_uri(Path(folder) / "mlflow.db")
        environment = os.environ | {"HVS_PROJECT_ROOT": folder, "MLFLOW_TRACKING_URI": uri}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RunError(f"the notebook failed this time:\n{done.stderr.strip()}")
        client = MlflowClient(tracking_uri=uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return client.search_runs(experiments, max_results=50_000)  # the most MLflow allows


def _key(run: Run) -> tuple[str, ...]:
    """Return what identifies a run in a notebook; candidates are numbered in the order they end."""
    tags = run.data.tags
    key = tuple(tags.get(name, "") for name in ("role", "model_name", "imbalance_technique"))
    candidate = tags["role"] == "candidate"
    return (*key, json.dumps(run.data.params, sort_keys=True)) if candidate else key
