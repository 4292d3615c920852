"""Artifacts of a store in a SQLite file that go where the file goes.

MLflow keeps addresses of artifacts as they are, so absolute ones break where a project is moved,
copied or mounted elsewhere. Here they begin with ``hvs:/``, the folder of the SQLite file; MLflow
finds the scheme by the entry point ``mlflow.artifact_repository`` in pyproject.toml, and imports
this file for it; nothing else may import it before MLflow.
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
