"""What a file holds that is probably no reading, or means something else."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from hvs_lib import columns as col
from hvs_lib.cli import main
from hvs_lib.features import build_features, check_interval
from hvs_lib.telemetry.files import DataError, save_telemetry
from hvs_lib.telemetry.summary import summarize

# What absent probes have been seen to report, in one module of twelve.
FILL_VALUES = [
    (col.TEMP_MAX, 215.0),
    (col.TEMP_AVG, 327.67),
    (col.AMBIENT, 32767.0),
    (col.TEMP_MAX, -127.0),
    (col.VOLTAGE, 655.35),
    (col.CURRENT, -327.68),
    (col.SOC, 127.5),
    (col.CO, 65535.0),
    (col.VOC, -9999.0),
    (col.TEMP_AVG, 511.0),
    (col.VOLTAGE, 1023.0),
]


def warnings_of(telemetry):
    return summarize(telemetry)["warnings"]


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize(("name", "value"), FILL_VALUES)
def test_a_fill_value_is_missing_and_told(make_telemetry, reread, name, value, racks):
    telemetry = make_telemetry()
    telemetry.loc[:59, name] = np.float32(value)  # all of the first module
    found = reread(telemetry, racks=racks)
    assert found.loc[:59, name].isna().all()
    assert found.loc[60:, name].notna().all()
    (warning,) = warnings_of(found)
    assert warning == (
        f"{name} in 60 rows (8.33%): {value:.10g}, as absent sensors report; treated as missing "
        "(keep_fill_values takes it as a reading)"
    )


def test_a_fill_value_in_all_rows_is_told(make_telemetry, reread):
    telemetry = make_telemetry().assign(**{col.SOC: np.float32(127.5)})
    for racks in (False, True):
        (warning,) = warnings_of(reread(telemetry, racks=racks))
        assert warning.startswith(f"{col.SOC} in 720 rows (100.00%): 127.5, as absent")


def test_fill_values_can_be_kept(make_telemetry, reread):
    telemetry = make_telemetry()
    telemetry.loc[:59, col.TEMP_MAX] = 215.0
    telemetry[col.H2] = np.float32(0.0)
    for racks in (False, True):
        found = reread(telemetry, racks=racks, keep_fill_values=True)
        assert (found.loc[:59, col.TEMP_MAX] == 215.0).all() and (found[col.H2] == 0).all()
        assert warnings_of(found) == []
    telemetry.loc[:59, col.TEMP_MAX] = 32767.0
    with pytest.raises(DataError, match="must lie between -60 and 1500"):
        reread(telemetry, keep_fill_values=True)


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize(
    ("name", "readings"),
    [
        (col.TEMP_MAX, [212.0, 215.0, 215.0, 215.0, 217.0]),  # a module on its way to burn
        (col.TEMP_MAX, [95.0, 160.0, 215.0, 215.0, 215.0]),  # at the end of the sensor's range
        (col.VOLTAGE, [655.3, 655.35, 655.4, 655.35, 655.35]),  # a pack of that voltage
        (col.SOC, [100.0, 101.0, 102.0, 102.0, 102.0]),  # counted beyond full
        (col.CO, [500.0, 9000.0, 65535.0, 65535.0, 65535.0]),  # a burst
    ],
)
def test_a_module_that_comes_up_to_it_has_read_it(make_telemetry, reread, name, readings, racks):
    telemetry = make_telemetry()
    telemetry.loc[: len(readings) - 1, name] = np.float32(readings)
    telemetry.loc[60:119, name] = np.float32(readings[3])  # the next module has no such sensor
    found = reread(telemetry, racks=racks)[name]
    missing = found.isna().to_numpy().reshape(-1, 60).all(axis=1)
    assert list(np.flatnonzero(missing)) == [1]
    assert found.isna().sum() == 60


@pytest.mark.parametrize("racks", [False, True])
def test_a_sensor_that_reads_zero_throughout_is_missing(make_telemetry, reread, racks):
    telemetry = make_telemetry()
    telemetry.loc[:59, [col.VOLTAGE, col.CO]] = 0.0  # a module; of a gas that may be true
    telemetry[[col.H2, col.CURRENT]] = np.float32(0.0)
    found = reread(telemetry, racks=racks)
    assert found.loc[:59, col.VOLTAGE].isna().all() and found.loc[60:, col.VOLTAGE].notna().all()
    assert found[[col.H2, col.CURRENT]].isna().all(axis=None)
    assert (found.loc[:59, col.CO] == 0).all()
    told = {warning.split(":")[0] for warning in warnings_of(found)}
    assert told == {
        f"{col.VOLTAGE} in 60 rows (8.33%)",
        f"{col.CURRENT} in 720 rows (100.00%)",
        f"{col.H2} in 720 rows (100.00%)",
    }


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_current_of_the_other_sign_is_told(make_telemetry, reread, sign, racks):
    telemetry = make_telemetry(rows=360)
    step = telemetry.groupby(col.MODULE, observed=True).cumcount().to_numpy()
    current = 50.0 * np.sin(step / 40.0)
    telemetry[col.CURRENT] = (sign * current).astype(np.float32)
    telemetry[col.SOC] = (60.0 - 5.6 * np.cos(step / 40.0)).astype(np.float32)
    told = warnings_of(reread(telemetry, racks=racks))
    assert len(told) == (sign < 0)
    assert sign > 0 or told[0].startswith(f"{col.CURRENT} in 4,320 rows (100.00%): positive while")


def test_charge_that_moves_in_gaps_hides_no_sign(make_telemetry, reread):
    """A file of discharging alone: the charging is what its gaps leave out."""
    telemetry = make_telemetry(racks=1, modules=1, event_racks=(), rows=720)
    step = np.arange(720)
    telemetry[col.TIMESTAMP] += pd.to_timedelta(step // 36 * 12, unit="h")
    telemetry[col.CURRENT] = np.float32(20.0) + (step % 7).astype(np.float32)
    telemetry[col.SOC] = (90.0 - step % 36).astype(np.float32)
    (told,) = [text for text in warnings_of(reread(telemetry)) if "positive while" in text]
    assert told.startswith(f"{col.CURRENT} in 720 rows")


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize("named", [slice(4, 12), slice(0, 8), slice(5, 6)])
def test_an_event_that_is_named_in_part_is_one_event(make_telemetry, reread, named, racks):
    """The module after it is labelled throughout, which is another event."""
    whole = make_telemetry(event_racks=(0,))
    whole.loc[60:119, col.LABEL] = 1
    part = whole.copy()
    unnamed = np.setdiff1d(np.arange(48, 60), np.arange(48, 60)[named])
    part.loc[unnamed, [col.EVENT_ID, col.EVENT_TYPE]] = None
    found = reread(part, racks=racks)
    pd.testing.assert_frame_equal(found, reread(whole, racks=racks))
    assert found.loc[60:119, col.EVENT_ID].isna().all()
    assert summarize(found)["events"] == 2
    first, *others = warnings_of(found)
    assert first.startswith(f"Event_ID in {len(unnamed)} rows")
    assert warnings_of(reread(whole, racks=racks)) == others


@pytest.mark.parametrize(
    ("interval_s", "short"),
    [(10.0, None), (59.0, None), (60.0, "1 min"), (299.0, "1 min"), (599.0, "1, 5 min")],
)
def test_windows_that_hold_one_reading_are_told(make_telemetry, interval_s, short):
    telemetry = make_telemetry(interval_s=interval_s)
    told = check_interval(interval_s)
    assert [f"windows of {short}: their" in text for text in told] == [True] * (short is not None)
    X = build_features(telemetry)
    for window in (1, 5, 10):  # said to be missing exactly where nothing is computed
        said = short is not None and f"{window}" in short.removesuffix(" min").split(", ")
        assert X[f"{col.TEMP_MAX}__std_{window}min"].notna().any() != said


def test_rows_too_far_apart_for_any_feature_are_refused(make_telemetry, tmp_path):
    telemetry = make_telemetry(interval_s=600.0)
    with pytest.raises(DataError, match="less than 600 s apart, got one every 600 s"):
        build_features(telemetry)
    save_telemetry(telemetry, tmp_path / "t.csv")
    result = CliRunner().invoke(main, ["check", str(tmp_path / "t.csv")])
    assert result.exit_code == 1 and "got one every 600 s" in result.output


def test_check_prints_the_warnings(make_telemetry, tmp_path):
    telemetry = make_telemetry(interval_s=60.0)
    telemetry.loc[:59, col.SOC] = 127.5
    save_telemetry(telemetry, tmp_path / "t.csv")
    command = ["check", str(tmp_path / "t.csv")]
    lines = CliRunner().invoke(main, command).output.splitlines()
    *_, first, second, sensors = lines
    assert first.startswith("warning") and "127.5, as absent sensors report" in first
    assert second.startswith("warning") and "a row every 60 s" in second
    assert sensors == "sensors: all sensors (6 racks)"
    kept = CliRunner().invoke(main, [*command, "--keep-fill-values"]).output
    assert "127.5" not in kept
