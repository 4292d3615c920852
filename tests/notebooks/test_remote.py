"""A tracking server on PostgreSQL: all by its URI, and no fit is lost when it stops half way."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from projects import BIN, fitted_in, free_port, runs_of, start, store_of

from hvs_lib.cli import main

pytestmark = pytest.mark.slow

PASSWORD = "of the test"


@pytest.fixture(scope="module")
def postgres():
    """Start PostgreSQL on loopback and return the URI of a fresh database."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    initdb = shutil.which("initdb") or (versions and str(versions[-1]))
    if not initdb:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # PostgreSQL refuses to run as root, and another pytest closes pytest's folder to other users.
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="hvs-postgres-") as name:
        if user:
            os.chown(name, pwd.getpwnam("nobody").pw_uid, -1)
        yield from serve_database(Path(name), Path(initdb), user)


def serve_database(folder, initdb, user):
    """Serve a fresh database as long as it is asked for; yield its URI."""
    secret = folder / "password"
    secret.write_text(PASSWORD)
    data, port = folder / "data", free_port()
    command = [initdb, "-D", data, "-U", "hvs", "--pwfile", secret, "-A", "scram-sha-256"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, **user)
    server = [initdb.with_name("postgres"), "-D", data, "-p", str(port), "-h", "127.0.0.1"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*server, "-k", folder], cwd=folder, stderr=log, **user)
        while "ready to accept connections" not in (folder / "log").read_text():
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.2)
        yield f"postgresql://hvs:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{port}/postgres"
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(postgres, serve, tmp_path_factory):
    artifacts = tmp_path_factory.mktemp("artifacts")
    command = [BIN / "mlflow", "server", "--backend-store-uri", postgres, "--workers", "1"]
    command += ["--artifacts-destination", artifacts, "--host", "127.0.0.1", "--port"]
    return serve(lambda port: [*command, port], cwd=artifacts)


@pytest.fixture
def hvs(tmp_path):
    """Return a function that starts `hvs` with a tracking URI, in a new project."""

    def call(uri, *words, **variables):
        return start("hvs", *words, root=tmp_path, MLFLOW_TRACKING_URI=uri, **variables)

    return call


def average_precision(uri):
    """Map each model of the baseline to its average precision."""
    return {
        (run.data.tags["model_name"], run.data.tags["imbalance_technique"]): run.data.metrics[
            "pr_auc"
        ]
        for run in runs_of(uri)
        if run.data.tags["stage"] == "baseline" and run.data.tags["role"] == "model"
    }


def test_the_uri_alone_moves_everything_to_the_server(
    hvs, server, small_run, without_ids, tmp_path
):
    shutil.copytree(small_run.root / "data" / "cache", tmp_path / "data" / "cache")  # less to fit
    notebooks = ["01_baseline", "04_comparison", "05_field_trial"]
    options = [*small_run.options, "-p", "data_path", without_ids]
    process = hvs(server.address, "run", *notebooks, *options)
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    assert "Champion:" in said
    assert not (tmp_path / "mlflow.db").exists()
    assert {run.info.status for run in runs_of(server.address)} == {"FINISHED"}
    here = average_precision(server.address)
    assert len(here) == 7
    assert here == average_precision(store_of(small_run.root))
    process = hvs(server.address, "score", without_ids)
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    assert "alarms in" in said


def test_what_was_fitted_before_a_server_stopped_is_not_fitted_again(
    hvs, server, small_run, without_ids, tmp_path
):
    options = [*small_run.options, "-p", "data_path", without_ids, "-p", "n_iter", "12"]
    command = ["run", "02_tuning", *options]
    process = hvs(server.address, *command, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    for line in process.stdout:
        if "candidates," in line:
            break
    server.stop()
    try:
        _, complained = process.communicate(timeout=300)  # without a bound it waits for ever
    finally:
        server.start()
    assert process.returncode == 1
    assert "Traceback" not in complained
    assert f"the tracking store {server.address} failed" in complained
    fitted = fitted_in(tmp_path)
    assert fitted

    process = hvs(server.address, *command)
    _, complained = process.communicate()
    assert process.returncode == 0, complained
    assert fitted.items() <= fitted_in(tmp_path).items()
    (parent,) = (
        run
        for run in runs_of(server.address)
        if run.data.tags["role"] == "parent"
        and run.data.params.get("n_iter") == "12"
        and run.info.status == "FINISHED"
    )
    children = [
        run
        for run in runs_of(server.address)
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert [run.data.tags["role"] for run in children].count("candidate") == 12
    assert {run.info.status for run in children} == {"FINISHED"}
    left = {run.info.status for run in runs_of(server.address)}
    assert left <= {"FINISHED", "FAILED", "KILLED"}


@pytest.fixture
def told(project, monkeypatch):
    """Return a function that calls `hvs` in this process with a tracking URI, and must fail."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")  # set to 0 once a store has failed

    def call(uri, *words):
        result = CliRunner().invoke(main, words, env={"MLFLOW_TRACKING_URI": uri})
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        assert not (project / "runs").exists()
        return result.stderr

    return call


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://127.0.0.1:9", "refused"),
        ("http://nowhere.invalid", "nowhere.invalid"),
        ("htp://127.0.0.1", "htp"),
        ("postgresql://hvs:secret@127.0.0.1:9/postgres", "refused"),
        ("sqlite:////proc/nothing/mlflow.db", "/proc/nothing"),
    ],
)
def test_a_wrong_uri_is_told_at_once(told, uri, reason):
    complained = told(uri, "run", "--profile", "smoke")
    assert complained.startswith("Error: the tracking store ")
    assert reason in complained
    assert "secret" not in complained
    assert "MLFLOW_TRACKING_URI" in complained


def test_a_database_may_be_the_store_without_a_server(told, postgres):
    complained = told(postgres, "score", "nothing.csv")
    assert complained.startswith("Error: there is no model models:/hvs-fire-prediction@champion")
    assert "The store is postgresql://127.0.0.1" in complained, "its password is not shown"


def test_a_refused_login_is_told_at_once(hvs, postgres):
    process = hvs(postgres.replace("of%20the%20test", "wrong"), "run", "--profile", "smoke")
    said, complained = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "password authentication failed" in complained
    assert "wrong" not in complained
    assert "[1/5]" not in said
