"""Recognise work that has been done: same notebook, parameters, telemetry, code and packages."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from hvs_lib.project import sources_sha256
from hvs_lib.telemetry.files import sha256_of_file
from hvs_lib.tracking import package_versions

import nbformat


def fingerprint(notebook: Path, parameters: Mapping[str, object]) -> str:
    """Return a digest of all that the results of a notebook follow from.

    Parameters
    ----------
    notebook : its file; its text and outputs do not count.
    parameters : all of them, the defaults included. `data_path` counts by the file's content. The
        simulated fleet follows from the parameters and the code.

    Returns
    -------
    str, 64 hexadecimal digits.
    """
    cells = nbformat.read(notebook, 4).cells
    data_path = parameters.get("data_path")
    follows_from = {
        "code cells": [cell.source for cell in cells if cell.cell_type == "code"],
        "parameters": dict(parameters) | {"data_path": ""},
        "telemetry": sha256_of_file(data_path) if data_path else "simulated",
        "code": sources_sha256("**/*.py"),
        "packages": package_versions(),
    }
    return hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()
