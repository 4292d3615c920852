"""Where the workbook keeps what it makes, and which code made it."""

import hashlib
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# What the runner hands its kernels in the environment: which execution this is, what it executes
# (see `hvs_lib.resume`), and whether to repeat what was done before.
EXECUTION = "HVS_EXECUTION_ID"
FINGERPRINT = "HVS_FINGERPRINT"
FRESH = "HVS_FRESH"
STORE_WAIT = "HVS_STORE_WAIT_S"  # how long to wait for a store that does not answer [s]
MAX_STORE_WAIT_S = 600


class HvsError(Exception):
    """An error whose text is for the user: what is wrong, and the cure."""


class StoreError(Exception):
    """The tracking store did not answer, or refused; the text is for the user."""


def project_root() -> Path:
    """Return the folder that holds data/, runs/ and the tracking store.

    Returns
    -------
    Path
        `HVS_PROJECT_ROOT` if that is set, else the folder above the package.
    """
    chosen = os.environ.get("HVS_PROJECT_ROOT")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[1]


def sources_sha256(*patterns: str) -> str:
    """Return the SHA-256 of the package's source files that match a pattern, names included.

    Parameters
    ----------
    patterns : as of `Path.glob`, from the package's folder, such as ``simulator/**/*.py``.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted({path for pattern in patterns for path in package.glob(pattern)}):
        digest.update(source.relative_to(package).as_posix().encode())
        digest.update(source.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of `path` when it is complete.

    So a reader sees the old file or the whole new one, whatever happens to the writer or its disk.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove what killed writers of a `whole_file` have left, where no other can be writing."""
    for left in path.parent.glob(f".*.{path.name}*"):
        left.unlink()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, which child processes inherit, for a while."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
