"""Telemetry that means something else than it says, and telemetry that goes on while it burns."""

import numpy as np
import pandas as pd
import pytest

from hvs_lib import columns as col
from hvs_lib.simulator.fleet import simulate_fleet
from hvs_lib.telemetry.files import DataError
from hvs_lib.telemetry.summary import summarize

HOUR = 400  # rows of 10 s


@pytest.fixture
def load(reread):
    """Return a function that gives loaded telemetry and its warnings, whole and in racks alike."""

    def load(telemetry, **options):
        whole, racks = reread(telemetry, **options), reread(telemetry, racks=True, **options)
        ids = {name: "str" for name in whole if whole[name].dtype == "category"}
        pd.testing.assert_frame_equal(whole.astype(ids), racks.astype(ids))
        told = summarize(whole)["warnings"]
        assert told == summarize(racks)["warnings"]
        return whole, told

    return load


@pytest.fixture(scope="module")
def simulated():
    return simulate_fleet(1, 3.0, 42)[0]


def changed(telemetry, rows, **readings):
    """Return the telemetry with other readings in some rows, columns named as in `columns`."""
    telemetry = telemetry.copy()
    for name, values in readings.items():
        telemetry.loc[rows, getattr(col, name)] = np.asarray(values, dtype=np.float32)
    return telemetry


@pytest.mark.slow
def test_simulated_telemetry_raises_no_doubt(simulated, load):
    found, told = load(simulated)
    assert len(found) == len(simulated) and told == []


@pytest.mark.slow
def test_simulated_current_of_the_other_sign_is_told(simulated, load):
    _, (warning,) = load(simulated.assign(**{col.CURRENT: -simulated[col.CURRENT]}))
    assert warning == (
        f"{col.CURRENT} in {len(simulated):,} rows (100.00%): positive while the state of charge"
        " falls; flip its sign: charging is positive"
    )


@pytest.mark.parametrize("offset", ["bus", "Fahrenheit"])
@pytest.mark.slow
def test_simulated_temperatures_that_never_cool_are_told(simulated, load, offset):
    hottest = simulated.groupby(col.RACK, observed=True)[col.TEMP_MAX].transform("max")
    for names in ([col.TEMP_MAX], [col.TEMP_AVG, col.TEMP_MAX, col.AMBIENT]):
        telemetry = simulated[hottest < 60].reset_index(drop=True)
        warm = telemetry[names] * 1.8 + 32 if offset == "Fahrenheit" else telemetry[names] + 40
        telemetry[names] = warm.astype(np.float32)
        told = load(telemetry)[1]
        assert sorted(names) == [warning.split()[0] for warning in told]
        assert all("(99.9" in warning and "above 45 degC, or 20" in warning for warning in told)


@pytest.mark.parametrize(
    ("rows", "readings", "told"),
    [
        (slice(0, HOUR - 1), {"TEMP_MAX": 50.0}, True),  # one module of twelve
        (slice(0, HOUR - 1), {"AMBIENT": 5.0}, True),  # 20 K above it
        (slice(0, HOUR - 1), {"AMBIENT": 10.0}, False),
        (slice(HOUR // 10, HOUR - 1), {"TEMP_MAX": 50.0}, False),  # cool at first
        (slice(0, HOUR * 2 - 1), {"TEMP_MAX": np.nan, "AMBIENT": np.nan}, False),
    ],
)
def test_a_module_that_never_cools_is_told(make_telemetry, load, rows, readings, told):
    telemetry = make_telemetry(rows=HOUR, event_racks=(), label=False)
    wave = np.sin(np.arange(len(telemetry.loc[rows])))
    telemetry = changed(telemetry, rows, **{name: x + wave for name, x in readings.items()})
    assert [f"in {HOUR} rows (8.33%): above 45" in text for text in load(telemetry)[1]] == (
        [True] * told * (2 if "AMBIENT" in readings else 1)
    )
    assert load(telemetry[telemetry.index % HOUR < 300].reset_index(drop=True))[1] == []


@pytest.mark.parametrize(("volts", "what"), [(3.7, "as of a cell"), (700.0, "as of a pack")])
def test_the_voltage_of_a_cell_or_pack_is_told(make_telemetry, load, volts, what):
    telemetry = make_telemetry()
    other = volts + np.arange(60) * 0.003
    _, (warning,) = load(changed(telemetry, slice(0, 59), VOLTAGE=other))
    assert warning.startswith(f"{col.VOLTAGE} in 60 rows (8.33%): ") and what in warning
    assert load(changed(telemetry, slice(0, 9), VOLTAGE=other[:10]))[1] == []


def test_whole_degrees_are_told(make_telemetry, load):
    telemetry, rows = make_telemetry(), slice(0, 59)
    steps = np.round(np.linspace(24.0, 27.0, 60))
    _, (warning,) = load(changed(telemetry, rows, TEMP_MAX=steps))
    assert warning.startswith(f"{col.TEMP_MAX} in 60 rows (8.33%): in whole degrees")
    for others in (steps + 0.5 * (steps == 25), np.full(60, 25.0)):  # half degrees; a stuck sensor
        assert load(changed(telemetry, rows, TEMP_MAX=others))[1] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("TEMP_MAX", 85.0), ("AMBIENT", -40.0), ("VOC", 511.0), ("CO", 255.0), ("VOLTAGE", 5.0)],
)
def test_a_reading_far_from_all_others_that_repeats_is_told(make_telemetry, load, name, value):
    telemetry = make_telemetry()
    rows = telemetry.index[3:123:12]
    found, (warning,) = load(changed(telemetry, rows, **{name: value}))
    assert warning.startswith(f"{getattr(col, name)} in 10 rows (1.39%): {value:g} again and again")
    assert (found.loc[rows, getattr(col, name)] == value).all()
    assert load(changed(telemetry, rows, **{name: value}), keep_fill_values=True)[1] == []
    differing = value + np.arange(10)
    assert load(changed(telemetry, rows, **{name: differing}))[1] == []


@pytest.mark.parametrize(
    ("name", "readings"),
    [
        ("VOC", [15, 300, 600, 900, *[2000] * 20]),  # at the end of its range
        ("TEMP_MAX", [30] * 20),  # warmer than the others
        ("CURRENT", [50] * 20),  # constant
        ("SOC", [100] * 20),  # full
    ],
)
def test_a_reading_that_repeats_may_be_one(make_telemetry, load, name, readings):
    telemetry = make_telemetry()
    assert load(changed(telemetry, slice(0, len(readings) - 1), **{name: readings}))[1] == []


# ---- labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("event_ids", [True, False])
def test_labels_from_the_first_row_are_told(make_telemetry, load, event_ids):
    telemetry = make_telemetry(event_racks=(0, 2), event_ids=event_ids)
    of_first = telemetry[telemetry.index >= 45].reset_index(drop=True)
    told = load(of_first)[1]
    assert not any("first row" in warning for warning in told)
    of_first = telemetry[telemetry.index >= 50].reset_index(drop=True)
    (warning,) = [warning for warning in load(of_first)[1] if "first row" in warning]
    assert warning == (
        "Hazard_Label in 10 rows (1.49%): 1 from a module's first row on, so that lead times are"
        f" cut; add the rows before (1: {'E000' if event_ids else 'RackA1_Module01'})"
    )


@pytest.mark.slow
def test_two_events_of_one_id_are_told(make_telemetry, load):
    telemetry = make_telemetry(rows=HOUR, event_racks=(0, 1, 2), look_alike_racks=(2,))
    telemetry[col.EVENT_ID] = telemetry[col.EVENT_ID].astype(object)
    assert load(telemetry)[1] == []
    in_two_racks = telemetry.assign(**{col.EVENT_ID: telemetry[col.EVENT_ID].replace("E001", "E0")})
    assert load(in_two_racks)[1] == []  # ids may be those of a rack
    end = HOUR * 5
    telemetry.loc[end + HOUR - 12 : end + HOUR - 1, [col.LABEL, col.EVENT_ID]] = [1, "E002"]
    telemetry.loc[100:119, [col.LABEL, col.EVENT_ID]] = [1, "E000"]
    _, (warning,) = load(telemetry)
    assert warning == (
        "Event_ID in 56 rows (1.17%): labelled in two modules, or twice in one; give each event an"
        " id of its own (2: E000, E002)"
    )


def test_a_label_with_a_hole_is_one_event(make_telemetry, load):
    telemetry = make_telemetry(rows=HOUR, event_racks=(0,))
    telemetry.loc[HOUR - 8 : HOUR - 5, col.LABEL] = 0
    found, told = load(telemetry)
    assert told == [] and len(found) == len(telemetry)


# ---- telemetry that goes on while it burns -----------------------------------------------------

FIRE = np.array([60, 100, 140, 200, 500, 700, 650, 500, 300, 200, 140, 90, *[35] * 8])


def burnt(make_telemetry, **options):
    """Two racks of two modules and 60 rows; the first module burns from row 43 of them on."""
    options = {"racks": 2, "event_racks": ()} | options
    return changed(make_telemetry(**options), slice(40, 59), TEMP_MAX=FIRE, VOLTAGE=[0.0] * 20)


@pytest.mark.parametrize("label", [True, False])
def test_rows_of_a_module_that_burns_are_left_out(make_telemetry, load, label):
    telemetry = burnt(make_telemetry, label=label, event_ids=False)
    found, told = load(telemetry)
    assert len(found) == 240 - 17 and found[col.TEMP_MAX].max() == 140
    assert (found.groupby(col.MODULE, observed=True).size() == [43, 60, 60, 60]).all()
    assert told[0] == (
        f"{col.TEMP_MAX} in 17 rows (7.08%): from 150 degC on a module counts as burning, and its"
        " rows are left out; if none burnt, leave such readings empty (1: RackA1_Module01)"
    )


def test_rows_after_the_last_label_are_left_out(make_telemetry, load):
    telemetry = make_telemetry(event_racks=(0, 1))
    for later in (slice(55, 59), slice(120, 179)):
        telemetry.loc[later, col.LABEL] = 0
    telemetry.loc[20:22, col.LABEL] = 1  # an event before: the module has lived on
    found, told = load(telemetry.drop(columns=[col.EVENT_ID, col.EVENT_TYPE]))
    assert len(found) == 720 - 5 and list(found.index[found[col.LABEL] == 1]) == [
        *range(20, 23),
        *range(48, 55),
    ]
    assert told[0] == (
        "Hazard_Label in 5 rows (0.69%): rows after the last label of a module, which then"
        " burns, are left out; label only events that end in fire (1: RackA1_Module01)"
    )


def test_labels_on_rows_that_burn_are_told(make_telemetry, load):
    telemetry = burnt(make_telemetry, event_ids=False)
    telemetry.loc[41:45, col.LABEL] = 1
    found, told = load(telemetry)
    assert found[col.LABEL].sum() == 2
    told_first = "Hazard_Label in 3 rows (1.25%): 1 while the module already burns"
    assert told[0].startswith(told_first)
    assert told[1].startswith(f"{col.TEMP_MAX} in 17 rows (7.08%)")


def test_a_module_that_is_replaced_is_kept(make_telemetry, load):
    telemetry = burnt(make_telemetry, label=False, event_ids=False)
    for pause_h, rows in ((20, 17), (25, 7)):  # sound again from row 50 on
        later = telemetry.copy()
        later.loc[50:59, col.TIMESTAMP] += pd.Timedelta(hours=pause_h)
        assert len(load(later)[0]) == 240 - rows


@pytest.mark.parametrize(
    "readings",
    [
        [25, 25, 700, 700, 600, 650, 700] + [25] * 13,  # a loose wire
        [25] * 5 + [850] * 15,  # a broken one
        [25] * 5 + [145, 149, 140] + [60] * 12,  # not yet
    ],
)
def test_a_sensor_that_fails_is_no_fire(make_telemetry, load, readings):
    telemetry = make_telemetry(racks=2, event_racks=(), label=False, event_ids=False)
    found, told = load(changed(telemetry, slice(40, 59), TEMP_MAX=readings))
    assert len(found) == 240 and not any("burns" in warning for warning in told)


def test_a_sensor_at_the_end_of_its_range_may_be_a_fire(make_telemetry, load):
    telemetry = make_telemetry(racks=2, event_racks=(), label=False, event_ids=False)
    readings = [60, 80, 110, *[200] * 17]
    assert len(load(changed(telemetry, slice(40, 59), TEMP_MAX=readings))[0]) == 240 - 17


def test_a_file_that_burns_for_most_of_its_rows_is_used(make_telemetry, load):
    telemetry = burnt(make_telemetry, racks=1, modules=1, label=False, event_ids=False)
    fire = changed(telemetry, slice(10, 59), TEMP_MAX=np.linspace(150, 700, 50), VOLTAGE=[0.0] * 50)
    assert len(load(fire)[0]) == 10
    with pytest.raises(DataError, match="in most rows, its median is 300"):
        load(changed(fire, slice(0, 59), TEMP_MAX=np.linspace(295, 305, 60)))


@pytest.mark.slow
def test_simulated_fires_are_left_out(load, monkeypatch):
    monkeypatch.setattr("hvs_lib.simulator.fleet.until_lost", lambda seen, *_: seen)
    whole, _ = simulate_fleet(1, 6.0, 42)
    found, told = load(whole)
    assert len(told) == 1 and told[0].startswith("Hazard_Label in") and "are left out" in told[0]
    assert found[col.TEMP_MAX].max() < 150 < whole[col.TEMP_MAX].max()
    assert found[col.LABEL].sum() == whole[col.LABEL].sum()
    found, told = load(whole.drop(columns=[col.LABEL, col.EVENT_ID, col.EVENT_TYPE]))
    assert len(told) == 1 and "from 150 degC on a module counts as burning" in told[0]
    assert (found[col.TEMP_MAX] >= 150).mean() < 1e-4
