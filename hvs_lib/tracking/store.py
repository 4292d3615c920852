"""The tracking store: where it is, whether it answers, and what is searched in it."""

import math
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

from hvs_lib.project import (
    MAX_STORE_WAIT_S,
    STORE_WAIT,
    StoreError,
    environment,
    project_root,
    remove_unfinished,
    set_environment,
    whole_file,
)
from hvs_lib.sqlite_store import ARTIFACTS, sqlite_path, sqlite_uri

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

EXPERIMENTS = {
    "data": "HVS_Fire_Prediction_Data",
    "baseline": "HVS_Fire_Prediction_Baseline",
    "tuning": "HVS_Fire_Prediction_Tuning",
    "smote": "HVS_Fire_Prediction_SMOTE",
    "comparison": "HVS_Fire_Prediction_Comparison",
}

# What is raised where the store does not answer; requests' errors are OSErrors.
STORE_FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError)
_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


@contextmanager
def store_failures_told() -> Iterator[None]:
    """Turn whatever MLflow raises where its store fails into a StoreError."""
    try:
        yield
    except (*STORE_FAILURES, ModuleNotFoundError) as error:  # a database's driver
        raise _store_error(error) from error


def connect() -> None:
    """Point MLflow at the store, and make it ready if it is new.

    The store is ``MLFLOW_TRACKING_URI`` if set, else SQLite at the project root, whatever the
    working directory; a relative SQLite path starts at the project root, too. A server is asked
    once whether it answers; what is logged later is tried again for ``HVS_STORE_WAIT_S`` seconds
    (60 if unset).

    Raises
    ------
    StoreError
        Where the store does not answer, or refuses.
    """
    set_environment()
    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(project_root() / "mlflow.db")
    with store_failures_told():
        path = sqlite_path(uri)
        mlflow.set_tracking_uri(sqlite_uri(path, uri) if path else uri)
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or ""
        if registry_path := sqlite_path(registry):
            os.environ["MLFLOW_REGISTRY_URI"] = sqlite_uri(registry_path, registry)
        if path is not None:
            _make_ready(path)
        else:
            _ask(uri)
        MlflowClient().search_registered_models(max_results=1)  # MLFLOW_REGISTRY_URI, where set


def check_experiments() -> None:
    """Refuse, with a StoreError, to log to a store whose experiments are deleted."""
    with store_failures_told():
        for experiment in mlflow.search_experiments(view_type=ViewType.DELETED_ONLY):
            if experiment.name in EXPERIMENTS.values():
                named = f"-x {experiment.experiment_id}"
                raise StoreError(
                    f"the experiment {experiment.name} is deleted: restore it with "
                    f"`{mlflow_command('experiments restore')} {named}`."
                )


def mlflow_command(words: str) -> str:
    """Return a command of MLflow's as it is typed for this store."""
    program = Path(sys.executable).with_name("mlflow")
    return f"MLFLOW_TRACKING_URI='{_without_password(mlflow.get_tracking_uri())}' {program} {words}"


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@]*@", "//", text)


def _make_ready(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes that create the tables of a fresh file at once break it, and so does one
    # that is killed meanwhile.
    with one_at_a_time():
        if not path.exists():
            remove_unfinished(path)
            with whole_file(path) as unfinished:
                MlflowClient(sqlite_uri(unfinished)).search_experiments(max_results=1)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
        MlflowClient().search_experiments(max_results=1)


def _ask(uri: str) -> None:
    if re.split(r"[+:]", uri)[0] in DATABASE_ENGINES:
        with create_engine(uri).connect():  # MLflow would try for an hour
            pass
    with environment({_RETRIES: "0", _TIMEOUT: "10"}):
        MlflowClient().search_experiments(max_results=1)
    wait_for_server()


def wait_for_server() -> None:
    """Let MLflow try again for as long as the environment says.

    It waits 0, 4, 8, ... seconds between its tries, 2 ** (tries + 1) - 4 in all.
    """
    said = os.environ.get(STORE_WAIT) or "60"
    try:
        wait_s = float(said)
    except ValueError:
        wait_s = math.nan
    if not 0 <= wait_s <= MAX_STORE_WAIT_S:
        raise StoreError(
            f"{STORE_WAIT} must be a number of seconds from 0 to {MAX_STORE_WAIT_S}, got {said!r}."
        )
    os.environ[_RETRIES] = str(round(math.log2(wait_s + 4) - 1) if wait_s > 0 else 0)
    os.environ.setdefault(_TIMEOUT, "30")


def _store_error(error: Exception) -> StoreError:
    """Say that the store failed, and do not wait for it again in this process."""
    os.environ[_RETRIES] = "0"
    reason = str(error).strip().split("\n", 1)[0]
    places = dict.fromkeys([mlflow.get_tracking_uri(), mlflow.get_registry_uri()])
    return StoreError(
        _without_password(f"the tracking store {', registry '.join(places)} failed: {reason}\n")
        + "Start or mend it, or set MLFLOW_TRACKING_URI to another; unset, the store is mlflow.db "
        "in the project."
    )


def ensure_experiment(name: str) -> str:
    """Find or make an experiment, with artifacts beside a SQLite store and not in the cwd."""
    client = MlflowClient()
    path = sqlite_path(mlflow.get_tracking_uri())
    if path is None:
        return mlflow.set_experiment(name).experiment_id
    with one_at_a_time():
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return client.create_experiment(name, artifact_location=ARTIFACTS)


def one_at_a_time() -> AbstractContextManager:
    """Keep other processes off a SQLite store meanwhile; a server sees to that by itself."""
    path = sqlite_path(mlflow.get_tracking_uri())
    return nullcontext() if path is None else FileLock(path.with_name("mlflow.db.lock"))


def search_runs(filter_string: str) -> list[Run]:
    """Search the runs of the workbook's experiments, without the client's limit of 1000."""
    experiments = mlflow.search_experiments(filter_string="name LIKE 'HVS_Fire_Prediction_%'")
    if not experiments:
        return []
    return mlflow.search_runs(
        [experiment.experiment_id for experiment in experiments],
        filter_string=filter_string,
        output_format="list",
    )
