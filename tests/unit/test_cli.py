import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from projects import BIN

from hvs_lib import cli, runner
from hvs_lib import columns as col
from hvs_lib.cli import main
from hvs_lib.report.tables import HEADLINES, results_table
from hvs_lib.telemetry.read import load_telemetry
from hvs_lib.telemetry.summary import summarize


@pytest.fixture
def hvs(project, monkeypatch):
    """Return a function that calls `hvs` where no kernel may start."""

    def never(*_, **__):
        raise AssertionError("nothing may be executed")

    monkeypatch.setattr(runner, "execute", never)
    return lambda *arguments: CliRunner().invoke(main, [str(word) for word in arguments])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "02_tunning"], "Did you mean '02_tuning'?"),
        (["run", "-p", "n_itter", "5"], "Did you mean 'n_iter'?"),
        (["run", "-p", "n_iter", "many"], "'n_iter' must be int"),
        (["run", "--profile", "smoky"], "Did you mean 'smoke'?"),
        (["run", "-p", "data_path", "nowhere.csv"], "nowhere.csv"),
        (["run", "--in-place", "-p", "n_iter", "5"], "set no parameter"),
        (["check", "nowhere.parquet"], "nowhere.parquet"),
    ],
)
def test_bad_input_ends_with_one_message_and_status_1(hvs, project, arguments, message):
    result = hvs(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.output
    assert list(project.iterdir()) == [], "nothing may be written"


def test_a_link_to_itself_is_refused(hvs, project):
    loop = project / "loop.csv"
    loop.symlink_to(loop)
    result = hvs("run", "-p", "data_path", loop)
    assert result.exit_code == 1
    assert "The path must lead to a file" in result.stderr


def test_a_folder_that_cannot_be_written_is_told(hvs, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "execute", full)
    result = hvs("run")
    assert (result.exit_code, result.stderr) == (1, "Error: [Errno 28] No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device is Linux's")
@pytest.mark.parametrize("word", ["check", "--help"])
@pytest.mark.slow
def test_a_full_disk_under_the_output_is_told(make_telemetry, tmp_path, word):
    make_telemetry().to_csv(tmp_path / "own.csv", index=False)
    with open("/dev/full", "w") as full:
        command = [BIN / "hvs", word, tmp_path / "own.csv"]
        process = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert process.returncode == 1
    assert process.stderr.splitlines() == ["Error: [Errno 28] No space left on device"]


@pytest.mark.slow
def test_a_terminal_that_lacks_a_character_shows_another(make_telemetry, tmp_path):
    path = tmp_path / "own.csv"
    make_telemetry().assign(**{"Κελσίου": 1}).to_csv(path, index=False)
    result = CliRunner(charset="latin-1").invoke(main, ["check", str(path)])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "???????" in result.stdout


def test_bad_telemetry_is_refused_before_a_kernel_starts(hvs, make_telemetry, tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "own.csv"
    make_telemetry().assign(**{col.VOLTAGE: "x"}).drop(columns=col.RACK).to_csv(path, index=False)
    result = hvs("run", "-p", "data_path", path)
    assert result.exit_code == 1
    assert col.RACK in result.stderr
    assert col.VOLTAGE in result.stderr


@pytest.mark.parametrize(
    ("built", "options", "message"),
    [
        ({"event_rows": 1}, [], "got 4 events of one labelled row each; label all rows"),
        ({}, ["normal_stride", 40], "sampling_strategy must be above"),
        (
            {},
            ["normal_stride", 1000],
            "normal_stride must leave rows to fit on in each fold, got 1000",
        ),
        ({"interval_s": 700.0}, [], "less than 600 s apart, got one every 700 s"),
    ],
)
def test_telemetry_that_a_later_notebook_cannot_use_is_refused_at_once(
    hvs, make_telemetry, tmp_path_factory, built, options, message
):
    path = tmp_path_factory.mktemp("own") / "own.csv"
    make_telemetry(**built).to_csv(path, index=False)
    result = hvs("run", "-p", "data_path", path, *(["-p", *options] if options else []))
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
    assert "Executed notebooks go to" not in result.output


def test_run_tells_what_is_doubtful_about_a_file(make_telemetry, tmp_path):
    path = tmp_path / "own.csv"
    telemetry = make_telemetry()
    telemetry.loc[:59, col.TEMP_MAX] = 215.0
    telemetry.to_csv(path, index=False)
    parameters = {"data_path": str(path)}
    told = runner.check_telemetry(runner.plan(["00_data"], parameters=parameters))
    assert [text.split(":")[0] for text in told] == [f"{col.TEMP_MAX} in 60 rows (8.33%)"]
    parameters["keep_fill_values"] = True
    assert not runner.check_telemetry(runner.plan(["00_data"], parameters=parameters))


def test_check_says_what_a_file_holds(hvs, make_telemetry, tmp_path):
    path = tmp_path / "own.csv"
    make_telemetry(racks=6, modules=2, event_racks=(0, 1)).to_csv(path, index=False)
    result = hvs("check", path)
    assert result.exit_code == 0
    said = dict(line.split(maxsplit=1) for line in result.output.splitlines() if "  " in line)
    assert said["modules"] == "12"
    assert said["events"].startswith("2 in 2 racks")


def test_check_accepts_telemetry_without_a_label(hvs, make_telemetry, tmp_path):
    path = tmp_path / "own.csv"
    make_telemetry(label=False, event_ids=False).to_csv(path, index=False)
    assert hvs("check", path).exit_code == 0


def test_an_export_is_mapped_and_checked(hvs, make_telemetry, project, tmp_path):
    path, columns = tmp_path / "own.csv", tmp_path / "map.yaml"
    exported = make_telemetry(label=False, event_ids=False).rename(columns={col.VOLTAGE: "U [V]"})
    exported.to_csv(path, index=False)
    assert f"{col.VOLTAGE}: U [V]" in hvs("map", path).output
    assert not columns.exists()
    assert hvs("map", path, "--output", columns).exit_code == 0
    before = columns.read_bytes()
    again = hvs("map", path, "--output", columns)
    assert (again.exit_code, "must be new" in again.stderr) == (1, True)
    assert columns.read_bytes() == before
    assert f"absent           {col.VOLTAGE}" in hvs("check", path).output
    checked = hvs("check", path, "--columns", columns)
    assert (checked.exit_code, "absent" in checked.output) == (0, False)


def test_run_takes_a_map_from_the_working_directory(hvs, make_telemetry, tmp_path, monkeypatch):
    make_telemetry().rename(columns={col.RACK: "rack"}).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "map.yaml").write_text("Rack_ID: rack\n")
    planned = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "check_telemetry", lambda plan: planned.append(plan) or [])
    hvs("run", "00_data", "-p", "data_path", "own.csv", "-p", "columns", "map.yaml")
    ((name, given),) = planned[0].items()
    assert (name, given["columns"]) == ("00_data", str(tmp_path / "map.yaml"))


@pytest.mark.parametrize("data_path", ["", "own.csv"])
def test_run_refuses_a_map_before_a_kernel_starts(hvs, make_telemetry, tmp_path, data_path):
    make_telemetry().to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "map.yaml").write_text("Rack_ID: rak\n")
    given = ["-p", "data_path", tmp_path / data_path] if data_path else []
    result = hvs("run", *given, "-p", "columns", tmp_path / "map.yaml")
    message = "must name a column of the file, got 'rak'" if data_path else "come with a data_path"
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_check_says_that_no_fault_can_be_told_without_event_ids(hvs, make_telemetry, tmp_path):
    said = "neither early nor timely counts as a nuisance"
    path = tmp_path / "own.csv"
    for options, told in [({}, False), ({"event_ids": False}, True),
                          ({"event_ids": False, "label": False}, False)]:  # fmt: skip
        make_telemetry(**options).to_csv(path, index=False)
        assert (said in hvs("check", path).output) == told
    make_telemetry().assign(**{col.EVENT_ID: None}).to_csv(path, index=False)
    assert said in hvs("check", path).output


def test_a_table_without_its_sensors_is_summarised_by_what_is_missing_of_them(make_telemetry):
    telemetry = make_telemetry()
    telemetry.loc[:71, col.CO] = float("nan")
    missing = telemetry[col.SENSORS].isna().mean()
    bare = telemetry.drop(columns=col.SENSORS)
    for given in (missing, missing.to_dict()):
        assert summarize(bare, given) == summarize(telemetry)


def test_the_leaderboard_fits_the_terminal_and_names_the_model_in_every_part(monkeypatch, capsys):
    metrics = {metric: 0.5 for _, name, _ in HEADLINES for metric in (name, f"{name}_low")}
    metrics |= {f"{name}_high": 0.75 for _, name, _ in HEADLINES}
    leaderboard = results_table({"XGBoost, class weight": metrics}).reset_index(names="model")
    tags = {"champion_name": "a", "champion_run_id": "b", "champion_version": "1"}
    monkeypatch.setattr("hvs_lib.tracking.runs.last_comparison", lambda: (leaderboard, tags))
    monkeypatch.setenv("COLUMNS", "100")
    cli._show_verdict()
    said = capsys.readouterr().out
    assert max(map(len, said.split("Champion")[0].splitlines())) <= 100
    assert said.count("XGBoost, class weight") > 1
    assert all(heading in said for heading, _, _ in HEADLINES)


def test_a_stopped_registration_is_told_in_place_of_the_champion(monkeypatch, capsys):
    leaderboard = results_table({"XGBoost": {}}).reset_index(names="model")
    tags = {"champion_name": "a", "champion_run_id": "b", "registration_stopped_by": "a leak"}
    monkeypatch.setattr("hvs_lib.tracking.runs.last_comparison", lambda: (leaderboard, tags))
    cli._show_verdict()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "No version was registered: a, Run ID b leads, but: a leak"


@pytest.mark.parametrize("name", ["fleet.csv", "fleet.parquet"])
def test_simulate_writes_what_loads_and_never_overwrites(hvs, project, name):
    path = project / name
    arguments = ["simulate", path, "--sites", 1, "--hours", 0.5, "--seed", 3]
    result = hvs(*arguments)
    assert result.exit_code == 0, result.output
    assert "modules" in result.output
    assert "1 of 1 sites, 0 s left" in (project / "runs" / "hvs.log").read_text()
    telemetry = load_telemetry(path, require_label=False)
    assert telemetry[col.MODULE].nunique() == 64
    before = path.read_bytes()
    again = hvs(*arguments)
    assert again.exit_code == 1
    assert "exists" in again.stderr
    assert path.read_bytes() == before
    said = (project / "runs" / "hvs.log").read_text()
    assert said.count("1 of 1 sites") == 1, "it is refused before the work, not after"


def test_simulate_tells_that_memory_is_too_small(hvs, tmp_path, monkeypatch):
    def too_much(*_, **__):
        raise MemoryError

    monkeypatch.setattr("hvs_lib.simulator.fleet.simulate_fleet", too_much)
    result = hvs("simulate", tmp_path / "fleet.csv")
    assert (result.exit_code, "fewer sites or hours" in result.stderr) == (1, True)


def test_simulate_refuses_bad_numbers(hvs, tmp_path):
    result = hvs("simulate", tmp_path / "fleet.csv", "--sites", 0)
    assert result.exit_code == 1
    assert "sites must be" in result.stderr
    result = hvs("simulate", tmp_path / "fleet.csv", "--jobs", 0)
    assert (result.exit_code, "-1 for all cores" in result.stderr) == (1, True)
    result = hvs("simulate", tmp_path / "fleet.csv", "--battery", "cel")
    assert (result.exit_code, "did you mean 'cell'" in result.stderr) == (1, True)
    assert not (tmp_path / "fleet.csv").exists()


def test_simulate_takes_a_battery(hvs, tmp_path):
    path = tmp_path / "fleet.parquet"
    assert hvs("simulate", path, "--sites", 1, "--hours", 0.5, "--battery", "pack").exit_code == 0
    telemetry = load_telemetry(path, require_label=False)
    assert telemetry[col.MODULE].nunique() == 16


def test_version(hvs):
    assert hvs("--version").output.startswith("hvs, version ")
