"""A tracking store in a SQLite file: its address, and its artifacts, which move with the file.

Absolute artifact addresses break when a project is moved or mounted elsewhere. Here they begin
with ``hvs:/``, the folder of the SQLite file. MLflow imports this file through its entry point in
pyproject.toml, while MLflow itself is being loaded, so MLflow is imported only inside functions.
"""

from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import make_url

from hvs_lib.project import StoreError, project_root

ARTIFACTS = "hvs:/mlartifacts"


def sqlite_uri(path: Path, uri: str = "sqlite://") -> str:
    """Return the address of a SQLite store, whose path may hold any characters.

    It has the options of `uri` and names the driver, since MLflow would create the folders of a
    ``sqlite:///`` address as written, escapes included.
    """
    return make_url(uri).set(drivername="sqlite+pysqlite", database=str(path)).render_as_string()


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for another kind of store.

    A relative path starts at the project root. An in-memory database raises a StoreError.
    """
    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    if not database or database.startswith((":memory:", "file:")):
        raise StoreError(f"the tracking store must be a file, got {uri}: name one.")
    return (project_root() / database).resolve()


def artifact_repository(artifact_uri: str, tracking_uri: str | None = None, *args, **kwargs):
    """Return the artifact repository beside the SQLite file that MLflow tracks in.

    In a server, it is the one in the project folder.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    if tracking_uri is None and mlflow.is_tracking_uri_set():
        tracking_uri = mlflow.get_tracking_uri()
    path = sqlite_path(tracking_uri) if tracking_uri else project_root() / "mlflow.db"
    if path is None:
        raise MlflowException(
            f"{artifact_uri} lies beside a SQLite file that {tracking_uri} does not name: "
            "set MLFLOW_TRACKING_URI to that file, or log to a store made by the server"
        )
    files = path.parent / urlsplit(artifact_uri).path.lstrip("/")
    return LocalArtifactRepository(files.as_uri(), tracking_uri, *args, **kwargs)
