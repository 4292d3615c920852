"""A folder of files is read as one file that holds their rows, and refused by file and place."""

import os

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet
import pytest
from click.testing import CliRunner
from pandas.testing import assert_frame_equal

from hvs_lib import columns as col
from hvs_lib.cli import main
from hvs_lib.telemetry import fleet as fleets
from hvs_lib.telemetry import read
from hvs_lib.telemetry.files import DataError, check_output, save_telemetry
from hvs_lib.telemetry.fleet import load_fleet
from hvs_lib.telemetry.proposal import propose_map
from hvs_lib.telemetry.read import load_telemetry, read_racks
from hvs_lib.telemetry.summary import summarize


@pytest.fixture(autouse=True)
def small(project, monkeypatch):
    monkeypatch.setattr(read, "ROWS_TOGETHER", 300)


@pytest.fixture
def telemetry(make_telemetry):
    made = make_telemetry(sites=3, racks=3, rows=60, event_racks=(0, 4, 8), look_alike_racks=(1, 3))
    made.loc[200:230, col.TEMP_MAX] = 327.67
    made.loc[900:930, col.CO] = np.nan
    return made.assign(Note="none")


def by_day(telemetry: pd.DataFrame) -> list[pd.DataFrame]:
    """Spread each rack over three files; the columns of the second stand the other way round."""
    day = telemetry[col.TIMESTAMP].rank(method="dense").to_numpy() // 21
    parts = [telemetry[day == number] for number in range(3)]
    return [parts[0], parts[1].iloc[:, ::-1], parts[2]]


def write(folder, parts, suffix=".csv"):
    folder.mkdir()
    for number, part in enumerate(parts, start=1):
        save_telemetry(part, folder / f"day{number}{suffix}")
    return folder


@pytest.fixture
def folder(telemetry, tmp_path):
    return write(tmp_path / "days", by_day(telemetry))


def problem_of(path, **options) -> str:
    """Return what every reader says of telemetry, which is the same."""
    told = []
    for reader in (load_telemetry, load_fleet, lambda *a, **b: list(read_racks(*a, **b))):
        with pytest.raises(DataError) as refused:
            reader(path, **options)
        told.append(str(refused.value))
    assert len(set(told)) == 1
    return told[0]


# --- sound folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_folder_is_read_like_one_file(telemetry, tmp_path, suffix):
    folder = write(tmp_path / "days", by_day(telemetry), suffix)
    for left in (".DS_Store", "_SUCCESS"):
        (folder / left).touch()
    save_telemetry(telemetry, tmp_path / f"one{suffix}")
    one, whole = load_telemetry(tmp_path / f"one{suffix}"), load_telemetry(folder)
    assert_frame_equal(whole, one)
    assert whole.attrs == one.attrs and one.attrs["findings"]
    fleet = load_fleet(folder)
    assert len(fleet.paths) == 3
    racks = [fleet.telemetry(k)[col.RACK].astype("str") for k in range(3)]
    assert sum(rack.nunique() for rack in racks) == 9
    words = {name: kind for name, kind in fleet.rows.dtypes.items() if kind == "category"}
    assert_frame_equal(pd.concat(fleet.telemetry(k).astype(words) for k in range(3)), one)
    assert summarize(fleet.rows, missing=fleet.missing) == summarize(one)


def test_types_of_parquet_files_may_be_wider_or_empty(telemetry, tmp_path):
    """As pandas writes them: a day without an event has no type for its id."""
    parts = by_day(telemetry)
    none = dict.fromkeys((col.EVENT_ID, col.EVENT_TYPE), None)
    parts[0] = parts[0].assign(**none, **{col.LABEL: 0})
    parts[1] = parts[1].astype({col.RACK: "str", col.TIMESTAMP: "datetime64[ns]"})
    parts[2] = parts[2].astype({col.VOLTAGE: float, col.LABEL: float, col.MODULE: object})
    folder = tmp_path / "days"
    folder.mkdir()
    for number, part in enumerate(parts):
        part.to_parquet(folder / f"day{number}.parquet", index=False)
    views = arrow.parquet.read_table(folder / "day2.parquet")
    place = views.column_names.index(col.SITE)
    site = views[col.SITE].cast("string").cast(arrow.string_view())
    arrow.parquet.write_table(views.set_column(place, col.SITE, site), folder / "day2.parquet")
    kinds = [arrow.parquet.read_schema(each) for each in sorted(folder.iterdir())]
    for name in (col.EVENT_ID, col.RACK, col.TIMESTAMP, col.VOLTAGE, col.LABEL, col.SITE):
        assert len({kind.field(name).type for kind in kinds}) > 1, name
    save_telemetry(pd.concat(parts), tmp_path / "one.csv")
    assert_frame_equal(load_telemetry(folder), load_telemetry(tmp_path / "one.csv"))


def test_a_map_reads_a_folder(telemetry, tmp_path):
    theirs = telemetry.rename(columns={col.TIMESTAMP: "Time", col.RACK: "Cabinet"})
    theirs = theirs.rename(columns={col.MODULE: "Module"})
    days = by_day(telemetry.rename_axis("row").reset_index())
    folder = write(tmp_path / "days", [theirs.loc[part["row"]] for part in days])
    (tmp_path / "map.yaml").write_text(proposal := propose_map(folder))
    assert "Rack_ID: Cabinet" in proposal and "to fix" not in proposal
    found = load_telemetry(folder, columns=tmp_path / "map.yaml")
    save_telemetry(telemetry, tmp_path / "one.csv")
    assert_frame_equal(found, load_telemetry(tmp_path / "one.csv"))


def test_a_folder_is_converted_again_when_a_file_changes_or_comes(folder, telemetry, monkeypatch):
    (folder / "day3.csv").rename(away := folder.parent / "day3.csv")
    first = load_fleet(folder)
    with monkeypatch.context() as patch:
        patch.setattr(fleets, "read_racks", None)  # would not convert any more
        (folder / ".DS_Store").touch()
        assert load_fleet(folder).sha256 == first.sha256
    away.rename(folder / "day3.csv")
    second = load_fleet(folder)
    assert len(second.rows) > len(first.rows) and second.sha256 != first.sha256
    text = (folder / "day3.csv").read_text()
    (folder / "day3.csv").write_text(text.rstrip("\n").rsplit("\n", 1)[0] + "\n")
    assert len(load_fleet(folder).rows) == len(second.rows) - 1


def test_check_takes_a_folder(folder):
    result = CliRunner().invoke(main, ["check", str(folder)])
    assert (result.exit_code, "9 racks" in result.output) == (0, True), result.output


# --- refused folders -----------------------------------------------------------------------------


def test_a_bad_cell_is_named_with_its_file_and_line(folder, telemetry, tmp_path):
    path = folder / "day2.csv"
    day = pd.read_csv(path).astype({col.VOLTAGE: object})
    day.loc[[3, 6], col.VOLTAGE] = ["high", "low"]
    day.to_csv(path, index=False)
    told = problem_of(folder)
    assert told.startswith(f"{folder} cannot be used: {col.VOLTAGE} must be a number, got 'high'")
    assert "at line 5 of day2.csv, 2 rows in all" in told
    (tmp_path / "map.yaml").write_text(f"{col.VOLTAGE}: {{column: {col.VOLTAGE}, factor: 2}}")
    assert "at line 5 of day2.csv" in problem_of(folder, columns=tmp_path / "map.yaml")


def test_rows_of_one_time_in_two_files_are_told(telemetry, tmp_path):
    days = by_day(telemetry)
    folder = write(tmp_path / "days", [days[0], days[2], days[2].iloc[-1:]], ".parquet")
    told = problem_of(folder)
    assert "must be unique within a module" in told
    assert "row 0 (the first is 0) of day3.parquet" in told


def test_a_row_that_is_cut_off_is_told_with_its_file(folder):
    path = folder / "day3.csv"
    path.write_text(path.read_text().rsplit(",", 3)[0])
    assert "day3.csv: Every row must have the 17 columns of the header" in problem_of(folder)


def test_a_column_that_all_files_have_twice_is_told_once(folder):
    for path in folder.iterdir():
        path.write_text(path.read_text().replace(col.VOC, col.CO, 1))
    assert f"cannot be used: day1.csv: {col.CO} must appear once" in problem_of(folder)


def add_a_folder(folder):
    (folder / "2025").mkdir()


def leave_nothing(folder):
    for path in folder.iterdir():
        path.unlink()
    (folder / ".hidden.csv").touch()


def mix(folder):
    pd.read_csv(folder / "day3.csv").to_parquet(folder / "day4.parquet")


def drop(folder):
    pd.read_csv(folder / "day2.csv").drop(columns=col.SOC).to_csv(folder / "day2.csv", index=False)


def to_parquet(folder):
    for path in sorted(folder.glob("*.csv")):
        day = pd.read_csv(path).astype({col.EVENT_ID: object, col.EVENT_TYPE: object})
        if path.stem == "day2":
            day[col.VOLTAGE] = day[col.VOLTAGE].astype(str)
        day.to_parquet(path.with_suffix(".parquet"))
        path.unlink()


def cut(folder):
    to_parquet(folder)
    path = folder / "day3.parquet"
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("spoil", "where", "found"),
    [
        (leave_nothing, "", "must hold telemetry files, got none"),
        (add_a_folder, "/2025", "must hold only files, got a folder; name it, or move"),
        (mix, "", "must be all CSV or all Parquet, got day1.csv and day4.parquet"),
        (drop, "", f"same columns, got {col.SOC} in only one of day1.csv and day2.csv"),
        (to_parquet, "/day2.parquet", f"{col.VOLTAGE} has incompatible types"),
        (cut, "/day3.parquet", "must be readable as Parquet"),
        (lambda folder: (folder / "notes.txt").touch(), "/notes.txt", "format must be one of"),
        (lambda folder: (folder / "day2.csv").write_text(""), "/day2.csv", "got an empty file"),
        (lambda folder: os.mkfifo(folder / "pipe.csv"), "/pipe.csv", "must name a regular file"),
    ],
)
def test_a_folder_with_something_else_in_it_is_refused(folder, spoil, where, found):
    spoil(folder)
    told = problem_of(folder)
    assert told.startswith(f"{folder}{where} cannot be used: ")
    assert found in told
    assert ";" in told, "a cure follows the problem"


def test_the_alarms_are_not_written_among_the_telemetry(folder, tmp_path):
    with pytest.raises(DataError, match="must not lie among the files of telemetry"):
        check_output(folder / "alarms.csv", (".csv",), not_over=folder)
    check_output(tmp_path / "alarms.csv", (".csv",), not_over=folder)
