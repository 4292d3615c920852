"""Fixtures that every test may use."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from projects import free_port

from hvs_lib import columns as col
from hvs_lib.project import set_environment

set_environment()

TYPICAL = {
    col.TEMP_AVG: 27.0,
    col.TEMP_MAX: 28.5,
    col.VOLTAGE: 52.0,
    col.CURRENT: -12.0,
    col.SOC: 60.0,
    col.CO: 3.0,
    col.H2: 1.5,
    col.VOC: 15.0,
    col.AMBIENT: 23.0,
}


def build_telemetry(
    *,
    sites: int = 1,
    racks: int = 6,
    modules: int = 2,
    rows: int = 60,
    interval_s: float = 10.0,
    event_racks: tuple[int, ...] = (0, 1, 2, 3),
    event_rows: int = 12,
    look_alike_racks: tuple[int, ...] = (),
    event_ids: bool = True,
    label: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Build a small telemetry table with known racks, modules and events.

    Racks are counted over all sites. An event fills the last `event_rows` rows of the first module
    of its rack: it warms by 0.5 K a row. A look-alike does the same to the last module, unlabelled.
    """
    rng = np.random.default_rng(seed)
    n = sites * racks * modules * rows
    module = np.arange(n) // rows
    rack, site, step = module // modules, module // modules // racks, np.arange(n) % rows
    start = np.datetime64("2025-06-01T00:00:00", "us")
    period = np.timedelta64(round(interval_s * 1e6), "us")
    frame = pd.DataFrame({col.TIMESTAMP: start + step * period})
    names = [f"Rack{'AB'[i // 4 % 2]}{i % 4 + 1 + 4 * (i // 8)}" for i in range(racks)]
    frame[col.SITE] = [f"Site{i + 1:02d}" for i in site]
    frame[col.RACK] = [names[i % racks] for i in rack]
    frame[col.MODULE] = frame[col.RACK] + [f"_Module{i % modules + 1:02d}" for i in module]
    for name, level in TYPICAL.items():
        # rounded, so that a CSV file holds the same float32
        frame[name] = np.round(level + rng.normal(0.0, 0.2, n), 3).astype(np.float32)

    last = step >= rows - event_rows
    hazard = last & np.isin(rack, event_racks) & (module % modules == 0)
    look_alike = last & np.isin(rack, look_alike_racks) & (module % modules == modules - 1)
    warmer = np.where(hazard | look_alike, step - (rows - event_rows) + 1, 0) * np.float32(0.5)
    frame[col.TEMP_MAX] += warmer.astype(np.float32)
    if label:
        frame[col.LABEL] = hazard.astype(np.int8)
    if event_ids:
        ids = np.array([f"E{i:03d}" for i in rack], dtype=object)
        frame[col.EVENT_ID] = np.where(hazard, ids, np.where(look_alike, "L" + ids, None))
        frame[col.EVENT_TYPE] = np.where(hazard, "short", np.where(look_alike, "hot_day", None))
    for name in [col.SITE, col.RACK, col.MODULE, col.EVENT_ID, col.EVENT_TYPE]:
        if name in frame:
            frame[name] = frame[name].astype("str").astype("category")
    frame = frame[[name for name in col.TELEMETRY if name in frame]]
    return frame.sort_values(col.KEYS, ignore_index=True)


@pytest.fixture(scope="session")
def load_benchmark():
    """Return a function that imports a script of tests/benchmarks by its name."""

    def load(name):
        path = Path(__file__).parent / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def make_telemetry():
    """Return the factory of small telemetry tables."""
    return build_telemetry


@pytest.fixture(scope="session")
def make_fleet(tmp_path_factory):
    """Return a function that opens a telemetry table as a fleet of several partitions.

    The table is given, or the options of the small one; `rows_together` is about the size of a
    partition.
    """
    from hvs_lib.telemetry import read
    from hvs_lib.telemetry.files import save_telemetry
    from hvs_lib.telemetry.fleet import load_fleet

    def make(telemetry=None, *, rows_together=400, **options):
        root = tmp_path_factory.mktemp("fleet")
        table = build_telemetry(**options) if telemetry is None else telemetry
        save_telemetry(table, root / "own.parquet")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HVS_PROJECT_ROOT", str(root))
            patch.setattr(read, "ROWS_TOGETHER", rows_together)
            return load_fleet(root / "own.parquet")

    return make


@pytest.fixture(params=[pytest.param("csv", marks=pytest.mark.slow), "parquet"])
def reread(request, tmp_path, monkeypatch):
    """Return a function that saves telemetry and loads it, whole or rack by rack."""
    from hvs_lib.telemetry import read
    from hvs_lib.telemetry.files import save_telemetry

    monkeypatch.setattr(read, "ROWS_TOGETHER", 200)  # two racks

    def reread(telemetry, *, racks=False, **options):
        path = tmp_path / f"telemetry.{request.param}"
        path.unlink(missing_ok=True)
        save_telemetry(telemetry, path)
        if not racks:
            return read.load_telemetry(path, require_label=False, **options)
        tables = [table for _, table in read.read_racks(path, **options)]
        whole = pd.concat(tables, ignore_index=True)
        whole.attrs["findings"] = [one for table in tables for one in table.attrs["findings"]]
        return whole

    return reread


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Give the test a project root of its own to write to."""
    monkeypatch.setenv("HVS_PROJECT_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture(autouse=True)
def own_tracking_uri():
    """Keep each test's store to itself: MLflow hands its URI on through the environment."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory):
    """Make the tables of a tracking store once; each test gets a copy."""
    from hvs_lib.tracking.store import connect  # MLflow takes seconds to load; few tests need it

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVS_PROJECT_ROOT", str(folder))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        connect()
    return folder / "mlflow.db"


@pytest.fixture
def store(project, fresh_database):
    """Give the test a tracking store of its own, and connect to it."""
    import mlflow

    from hvs_lib.tracking.store import connect

    shutil.copy(fresh_database, project / "mlflow.db")
    connect()
    yield project
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def start_run(store):
    """Return a function that starts the run of a notebook, as its first cells do."""
    import mlflow

    from hvs_lib.tracking import runs

    def start(notebook="01_baseline", params=None, **options):
        runs.prepare()
        mlflow.set_experiment("HVS_Fire_Prediction_Baseline")
        run = mlflow.start_run(run_name=notebook, tags=runs.tags_of(notebook, **options))
        mlflow.log_params(params or {})
        return run.info.run_id

    return start


@pytest.fixture(scope="session")
def s3_server():
    """Start an S3 server on loopback, and return its address."""
    moto = pytest.importorskip("moto.server", reason="moto is in the extra `dev`")
    pytest.importorskip("s3fs", reason="s3fs is in the extra `remote`")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server, monkeypatch):
    """Return a filesystem with the empty bucket `fleet`; the keys are in the environment."""
    import s3fs

    settings = {"AWS_ENDPOINT_URL": s3_server, "AWS_DEFAULT_REGION": "us-east-1"}
    settings |= {"AWS_ACCESS_KEY_ID": "KEYOFTHETEST", "AWS_SECRET_ACCESS_KEY": "secretofthetest"}
    settings |= {"AWS_EC2_METADATA_DISABLED": "true"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    filesystem.mkdir("fleet")
    yield filesystem
    filesystem.rm("fleet", recursive=True)


class Server:
    """A process that answers on loopback; it can be stopped, and started again.

    Parameters
    ----------
    command : gives the words to call for a port.
    log : file for what it prints.
    path : answers as soon as it is ready.
    options : of `Popen`.
    """

    def __init__(self, command: Callable[[int], list], log: Path, *, path: str, **options):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        self._command = [str(word) for word in command(port)]
        self._log, self._path, self._options = log, path, options

    def start(self) -> None:
        with open(self._log, "a") as log:
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True, **self._options
            )
        for _ in range(900):
            assert self._process.poll() is None, self._log.read_text()
            try:
                urllib.request.urlopen(self.address + self._path, timeout=60)
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError(f"{self._command[0]} does not answer: {self._log.read_text()}")

    def stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Return a function that starts a server, which is stopped in the end."""
    servers = []

    def start(command, *, path="/health", **options):
        log = tmp_path_factory.mktemp("server") / "log"
        server = Server(command, log, path=path, **options)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
