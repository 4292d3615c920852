"""Telemetry at an address: S3 from a real server on loopback, and what goes wrong there."""

import os
import sqlite3
import sys
from contextlib import closing
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pandas as pd
import pytest
from click.testing import CliRunner
from fsspec.registry import _registry as loaded
from pandas.testing import assert_frame_equal

from hvs_lib import columns as col
from hvs_lib.cli import main
from hvs_lib.telemetry import fleet as fleets
from hvs_lib.telemetry.files import DataError, save_telemetry
from hvs_lib.telemetry.fleet import load_fleet
from hvs_lib.telemetry.mapped import telemetry_sha256
from hvs_lib.telemetry.proposal import propose_map
from hvs_lib.telemetry.read import load_telemetry, read_racks

pytestmark = pytest.mark.slow

KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")  # set by `bucket`


@pytest.fixture
def telemetry(make_telemetry, project):
    return make_telemetry(racks=6, rows=60)


@pytest.fixture
def folder(telemetry, tmp_path):
    """Write a file for each of three days, over which each rack is spread."""
    folder = tmp_path / "days"
    folder.mkdir()
    day = telemetry[col.TIMESTAMP].rank(method="dense").to_numpy() // 21
    for number in range(3):
        save_telemetry(telemetry[day == number], folder / f"day{number + 1}.csv")
    return folder


@pytest.fixture
def address(bucket, folder):
    bucket.put([str(path) for path in folder.iterdir()], "fleet/days/")
    bucket.pipe("fleet/days/", b"")  # as a browser makes a folder
    bucket.pipe("fleet/days/_SUCCESS", b"")
    return "s3://fleet/days"


def problem_of(address) -> str:
    told = []
    for read in (load_telemetry, load_fleet, lambda path: list(read_racks(path))):
        with pytest.raises(DataError) as refused:
            read(address)
        told.append(str(refused.value))
    assert len(set(told)) == 1
    return told[0]


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    yield
    assert not list((tmp_path / "tmp").glob("hvs-*")), "copies must be removed"


# --- what S3 holds is what the folder holds ------------------------------------------------------


def test_an_address_is_read_like_the_folder(address, folder, bucket):
    expected = load_telemetry(folder)
    assert_frame_equal(load_telemetry(address), expected)
    assert_frame_equal(load_telemetry(f"{address}/"), expected)
    assert_frame_equal(load_telemetry(f"file://{folder}"), expected)
    racks = pd.concat([table for _, table in read_racks(address)], ignore_index=True)
    assert_frame_equal(racks[col.SENSORS], expected[col.SENSORS])
    fleet, local = load_fleet(address), load_fleet(folder)
    assert_frame_equal(fleet.rows, local.rows)
    assert fleet.sha256 == local.sha256 == telemetry_sha256(address), "the place does not count"
    assert_frame_equal(fleet.telemetry(0), local.telemetry(0))
    assert propose_map(address) == propose_map(folder)
    bucket.put(str(folder / "day2.csv"), "fleet/one.csv")
    one = load_telemetry("s3://fleet/one.csv")
    assert_frame_equal(one, load_telemetry(folder / "day2.csv"))


def test_an_address_is_converted_once_until_it_changes(address, folder, bucket, monkeypatch):
    first = load_fleet(address)
    with monkeypatch.context() as patch:
        patch.setattr(fleets, "local_copy", None)  # would not read any more
        again = load_fleet(address)
    assert (again.sha256, again.paths) == (first.sha256, first.paths)
    first.paths[0].unlink()
    assert_frame_equal(first.telemetry(0), load_telemetry(folder).astype(first.telemetry(0).dtypes))
    text = (folder / "day3.csv").read_text()
    bucket.pipe("fleet/days/day3.csv", text.rstrip("\n").rsplit("\n", 1)[0].encode())
    changed = load_fleet(address)
    assert len(changed.rows) == len(first.rows) - 1
    assert changed.sha256 != first.sha256
    first.paths[0].unlink()
    with pytest.raises(DataError, match="must not change while in use"):
        first.telemetry(0)


@pytest.mark.parametrize("header", ["", "Last-Modified"])
def test_a_web_server_that_tells_no_version_is_read_again(folder, header):
    class Handler(SimpleHTTPRequestHandler):
        def send_header(self, name, value):
            if name != "Last-Modified" or name == header:
                super().send_header(name, value)

        def log_message(self, *_):
            read.append(self.command)

    read = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/day1.csv"
        first = load_fleet(address)
        read.clear()
        assert load_fleet(address).paths == first.paths
        assert ("GET" in read) == (not header)
        path = folder / "day1.csv"
        path.write_text(path.read_text().replace(",5", ",6", 1))  # of the same size
        if not header:
            assert load_fleet(address).sha256 != first.sha256
        server.shutdown()


def test_a_map_reads_an_address(address, folder, tmp_path):
    (tmp_path / "map.yaml").write_text(f"{col.VOLTAGE}: {{column: {col.VOLTAGE}, factor: 0.9}}")
    options = {"columns": tmp_path / "map.yaml"}
    expected = load_telemetry(folder, **options)
    assert_frame_equal(load_telemetry(address, **options), expected)
    assert load_fleet(address, **options).sha256 == load_fleet(folder, **options).sha256
    (tmp_path / "map.yaml").unlink()
    with pytest.raises(DataError, match=r"map.yaml cannot be used"):
        load_fleet(address, **options)


def test_commands_take_an_address(address, project):
    told = CliRunner().invoke(main, ["check", address])
    assert (told.exit_code, "6 racks" in told.output) == (0, True), told.output
    told = CliRunner().invoke(main, ["map", address])
    assert (told.exit_code, "Timestamp: {column" in told.output) == (0, True), told.output


def test_run_hands_an_address_on_unchanged(address, monkeypatch):
    planned = []
    monkeypatch.setattr("hvs_lib.runner.check_telemetry", lambda plan: planned.append(plan) or [])
    monkeypatch.setattr("hvs_lib.runner.execute", lambda *_, **__: pd.DataFrame())
    CliRunner().invoke(main, ["run", "00_data", "-p", "data_path", address])
    assert planned == [{"00_data": {"data_path": address}}]


# --- what goes wrong -----------------------------------------------------------------------------


def test_problems_name_the_address(address, bucket, tmp_path):
    text = bucket.cat("fleet/days/day2.csv").decode()
    bucket.pipe("fleet/days/day2.csv", text.replace(",5", ",five", 1).encode())
    told = problem_of(address)
    assert told.startswith("s3://fleet/days cannot be used: ")
    assert "of day2.csv" in told and "must be a number" in told
    bucket.pipe("fleet/days/day2.csv", b"")
    assert problem_of(address).startswith("s3://fleet/days/day2.csv cannot be used: The file must")
    bucket.pipe("fleet/days/2025/day1.csv", b"")
    assert "s3://fleet/days/2025 cannot be used: A folder must hold only files" in problem_of(
        address
    )


@pytest.mark.parametrize(
    "address", ["s3://nosuch/days", "s3://nosuch", "s3://fleet/day", "s3://fleet/days/day9.csv"]
)
def test_an_address_that_leads_nowhere_is_told(bucket, address):
    assert problem_of(address) == (
        f"{address} cannot be used: The address must lead to a file or folder, got nothing there;"
        " check every part."
    )


def test_an_empty_bucket_is_told(bucket):
    assert "must hold telemetry files, got none" in problem_of("s3://fleet")


def test_missing_credentials_are_told(bucket, monkeypatch, tmp_path):
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    told = problem_of("s3://fleet/days")
    assert "got NoCredentialsError: Unable to locate credentials; check it and the cred" in told


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("foo://x/y", "got ValueError: Protocol not known: foo"),
        ("s3://fleet", "must be installed, got: Install s3fs to access S3; `pip install -e '.[rem"),
    ],
)
def test_a_protocol_that_is_not_there_is_told(monkeypatch, address, found):
    monkeypatch.delitem(loaded, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert found in problem_of(address)


@pytest.mark.parametrize(
    "address",
    [
        "s3://name:secretofthetest@fleet/days",
        "sftp://name:secret/ofthetest@host/days",
        "https://host/day.csv?X-Amz-Signature=secretofthetest",
        "abfs://fleet@account.dfs.core.windows.net/days?sig=secretofthetest",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(store, address):
    told = problem_of(address)
    assert "must hold no password, key or query" in told and "ofthetest" not in told
    for command in (["check"], ["map"], ["run", "00_data", "-p", "data_path"]):
        result = CliRunner().invoke(main, [*command, address])
        assert (result.exit_code, "must hold no password" in result.output) == (1, True)
        assert "ofthetest" not in result.output
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        assert "ofthetest" not in "\n".join(database.iterdump())


def test_credentials_of_the_environment_are_written_nowhere(address, project):
    load_fleet(address)
    result = CliRunner().invoke(main, ["check", address])
    assert result.exit_code == 0
    written = [path.read_bytes() for path in project.rglob("*") if path.is_file()]
    for secret in map(os.environ.get, KEYS):
        assert secret not in result.output
        assert not any(secret.encode() in content for content in written)
