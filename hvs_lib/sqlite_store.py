"""Artifacts of a store in a SQLite file that go where the file goes.

Absolute addresses of artifacts break where a project is moved or mounted elsewhere. Here they
begin with ``hvs:/``, the folder of the SQLite file. MLflow imports this file by its entry point in
pyproject.toml; nothing else may import it before MLflow.
"""

from urllib.parse import urlsplit

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from hvs_lib.project import project_root
from hvs_lib.sqlite_address import sqlite_path


class BesideTheStore(LocalArtifactRepository):
    """Files beside the SQLite file that MLflow tracks in; in a server, in the project."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, *args, **kwargs):
        if tracking_uri is None and mlflow.is_tracking_uri_set():
            tracking_uri = mlflow.get_tracking_uri()
        path = sqlite_path(tracking_uri) if tracking_uri else project_root() / "mlflow.db"
        if path is None:
            raise MlflowException(
                f"{artifact_uri} lies beside a SQLite file, which {tracking_uri} does not show: "
                "set MLFLOW_TRACKING_URI to that file, or log to a store made by the server"
            )
        files = path.parent / urlsplit(artifact_uri).path.lstrip("/")
        super().__init__(files.as_uri(), tracking_uri, *args, **kwargs)
