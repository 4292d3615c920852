"""The simulated fleet, when there is no file of telemetry."""

from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet
from filelock import FileLock

from hvs_lib import __version__
from hvs_lib.project import project_root, remove_unfinished, sources_sha256
from hvs_lib.telemetry.files import READ_ERRORS, write

SIMULATED_HOURS = 6.0
_FINGERPRINT = b"hvs_simulator_sha256"


def simulated_fleet_path(sites: int, seed: int) -> Path:
    """Return the file of a simulated fleet, simulating it first if there is none.

    The file is written again when the simulator's source has changed since.

    Parameters
    ----------
    sites : int
        Number of sites of 64 modules.
    seed : int
        Seed of the fleet, not negative.

    Returns
    -------
    Path
        `data/raw/fleet_{sites}sites_seed{seed}.parquet` below the project root, 6 h of telemetry.

    Raises
    ------
    ValueError
        If `sites` or `seed` is out of range.
    """
    check_fleet(sites, seed)
    path = project_root() / "data" / "raw" / f"fleet_{sites}sites_seed{seed}.parquet"
    stamp = simulator_fingerprint()
    if _stamp_of(path) != stamp:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # notebooks that start together simulate once
            if _stamp_of(path) != stamp:
                remove_unfinished(path)
                _simulate_to(path, sites, seed, stamp)
    return path


def check_fleet(sites: int, seed: int) -> None:
    """Refuse what cannot be simulated, with a ValueError; models take the same seeds."""
    if sites < 1:
        raise ValueError(f"sites must be at least 1, got {sites}.")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie between 0 and {2**32 - 1}, got {seed}.")


def _simulate_to(path: Path, sites: int, seed: int, stamp: str) -> None:
    # here, not at the top: it brings in numba, which reading a file does not need
    from hvs_lib.simulator import simulate_fleet

    telemetry, _ = simulate_fleet(sites, SIMULATED_HOURS, seed, n_jobs=-1, progress=True)
    stamps = {b"hvs_workbook_version": __version__.encode(), _FINGERPRINT: stamp.encode()}
    write(telemetry, path, stamps)


def simulator_fingerprint() -> str:
    """Return the SHA-256 of the source that decides what the simulator writes.

    Returns
    -------
    str
        Over the simulator's files and `columns.py`, which holds the label window.
    """
    return sources_sha256("simulator/**/*.py", "columns.py")


def _stamp_of(path: Path) -> str | None:
    try:
        stamps = arrow.parquet.read_schema(path).metadata or {}
    except READ_ERRORS:
        return None  # absent or damaged
    return stamps.get(_FINGERPRINT, b"").decode()
