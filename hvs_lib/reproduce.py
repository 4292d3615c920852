"""Execute a logged run again, in a store of its own, and set its metrics beside the logged ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from hvs_lib import tracking
from hvs_lib.runner import RunError, plan
from hvs_lib.sqlite_store import sqlite_uri
from hvs_lib.telemetry.files import sha256_of_file

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

TOLERANCE = 1e-9
_TIMES = ("seconds", "seconds_tracking")
_COMMAND = "from hvs_lib.cli import main; main()"


def reproduce(run_id: str, *, say: Callable[[str], None]) -> pd.DataFrame:
    """Execute the notebook of a run again and compare the metrics.

    Parameters
    ----------
    run_id : of a model, a reference or a candidate, or of a notebook for all of its runs.
    say : is given each line for the user.

    Returns
    -------
    DataFrame, one row for each metric: ``run``, ``metric``, ``logged``, ``again``, ``difference``
    (NaN where one of the two lacks it) and ``same``, within `TOLERANCE`.

    Raises
    ------
    RunError
        For a run that is not there, not finished or trains nothing, telemetry that has changed, or
        a notebook that fails.
    """
    tracking.connect()
    client = MlflowClient()
    run, parent = _find(client, run_id)
    notebook = Path(parent.data.tags["mlflow.source.name"]).stem
    _check_data(parent)
    for warning in version_warnings(parent.data.tags):
        say(f"Warning: {warning}")
    parameters = plan([notebook], parameters=parent.data.params)[notebook]
    logged = [run] if run.data.tags["role"] != "parent" else _children(client, parent)
    with tempfile.TemporaryDirectory(prefix="hvs-reproduce-") as folder:
        say(f"Executing {notebook} again, in a store of its own")
        again = _execute(notebook, parameters, Path(folder))
        twin = next(run for run in again if run.data.tags["role"] == "parent")
        if twin.data.tags["data_sha256"] != parent.data.tags["data_sha256"]:
            say(
                "Warning: the telemetry differs: the run had SHA-256 "
                f"{parent.data.tags['data_sha256']}, now it is {twin.data.tags['data_sha256']}"
            )
    return compare(logged, again)


def version_warnings(tags: dict[str, str]) -> list[str]:
    """Name what differs between the code and packages of a run and those at hand."""
    warnings = [
        f"{name} was {tags.get(name, 'not logged')} and is {value}"
        for name, value in tracking.code_version().items()
        if tags.get(name) != value and name != "git_dirty"
    ]
    if "true" in (tags.get("git_dirty"), tracking.code_version()["git_dirty"]):
        warnings.append("the code had changes that no commit holds, in the run or now")
    then = json.loads(tags.get("packages", "{}"))
    warnings += [
        f"{name} was {then.get(name, 'not logged')} and is {value}"
        for name, value in tracking.package_versions().items()
        if then.get(name) != value
    ]
    return warnings


def compare(logged: list[Run], again: list[Run]) -> pd.DataFrame:
    """Set the metrics of runs beside those of their twins; see `reproduce`.

    Parameters
    ----------
    logged, again : runs; twins agree in role, model and technique, candidates in parameters.
    """
    twins = {_key(run): run for run in again}
    rows = []
    for run in logged:
        twin = twins.get(_key(run))
        before, after = _metrics(run), _metrics(twin) if twin else {}
        rows += [
            (run.info.run_name, name, before.get(name), after.get(name))
            for name in sorted(before.keys() | after.keys())
        ]
    table = pd.DataFrame(rows, columns=["run", "metric", "logged", "again"])
    table[["logged", "again"]] = table[["logged", "again"]].astype(float)
    table["difference"] = table["again"] - table["logged"]
    table["same"] = table["difference"].abs() <= TOLERANCE
    return table


def _find(client: MlflowClient, run_id: str) -> tuple[Run, Run]:
    """Return a run that can be executed again, and the run of its notebook."""
    run = _get(client, run_id)
    role, stage = run.data.tags.get("role"), run.data.tags.get("stage")
    if role is None:
        raise RunError(f"run {run_id} is none of the workbook's notebooks or models.")
    if stage in ("comparison", "data"):
        raise RunError(f"run {run_id} trained nothing ({stage}): name a model's run.")
    parent = run
    if role != "parent":
        _check_complete(run, "mlflow.parentRunId")
        parent = _get(client, run.data.tags["mlflow.parentRunId"])
    _check_complete(parent, "mlflow.source.name", "data_sha256", "data_path")
    for each in (run, parent):
        if each.info.status != "FINISHED":
            raise RunError(
                f"run {each.info.run_id} is {each.info.status}: only a finished notebook can be "
                "reproduced."
            )
    return run, parent


def _get(client: MlflowClient, run_id: str) -> Run:
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise RunError(
            f"there is no run {run_id!r} in the store: look it up in `make ui`."
        ) from error
    if run.info.lifecycle_stage == "deleted":
        command = tracking.mlflow_command("runs restore")
        raise RunError(f"run {run_id} is deleted: restore it with `{command} --run-id {run_id}`.")
    return run


def _check_complete(run: Run, *names: str) -> None:
    """Refuse a run that lacks a tag or parameter that the workbook logs."""
    missing = [name for name in names if name not in run.data.tags | run.data.params]
    if missing:
        raise RunError(f"run {run.info.run_id} lacks {', '.join(missing)}: name another run.")


def _check_data(parent: Run) -> None:
    """Refuse telemetry of the user's own that is gone or has changed."""
    path, expected = parent.data.params["data_path"], parent.data.tags["data_sha256"]
    if not path:
        return  # the simulated fleet is made again
    if not Path(path).is_file():
        raise RunError(
            f"the run's telemetry {path} is gone: put back the file of SHA-256 {expected}."
        )
    found = sha256_of_file(path)
    if found != expected:
        raise RunError(
            f"the run's telemetry {path} has changed: its SHA-256 was {expected} and is {found}."
        )


def _execute(notebook: str, parameters: dict[str, object], folder: Path) -> list[Run]:
    """Run the notebook in another process, whose store is in the folder; return its runs."""
    uri = sqlite_uri(folder / "mlflow.db")
    words = [sys.executable, "-c", _COMMAND, "run", notebook]
    for name, value in parameters.items():
        words += ["-p", name, str(value)]
    environment = os.environ | {"HVS_PROJECT_ROOT": str(folder), "MLFLOW_TRACKING_URI": uri}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RunError(f"the notebook failed this time:\n{done.stderr.strip()}")
    client = MlflowClient(tracking_uri=uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return _all_runs(client, experiments, "")


def _children(client: MlflowClient, parent: Run) -> list[Run]:
    chosen = f"tags.mlflow.parentRunId = '{parent.info.run_id}'"
    return _all_runs(client, [parent.info.experiment_id], chosen)


def _all_runs(client: MlflowClient, experiments: list[str], chosen: str) -> list[Run]:
    runs, token = [], None
    while True:
        page = client.search_runs(
            experiments, chosen, page_token=token, order_by=["start_time ASC"]
        )
        runs += page
        token = page.token
        if not token:
            return runs


def _key(run: Run) -> tuple[str, ...]:
    """Tell the runs of one notebook apart; candidates are numbered in the order they end."""
    tags = run.data.tags
    key = tuple(tags.get(name, "") for name in ("role", "model_name", "imbalance_technique"))
    candidate = tags["role"] == "candidate"
    return (*key, json.dumps(run.data.params, sort_keys=True)) if candidate else key


def _metrics(run: Run) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if name not in _TIMES}
