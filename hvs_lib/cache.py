"""Cache for the fits of the protocol and the search: an interrupted run does not repeat them.

The files are pickles, which execute code when loaded: never use a cache from elsewhere.
"""

import shutil
from pathlib import Path

import joblib

from hvs_lib.project import package_versions, project_root, sources_sha256

_CODE = sources_sha256("**/*.py")  # taken at import: an edit takes effect at the next start


def memory() -> joblib.Memory:
    """Return this project's cache; several processes may use it at once.

    Examples
    --------
    >>> memory().location.parts[-3:]
    ('data', 'cache', 'fits')
    """
    return joblib.Memory(_folder(), verbose=0)


def clear() -> None:
    """Delete what is cached, so that everything is fitted again."""
    shutil.rmtree(_folder(), ignore_errors=True)


def versions() -> dict[str, str]:
    """Return the digest of this code, and the versions of Python and its packages."""
    return {"code": _CODE} | package_versions()


def key(*parts: object) -> str:
    """Return a digest of this code, the versions of its packages and the given parts.

    A cached function takes it in place of large arrays, which joblib would hash on every call.
    """
    return joblib.hash([versions(), *parts])


def _folder() -> Path:
    return project_root() / "data" / "cache" / "fits"  # beside it is converted telemetry
