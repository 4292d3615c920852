"""The address of a store in a SQLite file."""

from pathlib import Path

from sqlalchemy import make_url

from hvs_lib.project import StoreError, project_root

ARTIFACTS = "hvs:/mlartifacts"  # beside the file, see `hvs_lib.sqlite_store`


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
