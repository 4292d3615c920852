"""On a cluster each step gives what threads give; what is wrong with a cluster is said at once."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from distributed import LocalCluster
from projects import free_port
from scipy.stats import randint
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import cache, parallel, project
from hvs_lib import columns as col
from hvs_lib.cli import main
from hvs_lib.evaluation.protocol import Fits, Protocol
from hvs_lib.evaluation.robustness import assess_changes, assess_sensor_sets
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import make_pipeline
from hvs_lib.parallel import cluster, side_by_side
from hvs_lib.project import HvsError
from hvs_lib.score import Champion, score_file
from hvs_lib.search import random_search
from hvs_lib.simulator.fleet import simulate_fleet
from hvs_lib.telemetry import read
from hvs_lib.telemetry.files import save_telemetry
from hvs_lib.telemetry.fleet import load_fleet
from hvs_lib.telemetry.read import read_racks

pytestmark = pytest.mark.slow

SPACE = {"classify__max_depth": randint(1, 6), "classify__n_estimators": randint(5, 40)}
XGBOOST = make_pipeline(XGBClassifier(n_estimators=20, max_depth=3, random_state=0, n_jobs=1))

HTTP = "127.0.0.1:0"  # any free port


@pytest.fixture(scope="module")
def workers():
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=HTTP) as started:
        yield started


@pytest.fixture
def on_cluster(workers):
    with cluster(workers.scheduler_address):
        yield


@pytest.fixture(scope="module")
def protocol(make_telemetry, make_fleet):
    events = {"event_racks": tuple(range(8)), "event_rows": 45}
    fleet = make_fleet(make_telemetry(racks=12, rows=90, **events))
    split = split_fleet(fleet.rows, test_size=0.25, n_folds=3, seed=1)
    return Protocol(fleet, split, normal_stride=3, hazard_stride=2)


def results(protocol: Protocol) -> list:
    """Return what all steps of the notebooks find."""
    protocol = replace(protocol)  # without what an earlier call has computed
    noise = np.random.default_rng(0).random(len(protocol.fleet.rows))
    fits = {
        "XGBoost": protocol.fit(XGBOOST),
        "linear": protocol.fit(make_pipeline(LogisticRegression()), build_up="hazard"),
        "random": Fits(reference=lambda X: noise[X.index]),
    }
    judged = dict(protocol.assess_all(fits))
    alarm = judged["XGBoost"].alarm
    sets = assess_sensor_sets(protocol, fits["XGBoost"].models, alarm)
    return [
        protocol.training.X,
        [(each.metrics, each.test_scores) for each in judged.values()],
        list(random_search(XGBOOST, protocol, SPACE, n_iter=4, seed=3)),
        sets,
        list(assess_changes(protocol, fits["XGBoost"].models[-1], alarm, sets)),
    ]


def test_a_cluster_finds_what_threads_find(protocol, request):
    expected = results(protocol)
    request.getfixturevalue("on_cluster")
    assert joblib.hash(results(protocol)) == joblib.hash(expected)


def test_workers_simulate_the_same_fleet(on_cluster, tmp_path, monkeypatch):
    def made(root):
        monkeypatch.setenv("HVS_PROJECT_ROOT", str(tmp_path / root))
        return joblib.hash(simulate_fleet(2, 6.0, 42)), load_fleet(sites=2).sha256

    on_workers = made("workers")
    monkeypatch.delenv(parallel.SCHEDULER)
    assert on_workers == made("threads")


def test_workers_raise_the_same_alarms(protocol, make_telemetry, tmp_path, monkeypatch, request):
    found = protocol.assess(XGBOOST)
    champion = Champion(found.deployable().estimator.estimator, found.alarm, (10.0, 10.0))
    monkeypatch.setattr(read, "ROWS_TOGETHER", 400)  # several parts
    save_telemetry(make_telemetry(racks=12, event_racks=(1, 7)), tmp_path / "own.parquet")

    def scored(output):
        tally = score_file(tmp_path / "own.parquet", tmp_path / output, champion)
        return tally, (tmp_path / output).read_text()

    in_threads = scored("threads.csv")
    request.getfixturevalue("on_cluster")
    assert scored("workers.csv") == in_threads
    assert in_threads[0].alarms["model"]


@pytest.fixture(params=["file", "folder", "map"])
def own(request, make_telemetry, tmp_path, monkeypatch):
    """Telemetry of one's own in twelve racks, whose racks are validated one by one."""
    monkeypatch.setattr(read, "ROWS_TOGETHER", 1)
    made, path = make_telemetry(racks=12, event_racks=(1, 7)), tmp_path / "own.parquet"
    if request.param == "folder":
        path.mkdir()
        for number, part in enumerate((made.iloc[::2], made.iloc[1::2])):
            save_telemetry(part, path / f"{number}.csv")
        return {"path": path}
    if request.param == "file":
        save_telemetry(made, path)
        return {"path": path}
    made.loc[[5, 700], col.TIMESTAMP] = pd.NaT  # a finding of the map, of the whole file
    save_telemetry(made, path)
    (tmp_path / "map.yaml").write_text(f"{col.TIMESTAMP}: {col.TIMESTAMP}")
    return {"path": path, "columns": tmp_path / "map.yaml"}


def test_workers_convert_the_same_telemetry(own, tmp_path, monkeypatch, request):
    def converted(root):
        monkeypatch.setenv("HVS_PROJECT_ROOT", str(tmp_path / root))
        fleet = load_fleet(own["path"], columns=own.get("columns", ""))
        return fleet.rows.attrs, [path.read_bytes() for path in fleet.paths]

    in_threads = converted("threads")
    request.getfixturevalue("on_cluster")
    assert converted("workers") == in_threads
    assert len(in_threads[1]) == 12
    assert len(in_threads[0]["findings"]) == ("columns" in own)
    at_work = {pid for _, pid in read_racks(**own, then=lambda *_: os.getpid())}
    assert os.getpid() not in at_work


def test_joblib_may_name_the_cluster(workers):
    with workers.get_client(), joblib.parallel_config("dask"):
        assert os.getpid() not in side_by_side(lambda number: os.getpid(), range(4))


def test_a_fleet_goes_to_workers_without_its_rows(protocol):
    sent = pickle.loads(cloudpickle.dumps(protocol.fleet))
    pd.testing.assert_frame_equal(sent.telemetry(1), protocol.fleet.telemetry(1))
    with pytest.raises(AttributeError, match="no attribute 'rows'"):
        len(sent.rows)


def test_a_worker_that_is_killed_costs_its_task_alone(on_cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_AHEAD", 2)  # 4 in flight, of which the worker may hold all

    def once_killed(number):
        (tmp_path / f"{number}_{time.time_ns()}").touch()
        if number == 5 and len(list(tmp_path.glob("5_*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number**2

    assert list(side_by_side(once_killed, range(12))) == [number**2 for number in range(12)]
    started = [path.name.split("_")[0] for path in tmp_path.iterdir()]
    assert started.count("5") == 2
    assert len(started) <= 12 + 4


def test_what_a_function_holds_may_be_large(on_cluster, recwarn):
    rows = np.zeros((4000, 1000))
    assert list(side_by_side(lambda number: rows.nbytes + number, range(3))) == [
        rows.nbytes + number for number in range(3)
    ]
    assert not recwarn.list


def test_an_error_on_a_worker_is_that_of_the_call(on_cluster):
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(lambda number: 1 // number, [1, 0]))


def test_a_scheduler_that_is_not_there_ends_with_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "_PATIENCE_S", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    arguments = ["simulate", str(tmp_path / "fleet.parquet"), "--sites", "1"]
    for option, variables in ((["--dask", address], {}), ([], {parallel.SCHEDULER: address})):
        result = CliRunner().invoke(main, [*arguments, *option], env=variables)
        assert result.exit_code == 1
        assert result.stderr.startswith(f"Error: no Dask scheduler answers at {address} within 1 s")
        assert result.stderr.count("\n") == 1


def test_a_scheduler_without_a_worker_is_told(monkeypatch):
    monkeypatch.setattr(parallel, "_PATIENCE_S", 1)
    with (
        LocalCluster(n_workers=0, dashboard_address=HTTP) as empty,
        pytest.raises(HvsError, match="has no worker: start one with `dask worker tcp://"),
        cluster(empty.scheduler_address),
    ):
        pass


@pytest.mark.parametrize("when", ["while a call runs", "before its result is asked for"])
def test_a_run_that_loses_all_workers_ends_with_one_message(monkeypatch, when):
    monkeypatch.setattr(parallel, "_WITHOUT_WORKER_S", 2)
    wait = parallel._wait
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=HTTP) as started,
        cluster(started.scheduler_address),
    ):

        def lose(client, future):
            wait(client, future)
            started.scale(0)
            while client.nthreads():
                time.sleep(0.1)

        done = side_by_side(lambda number: time.sleep(0.1) or number, range(50))
        assert next(done) == 0
        if when == "while a call runs":
            started.scale(0)
        else:
            monkeypatch.setattr(parallel, "_wait", lose)
        with pytest.raises(HvsError, match="no worker for 2 s: start one with `dask worker tcp:"):
            list(done)


def test_a_task_that_kills_its_workers_ends_with_one_message():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=HTTP) as started,
        cluster(started.scheduler_address),
        pytest.raises(HvsError, match="4 Dask workers were killed at the same task, the last at"),
    ):
        list(side_by_side(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(1)))


@pytest.mark.parametrize(
    ("name", "ours", "told"),
    [
        ("_CODE", "0123", f"code {cache._CODE}, here it is 0123"),
        (
            "package_versions",
            lambda: project.package_versions() | {"xgboost": "9.9"},
            f"xgboost {version('xgboost')}, here it is 9.9",
        ),
    ],
)
def test_workers_of_another_version_are_refused(workers, monkeypatch, name, ours, told):
    monkeypatch.setattr(cache, name, ours)
    with pytest.raises(HvsError) as refused, cluster(workers.scheduler_address):
        pass
    for address in workers.scheduler_info["workers"]:
        assert f"{address} has {told}" in str(refused.value)


@contextmanager
def late_worker(scheduler, folder):
    """Start a worker in a folder, which is the first that it imports from."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler.scheduler_address]
    options = ["--no-nanny", "--nthreads", "1", "--local-directory", folder, "--no-dashboard"]
    plain = {name: os.environ[name] for name in os.environ.keys() - project._ENVIRONMENT.keys()}
    with scheduler.get_client() as client:
        before = client.nthreads()
        with subprocess.Popen([*command, *options], cwd=folder, env=plain) as worker:
            try:
                client.wait_for_workers(len(before) + 1, timeout=60)
                (address,) = set(client.nthreads()) - set(before)
                yield address
            finally:
                worker.kill()


@pytest.mark.parametrize("changed", [False, True])
def test_a_worker_that_joins_later_is_compared_and_made_repeatable(tmp_path, changed):
    package = shutil.copytree(Path(parallel.__file__).parent, tmp_path / "hvs_lib")
    if changed:
        (package / "new.py").touch()

    def at_work(_):
        time.sleep(0.2)
        return os.getcwd(), os.environ.get("OMP_WAIT_POLICY")

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=HTTP) as started,
        cluster(started.scheduler_address),
        late_worker(started, tmp_path) as address,
    ):
        if not changed:
            assert (str(tmp_path), "PASSIVE") in list(side_by_side(at_work, range(8)))
            return
        told = f"{address} has code [0-9a-f]{{64}}, here it is {cache._CODE}"
        with pytest.raises(HvsError, match=told):
            list(side_by_side(at_work, range(8)))
