"""A fleet: telemetry in partitions of whole racks, with only a few in memory at a time.

The partitions are Parquet files: one for each simulated site, or those that the user's file is
converted to once. For all rows, only the columns other than sensors are held in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet
from filelock import FileLock
from pandas.api.types import union_categoricals

from hvs_lib import __version__, cache
from hvs_lib import columns as col
from hvs_lib.parallel import side_by_side
from hvs_lib.progress import STEP, log_line, steps
from hvs_lib.project import is_address, project_root, remove_unfinished, sources_sha256
from hvs_lib.simulator.battery import check_fleet
from hvs_lib.telemetry.addresses import local_copy
from hvs_lib.telemetry.files import READ_ERRORS, DataError, sha256_of_file, write
from hvs_lib.telemetry.mapped import open_telemetry, telemetry_sha256, telemetry_version
from hvs_lib.telemetry.mapping import load_map
from hvs_lib.telemetry.quality import Finding
from hvs_lib.telemetry.read import load_telemetry, read_racks

SIMULATED_HOURS = 6.0
_ABOUT = "about.json"  # findings of a converted file; written last
_FINGERPRINT = b"hvs_simulator_sha256"
_IDENTITY = [name for name in col.TELEMETRY if name not in col.SENSORS]


@dataclass(frozen=True, eq=False)
class Fleet:
    """Telemetry that need not fit into memory.

    Attributes
    ----------
    rows : DataFrame, shape (n_samples, 4 to 8)
        The telemetry without its sensors, sorted by site, rack, module and time; indexed by row
        number.
    paths : list of Path
        The partitions, each of whole racks, in the order of the rows.
    starts : array of int, shape (n_partitions + 1,)
        Partition k has the rows ``starts[k]`` to ``starts[k + 1]``.
    missing : Series, shape (n_sensors,)
        Share of the rows without a reading.
    sha256 : str
        Digest of all the telemetry.
    """

    rows: pd.DataFrame
    paths: list[Path]
    starts: np.ndarray
    missing: pd.Series
    sha256: str
    _make_again: Callable[[Path], None]

    def __getstate__(self) -> dict:
        """Leave the rows out: on a cluster worker, a fleet only reads partitions."""
        return {name: value for name, value in self.__dict__.items() if name != "rows"}

    def telemetry(self, partition: int) -> pd.DataFrame:
        """Read a partition, shape (n_rows, n_columns); indexed by row number."""
        table = _read(self.paths[partition], self._make_again)
        first, end = self.starts[partition : partition + 2]
        return table.set_axis(pd.RangeIndex(first, end))

    def partition_of(self, row: int | np.ndarray) -> int | np.ndarray:
        """Return the partition that holds a row, or those of several rows."""
        return np.searchsorted(self.starts, row, side="right") - 1

    def map(
        self,
        function: Callable[..., object],
        partitions: Sequence[int] | None = None,
        *,
        by_row: np.ndarray | None = None,
        n_jobs: int = -1,
    ) -> Iterable:
        """Yield what a function returns for each partition, in order, under a progress bar.

        The function must hold no rows of the fleet, since `side_by_side` may send it to workers.
        With `by_row`, shape (n_samples,), its second argument is the part for its partition.
        """
        arguments = [range(len(self.paths)) if partitions is None else partitions]
        if by_row is not None:
            arguments.append(by_row[slice(*self.starts[k : k + 2])] for k in arguments[0])
        done = side_by_side(function, *arguments, n_jobs=n_jobs)
        return steps(done, "partitions", total=len(arguments[0]))


def load_fleet(
    data_path: str | Path = "",
    *,
    columns: str | Path = "",
    sites: int = 48,
    seed: int = 42,
    battery: str = "mix",
    keep_fill_values: bool = False,
    require_label: bool = True,
) -> Fleet:
    """Open telemetry as a fleet, or the simulated fleet, which is first simulated if needed.

    Parameters
    ----------
    data_path : str or Path
        A file, folder or address, as for `load_telemetry`. It is converted once, into
        `data/cache/telemetry`. Empty: the simulated fleet, in `data/raw`.
    columns : str or Path
        A map of the file's columns to ours, as for `load_telemetry`.
    sites : int
        Number of simulated sites, of 6 h each.
    seed : int
        Seed of the simulation, from 0 to 2**32 - 1.
    battery : str
        Battery of the simulated sites, as for `simulate_fleet`.
    keep_fill_values, require_label : bool
        As for `load_telemetry`.

    Returns
    -------
    Fleet
        ``rows.attrs`` holds ``ignored_columns`` and ``findings``, for `summarize`.

    Raises
    ------
    DataError
        If the file breaks a rule of the table, or there is a map but no file.
    ValueError
        If `sites` or `seed` is out of range or `battery` unknown.

    Examples
    --------
    >>> fleet = load_fleet(sites=1)
    >>> len(fleet.rows), len(fleet.paths)
    (87032, 1)
    """
    if data_path:
        options = {"columns": columns, "keep_fill_values": keep_fill_values}
        options |= {"require_label": require_label}
        return _converted(data_path, options)
    if columns:
        problem = "The map must come with a data_path, got none; name the file that it is for."
        raise DataError(f"{columns} cannot be used", [problem])
    check_fleet(sites, seed, battery)
    return _simulated(sites, seed, battery)


# ---- the simulated fleet ---------------------------------------------------------------------


def _simulated(sites: int, seed: int, battery: str) -> Fleet:
    """Simulate the sites whose files are missing, damaged, or from another simulator version."""
    folder = project_root() / "data" / "raw" / f"fleet_{battery}_seed{seed}"
    paths = [folder / f"Site{site:02d}.parquet" for site in range(1, sites + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    stamp = sources_sha256("simulator/**/*.py", "columns.py")  # which holds the label window

    def make(path: Path) -> None:
        # here, not at the top: it imports numba, which reading a file does not need
        from hvs_lib.simulator.fleet import simulate_site

        site = int(path.stem.removeprefix("Site")) - 1
        telemetry, _ = simulate_site(site, SIMULATED_HOURS, seed, battery)
        stamps = {b"hvs_workbook_version": __version__.encode(), _FINGERPRINT: stamp.encode()}
        write(telemetry, path, stamps)

    with _lock(folder):  # notebooks that start together simulate once
        missing = [path for path in paths if _stamp_of(path) != stamp]
        if missing:
            for path in missing:
                remove_unfinished(path)
            list(steps(side_by_side(make, missing), "sites", total=len(missing)))
        return _open(sorted(paths), make)


def _stamp_of(path: Path) -> str | None:
    try:
        stamps = arrow.parquet.read_schema(path).metadata or {}
    except FileNotFoundError:
        return None
    except READ_ERRORS as error:
        log_line(f"{STEP}{path} is damaged and is made again: {error}")
        return None
    return stamps.get(_FINGERPRINT, b"").decode()


# ---- a file of the user's own ----------------------------------------------------------------


def _converted(path: str | Path, options: dict) -> Fleet:
    """Convert a file to partitions, unless already done; its digest covers file and map."""
    sources = (path, options["columns"])
    if not is_address(path):
        open_telemetry(Path(path), options["columns"])  # says what is wrong
    elif options["columns"]:
        load_map(Path(options["columns"]))
    version = telemetry_version(*sources)
    folders = project_root() / "data" / "cache" / "telemetry"
    folders.mkdir(parents=True, exist_ok=True)
    folder = folders / cache.key(version, options["keep_fill_values"])
    if not options["require_label"] and not _about(folder):  # a label there may be invalid
        folder = folder.with_name(f"{folder.name}_any_label")

    def make() -> dict:
        about = {"findings": [], "ignored_columns": [], "partitions": 0}
        for left in folders.glob(f".{folder.name}.*"):  # by a killed process
            shutil.rmtree(left, ignore_errors=True)
        with (
            local_copy(path) as local,
            tempfile.TemporaryDirectory(
                prefix=f".{folder.name}.", dir=folders, ignore_cleanup_errors=True
            ) as unfinished,
        ):

            def keep(number: int, telemetry: pd.DataFrame) -> dict:
                write(telemetry, Path(unfinished) / _partition(number), {})
                return telemetry.attrs

            try:
                with closing(read_racks(local, **options, then=keep, n_jobs=-1)) as parts:
                    for _, found in parts:
                        about["findings"] += found["findings"]
                        about["ignored_columns"] = found["ignored_columns"]
                        about["partitions"] += 1
            except DataError:
                load_telemetry(local, **options)  # names the problems of the whole file
                raise
            for left in Path(unfinished).glob(".*"):  # by killed workers
                left.unlink()
            about["sha256"] = telemetry_sha256(local, options["columns"])
            (Path(unfinished) / _ABOUT).write_text(json.dumps(about))
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(unfinished, folder)
        return about

    def make_again(_: Path) -> None:
        try:
            is_same = telemetry_version(*sources) == version
        except (OSError, DataError):
            is_same = False
        if not is_same:
            problem = "The telemetry must not change while in use, but it did; start again."
            raise DataError(f"{path} cannot be used", [problem])
        make()

    with _lock(folder):
        about = _about(folder) or make()
        paths = [folder / _partition(number) for number in range(about["partitions"])]
        fleet = _open(paths, make_again, about["sha256"])
    findings = [Finding(*each, tuple(names)) for *each, names in about["findings"]]
    fleet.rows.attrs["findings"] = findings
    fleet.rows.attrs["ignored_columns"] = about["ignored_columns"]
    return fleet


def _partition(number: int) -> str:
    return f"{number:05d}.parquet"


def _about(folder: Path) -> dict:
    """Read what is known of a converted file; empty if it is not converted or the record lost."""
    try:
        return json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError):
        return {}


# ---- partitions ------------------------------------------------------------------------------


def _open(paths: list[Path], make_again: Callable[[Path], None], sha256: str = "") -> Fleet:
    """Read each partition whole once, which finds the damaged ones; keep all but the sensors."""
    parts, missing = [], []
    for path in paths:
        telemetry = _read(path, make_again)
        missing.append(telemetry[col.SENSORS].isna().sum())
        parts.append({name: telemetry[name] for name in _IDENTITY if name in telemetry})
    starts = np.cumsum([0, *(len(part[col.TIMESTAMP]) for part in parts)])
    columns = {}
    for name in list(parts[0]):
        values = [part.pop(name) for part in parts]
        columns[name] = (
            union_categoricals(values, sort_categories=True)
            if values[0].dtype == "category"
            else np.concatenate(values)
        )
    rows = pd.DataFrame(columns, copy=False)
    if not sha256:
        sha256 = hashlib.sha256("".join(map(sha256_of_file, paths)).encode()).hexdigest()
    return Fleet(rows, paths, starts, sum(missing) / len(rows), sha256, make_again)


def _read(path: Path, make_again: Callable[[Path], None]) -> pd.DataFrame:
    def read() -> pd.DataFrame:
        with arrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return _with_text_ids(file.read().to_pandas())

    try:
        return read()
    except READ_ERRORS:
        with _lock(path.parent):  # if several find the damage, one repairs it
            try:
                return read()
            except READ_ERRORS as error:
                log_line(f"{STEP}{path} is damaged or missing and is made again: {error}")
                make_again(path)
                return read()


def _with_text_ids(table: pd.DataFrame) -> pd.DataFrame:
    """Give columns without values, whose categories Parquet forgets, the type of the others."""
    none = pd.Index([], dtype="str")
    for name in table.columns[table.dtypes == "category"]:
        if not len(table[name].cat.categories):
            table[name] = table[name].cat.set_categories(none)
    return table


def _lock(folder: Path) -> FileLock:
    """Return the lock of a folder of partitions; its holder may acquire it again."""
    return FileLock(f"{folder}.lock", is_singleton=True)
