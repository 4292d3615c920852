"""Reading, refusing, summarising and simulating telemetry."""

from __future__ import annotations

import gzip
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from hvs_lib import columns as col
from hvs_lib.features import SENSOR_KINDS, SENSOR_SETS
from hvs_lib.project import HvsError, project_root
from hvs_lib.simulator.rack import INSTRUMENTS
from hvs_lib.telemetry import files
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes
from hvs_lib.telemetry.files import MISSING, DataError, save_telemetry, sha256_of_file
from hvs_lib.telemetry.quality import FILL_VALUES
from hvs_lib.telemetry.read import DEFAULT_SITE, load_telemetry, read_racks
from hvs_lib.telemetry.rules import PLAUSIBLE
from hvs_lib.telemetry.summary import format_summary, summarize

FORMATS = ["csv", "csv.gz", "parquet"]
ORIGINAL = [col.TIMESTAMP, col.RACK, col.MODULE, *col.SENSORS, col.LABEL]
README = Path(__file__).parents[2] / "data" / "README.md"
SAMPLE = Path(__file__).parents[2] / "data" / "sample" / "rack_with_event.csv"


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    """A file to write, in each format."""
    return tmp_path / f"telemetry.{request.param}"


def write(frame: pd.DataFrame, path: Path) -> Path:
    """Write any table, sound or not, as a user's own script would."""
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def refused(path: Path, **options) -> list[str]:
    with pytest.raises(DataError, match=re.escape(f"{path} cannot be used")) as caught:
        load_telemetry(path, **options)
    return caught.value.problems


def only_problem(path: Path, **options) -> str:
    problems = refused(path, **options)
    assert len(problems) == 1, problems
    return problems[0]


def as_text(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    return frame.assign(**{column: frame[column].astype("str").astype(object)})


# --- what loads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("event_ids", [True, False])
def test_written_table_reads_back_unchanged(make_telemetry, path, event_ids):
    telemetry = make_telemetry(sites=2, look_alike_racks=(5,), event_ids=event_ids)
    assert_frame_equal(load_telemetry(write(telemetry, path)), telemetry)


def test_dtypes_and_column_order(make_telemetry, path):
    telemetry = make_telemetry()
    telemetry[col.PNR] = telemetry[col.TIMESTAMP].max() + pd.Timedelta(seconds=10)
    loaded = load_telemetry(write(telemetry.iloc[:, ::-1], path))
    assert list(loaded.columns) == col.TELEMETRY
    assert (loaded[[col.TIMESTAMP, col.PNR]].dtypes == "datetime64[us]").all()
    assert (loaded[col.SENSORS].dtypes == np.float32).all()
    assert loaded[col.LABEL].dtype == np.int8
    for name in [col.SITE, col.RACK, col.MODULE, col.EVENT_ID, col.EVENT_TYPE]:
        assert isinstance(loaded[name].dtype, pd.CategoricalDtype)
        assert loaded[name].cat.categories.dtype == "str"


def test_original_thirteen_columns_load(make_telemetry, path):
    original = make_telemetry(racks=8, modules=8, event_racks=(2,), event_ids=False)[ORIGINAL]
    loaded = load_telemetry(write(original, path))
    assert len(original.columns) == 13
    assert (loaded[col.SITE] == DEFAULT_SITE).all()
    assert summarize(loaded)["modules"] == 64
    assert summarize(loaded)["events"] == 1
    assert_frame_equal(loaded[ORIGINAL], original)


def test_empty_site_column_counts_as_one_site(make_telemetry, path):
    loaded = load_telemetry(write(make_telemetry().assign(**{col.SITE: None}), path))
    assert (loaded[col.SITE] == DEFAULT_SITE).all()


def test_rows_are_sorted(make_telemetry, path):
    telemetry = make_telemetry(sites=2)
    shuffled = telemetry.sample(frac=1.0, random_state=3)
    assert_frame_equal(load_telemetry(write(shuffled, path)), telemetry)


def test_module_ids_need_only_be_unique_within_a_rack(make_telemetry, path):
    telemetry = make_telemetry()
    telemetry[col.MODULE] = telemetry[col.MODULE].astype("str").str[-2:].astype("category")
    loaded = load_telemetry(write(telemetry, path))
    assert summarize(loaded)["modules"] == 12
    assert_frame_equal(loaded, telemetry)


def test_ids_stay_text_and_lose_surrounding_blanks(make_telemetry, tmp_path):
    telemetry = make_telemetry(racks=2, event_racks=())
    telemetry[col.RACK] = telemetry[col.RACK].astype("str").str.replace("RackA", "0")
    telemetry[col.RACK] += np.where(np.arange(len(telemetry)) % 2, " ", "")
    loaded = load_telemetry(write(telemetry, tmp_path / "t.csv"))
    assert list(loaded[col.RACK].cat.categories) == ["01", "02"]


def test_categories_without_rows_are_dropped(make_telemetry, path):
    telemetry = make_telemetry()
    unused = telemetry.assign(**{col.RACK: telemetry[col.RACK].cat.add_categories(["RackC9"])})
    save_telemetry(unused, path)
    assert_frame_equal(load_telemetry(path), telemetry)


@pytest.mark.parametrize("dtype", ["int64", "category"])
def test_whole_number_ids_of_parquet_become_text(make_telemetry, tmp_path, dtype):
    telemetry = make_telemetry(racks=2, event_racks=())
    telemetry[col.RACK] = telemetry[col.RACK].cat.codes.astype(dtype)
    loaded = load_telemetry(write(telemetry, tmp_path / "t.parquet"))
    assert list(loaded[col.RACK].cat.categories) == ["0", "1"]


@pytest.mark.parametrize(
    ("suffix", "hours"), [("", 0), ("Z", 0), ("+00:00", 0), ("+02:00", -2), ("-0530", 5.5)]
)
def test_times_become_utc(make_telemetry, path, suffix, hours):
    telemetry = make_telemetry()
    stamped = as_text(telemetry, col.TIMESTAMP)
    stamped[col.TIMESTAMP] = stamped[col.TIMESTAMP].str.replace(" ", "T") + suffix
    loaded = load_telemetry(write(stamped, path))
    assert_frame_equal(
        loaded,
        telemetry.assign(**{col.TIMESTAMP: telemetry[col.TIMESTAMP] + pd.Timedelta(hours=hours)}),
    )


def test_changing_offsets_of_one_zone_are_sound(make_telemetry, tmp_path):
    telemetry = make_telemetry(racks=1, modules=1, rows=3, event_racks=(), event_ids=False)
    hours = ["2025-10-26T02:30:00+02:00", "2025-10-26T02:10:00+01:00", "2025-10-26T02:30:00+01:00"]
    telemetry[col.TIMESTAMP] = hours
    loaded = load_telemetry(write(telemetry, tmp_path / "t.csv"))
    assert list(loaded[col.TIMESTAMP].dt.strftime("%H:%M")) == ["00:30", "01:10", "01:30"]


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parquet_times_of_any_unit_and_zone(make_telemetry, tmp_path, unit, zone):
    telemetry = make_telemetry()
    stored = telemetry.copy()
    stored[col.TIMESTAMP] = stored[col.TIMESTAMP].astype(f"datetime64[{unit}]")
    if zone:
        stored[col.TIMESTAMP] = stored[col.TIMESTAMP].dt.tz_localize("UTC").dt.tz_convert(zone)
    assert_frame_equal(load_telemetry(write(stored, tmp_path / "t.parquet")), telemetry)


def test_absent_sensor_becomes_nan_and_is_reported(make_telemetry, path):
    telemetry = make_telemetry().rename(columns={col.SOC: "Module_SOC_percent"})
    summary = summarize(load_telemetry(write(telemetry, path)))
    assert summary["sensors_absent"] == [col.SOC]
    assert summary["ignored_columns"] == ["Module_SOC_percent"]
    assert "did you mean 'Module_SOC_percent'" in format_summary(summary)


@pytest.mark.parametrize("word", ["", "NaN", "nan", "NA", "null", "None"])
def test_missing_readings_become_nan(make_telemetry, tmp_path, word):
    telemetry = as_text(make_telemetry(), col.VOLTAGE)
    telemetry.loc[[3, 8], col.VOLTAGE] = word
    loaded = load_telemetry(write(telemetry, tmp_path / "t.csv"))
    assert list(np.flatnonzero(loaded[col.VOLTAGE].isna())) == [3, 8]
    assert summarize(loaded)["missing"][col.VOLTAGE] == 2 / len(telemetry)


def test_missing_readings_are_alike_in_every_format(make_telemetry, path):
    telemetry = make_telemetry()
    telemetry.loc[5:20, col.CO] = np.nan
    assert_frame_equal(load_telemetry(write(telemetry, path)), telemetry)


def test_numbers_kept_as_text_in_parquet_load(make_telemetry, tmp_path):
    telemetry = make_telemetry()
    text = as_text(as_text(telemetry, col.VOLTAGE), col.LABEL)
    assert_frame_equal(load_telemetry(write(text, tmp_path / "t.parquet")), telemetry)


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_sensors_and_labels_of_other_number_types_load(make_telemetry, path, dtype):
    telemetry = make_telemetry()
    telemetry[col.SOC] = np.float32(60)
    stored = telemetry.astype({col.SOC: dtype, col.LABEL: dtype})
    assert_frame_equal(load_telemetry(write(stored, path)), telemetry)


@pytest.mark.parametrize("empty", [True, False])
def test_scoring_needs_no_label(make_telemetry, path, empty):
    telemetry = make_telemetry(label=False)
    stored = telemetry.assign(**{col.LABEL: np.nan}) if empty else telemetry
    assert_frame_equal(load_telemetry(write(stored, path), require_label=False), telemetry)


def test_a_label_that_is_there_is_kept_and_checked_for_scoring(make_telemetry, path):
    telemetry = make_telemetry()
    loaded = load_telemetry(write(telemetry, path), require_label=False)
    assert_frame_equal(loaded, telemetry)
    telemetry.loc[0, col.LABEL] = 7
    assert "must be 0 or 1, got 7" in only_problem(write(telemetry, path), require_label=False)


def test_byte_order_mark_windows_line_ends_and_blank_lines_load(make_telemetry, tmp_path):
    telemetry = make_telemetry()
    lines = telemetry.to_csv(index=False).splitlines()
    text = "\r\n".join([*lines[:50], "", *lines[50:], "", ""])
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8-sig"))
    assert_frame_equal(load_telemetry(tmp_path / "t.csv"), telemetry)


def test_path_may_be_text_and_suffix_in_capitals(make_telemetry, tmp_path):
    telemetry = make_telemetry()
    telemetry.to_csv(tmp_path / "T.CSV", index=False)
    assert_frame_equal(load_telemetry(str(tmp_path / "T.CSV")), telemetry)


def test_file_of_many_blocks_loads(make_telemetry, tmp_path, monkeypatch):
    """Later blocks of a file hold ids and times that the first has not."""
    monkeypatch.setattr(files, "_BLOCK", 2**14)
    telemetry = make_telemetry(sites=3, racks=8, modules=2, rows=40, event_racks=(20,))
    assert_frame_equal(load_telemetry(write(telemetry, tmp_path / "t.csv")), telemetry)
    telemetry.to_parquet(tmp_path / "t.parquet", row_group_size=100)
    assert_frame_equal(load_telemetry(tmp_path / "t.parquet"), telemetry)


# --- what is refused: the file -------------------------------------------------------------------


def test_no_such_file_names_the_nearest(tmp_path):
    (tmp_path / "telemetry.csv").touch()
    assert "did you mean 'telemetry.csv'?" in only_problem(tmp_path / "telemetri.csv")
    assert "check the path" in only_problem(tmp_path / "nowhere" / "x.parquet")


@pytest.mark.parametrize("name", ["t.txt", "t.xlsx", "t"])
def test_unknown_format_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    assert "must be one of .csv, .csv.gz, .parquet, .zip, got" in only_problem(tmp_path / name)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    assert "got an empty file" in only_problem(tmp_path / "t.csv")
    with gzip.open(tmp_path / "t.csv.gz", "wt") as file:
        file.write(text)
    assert "got an empty file" in only_problem(tmp_path / "t.csv.gz")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
def test_a_truncated_file_is_refused(make_telemetry, tmp_path, name):
    path = write(make_telemetry(), tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert re.search("must be readable as (Parquet|CSV), got: .*damaged", only_problem(path))


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
def test_plain_text_under_another_suffix_is_refused(make_telemetry, tmp_path, name):
    make_telemetry().to_csv(tmp_path / name, index=False, compression=None)
    assert "not of the format that its name says" in only_problem(tmp_path / name)


def test_a_damaged_parquet_page_is_refused(make_telemetry, tmp_path):
    path = write(make_telemetry(), tmp_path / "t.parquet")
    content = path.read_bytes()
    path.write_bytes(content[:500] + bytes(3000) + content[3500:])
    assert "must be readable as Parquet" in only_problem(path)


def test_a_parquet_file_with_damaged_text_is_refused(make_telemetry, tmp_path):
    table = arrow.Table.from_pandas(make_telemetry(), preserve_index=False)
    ids = arrow.array([b"Rack\xe4"] * len(table)).view(arrow.string())
    place = table.column_names.index(col.RACK)
    arrow.parquet.write_table(table.set_column(place, col.RACK, ids), tmp_path / "t.parquet")
    assert "must be readable as Parquet" in only_problem(tmp_path / "t.parquet")


def test_a_cut_off_csv_is_refused(make_telemetry, tmp_path):
    text = make_telemetry().to_csv(index=False)
    (tmp_path / "t.csv").write_text(text[: text.rindex("27.")])
    found = r"Every row must have the 16 columns of the header, 1 row not, the first at line 721"
    assert re.match(found, only_problem(tmp_path / "t.csv"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused(make_telemetry, tmp_path, encoding):
    text = make_telemetry().to_csv(index=False).replace("RackA2", "RäckA2")
    (tmp_path / "t.csv").write_text(text, encoding=encoding)
    problem = only_problem(tmp_path / "t.csv")
    where = {"latin-1": "got the byte 0xe4 at line 122", "utf-16": "got UTF-16"}[encoding]
    assert problem.startswith("The text must be UTF-8") and where in problem


def test_another_encoding_in_the_header_is_refused(make_telemetry, tmp_path):
    text = make_telemetry().rename(columns={col.EVENT_ID: "Temp °C"}).to_csv(index=False)
    (tmp_path / "t.csv").write_text(text, encoding="latin-1")
    assert "0xb0 at line 1;" in only_problem(tmp_path / "t.csv")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_refused(make_telemetry, tmp_path, separator):
    make_telemetry().to_csv(tmp_path / "t.csv", index=False, sep=separator, decimal=",")
    assert "must be separated by commas" in only_problem(tmp_path / "t.csv")


def test_old_line_ends_are_refused(make_telemetry, tmp_path):
    make_telemetry().to_csv(tmp_path / "t.csv", index=False, lineterminator="\r")
    assert "got CR alone" in only_problem(tmp_path / "t.csv")


# --- what is refused: the table ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "present"),
    [(col.RACK, "RackID"), (col.MODULE, "module_id"), (col.TIMESTAMP, " Timestamp")],
)
def test_missing_column_names_the_nearest(make_telemetry, path, column, present):
    write(make_telemetry().rename(columns={column: present}), path)
    expected = f"{column} must be a column of the file; did you mean {present!r}?"
    assert refused(path) == [expected]


def test_missing_column_without_a_near_one_lists_what_is_there(make_telemetry, path):
    write(make_telemetry()[[col.TIMESTAMP, col.MODULE, col.VOLTAGE, col.LABEL]], path)
    assert only_problem(path) == (
        f"{col.RACK} must be a column of the file; it has {col.TIMESTAMP}, {col.MODULE},"
        f" {col.VOLTAGE}, {col.LABEL}: add it."
    )


def test_missing_label_is_refused_unless_only_scored(make_telemetry, path):
    write(make_telemetry(label=False), path)
    assert "telemetry that is only scored needs no label" in only_problem(path)
    assert col.LABEL not in load_telemetry(path, require_label=False)


def test_a_table_of_something_else_is_refused(tmp_path, path):
    problems = refused(write(pd.DataFrame({"a": [1], "b": [2]}), path))
    required = [col.TIMESTAMP, col.RACK, col.MODULE, col.LABEL]
    assert [text.split(" ")[0] for text in problems] == [*required, "The"]
    assert problems[-1].startswith("The table must have at least one sensor column")


def test_a_column_twice_is_refused(make_telemetry, tmp_path):
    telemetry = make_telemetry()
    text = telemetry.to_csv(index=False).replace(col.CO, col.VOC, 1)
    (tmp_path / "t.csv").write_text(text)
    assert f"{col.VOC} must appear once, got 2" in only_problem(tmp_path / "t.csv")
    table = arrow.Table.from_pandas(telemetry)
    names = [col.VOC if name == col.CO else name for name in table.column_names]
    arrow.parquet.write_table(table.rename_columns(names), tmp_path / "t.parquet")
    assert f"{col.VOC} must appear once, got 2" in only_problem(tmp_path / "t.parquet")


def test_no_rows_is_refused(make_telemetry, path):
    assert "must have rows, got only a header" in only_problem(
        write(make_telemetry().iloc[:0], path)
    )


@pytest.mark.parametrize("empty", [True, False])
def test_no_sensor_is_refused(make_telemetry, path, empty):
    telemetry = make_telemetry()
    stored = telemetry.assign(**dict.fromkeys(col.SENSORS, np.nan))
    write(stored if empty else telemetry.drop(columns=col.SENSORS), path)
    assert "at least one sensor column" in only_problem(path)


@pytest.mark.parametrize("value", [2, -1, 0.5])
def test_label_other_than_0_or_1_is_refused(make_telemetry, path, value):
    telemetry = make_telemetry().astype({col.LABEL: float})
    telemetry.loc[[4, 6], col.LABEL] = value
    assert f"{col.LABEL} must be 0 or 1, got {value:g} at" in only_problem(write(telemetry, path))


@pytest.mark.parametrize("value", ["yes", "True"])
def test_label_as_text_is_refused(make_telemetry, path, value):
    telemetry = as_text(make_telemetry(), col.LABEL)
    telemetry.loc[4, col.LABEL] = value
    assert f"{col.LABEL} must be 0 or 1, got '{value}' at" in only_problem(write(telemetry, path))


def test_missing_label_in_some_rows_is_refused(make_telemetry, path):
    telemetry = make_telemetry().astype({col.LABEL: float})
    telemetry.loc[[4, 6], col.LABEL] = np.nan
    write(telemetry, path)
    assert "got nothing at" in only_problem(path)
    assert "2 rows in all" in only_problem(path, require_label=False)


@pytest.mark.parametrize("value", ["12,5", "ERR", "1.234.5"])
def test_text_in_a_sensor_column_is_refused(make_telemetry, path, value):
    telemetry = as_text(make_telemetry(), col.CURRENT)
    telemetry.loc[[7, 9, 11], col.CURRENT] = value
    where = "row 7 (the first is 0)" if path.suffix == ".parquet" else "line 9"
    assert only_problem(write(telemetry, path)).startswith(
        f"{col.CURRENT} must be a number, got '{value}' at {where}, 3 rows in all; write decimals"
    )


def test_truth_values_and_lists_in_a_sensor_column_are_refused(make_telemetry, tmp_path):
    telemetry = make_telemetry()
    path = write(telemetry.assign(**{col.SOC: True}), tmp_path / "t.parquet")
    assert f"{col.SOC} must be a number, got 'true'" in only_problem(path)
    write(telemetry.assign(**{col.SOC: [[1.0]] * len(telemetry)}), path)
    assert f"{col.SOC} must be a number, got '[1.0]'" in only_problem(path)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_readings_are_refused(make_telemetry, path, value):
    telemetry = make_telemetry()
    telemetry.loc[[1, 2], col.H2] = value
    problem = only_problem(write(telemetry, path))
    assert f"{col.H2} must be finite, got {value:g} at" in problem
    assert "2 rows in all" in problem


@pytest.mark.parametrize("name", col.SENSORS)
def test_readings_no_sensor_can_give_are_refused(make_telemetry, tmp_path, name):
    low, high, unit = PLAUSIBLE[name]
    telemetry = make_telemetry().astype({name: "float64"})
    telemetry.loc[[1, 2], name] = [low, high]
    path = write(telemetry, tmp_path / "t.csv")
    load_telemetry(path)
    telemetry.loc[[5, 9, 12], name] = [high * 1.5, low * 2, high * 2]
    expected = (
        f"{name} must lie between {low:g} and {high:g} {unit}, got {low * 2:g} to {high * 2:g} in"
        f" 3 rows, the first {high * 1.5:g} at line 7; check"
    )
    assert only_problem(write(telemetry, path)).startswith(expected)


@pytest.mark.parametrize("column", [col.SITE, col.RACK, col.MODULE])
def test_missing_ids_are_refused(make_telemetry, path, column):
    telemetry = as_text(make_telemetry(), column)
    telemetry.loc[[30, 31], column] = None
    where = "row 30 (the first is 0)" if path.suffix == ".parquet" else "line 32"
    expected = f"{column} must not be missing, got nothing at {where}, 2 rows in all; fill it in"
    assert only_problem(write(telemetry, path)).startswith(expected)


@pytest.mark.parametrize(
    "value", ["01/06/2025 00:00", "2025-02-30T00:00:00", "soon", "now", "2025", "1748736000"]
)
def test_unparsable_times_are_refused(make_telemetry, path, value):
    telemetry = as_text(make_telemetry(), col.TIMESTAMP)
    telemetry.loc[3, col.TIMESTAMP] = value
    problem = only_problem(write(telemetry, path))
    assert "must be an ISO 8601 time such as" in problem and f"got {value!r} at" in problem


def test_times_as_whole_numbers_are_refused(make_telemetry, path):
    telemetry = make_telemetry().astype({col.TIMESTAMP: "int64"})
    assert "must be an ISO 8601 time such as" in only_problem(write(telemetry, path))


def test_missing_times_are_refused(make_telemetry, path):
    telemetry = make_telemetry()
    telemetry.loc[3, col.TIMESTAMP] = pd.NaT
    assert "Timestamp must not be missing" in only_problem(write(telemetry, path))


@pytest.mark.parametrize("zoned", [[3], slice(3, None)])
def test_zones_in_some_rows_only_are_refused(make_telemetry, path, zoned):
    telemetry = as_text(make_telemetry(), col.TIMESTAMP)
    telemetry.loc[zoned, col.TIMESTAMP] += "+02:00"
    problem = only_problem(write(telemetry, path))
    rarer = "1 row in all" if zoned == [3] else "3 rows in all"
    assert "must have a time zone in all rows or in none" in problem and rarer in problem


@pytest.mark.parametrize("shuffled", [True, False])
def test_duplicate_times_within_a_module_are_refused(make_telemetry, path, shuffled):
    telemetry = make_telemetry()
    telemetry.loc[[41, 43], col.TIMESTAMP] = telemetry.loc[[40, 42], col.TIMESTAMP].to_numpy()
    if shuffled:
        telemetry = telemetry.sample(frac=1.0, random_state=0)
    problem = only_problem(write(telemetry, path))
    assert "Timestamp must be unique within a module, got 2025-06-01 00:0" in problem
    assert "again for module RackA1_Module01 of rack RackA1 at" in problem
    assert "2 rows in all" in problem


def test_every_problem_is_told_at_once(make_telemetry, path):
    telemetry = make_telemetry().rename(columns={col.MODULE: "Modul_ID"})
    for name in [col.VOLTAGE, col.LABEL, col.TIMESTAMP]:
        telemetry = as_text(telemetry, name)
    telemetry.loc[3, col.VOLTAGE] = "12,5"
    telemetry.loc[4, col.LABEL] = "2"
    telemetry.loc[5, col.TIMESTAMP] = "today"
    telemetry.loc[6, col.SOC] = np.inf
    telemetry.loc[7:9, col.TEMP_AVG] = -8888.0
    write(telemetry, path)
    with pytest.raises(DataError) as caught:
        load_telemetry(path)
    error = caught.value
    first_words = {text.split(" ")[0] for text in error.problems}
    columns = {col.MODULE, col.VOLTAGE, col.LABEL, col.TIMESTAMP, col.SOC, col.TEMP_AVG}
    assert first_words == columns and len(error.problems) == 6
    assert str(error).startswith(f"{path} cannot be used, 6 problems:\n  1. ")
    assert all(text in str(error) for text in error.problems)


def test_unparsable_times_do_not_hide_duplicates(make_telemetry, path):
    telemetry = as_text(make_telemetry(), col.TIMESTAMP)
    telemetry.loc[3, col.TIMESTAMP] = "soon"
    telemetry.loc[41, col.TIMESTAMP] = telemetry.loc[40, col.TIMESTAMP]
    assert len(refused(write(telemetry, path))) == 2


def test_line_numbers_count_blank_and_uneven_lines(make_telemetry, tmp_path):
    lines = make_telemetry().to_csv(index=False).splitlines()
    lines[5] += ",1"  # line 6 of the file, 7 with the blank line below
    lines[9] = lines[9].replace("RackA1_Module01", "")
    lines.insert(3, "")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    problems = refused(tmp_path / "t.csv")
    assert "the first at line 7;" in problems[0]
    assert f"{col.MODULE} must not be missing, got nothing at line 11," in problems[1]


def test_data_error_survives_a_worker_process():
    error = DataError("x cannot be used", ["one", "two"])
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.problems == ["one", "two"]
    assert isinstance(error, HvsError) and isinstance(error, ValueError)


# --- round trip ----------------------------------------------------------------------------------

readings = st.floats(width=32, min_value=-16, max_value=128) | st.just(float("nan"))
words = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1).filter(
    lambda word: word.strip() and word not in MISSING
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(readings, min_size=6, max_size=6),
    site=words,
    suffix=st.sampled_from(FORMATS),
)
def test_round_trip(make_telemetry, tmp_path_factory, values, site, suffix):
    telemetry = make_telemetry(racks=2, modules=1, rows=3, event_racks=(1,), event_rows=1)
    telemetry[col.SITE] = pd.Categorical([site] * 6)
    telemetry[col.VOC] = np.array(values, dtype=np.float32)
    before = telemetry.copy(deep=True)
    path = tmp_path_factory.mktemp("round") / f"t.{suffix}"
    save_telemetry(telemetry, path)
    assert_frame_equal(load_telemetry(path, keep_fill_values=True), telemetry)
    assert_frame_equal(telemetry, before)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("t.txt", "must end in .csv or .csv.gz or .parquet"),
        ("there.csv", "must be new, but it exists"),
        ("no/t.csv", "folder must exist"),
    ],
)
def test_save_refuses(make_telemetry, tmp_path, name, found):
    (tmp_path / "there.csv").write_text("keep me")
    with pytest.raises(DataError, match=found):
        save_telemetry(make_telemetry(), tmp_path / name)
    assert (tmp_path / "there.csv").read_text() == "keep me"


# --- events and summary --------------------------------------------------------------------------


@pytest.mark.parametrize("event_ids", [True, False])
def test_event_codes(make_telemetry, event_ids):
    telemetry = make_telemetry(event_racks=(1, 4), look_alike_racks=(2,), event_ids=event_ids)
    codes = event_codes(telemetry)
    assert codes.dtype == np.int32
    assert ((codes >= 0) == (telemetry[col.LABEL] == 1)).all()
    assert list(np.unique(codes[codes >= 0], return_counts=True)[1]) == [12, 12]
    assert codes[codes >= 0][0] == 0


def test_event_ids_join_what_stretches_part(make_telemetry):
    with_ids = make_telemetry(racks=2, event_racks=(0,))
    with_ids.loc[55, col.LABEL] = 0  # a gap inside the event
    assert event_codes(with_ids).max() == 0
    assert event_codes(with_ids.drop(columns=col.EVENT_ID)).max() == 1
    without = with_ids.copy()
    without[col.EVENT_ID] = without[col.EVENT_ID].cat.remove_categories(["E000"])
    assert event_codes(without).max() == 1


def test_one_event_id_in_two_modules_is_two_events(make_telemetry):
    telemetry = make_telemetry(racks=2, event_racks=(0, 1))
    telemetry[col.EVENT_ID] = telemetry[col.EVENT_ID].cat.rename_categories(["a", "b"])
    telemetry[col.EVENT_ID] = telemetry[col.EVENT_ID].astype("str").replace("b", "a")
    assert event_codes(telemetry).max() == 1


def test_adjacent_modules_with_labels_are_two_events(make_telemetry):
    telemetry = make_telemetry(racks=1, modules=2, event_racks=(), event_ids=False)
    telemetry[col.LABEL] = 1
    assert list(np.unique(event_codes(telemetry), return_counts=True)[1]) == [60, 60]


def test_no_event_gives_minus_one(make_telemetry):
    assert (event_codes(make_telemetry(event_racks=())) == -1).all()


def test_module_and_rack_codes_keep_sites_apart(make_telemetry):
    telemetry = make_telemetry(sites=2, racks=3, modules=2, rows=5)
    assert list(rack_codes(telemetry)) == list(np.arange(60) // 10)
    assert list(module_codes(telemetry)) == list(np.arange(60) // 5)


@pytest.mark.parametrize("missing", [None, "Site_ID", "Module_ID"])
def test_codes_are_the_same_in_any_order_of_the_rows(make_telemetry, missing):
    telemetry = make_telemetry(sites=2, racks=3, modules=2, rows=5)
    if missing:
        telemetry.loc[:6, missing] = None
    codes, order = module_codes(telemetry), np.random.default_rng(0).permutation(60)
    assert list(codes[order]) == list(module_codes(telemetry.iloc[order]))
    assert codes.min() == (-1 if missing else 0)


def test_equal_codes_in_order_are_not_sorted(make_telemetry, monkeypatch):
    monkeypatch.delattr(pd, "factorize")  # it takes most of the time of millions of rows
    assert len(set(module_codes(make_telemetry(sites=2, racks=3)))) > 1


def test_summary(make_telemetry):
    telemetry = make_telemetry(sites=2, rows=60, event_racks=(0, 7), look_alike_racks=(3, 4, 5))
    telemetry.loc[:143, col.CO] = np.nan
    before = telemetry.copy(deep=True)
    summary = summarize(telemetry)
    assert_frame_equal(telemetry, before)
    assert summary["sites"] == 2 and summary["racks"] == 12 and summary["modules"] == 24
    assert summary["rows"] == 1440 and summary["interval_s"] == 10
    assert summary["hours"] == pytest.approx(1 / 6)
    assert summary["events"] == 2 and summary["event_racks"] == 2
    assert summary["labelled_rows"] == 24
    assert summary["prevalence"] == pytest.approx(24 / 1440)
    assert summary["look_alikes"] == 3
    assert summary["event_types"] == {"hot_day": 3, "short": 2}
    assert summary["missing"][col.CO] == pytest.approx(0.1)


def test_summary_without_label_or_event_ids(make_telemetry):
    summary = summarize(make_telemetry(label=False, event_ids=False))
    assert not {"events", "prevalence", "look_alikes", "event_types"} & set(summary)
    assert "unknown, the file has no label" in format_summary(summary)


def test_summary_as_text(make_telemetry):
    text = format_summary(summarize(make_telemetry(look_alike_racks=(5,))))
    assert text.splitlines() == [
        "rows             720",
        "sites            1",
        "racks            6",
        "modules          12",
        "time             2025-06-01T00:00:00 to 2025-06-01T00:09:50 UTC, 0.17 h",
        "interval         10 s",
        "events           4 in 4 racks",
        "prevalence       6.667% (48 rows with label 1)",
        "look-alikes      1 (event ids without a labelled row)",
        "event types      hot_day 1, short 4",
    ]


# --- files of the project ------------------------------------------------------------------------


def test_sha256_of_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert sha256_of_file(tmp_path / "abc") == known


def test_project_root(project, monkeypatch):
    assert project_root() == project
    monkeypatch.delenv("HVS_PROJECT_ROOT")
    assert (project_root() / "hvs_lib" / "columns.py").is_file()


def test_sample_has_one_rack_and_one_event():
    assert SAMPLE.stat().st_size < 1_000_000
    summary = summarize(load_telemetry(SAMPLE))
    assert summary["racks"] == 1 and summary["modules"] == 8 and summary["interval_s"] == 10
    assert summary["events"] == 1


def test_the_sample_is_what_the_code_beside_it_makes(project):
    code = README.read_text(encoding="utf-8").split("```python")[1].split("```")[0]
    again = project / "sample.csv"
    assert "data/sample/rack_with_event.csv" in code
    exec(code.replace("data/sample/rack_with_event.csv", again.as_posix()), {})
    assert again.read_bytes() == SAMPLE.read_bytes()


def test_data_dictionary_states_the_columns_and_limits_of_the_code():
    text = README.read_text(encoding="utf-8").split("## Columns")[1]
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    stated = {row[1].strip("`"): (row[3], row[4]) for row in rows if row[1:2] and "`" in row[1]}
    assert list(stated) == col.TELEMETRY
    for name, (low, high, unit) in PLAUSIBLE.items():
        assert stated[name] == (unit, f"{low:.0f} to {high:.0f}")
    assert list(PLAUSIBLE) == col.SENSORS


def test_every_sensor_is_in_every_table_of_sensors():
    """A sensor that one of them lacks would pass unchecked, or count as present where it is not."""
    assert {*FILL_VALUES} == {*PLAUSIBLE} == {*INSTRUMENTS} == {*col.SENSORS}
    kinds = {part for parts in SENSOR_KINDS.values() for part in parts}
    assert {*col.SENSORS} - kinds == {col.TEMP_AVG, col.TEMP_MAX}
    for lacking in SENSOR_SETS.values():
        assert {*lacking} <= {*SENSOR_KINDS}


def test_a_block_without_a_row_is_passed_over(make_telemetry, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 2**14)
    path = tmp_path / "telemetry.csv"
    make_telemetry().to_csv(path, index=False)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:300], "\n" * 2**16, *lines[300:]]))
    racks = pd.concat([rack for _, rack in read_racks(path)], ignore_index=True)
    pd.testing.assert_frame_equal(racks[col.SENSORS], load_telemetry(path)[col.SENSORS])
