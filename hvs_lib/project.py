"""Where the workbook keeps what it makes, and which code made it."""

import hashlib
import os
from pathlib import Path

# What the runner hands its kernels in the environment: which execution this is, what it executes
# (see `hvs_lib.resume`), and whether to repeat what was done before.
EXECUTION = "HVS_EXECUTION_ID"
FINGERPRINT = "HVS_FINGERPRINT"
FRESH = "HVS_FRESH"


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
