"""Where the workbook keeps what it makes, and which code made it."""

import difflib
import gc
import hashlib
import logging
import os
import platform
import subprocess
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path

from threadpoolctl import threadpool_limits

from hvs_lib import __version__

EXECUTION = "HVS_EXECUTION_ID"  # tells a kernel which execution of the runner it belongs to

# What a logged model needs to be loaded elsewhere; inferring it costs seconds for each model.
MODEL_PACKAGES = (
    "mlflow", "scikit-learn", "imbalanced-learn", "xgboost", "numpy", "pandas", "skops",
)  # fmt: skip

_GARBAGE = 50_000  # objects before it is collected; packages load a seventh faster
_ENVIRONMENT = {
    # Let idle OpenMP threads sleep: XGBoost is otherwise many times slower beside a busy process.
    "OMP_WAIT_POLICY": "PASSIVE",
    # The order of summation in linear algebra depends on the number of threads.
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # Return large arrays to the system at once, not to a pool of each thread.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "16777216",
    # Logs and committed notebooks should hold results, not MLflow's advice.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


class HvsError(Exception):
    """An error whose text tells the user what is wrong and what to do."""


class StoreError(HvsError):
    """The tracking store did not answer, or refused; the text is for the user."""


def did_you_mean(wanted: object, names: Iterable[str], otherwise: str = "") -> str:
    """Return a question with the closest of the names, or `otherwise` if none is close."""
    lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(wanted).lower(), lower, n=1)
    return f"did you mean {lower[near[0]]!r}?" if near else otherwise


def is_address(path: str | Path) -> bool:
    """Tell an address such as ``s3://bucket/folder`` from a path; a Path cannot hold one."""
    return "://" in str(path)


def project_root() -> Path:
    """Return the folder that holds data/, runs/ and the tracking store.

    It is `HVS_PROJECT_ROOT` if that is set, else the folder above the package.
    """
    chosen = os.environ.get("HVS_PROJECT_ROOT")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[1]


def sources_sha256(*patterns: str) -> str:
    """Return the SHA-256 of the package's source files, names included.

    Patterns such as ``simulator/**/*.py`` are as for `Path.glob` in the package's folder.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for source in sorted({path for pattern in patterns for path in package.glob(pattern)}):
        digest.update(source.relative_to(package).as_posix().encode())
        digest.update(source.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


@cache  # it takes 10 ms, and every key of a fit asks for it
def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the metrics depend on."""
    packages = (*MODEL_PACKAGES, "scipy", "numba", "pyarrow")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def code_version() -> dict[str, str]:
    """Return the tags ``git_commit``, ``git_dirty`` and ``workbook_version`` of this code."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        dirty = "true" if git("status", "--porcelain") else "false"
    except (OSError, subprocess.CalledProcessError):
        commit, dirty = "none", "unknown"
    return {"git_commit": commit, "git_dirty": dirty, "workbook_version": __version__}


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which replaces `path` when complete.

    So a reader sees the old file or the whole new one, whatever happens to the writer or its disk.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Remove files that killed writers of a `whole_file` left; no other may be writing."""
    for left in path.parent.glob(f".*.{path.name}*"):
        left.unlink()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables temporarily; child processes inherit them."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


def set_environment() -> None:
    """Make linear algebra repeatable, libraries quiet, and their loading faster.

    In this process and, but for garbage collection, in its children.

    Variables that are already set stay. Libraries that are already loaded have read theirs, so
    they are set directly.
    """
    if not sys.warnoptions and not hasattr(warnings.showwarning, "__wrapped__"):
        warnings.showwarning = _without_deprecations(warnings.showwarning)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    threadpool_limits(1, user_api="blas")
    if 0 < gc.get_threshold()[0] < _GARBAGE:  # 0 is off
        gc.set_threshold(_GARBAGE)
    for library in ("mlflow", "alembic"):
        with suppress(ValueError):  # the user's own may be invalid
            logging.getLogger(library).setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())


def _without_deprecations(show: Callable) -> Callable:
    """Hide deprecation warnings in packages, as Python does by default.

    Its filters are not thread-safe: scikit-learn and pandas change them briefly, and may then undo
    another thread's change.
    """

    @wraps(show)
    def shown(message, category, filename, *args, **kwargs) -> None:
        if not (issubclass(category, DeprecationWarning) and "site-packages" in filename):
            show(message, category, filename, *args, **kwargs)

    return shown
