"""A store in a SQLite file: its address, and its artifacts, which go where the file goes.

Absolute addresses of artifacts break where a project is moved or mounted elsewhere. Here they
begin with ``hvs:/``, the folder of the SQLite file. MLflow imports this file by its entry point in
pyproject.toml, while MLflow itself is being loaded: so it imports MLflow nowhere but in functions.
"""

from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import make_url

from hvs_lib.project import StoreError, project_root

ARTIFACTS = "hvs:/mlartifacts"


def sqlite_uri(path: Path, uri: str = "sqlite://") -> str:
    """Return the address of a SQLite store, whatever characters its path holds.

    With the options of the `uri`, and with the driver named, since MLflow would make the folders of
    a ``sqlite:///`` address as it is written, escapes included.
    """
    return make_url(uri).set(drivername="sqlite+pysqlite", database=str(path)).render_as_string()


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite store, None for another kind of store.

    A relative path starts at the project root. A StoreError refuses a database in memory.
    """
    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    if not database or database.startswith((":memory:", "file:")):
        raise StoreError(f"the tracking store must be a file, got {uri}: name one.")
    return (project_root() / database).resolve()


def BesideTheStore(artifact_uri: str, tracking_uri: str | None = None, *args, **kwargs):
    """Make the repository of files beside the SQLite file that MLflow tracks in.

    In a server it is of those in the project.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    if tracking_uri is None and mlflow.is_tracking_uri_set():
        tracking_uri = mlflow.get_tracking_uri()
    path = sqlite_path(tracking_uri) if tracking_uri else project_root() / "mlflow.db"
    if path is None:
        raise MlflowException(
            f"{artifact_uri} lies beside a SQLite file, which {tracking_uri} does not show: "
            "set MLFLOW_TRACKING_URI to that file, or log to a store made by the server"
        )
    files = path.parent / urlsplit(artifact_uri).path.lstrip("/")
    return LocalArtifactRepository(files.as_uri(), tracking_uri, *args, **kwargs)
