"""A fleet holds what the whole table holds, one partition at a time, and mends what is damaged."""

from __future__ import annotations

from threading import Barrier

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from odd_telemetry import ODD
from pandas.testing import assert_frame_equal, assert_series_equal
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.models import make_pipeline
from hvs_lib.progress import log_file
from hvs_lib.simulator.fleet import simulate_fleet
from hvs_lib.telemetry import fleet as fleets
from hvs_lib.telemetry import read
from hvs_lib.telemetry.files import DataError, save_telemetry, sha256_of_file
from hvs_lib.telemetry.fleet import load_fleet
from hvs_lib.telemetry.read import load_telemetry
from hvs_lib.telemetry.summary import summarize


@pytest.fixture(autouse=True)
def small(project, monkeypatch):
    """Give each test a project of its own, short sites and small partitions."""
    monkeypatch.setattr(fleets, "SIMULATED_HOURS", 0.5)
    monkeypatch.setattr(read, "ROWS_TOGETHER", 300)


def together(fleet) -> pd.DataFrame:
    """Join the telemetry of all partitions."""
    words = {name: kind for name, kind in fleet.rows.dtypes.items() if kind == "category"}
    parts = [fleet.telemetry(number).astype(words) for number in range(len(fleet.paths))]
    return pd.concat(parts)


def check_holds(fleet, telemetry: pd.DataFrame) -> None:
    """The rows and the partitions are those of the table, to the bit."""
    known = [name for name in telemetry if name not in col.SENSORS]
    assert_frame_equal(fleet.rows, telemetry[known])
    assert_frame_equal(together(fleet), telemetry)
    assert fleet.starts[0] == 0 and fleet.starts[-1] == len(telemetry)
    assert_series_equal(fleet.missing, telemetry[col.SENSORS].isna().mean())


def log() -> str:
    return log_file().read_text() if log_file().exists() else ""


# --- the simulated fleet -------------------------------------------------------------------------


def simulated(sites: int, seed: int = 42) -> pd.DataFrame:
    telemetry, _ = simulate_fleet(sites, 0.5, seed, battery="mix")
    for name in (col.EVENT_ID, col.EVENT_TYPE):
        telemetry[name] = telemetry[name].cat.remove_unused_categories()
    return telemetry


@pytest.mark.slow
def test_each_simulated_site_is_one_file(project):
    fleet = load_fleet(sites=3)
    folder = project / "data" / "raw" / "fleet_mix_seed42"
    assert fleet.paths == [folder / f"Site0{number}.parquet" for number in (1, 2, 3)]
    check_holds(fleet, simulated(3))
    assert not fleet.rows.attrs
    for number in range(3):
        assert set(fleet.telemetry(number)[col.SITE]) == {f"Site0{number + 1}"}


def test_fleets_of_other_sizes_share_their_sites(monkeypatch):
    first = load_fleet(sites=2)
    written = [path.stat().st_mtime_ns for path in first.paths]
    larger, again = load_fleet(sites=3), load_fleet(sites=2)
    assert larger.paths[:2] == again.paths == first.paths
    assert [path.stat().st_mtime_ns for path in first.paths] == written
    assert again.sha256 == first.sha256 != larger.sha256
    other = load_fleet(sites=2, seed=7)
    assert not set(other.paths) & set(first.paths)
    assert other.sha256 != first.sha256


def test_another_simulator_simulates_again(monkeypatch, project):
    fleet = load_fleet(sites=2)
    written = [path.stat().st_mtime_ns for path in fleet.paths]
    monkeypatch.setattr(fleets, "sources_sha256", lambda *_: "another simulator")
    left = fleet.paths[0].with_name(f".1234abcd.{fleet.paths[0].name}")
    left.write_bytes(b"by one that was killed")
    load_fleet(sites=2)
    now = [path.stat().st_mtime_ns for path in fleet.paths]
    assert all(one < other for one, other in zip(written, now, strict=True))
    load_fleet(sites=2)
    assert [path.stat().st_mtime_ns for path in fleet.paths] == now
    assert {path.name for path in left.parent.iterdir()} == {"Site01.parquet", "Site02.parquet"}


def test_fleets_of_other_batteries_have_folders_of_their_own(project):
    names = ("mix", "module", "pack")
    fleets = [load_fleet(sites=2, seed=7, battery=name) for name in names]
    folders = [fleet.paths[0].parent.name for fleet in fleets]
    assert folders == [f"fleet_{name}_seed7" for name in names]
    mixed, _, packs = (fleet.sha256 for fleet in fleets)
    assert len({fleet.sha256 for fleet in fleets}) == 3
    assert load_fleet(sites=2, seed=7).sha256 == mixed
    fleets[2].paths[1].write_bytes(b"damaged")
    assert load_fleet(sites=2, seed=7, battery="pack").sha256 == packs


def test_unknown_battery_is_refused_with_the_nearest_name(project):
    with pytest.raises(ValueError, match="got 'packs': did you mean 'pack'"):
        load_fleet(battery="packs")
    assert not (project / "data").exists()


def test_the_rows_of_any_telemetry_are_in_the_order_of_scores(make_telemetry, make_fleet):
    """The protocol relies on it: scores that are computed in one order are judged in the other."""
    telemetry = make_telemetry(sites=3, racks=4, rows=20)
    telemetry[col.SITE] = telemetry[col.SITE].cat.rename_categories(["b", "10", "B"])
    telemetry[col.RACK] = telemetry[col.RACK].cat.rename_categories(["9", "ä", "A 1", "10"])
    names = [f"m{number * 7 % 8}" for number in range(8)]
    telemetry[col.MODULE] = telemetry[col.MODULE].cat.rename_categories(names)
    rows = make_fleet(telemetry.sample(frac=1.0, random_state=1), rows_together=100).rows
    scores = scores_frame(rows, np.arange(len(rows)), np.arange(len(rows)))
    assert scores["y_score"].is_monotonic_increasing


@pytest.mark.slow
def test_a_hundred_sites_are_in_the_order_of_their_names(monkeypatch):
    monkeypatch.setattr(fleets, "SIMULATED_HOURS", 20 / 3600)  # two samples
    fleet = load_fleet(sites=101)
    names = [path.stem for path in fleet.paths]
    assert names == sorted(names) and names[9:12] == ["Site10", "Site100", "Site101"]
    codes = fleet.rows[col.SITE].cat.codes.to_numpy()
    assert (np.diff(codes) >= 0).all()
    assert fleet.rows[col.SITE].iloc[fleet.starts[:-1]].tolist() == names
    assert set(fleet.telemetry(11)[col.SITE]) == {"Site101"}


@pytest.mark.parametrize(
    ("sites", "seed", "found"),
    [
        (0, 1, "sites must be at least 1, got 0"),
        (1, -1, "seed must lie between 0 and 4294967295, got -1"),
        (1, 2**32, "seed must lie between 0 and 4294967295, got 4294967296"),
    ],
)
def test_what_cannot_be_simulated_is_refused(project, sites, seed, found):
    with pytest.raises(ValueError, match=found):
        load_fleet(sites=sites, seed=seed)
    assert not (project / "data").exists()


# --- a file of the user's own --------------------------------------------------------------------


@pytest.fixture
def telemetry(make_telemetry):
    """Readings that are missing, doubtful and in columns of no use are in it."""
    made = make_telemetry(sites=3, racks=3, rows=60, event_racks=(0, 4, 8), look_alike_racks=(1, 3))
    made.loc[70:90, col.CO] = np.nan
    made.loc[200:230, col.TEMP_MAX] = 327.67
    made.loc[900:930, col.TEMP_MAX] = 327.67
    return made.assign(Note="none", **{col.H2: np.float32(0)})


@pytest.fixture(params=["csv", "parquet", "shuffled.csv", "shuffled.parquet"])
def path(request, telemetry, tmp_path):
    shuffled = telemetry.sample(frac=1.0, random_state=3)
    path = tmp_path / f"own.{request.param}"
    save_telemetry(shuffled if "shuffled" in request.param else telemetry, path)
    return path


@pytest.mark.parametrize(("rows_together", "partitions"), [(1, 9), (300, 3), (10**9, 1)])
@pytest.mark.slow
def test_own_telemetry_comes_as_from_load_telemetry(path, monkeypatch, rows_together, partitions):
    monkeypatch.setattr(read, "ROWS_TOGETHER", rows_together)
    fleet, plain = load_fleet(path), load_telemetry(path)
    check_holds(fleet, plain)
    assert len(fleet.paths) == partitions
    assert fleet.sha256 == sha256_of_file(path)
    summary = summarize(fleet.rows, missing=fleet.missing)
    assert summary == summarize(plain)
    assert summary["ignored_columns"] == ["Note"]
    assert summary["sensors_absent"] == [col.H2]
    assert len(summary["warnings"]) == 2


def test_partitions_hold_whole_racks_and_their_rows_numbers(path):
    fleet = load_fleet(path)
    racks = [set(fleet.telemetry(k).groupby([col.SITE, col.RACK], observed=True).groups)
             for k in range(len(fleet.paths))]  # fmt: skip
    assert sum(map(len, racks)) == len(set.union(*racks)) == 9
    for number, (first, end) in enumerate(zip(fleet.starts, fleet.starts[1:], strict=False)):
        assert fleet.telemetry(number).index.tolist() == list(range(first, end))
        assert fleet.partition_of(first) == fleet.partition_of(end - 1) == number


def test_a_file_is_converted_once(path, project, monkeypatch):
    fleet = load_fleet(path)
    (folder,) = {path.parent for path in fleet.paths}
    assert folder.parent == project / "data" / "cache" / "telemetry"
    monkeypatch.setattr(fleets, "read_racks", None)  # would not convert any more
    again = load_fleet(path)
    assert again.paths == fleet.paths
    assert_frame_equal(again.rows, fleet.rows)
    assert again.rows.attrs == fleet.rows.attrs


def test_another_file_or_other_options_are_converted_anew(telemetry, tmp_path):
    path = tmp_path / "own.csv"
    save_telemetry(telemetry, path)
    first, kept = load_fleet(path), load_fleet(path, keep_fill_values=True)
    assert not set(first.paths) & set(kept.paths)
    assert_frame_equal(together(kept), load_telemetry(path, keep_fill_values=True))
    assert kept.missing[col.TEMP_MAX] == 0 < first.missing[col.TEMP_MAX]
    path.unlink()
    save_telemetry(telemetry.iloc[:-1], path)
    assert len(load_fleet(path).rows) == len(first.rows) - 1


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_every_problem_of_a_file_is_told_at_once(make_telemetry, tmp_path, project, form):
    """Whichever partition each is in."""
    made = make_telemetry(sites=3, racks=3).astype({col.VOLTAGE: object, col.LABEL: float})
    made.loc[3, col.VOLTAGE] = "12,5"
    made.loc[500, col.LABEL] = 2
    made.loc[700, col.SOC] = np.inf
    made.loc[[900, 901], col.TEMP_AVG] = -8888.0
    made[col.VOLTAGE] = made[col.VOLTAGE].astype("str")
    path = tmp_path / f"own.{form}"
    made.to_parquet(path) if form == "parquet" else made.to_csv(path, index=False)
    with pytest.raises(DataError) as plain:
        load_telemetry(path)
    with pytest.raises(DataError) as refused:
        load_fleet(path)
    assert str(refused.value) == str(plain.value)
    assert len(refused.value.problems) == 4
    assert not [path for path in (project / "data").rglob("*.parquet")]


def test_telemetry_without_a_label_is_refused(make_telemetry, tmp_path):
    save_telemetry(make_telemetry(label=False), tmp_path / "own.csv")
    with pytest.raises(DataError, match="Hazard_Label must be a column of the file") as refused:
        load_fleet(tmp_path / "own.csv")
    assert len(refused.value.problems) == 1


def test_telemetry_that_is_only_scored_needs_no_label(make_telemetry, tmp_path):
    path = tmp_path / "own.csv"
    save_telemetry(make_telemetry(label=False, event_ids=False), path)
    check_holds(load_fleet(path, require_label=False), load_telemetry(path, require_label=False))
    with pytest.raises(DataError, match="must be a column"):  # what it was converted to is no fleet
        load_fleet(path)


def test_a_label_is_converted_once_whether_it_is_needed_or_not(path):
    fleet = load_fleet(path)
    assert load_fleet(path, require_label=False).paths == fleet.paths


@pytest.mark.parametrize("name", ["nothing.csv", "folder"])
def test_what_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot be used"):
        load_fleet(tmp_path / name)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_conversion_that_is_broken_off_does_not_count(telemetry, tmp_path, monkeypatch, error):
    path = tmp_path / "own.parquet"
    save_telemetry(telemetry, path)
    plain, write, written = load_telemetry(path), fleets.write, []

    def break_off(*arguments):
        if len(written) == 2:
            raise error
        written.append(arguments[1])
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(fleets, "write", break_off)
        with pytest.raises(error):
            load_fleet(path)
    folder = written[0].parent.parent
    assert [path.suffix for path in folder.iterdir()] in ([], [".lock"])
    check_holds(load_fleet(path), plain)


def test_what_a_killed_conversion_left_is_removed(telemetry, tmp_path):
    path = tmp_path / "own.parquet"
    save_telemetry(telemetry, path)
    folder = load_fleet(path).paths[0].parent
    left = folder.rename(folder.with_name(f".{folder.name}.abcd"))
    (left / "about.json").unlink()
    fleet = load_fleet(path)
    assert fleet.paths[0].parent == folder and not left.exists()


@pytest.mark.parametrize("damage", ["", "{", None])
def test_lost_findings_are_found_again(telemetry, tmp_path, damage):
    path = tmp_path / "own.parquet"
    save_telemetry(telemetry, path)
    fleet = load_fleet(path)
    about = fleet.paths[0].with_name("about.json")
    about.unlink() if damage is None else about.write_text(damage)
    assert load_fleet(path).rows.attrs == fleet.rows.attrs


# --- damaged partitions --------------------------------------------------------------------------


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_reading(path) -> None:
    """Flip a bit in the middle of a sensor's column."""
    group = pq.read_metadata(path).row_group(0)
    column = next(
        group.column(k) for k in range(group.num_columns)
        if group.column(k).path_in_schema == col.VOLTAGE
    )  # fmt: skip
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {"missing": lambda path: path.unlink(), "cut": truncate, "flipped": flip_a_reading}


@pytest.fixture(params=["simulated", "own"])
def open_fleet(request, telemetry, tmp_path):
    if request.param == "simulated":
        return lambda: load_fleet(sites=3)
    save_telemetry(telemetry, tmp_path / "own.parquet")
    return lambda: load_fleet(tmp_path / "own.parquet")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow
def test_a_partition_damaged_before_the_fleet_opens_is_made_again(open_fleet, damage, request):
    fleet = open_fleet()
    expected = together(fleet)
    DAMAGES[damage](fleet.paths[1])
    again = open_fleet()
    assert_frame_equal(together(again), expected)
    assert_frame_equal(again.rows, fleet.rows)
    assert again.sha256 == fleet.sha256
    never_made = damage == "missing" and "simulated" in request.node.name
    assert (f"{fleet.paths[1]} is damaged" in log()) != never_made
    assert log().count("made again") <= 1


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.slow
def test_a_partition_damaged_while_the_fleet_is_open_is_made_again(open_fleet, damage):
    fleet = open_fleet()
    expected = together(fleet)
    DAMAGES[damage](fleet.paths[1])
    assert_frame_equal(together(fleet), expected)
    assert f"{fleet.paths[1]} is damaged or missing and is made again: " in log()
    assert log().count("made again") == 1
    assert open_fleet().sha256 == fleet.sha256


@pytest.mark.slow
def test_threads_that_find_damage_at_once_mend_it_once(open_fleet, monkeypatch):
    fleet = open_fleet()
    expected = together(fleet)
    made = []
    monkeypatch.setattr(
        fleets, "write", lambda *a, _write=fleets.write: made.append(a[1]) or _write(*a)
    )
    for path in fleet.paths[:2]:
        truncate(path)
    at_once = Barrier(2, timeout=60)

    def telemetry(number):
        if number < 2:
            at_once.wait()
        return fleet.telemetry(number)

    found = list(fleet.map(telemetry, n_jobs=2))
    words = {name: kind for name, kind in fleet.rows.dtypes.items() if kind == "category"}
    assert_frame_equal(pd.concat([part.astype(words) for part in found]), expected)
    assert len(made) in (2, len(fleet.paths))  # the two sites, or the file once


def test_a_file_that_changed_meanwhile_makes_no_partition(telemetry, tmp_path):
    """The numbers of the rows would be those of other rows."""
    path = tmp_path / "own.parquet"
    save_telemetry(telemetry, path)
    fleet = load_fleet(path)
    truncate(fleet.paths[0])
    path.unlink()
    with pytest.raises(DataError, match="The telemetry must not change while in use"):
        fleet.telemetry(0)
    save_telemetry(telemetry.iloc[1:], path)
    with pytest.raises(DataError, match="The telemetry must not change while in use"):
        fleet.telemetry(0)


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_map_keeps_the_order_and_shows_progress(make_fleet, n_jobs):
    fleet = make_fleet(racks=8, rows_together=1)
    assert list(fleet.map(lambda number: number**2, n_jobs=n_jobs)) == [
        number**2 for number in range(8)
    ]
    assert "8 of 8 partitions, 0 s left" in log()


def test_an_error_in_a_partition_is_raised(make_fleet):
    with pytest.raises(ZeroDivisionError):
        list(make_fleet().map(lambda number: 1 // number))


# --- telemetry as it comes -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("what", ODD)
@pytest.mark.slow
def test_odd_telemetry_is_assessed_or_refused(make_telemetry, tmp_path, what, form):
    made = make_telemetry(racks=8, rows=90, event_racks=(0, 1, 2, 3, 4), look_alike_racks=(5, 6))
    made = ODD[what](made)
    path = tmp_path / f"own.{form}"
    save_telemetry(made, path)
    fleet = load_fleet(path)
    check_holds(fleet, load_telemetry(path))
    if what in ("2 racks", "3 racks"):
        with pytest.raises(DataError, match="at least 4 racks with an event, got"):
            split_fleet(fleet.rows)
        if what == "2 racks":
            return
    split = split_fleet(fleet.rows, n_folds=2 if what == "3 racks" else 3)
    protocol = Protocol(fleet, split, normal_stride=3, max_nuisance_alarms_per_site_day=1000)
    found = protocol.assess(make_pipeline(XGBClassifier(n_estimators=9, max_depth=2, n_jobs=1)))
    assert len(found.cv_scores) + len(found.test_scores) == len(fleet.rows)
    counted = sum(found.metrics[f"{part}n_events"] for part in ("", "cv_"))
    assert counted == summarize(fleet.rows, missing=fleet.missing)["events"]
    assert counted == made.loc[made[col.LABEL] == 1, col.MODULE].nunique(), "one a module"
    assert 0 < found.metrics["cv_event_recall"] <= 1
    assert "cv_nuisance_alarms_per_site_day" in found.metrics
