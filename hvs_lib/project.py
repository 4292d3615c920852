"""Where the workbook keeps what it makes."""

import os
from pathlib import Path


def project_root() -> Path:
    """Return the folder that holds data/, runs/ and the tracking store.

    Returns
    -------
    Path
        `HVS_PROJECT_ROOT` if that is set, else the folder above the package.
    """
    chosen = os.environ.get("HVS_PROJECT_ROOT")
    return Path(chosen).expanduser().resolve() if chosen else Path(__file__).resolve().parents[1]
