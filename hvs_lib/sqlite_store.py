"""A store in a SQLite file: its address, and artifacts that go where the file goes.

MLflow keeps addresses of artifacts as they are, so absolute ones break where a project is moved,
copied or mounted elsewhere. Here they begin with ``hvs:/``, the folder of the SQLite file; MLflow
finds the scheme by the entry point ``mlflow.artifact_repository`` in pyproject.toml.
"""

from pathlib import Path
from urllib.parse import urlsplit

from hvs_lib.project import project_root

import mlflow
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from sqlalchemy import URL, make_url

ARTIFACTS = "hvs:/mlartifacts"


class BesideTheStore(LocalArtifactRepository):
    """Files beside the SQLite file that MLflow tracks in, else in the project."""

    def __init__(self, artifact_uri: str, tracking_uri: str | None = None, *args, **kwargs):
        if tracking_uri is None and mlflow.is_tracking_uri_set():
            tracking_uri = mlflow.get_tracking_uri()
        path = sqlite_path(tracking_uri or "")
        folder = project_root() if path is None else path.parent
        files = folder / urlsplit(artifact_uri).path.lstrip("/")
        super().__init__(files.as_uri(), tracking_uri, *args, **kwargs)


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite store, whatever characters its path holds.

    With the driver named, since MLflow would make the folders of a ``sqlite:///`` address as it is
    written, escapes included.
    """
    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string()


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for another kind of store.

    A relative path starts at the project root, whatever the working directory.
    """
    if not uri.startswith("sqlite"):
        return None
    return (project_root() / (make_url(uri).database or "")).resolve()
