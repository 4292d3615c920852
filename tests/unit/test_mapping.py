"""An export as it comes, read through a map, is the telemetry that it was made of."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from pandas.testing import assert_frame_equal

from hvs_lib import columns as col
from hvs_lib.telemetry.files import DataError
from hvs_lib.telemetry.fleet import load_fleet
from hvs_lib.telemetry.proposal import propose_map
from hvs_lib.telemetry.read import load_telemetry, read_racks
from hvs_lib.telemetry.summary import summarize

ONE = {"Rack_ID": {"constant": "R"}, "Module_ID": {"constant": "M"}}
START = pd.Timestamp("2025-06-01")


def table(**columns) -> pd.DataFrame:
    """Return an export of ten rows, 10 s apart."""
    times = pd.date_range(START, periods=10, freq="10s").strftime("%Y-%m-%dT%H:%M:%S")
    return pd.DataFrame({"when": times, "U": np.arange(50.0, 60.0), **columns})


@pytest.fixture
def read(tmp_path):
    """Return a function that writes an export and its map, and reads the telemetry."""

    def read(frame: pd.DataFrame, name="own.csv", loader=load_telemetry, **entries):
        path, columns = tmp_path / name, tmp_path / "map.yaml"
        if name.endswith(".parquet"):
            frame.to_parquet(path)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("inside.csv", frame.to_csv(index=False))
        else:
            frame.to_csv(path, index=False)
        entries = {"Timestamp": "when", "Module_Voltage_V": "U", **ONE} | entries
        entries = {key: value for key, value in entries.items() if value is not None}
        columns.write_text(yaml.safe_dump(entries))
        options = {} if loader is load_fleet else {"require_label": False}
        return loader(path, columns=columns, **options)

    return read


@pytest.fixture
def refused(read):
    """Return a function that reads what must be refused, and returns the problems."""

    def refused(*arguments, **entries) -> list[str]:
        with pytest.raises(DataError) as error:
            read(*arguments, **entries)
        return error.value.problems

    return refused


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "t.zip"])
def test_columns_get_our_names_in_every_format(read, name):
    telemetry = read(table(other=1), name)
    assert telemetry[col.VOLTAGE].tolist() == list(range(50, 60))
    assert telemetry[col.VOLTAGE].dtype == np.float32
    assert set(telemetry[col.RACK]) == {"R"} and set(telemetry[col.MODULE]) == {"M"}
    assert telemetry[col.TIMESTAMP][1] == START + pd.Timedelta("10s")
    assert telemetry.attrs["ignored_columns"] == ["other"]
    assert telemetry[col.SITE].unique().tolist() == ["Site1"]


def test_a_map_gives_the_telemetry_that_was_exported(read, make_telemetry):
    telemetry = make_telemetry(sites=2, racks=2)
    exported = telemetry.astype({col.VOLTAGE: "float64"}).rename(
        columns={col.TIMESTAMP: "t", col.VOLTAGE: "mV", col.RACK: "rack"}
    )
    exported["mV"] *= 1000
    exported["t"] = exported["t"].dt.strftime("%d.%m.%Y %H:%M:%S")
    found = read(
        exported,
        Timestamp={"column": "t", "format": "%d.%m.%Y %H:%M:%S"},
        Rack_ID="rack",
        Module_ID="Module_ID",
        Module_Voltage_V={"column": "mV", "factor": "1e-3"},
    )
    assert_frame_equal(found, telemetry.astype(found.dtypes), rtol=1e-6)
    assert found.attrs["findings"] == []


def test_own_names_need_no_entry(read):
    frame = table(Module_SoC_percent=70, Rack_ID="here")
    telemetry = read(frame, Rack_ID=None)
    assert telemetry[col.SOC].tolist() == [70.0] * 10
    assert set(telemetry[col.RACK]) == {"here"}


def test_a_gap_before_the_runaway_does_not_make_its_rows_normal(read):
    frame = pd.DataFrame({"s": [*range(0, 600, 10), *range(3000, 3600, 10)], "U": 50.0})
    clock = {"column": "s", "elapsed": "s", "start": str(START)}
    telemetry = read(frame, Timestamp=clock, runaway=3000)
    assert len(telemetry) == 60 and not telemetry[col.LABEL].any()


def test_factor_comes_before_offset_and_missing_before_both(read):
    frame = table(F=[212.0, 255, 32, 255, *[50.0] * 6])
    scale = {"column": "F", "factor": 5 / 9, "offset": -160 / 9, "missing": 255}
    telemetry = read(frame, Module_Avg_Surface_Temp_C=scale)
    assert telemetry[col.TEMP_AVG][:4].round(3).fillna(-1).tolist() == [100, -1, 0, -1]


def test_missing_may_be_words_and_for_all_columns(read):
    frame = table(A=["1.5", "---", "7", *"111", *"1111"], B=[7.0, *[2.0] * 9])
    named = {"Module_Current_A": "A", "Module_SoC_percent": "B"}
    telemetry = read(frame, missing=["---", 7], **named)
    assert telemetry[col.CURRENT].isna().tolist() == [False, True, True, *[False] * 7]
    assert telemetry[col.SOC].isna().tolist() == [True, *[False] * 9]


def test_the_sign_of_the_current_is_turned(read):
    telemetry = read(table(I=3.0), Module_Current_A={"column": "I", "factor": -1})
    assert set(telemetry[col.CURRENT]) == {-3.0}


def test_columns_of_probes_give_mean_maximum_and_sum(read):
    frame = table(T_1=20.0, T_2=[65.0, *[30.0] * 9], V_a=25.0, V_b=[np.nan, *[26.0] * 9])
    telemetry = read(
        frame,
        Module_Avg_Surface_Temp_C={"mean": "T_*", "missing": [65]},
        Module_Max_Surface_Temp_C={"max": ["T_1", "T_2"]},
        Module_Voltage_V={"sum": "V_*"},
    )
    assert telemetry[col.TEMP_AVG].tolist() == [20.0, *[25.0] * 9], "of the probes that are there"
    assert telemetry[col.TEMP_MAX].tolist() == [65.0, *[30.0] * 9]
    assert telemetry[col.VOLTAGE].isna().tolist() == [True, *[False] * 9], "or cells are left out"
    assert telemetry[col.VOLTAGE][1] == 51.0


def test_wide_columns_become_modules(read):
    frame = table(**{"M1 U": 50.0, "M2 U": np.arange(10) + 60.0, "M2 T": 30.0}, air=21.0)
    telemetry = read(
        frame,
        Module_ID=None,
        Module_Voltage_V={"each": "M* U"},
        Module_Avg_Surface_Temp_C={"each": "M* T"},
        Ambient_Temp_Rack_C="air",
    )
    assert telemetry[col.MODULE].tolist() == ["1"] * 10 + ["2"] * 10
    assert telemetry[col.VOLTAGE].tolist() == [50.0] * 10 + list(range(60, 70))
    assert telemetry[col.TEMP_AVG].fillna(-1).tolist() == [-1.0] * 10 + [30.0] * 10
    assert set(telemetry[col.AMBIENT]) == {21.0}, "what is the rack's is that of its modules"


def test_a_label_alone_may_be_true_and_false(read, refused):
    frame = table(bad=[False] * 8 + [True] * 2)
    assert "got 'False'" in refused(frame, Module_Current_A="bad")[0]
    telemetry = read(frame, Hazard_Label="bad")
    assert telemetry[col.LABEL].tolist() == [0] * 8 + [1] * 2
    assert "got '0true'" in refused(table(bad="0true"), Hazard_Label="bad")[0]


@pytest.mark.parametrize("at", [3000, "burns", START + pd.Timedelta(seconds=3000)])
def test_the_runaway_makes_the_label_and_ends_the_telemetry(read, at):
    seconds = np.arange(0, 3600, 10.0)
    frame = pd.DataFrame({"s": seconds, "U": 50.0, "burns": seconds >= 3000})
    clock = {"column": "s", "elapsed": "s", "start": str(START)}
    at = at if isinstance(at, int | str) else at.to_pydatetime()
    telemetry = read(frame, Timestamp=clock, runaway=at)
    past = (telemetry[col.TIMESTAMP] - START).dt.total_seconds()
    assert past.max() == 2970
    assert past[telemetry[col.LABEL] == 1].min() == 1800
    assert "in 62 rows (17.22%): later than 30 s" in summarize(telemetry)["warnings"][0]
    pnr = telemetry.groupby(col.LABEL)[col.PNR].unique()
    assert pnr[0].isna().all() and pnr[1] == [START + pd.Timedelta(seconds=3000)]


def test_the_label_window_is_the_maps(read):
    frame = pd.DataFrame({"s": np.arange(0, 3600, 10.0), "U": 50.0})
    clock = {"column": "s", "elapsed": "s", "start": str(START)}
    window = {"label_from_min": 40, "label_until_s": 125}
    telemetry = read(frame, Timestamp=clock, runaway=3000, **window)
    past = (telemetry[col.TIMESTAMP] - START).dt.total_seconds()
    labelled = telemetry[col.LABEL] == 1
    assert [past.max(), past[labelled].min()] == [2870, 600]
    assert set(telemetry.loc[labelled, col.PNR] - START) == {pd.Timedelta(seconds=3000)}
    assert "later than 125 s before the runaway" in summarize(telemetry)["warnings"][0]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_the_map_says_how_long_before_the_pnr_labels_end(read, make_telemetry, name):
    telemetry = make_telemetry().rename(columns={col.TIMESTAMP: "when"})
    maps = dict.fromkeys([col.VOLTAGE, *ONE])
    found = read(telemetry, name, **maps, label_until_s=10)
    labelled = found[found[col.LABEL] == 1]
    last = labelled.groupby(col.RACK, observed=True)[col.TIMESTAMP].transform("max")
    assert (labelled[col.PNR] - last).eq(pd.Timedelta(seconds=10)).all()
    assert found.loc[found[col.LABEL] == 0, col.PNR].isna().all()
    quiet = read(telemetry.assign(**{col.LABEL: 0, col.EVENT_ID: None}), **maps, label_until_s=10)
    assert quiet[col.PNR].isna().all() and quiet[col.PNR].dtype == "datetime64[us]"


def test_a_pnr_is_on_the_clock_of_the_map(read):
    frame = table(fire=[np.nan] * 5 + [100.0] * 5, s=range(0, 100, 10), y=[0] * 5 + [1] * 5)
    clock = {"column": "s", "elapsed": "s", "start": "2025-06-01", "zone": "Europe/Berlin"}
    found = read(frame, Timestamp=clock, PNR="fire", Hazard_Label="y")
    assert found[col.PNR].isna().tolist() == [True] * 5 + [False] * 5
    assert found[col.PNR].max() == found[col.TIMESTAMP].max() + pd.Timedelta(seconds=10)


def test_constants_and_quoted_fill_values_are_treated_as_readings_are(read):
    air = {"constant": 298.15, "offset": -273.15}
    found = read(table(T=[25.0] * 9 + [255.0]), Ambient_Temp_Rack_C=air,
                 Module_Max_Surface_Temp_C={"column": "T", "missing": ["255"]})  # fmt: skip
    assert found[col.AMBIENT].round(3).eq(25).all()
    assert found[col.TEMP_MAX].isna().tolist() == [False] * 9 + [True]


def test_a_runaway_beside_event_ids_leaves_no_event_without_a_label(read):
    frame = pd.DataFrame({"s": np.arange(0, 3600, 10.0), "U": 50.0, "E": [None] * 60 + ["E"] * 300})
    clock = {"column": "s", "elapsed": "s", "start": str(START)}
    found = read(frame, Timestamp=clock, runaway=3000, Event_ID="E")
    assert not [w for w in summarize(found)["warnings"] if "without a row of label 1" in w]


def test_the_voltage_of_a_pack_is_scaled_to_that_of_a_module(read):
    """14 cells in series, as the modules that the champion knows."""
    frame = table()
    found = read(frame, cells_in_series=96)[col.VOLTAGE]
    np.testing.assert_allclose(found, read(frame)[col.VOLTAGE] * 14 / 96, rtol=1e-6)


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "clock", "first"),
    [
        ([f"2025-01-{day:02d}T01:00:00" for day in range(1, 11)], {}, "2025-01-01T01:00"),
        (range(5, 15), {"elapsed": "s", "start": "2025-06-01T12:00:00"}, "2025-06-01T12:00:05"),
        (range(1, 11), {"elapsed": "h", "start": "2025-06-01", "zone": "Europe/Berlin"},
         "2025-05-31T23:00:00"),
        (range(1_700_000_000, 1_700_000_010), {"epoch": "s"}, "2023-11-14T22:13:20"),
        (range(1_700_000_000_500, 1_700_000_000_510), {"epoch": "ms"}, "2023-11-14T22:13:20.5"),
        ([f"01/02/25 {hour:02d}:00" for hour in range(10)], {"format": "%d/%m/%y %H:%M"},
         "2025-02-01"),
        ([f"2025-07-01 {hour:02d}:00" for hour in range(10)], {"zone": "Asia/Shanghai"},
         "2025-06-30T16:00"),
        ([f"2025-07-01T{hour:02d}:00+02:00" for hour in range(10)], {"zone": "Asia/Shanghai"},
         "2025-06-30T22:00"),
        ([f"01.07.25 {h:02d}:00 +0200" for h in range(10)], {"format": "%d.%m.%y %H:%M %z"},
         "2025-06-30T22:00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_times_are_read_as_the_map_says(read, times, clock, first, name):
    frame = table().assign(when=list(times))
    telemetry = read(frame, name, Timestamp={"column": "when", **clock})
    assert telemetry[col.TIMESTAMP][0] == pd.Timestamp(first)
    assert telemetry[col.TIMESTAMP].is_monotonic_increasing


def test_date_and_time_of_two_columns_are_joined(read):
    clock = [f"12:00:{second:02d}" for second in range(10)]
    frame = table(day="2025-06-01", clock=clock, **{"day clock": 21.0})
    columns = {"Timestamp": {"column": ["day", "clock"]}, "Ambient_Temp_Rack_C": "day clock"}
    telemetry = read(frame, **columns)
    assert telemetry[col.TIMESTAMP][9] == pd.Timestamp("2025-06-01T12:00:09")
    assert set(telemetry[col.AMBIENT]) == {21.0}, "a column that has the name of both"


def test_local_times_of_a_typed_column_get_their_zone(read):
    frame = table().assign(when=pd.date_range("2025-07-01", periods=10, freq="h"))
    telemetry = read(frame, "t.parquet", Timestamp={"column": "when", "zone": "Asia/Shanghai"})
    assert telemetry[col.TIMESTAMP][0] == pd.Timestamp("2025-06-30T16:00")


def test_an_hour_that_repeats_is_told_by_the_order_of_a_modules_rows(read):
    utc = pd.date_range("2025-10-25T23:30", periods=10, freq="20min")
    local = utc.tz_localize("UTC").tz_convert("Europe/Berlin").strftime("%Y-%m-%d %H:%M")
    frame = pd.concat([table(m=m).assign(when=local) for m in "ab"]).sort_index(kind="stable")
    clock = {"column": "when", "zone": "Europe/Berlin"}
    telemetry = read(frame, Timestamp=clock, Module_ID="m")
    assert telemetry[col.TIMESTAMP].tolist() == [*utc, *utc]


def test_a_time_that_the_zone_skips_is_refused(refused):
    frame = table().assign(when=[f"2025-03-30 02:{minute:02d}" for minute in range(10)])
    (problem,) = refused(frame, Timestamp={"column": "when", "zone": "Europe/Berlin"})
    assert "must exist in Europe/Berlin, got '2025-03-30 02:00:00' in 'when' at line 2" in problem


def test_sensors_with_a_clock_of_their_own_are_merged_backward_with_a_bounded_age(read):
    slow = ["2025-06-01T00:00:15", "2025-06-01T00:00:01", *[None] * 8]
    frame = table(slow=slow, T=[30.0, 20.0, *[np.nan] * 8])
    entry = {"column": "T", "time": "slow", "within": 45}
    telemetry = read(frame, Module_Avg_Surface_Temp_C=entry)
    expected = [np.nan, 20, *[30] * 5, *[np.nan] * 3]
    np.testing.assert_array_equal(telemetry[col.TEMP_AVG], expected)


def test_clocks_are_merged_within_a_module(read):
    frame = pd.concat([table(m=m, T=20.0 if m == "a" else 40.0) for m in "ab"])
    frame["slow"] = frame["when"]
    entry = {"column": "T", "time": "slow"}
    telemetry = read(frame, Module_ID="m", Module_Avg_Surface_Temp_C=entry)
    assert telemetry[col.TEMP_AVG].tolist() == [20.0] * 10 + [40.0] * 10


@pytest.mark.parametrize(("repeated", "value"), [("first", 58.0), ("last", 59.0), ("mean", 58.5)])
def test_one_of_repeated_times_is_kept(read, repeated, value):
    frame = table(bad=[*[0] * 9, 1])
    frame.loc[9, "when"] = frame["when"][8]
    telemetry = read(frame, repeated=repeated)
    assert telemetry[col.VOLTAGE].tolist() == [*range(50, 58), value]
    (warning,) = summarize(telemetry)["warnings"]
    assert warning.startswith("Timestamp in 1 rows (10.00%): repeated for the same module")
    label = read(frame, repeated=repeated, Hazard_Label="bad")[col.LABEL]
    assert label[8] == (repeated == "last"), "the label of the row that is kept"


def test_repeated_times_are_refused_with_the_cure(refused):
    frame = table()
    frame.loc[1, "when"] = frame["when"][0]
    (problem,) = refused(frame)
    assert "at line 3" in problem and "`repeated: first`" in problem


def test_rows_without_a_time_are_left_out_and_told(read):
    frame = table()
    frame.loc[2:3, "when"] = None
    telemetry = read(frame)
    assert telemetry[col.VOLTAGE].tolist() == [50, 51, *range(54, 60)]
    assert summarize(telemetry)["warnings"] == [
        "Timestamp in 2 rows (20.00%): without a value; left out"
    ]


def test_a_file_without_rows_or_without_times_is_refused(refused):
    assert "got only a header" in refused(table()[:0], "t.parquet")[0]
    (problem,) = refused(table().assign(when=None))
    assert problem == "Timestamp must be in 'when', got no time; name another."


# --- refusals ------------------------------------------------------------------------------------


def test_every_problem_of_a_map_is_told_at_once(refused):
    problems = refused(
        table(),
        Module_Voltag_V="U",
        Timestamp={"column": "when", "zon": "UTC", "zone": "Europe/Berlim", "elapsed": "s"},
        Module_Current_A={"column": "U", "factor": "two", "ofset": 1},
        Module_SoC_percent={"column": "U", "mean": "U"},
        Site_ID={"mean": "U"},
        repeated="never",
    )
    told = "\n".join(problems)
    for part in (
        "unknown entry 'Module_Voltag_V': did you mean 'Module_Voltage_V'?",
        "Timestamp has an unknown entry 'zon': did you mean 'zone'?",
        "zone of Timestamp must be a time zone such as Europe/Berlin, got 'Europe/Berlim'",
        "`start` beside `elapsed`, got none; add the time at 0",
        "factor of Module_Current_A must be a number other than 0, got 'two'",
        "unknown entry 'ofset': did you mean 'offset'?",
        "Module_SoC_percent must say one of column",
        "Site_ID must say one of column, constant, got {'mean': 'U'}",
        "repeated of The map must be one of first, last, mean, got 'never'",
    ):
        assert part in told
    assert len(problems) == 9


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"runaway": 100}, "runaway must be a time or a column, got a number"),
        (
            {"runaway": 9, "Timestamp": {"column": "U", "elapsed": "days", "start": "2025-06-01"}},
            "elapsed of Timestamp must be one of ms, s, min, h, got 'days'",
        ),
        ({"PNR": ["when", "U"]}, "PNR must be made of one column, got when, U; name one."),
        ({"runaway": "U", "Hazard_Label": "U"}, "must not be given with `runaway`"),
        ({"Timestamp": {"column": "when", "epoch": "s", "format": "%Y"}}, "got format, epoch"),
        ({"Timestamp": {"column": "when", "start": "2025-01-01"}}, "add its unit, `elapsed: s`"),
        *(
            ({"Timestamp": {"column": "U", "elapsed": "s", "start": start}}, "must be a time such")
            for start in (2025, None, "", "now", "12:00:00", "01.06.2025")
        ),
        ({"runaway": "U", "PNR": "when"}, "PNR must not be given with `runaway`"),
        ({"label_from_min": 5}, "label_from_min must be given with `runaway`"),
        ({"runaway": "U", "label_from_min": 2, "label_until_s": 120}, "got 120 s and 2 min"),
        ({"cells_in_series": 0}, "cells_in_series of The map must be a number, at least 1, got 0"),
        ({"label_until_s": -1}, "label_until_s of The map must be a number of seconds, 0 or more"),
        ({"PNR": {"column": "when", "factor": 2}}, "PNR has an unknown entry 'factor'"),
        ({"missing": None, "Timestamp": {"column": "when", "format": "%Q"}}, "format of Timestamp"),
        ({"Module_Current_A": {"column": "U", "factor": float("nan")}}, "a number other than 0"),
        ({"Rack_ID": {"constant": ["a", "b"]}}, "got {'constant': ['a', 'b']}; write `Rack_ID"),
        (
            {"Timestamp": {"column": ["when", "U"], "epoch": "s"}},
            "must be a number, got",
        ),
        ({"Timestamp": "w*"}, "Timestamp must name a column of the file, got 'w*'"),
        ({"Module_Current_A": "*"}, "Module_Current_A must be made of one column, got when, U"),
        ({"Module_Current_A": {"sum": ["U", "U"]}}, "must take a column once, got 'U' and 'U'"),
        ({"Module_Current_A": {"constant": "low"}}, "must be a number, got 'low'"),
    ],
)
def test_entries_that_contradict_are_refused(refused, entries, message):
    (problem,) = refused(table(), **entries)
    assert message in problem


def test_modules_of_the_same_name_are_refused(refused):
    frame = table(**{"A 1": 50.0, "B 1": 51.0})
    (problem,) = refused(frame, Module_ID=None, Module_Voltage_V={"each": ["A *", "B *"]})
    assert "must take a column once, got 'A 1' and 'B 1'" in problem


def test_an_entry_that_stands_twice_is_refused(tmp_path):
    table().to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "map.yaml").write_text("Timestamp: when\nRack_ID: a\nRack_ID: b\n")
    with pytest.raises(DataError, match="Rack_ID must appear once in the map"):
        load_telemetry(tmp_path / "own.csv", columns=tmp_path / "map.yaml")


@pytest.mark.parametrize("clock", [{"epoch": "s"}, {"elapsed": "s", "start": "2025-01-01"}])
@pytest.mark.parametrize("odd", [1e300, float("inf")])
def test_numbers_that_are_no_time_are_refused(refused, clock, odd):
    frame = table().assign(when=[*range(9), odd])
    (problem,) = refused(frame, "t.parquet", Timestamp={"column": "when", **clock})
    assert "must lie within 292 years" in problem and "at row 9" in problem


def test_an_asterisk_in_a_name_is_itself_where_there_is_such_a_column(read):
    telemetry = read(table(**{"I*": 1.0, "I*2": 2.0}), Module_Current_A="I*")
    assert set(telemetry[col.CURRENT]) == {1.0}


def test_columns_of_modules_may_be_listed(read):
    frame = table(**{"left U": 50.0, "right U": 51.0})
    listed = {"each": ["left U", "right U"]}
    telemetry = read(frame, Module_ID=None, Module_Voltage_V=listed)
    assert telemetry.groupby(col.MODULE, observed=True)[col.VOLTAGE].max().to_dict() == {
        "1": 50.0,
        "2": 51.0,
    }


@pytest.mark.parametrize("text", ["", "- a\n- b", "a: [", "\0"])
def test_what_is_no_map_is_refused(tmp_path, text):
    table().to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(DataError, match=r"The map .*map.yaml cannot be used: The map must"):
        load_telemetry(tmp_path / "own.csv", columns=tmp_path / "map.yaml")
    with pytest.raises(DataError, match=r"none\.yaml"):
        load_telemetry(tmp_path / "own.csv", columns=tmp_path / "none.yaml")


def test_every_column_that_the_file_lacks_is_told_with_the_nearest(refused, tmp_path):
    problems = refused(
        table(Temp_1=1.0),
        Timestamp="wen",
        Rack_ID=None,
        Module_Voltage_V={"each": "cell *"},
        Module_Avg_Surface_Temp_C={"column": "Temp_2", "time": "wheN"},
    )
    told = "\n".join(problems)
    assert "Module_Avg_Surface_Temp_C must name a column of the file, got 'Temp_2'" in told
    assert "did you mean 'Temp_1'?" in told
    assert told.count("did you mean 'when'?") == 2
    assert "Rack_ID must come from the file or the map, got neither; add `Rack_ID: COLUMN`" in told
    assert "got 'cell *'" in told
    assert "Module_ID must not be given beside `each`" in told
    assert len(problems) == 6


@pytest.mark.parametrize(("name", "place"), [("t.csv", "line 4"), ("t.parquet", "row 2 (the")])
def test_cells_that_do_not_parse_are_told_with_their_place(refused, name, place):
    frame = table().astype({"U": "str", "when": "str"})
    frame.loc[2, "U"], frame.loc[2, "when"] = "full", "noon"
    problems = refused(frame, name)
    time, value = sorted(problems, reverse=True)
    assert value.startswith(f"Module_Voltage_V must be a number, got 'full' in 'U' at {place}")
    assert time.startswith(f"Timestamp must be a time, got 'noon' in 'when' at {place}")


def test_rules_of_the_table_name_the_line_of_the_export(refused):
    frame = table(**{"M1 U": 50.0, "M2 U": [*[50.0] * 7, 5e6, 50.0, 50.0]})
    frame.loc[0, "when"] = None
    (problem,) = refused(frame, Module_ID=None, Module_Voltage_V={"each": "M* U"})
    assert "the first 5e+06 at line 9" in problem


def test_a_plain_number_as_a_time_is_refused_with_the_cure(refused):
    (problem,) = refused(table().assign(when=range(10)))
    assert "got '0' in 'when' at line 2, 10 rows in all" in problem
    assert "`elapsed: s` and `start`, or `epoch: s`" in problem


def test_times_with_and_without_zone_are_refused(refused):
    frame = table()
    frame.loc[3, "when"] += "Z"
    assert "time zone in all rows or in none" in "".join(refused(frame))


@pytest.mark.parametrize("names", [[], ["a.csv", "b.csv"], ["a.txt"]])
def test_a_zip_of_anything_but_one_csv_is_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(DataError, match=r"The zip must hold one file, a \.csv, got"):
        load_telemetry(tmp_path / "own.zip")


# --- where maps are taken ------------------------------------------------------------------------


def test_racks_are_read_as_the_whole_file_is(read):
    frame = pd.concat([table(rack=rack, bad=0) for rack in ("b", "a")])
    frame.loc[3, "when"] = None
    whole = read(frame, Rack_ID="rack", Hazard_Label="bad")
    ((share, telemetry),) = read(frame, loader=read_racks, Rack_ID="rack", Hazard_Label="bad")
    assert share == 1.0
    assert_frame_equal(telemetry, whole)
    assert telemetry.attrs == whole.attrs


def test_a_fleet_is_converted_again_when_its_map_changes(read, project):
    frame = pd.concat([table(rack=rack, bad=0) for rack in ("b", "a")])
    named = {"Rack_ID": "rack", "Hazard_Label": "bad", "loader": load_fleet}
    first, again = read(frame, **named), read(frame, **named)
    assert first.paths == again.paths and first.sha256 == again.sha256
    turned = read(frame, **named, Module_Voltage_V={"column": "U", "factor": 2})
    assert turned.sha256 != first.sha256
    assert turned.telemetry(0)[col.VOLTAGE].max() == 118.0
    assert first.telemetry(0)[col.VOLTAGE].max() == 59.0


def test_a_map_without_a_file_is_refused(project):
    with pytest.raises(DataError, match="map must come with a data_path"):
        load_fleet(columns="map.yaml")


def test_a_map_that_changes_while_its_fleet_is_used_is_told(read, project, tmp_path):
    fleet = read(table(bad=0), Hazard_Label="bad", loader=load_fleet)
    fleet.paths[0].unlink()
    (tmp_path / "map.yaml").write_text("{}")
    with pytest.raises(DataError, match="must not change while in use, but it did; start again"):
        fleet.telemetry(0)


# --- proposals -----------------------------------------------------------------------------------


@pytest.fixture
def proposed(tmp_path):
    """Return a function that writes an export and returns its proposal, which loads it."""

    def proposed(frame: pd.DataFrame, name="own.csv") -> dict:
        path, columns = tmp_path / name, tmp_path / "map.yaml"
        frame.to_parquet(path) if name.endswith(".parquet") else frame.to_csv(path, index=False)
        columns.write_text(propose_map(path), encoding="utf-8")
        load_telemetry(path, columns=columns, require_label=False)
        return yaml.safe_load(columns.read_text(encoding="utf-8"))

    return proposed


def test_a_current_of_zero_keeps_its_sign(proposed):
    found = proposed(table(current=np.zeros(10), soc=np.linspace(50, 49, 10)))
    assert found[col.CURRENT] == "current"


def test_the_documented_export_gives_the_documented_map(tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text(encoding="utf-8")
    code, written = (
        re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1] for kind in ("python", "yaml")
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert propose_map("export.csv") == written
    Path("map.yaml").write_text(written, encoding="utf-8")
    telemetry = load_telemetry("export.csv", columns="map.yaml", require_label=False)
    assert len(telemetry) == 239
    first = telemetry.iloc[0]
    assert first[col.TEMP_AVG] == 27 and first[col.TEMP_MAX] == 28
    assert first[col.VOLTAGE] == 51 and first[col.CURRENT] == -20 and first[col.SOC] == 90


def test_columns_of_modules_units_and_an_american_clock_are_guessed(proposed):
    times = pd.date_range(START, periods=30, freq="30s").strftime("%m/%d/%Y %H:%M:%S")
    frame = pd.DataFrame({"Date/Time": times, "Rack No": 7})
    for module in range(1, 5):
        frame[f"Mod {module} Voltage [mV]"] = 51_000.0 + module
        frame[f"Mod {module} Temp [F]"] = 80.0
    frame = frame.assign(**{"Room temp": 295.5, "CO (ppm)": 2.5, "H2 [Vol%]": 0.1})
    found = proposed(frame)
    assert found["Timestamp"]["format"] == "%m/%d/%Y %H:%M:%S"
    assert found["Rack_ID"] == "Rack No" and "Module_ID" not in found
    assert found[col.VOLTAGE] == {"each": "Mod * Voltage [mV]", "factor": 0.001}
    assert found[col.TEMP_AVG]["each"] == "Mod * Temp [F]"
    assert found[col.TEMP_AVG]["factor"] * 212 + found[col.TEMP_AVG]["offset"] == pytest.approx(100)
    assert found[col.AMBIENT] == {"column": "Room temp", "offset": -273.15}
    assert found[col.CO] == "CO (ppm)"
    assert found[col.H2] == {"column": "H2 [Vol%]", "factor": 10_000.0}


def test_cells_are_summed_where_the_pack_has_no_voltage(proposed):
    frame = table(**{f"V_{k}": [0.0, *[3.7] * 9] for k in range(1, 15)}, V_total="?")
    found = proposed(frame.drop(columns="U"))
    members = [f"V_{k}" for k in range(1, 15)]
    assert found[col.VOLTAGE] == {"sum": members, "missing": [0]}, "V_* would be V_total, too"
    found = proposed(table(**{f"V_{k}": 3.7 for k in range(1, 15)}))
    assert found[col.VOLTAGE] == "U"
    found = proposed(table(**{f"Reach {k} V": 3.7 for k in range(1, 15)}).drop(columns="U"))
    assert (found[col.VOLTAGE], found["cells_in_series"]) == ({"sum": "Reach * V"}, 14)


@pytest.mark.parametrize(
    ("times", "name", "clock"),
    [
        (range(10), "Time (min)", {"elapsed": "min", "start": "2025-01-01T00:00:00"}),
        (range(1_700_000_000, 1_700_000_010), "time", {"epoch": "s"}),
        ([f"2025-06-01T00:00:0{k}" for k in range(10)], "x", {"zone": "UTC"}),
    ],
)
def test_the_kind_of_the_time_is_guessed(proposed, times, name, clock):
    frame = table().assign(when=list(times)).rename(columns={"when": name})
    assert proposed(frame)["Timestamp"] == {"column": name, **clock}
    assert proposed(frame, "own.parquet")["Timestamp"] == {"column": name, **clock}


def test_a_flow_of_gas_is_left_to_the_user(proposed, tmp_path):
    found = proposed(table(**{"CO Flow (L/min)": 1.0, "THC Flow (L/min)": 1.0, "THC (ppm)": 2.0}))
    assert found[col.VOC] == "THC (ppm)" and col.CO not in found
    text = (tmp_path / "map.yaml").read_text()
    assert "CO Flow (L/min) is a flow" in text and "THC Flow" not in text


def test_a_flag_of_runaway_or_hazard_is_guessed(proposed):
    frame = table(**{"Thermal Runaway": [False] * 9 + [True]})
    assert proposed(frame)["runaway"] == "Thermal Runaway"
    assert proposed(table(hazard=[0] * 9 + [1]))[col.LABEL] == "hazard"


def test_a_file_with_our_names_needs_a_time_zone_alone(proposed, make_telemetry):
    found = proposed(make_telemetry())
    assert found == {"Timestamp": {"column": "Timestamp", "zone": "UTC"}}


def test_what_cannot_be_guessed_is_marked(tmp_path):
    pd.DataFrame({"a": ["x", "y"], "b": [1, 2]}).to_csv(tmp_path / "own.csv", index=False)
    text = propose_map(tmp_path / "own.csv")
    assert "# to fix: Timestamp must name a column" in text
    assert "# no column looks like a time: name it" in text
