"""The tracking store: where it is, whether it responds, and searches in it."""

import atexit
import gc
import os
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path

import mlflow
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.db.db_types import DATABASE_ENGINES
from sqlalchemy import Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from hvs_lib.project import (
    EXECUTION,
    StoreError,
    environment,
    project_root,
    remove_unfinished,
    set_environment,
    whole_file,
)
from hvs_lib.sqlite_store import ARTIFACTS, sqlite_path, sqlite_uri

EXPERIMENTS = [
    "HVS_Fire_Prediction_Data",
    "HVS_Fire_Prediction_Baseline",
    "HVS_Fire_Prediction_Tuning",
    "HVS_Fire_Prediction_SMOTE",
    "HVS_Fire_Prediction_Comparison",
    "HVS_Fire_Prediction_Field_Trial",
]

_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# Errors of requests are OSErrors; a database driver may not be installed.
_FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ModuleNotFoundError)


@contextmanager
def as_store_errors() -> Iterator[None]:
    """Turn whatever MLflow raises when its store fails into a StoreError."""
    try:
        yield
    except _FAILURES as error:
        os.environ[_RETRIES] = "0"  # do not wait for it again in this process
        places = dict.fromkeys([mlflow.get_tracking_uri(), mlflow.get_registry_uri()])
        failure = f"the tracking store {', registry '.join(places)} failed: {first_line(error)}"
        raise StoreError(
            f"{without_password(failure)}\n"
            "Start or repair it, or set MLFLOW_TRACKING_URI to another; if unset, the store is "
            "mlflow.db in the project."
        ) from error


def connect(*, create: bool = True) -> None:
    """Point MLflow at the store; create it if it is new, or refuse to.

    The store is ``MLFLOW_TRACKING_URI`` if set, else SQLite at the project root, whatever the
    working directory. A relative SQLite path, also that of the registry ``MLFLOW_REGISTRY_URI`` if
    set, starts at the project root. Both are contacted once, without retries.

    Raises
    ------
    StoreError
        If one does not respond, refuses, or is missing and may not be created.
    """
    set_environment()
    with as_store_errors():
        uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(project_root() / "mlflow.db")
        mlflow.set_tracking_uri(_absolute(uri))
        if registry := os.environ.get("MLFLOW_REGISTRY_URI"):
            os.environ["MLFLOW_REGISTRY_URI"] = _absolute(registry)
        for uri in {mlflow.get_tracking_uri(), mlflow.get_registry_uri()}:
            _make_ready(uri, create)
        with environment({_RETRIES: "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}):
            MlflowClient().search_experiments(max_results=1)
            MlflowClient().search_registered_models(max_results=1)
    if EXECUTION in os.environ:
        _keep_until_exit()


def make_experiments() -> None:
    """Create the workbook's missing experiments; a deleted one raises a StoreError."""
    client = MlflowClient()
    with as_store_errors(), one_at_a_time():
        found = {e.name: e for e in client.search_experiments(view_type=ViewType.ALL)}
        for name in EXPERIMENTS:
            if name not in found and sqlite_path(mlflow.get_tracking_uri()):
                client.create_experiment(name, artifact_location=ARTIFACTS)  # not in the cwd
            elif name in found and found[name].lifecycle_stage == "deleted":
                raise StoreError(
                    f"the experiment {name} is deleted: restore it with "
                    f"`{mlflow_command('experiments restore')} -x {found[name].experiment_id}`."
                )


def mlflow_command(words: str) -> str:
    """Return an MLflow command as it is typed for this store."""
    program = Path(sys.executable).with_name("mlflow")
    return f"MLFLOW_TRACKING_URI='{without_password(mlflow.get_tracking_uri())}' {program} {words}"


def first_line(error: Exception) -> str:
    """Return the line of an error that says what is wrong; the rest is for developers."""
    return str(error).strip().split("\n", 1)[0]


def without_password(text: str) -> str:
    """Remove the user name and password from every address in a text."""
    # A password, which follows a colon, may hold / and @; it may hold a space if it has neither.
    return re.sub(r"(?<!/)//(?!/)(?:[^\s/:]*:\S*|[^/@]*)@", "//", text)


def _keep_until_exit() -> None:
    """Save a kernel of `hvs run` the two seconds in which Python would free what MLflow has loaded.

    Databases are still closed, so that no write-ahead log remains beside `mlflow.db`; so are the
    notebook's files, because IPython clears its variables at exit.
    """
    for each in gc.get_objects():
        if type(each) is Engine:
            atexit.register(each.dispose)
    gc.freeze()


def _absolute(uri: str) -> str:
    path = sqlite_path(uri)
    return sqlite_uri(path, uri) if path else uri


def _make_ready(uri: str, create: bool) -> None:
    """Create a SQLite store if it is new and may be; check that any other database responds."""
    path = sqlite_path(uri)
    if path is None:
        if re.split(r"[+:]", uri)[0] in DATABASE_ENGINES:
            with create_engine(uri).connect():  # MLflow would retry for an hour
                pass
        return
    if not create and not path.exists():
        raise StoreError(
            f"there is no tracking store {path}: `hvs run` makes it and registers a champion; or "
            "set MLFLOW_TRACKING_URI (MLFLOW_REGISTRY_URI, if you use it) to another store."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes that create the tables of a new file at the same time break it, and so does
    # one that is killed while creating them.
    with one_at_a_time(uri):
        if not path.exists():
            remove_unfinished(path)
            with whole_file(path) as unfinished:
                MlflowClient(sqlite_uri(unfinished)).search_experiments(max_results=1)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer


def one_at_a_time(uri: str | None = None) -> AbstractContextManager:
    """Lock a SQLite store against other processes; a server does so by itself."""
    path = sqlite_path(uri or mlflow.get_tracking_uri())
    return FileLock(path.with_name("mlflow.db.lock")) if path else nullcontext()


def search_runs(filter_string: str) -> list[Run]:
    """Search the runs of the workbook's experiments, without the client's limit of 1000."""
    experiments = mlflow.search_experiments(filter_string="name LIKE 'HVS_Fire_Prediction_%'")
    if not experiments:
        return []
    ids = [experiment.experiment_id for experiment in experiments]
    return mlflow.search_runs(ids, filter_string=filter_string, output_format="list")
