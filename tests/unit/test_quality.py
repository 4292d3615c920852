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


def test_check_prints_the_warnings(make_telemetry, project, tmp_path):
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


@pytest.fixture
def with_pnr(make_telemetry):
    """Return a function that puts a PNR, so long after the last label, on the rows of an event."""

    def with_pnr(after_s, **options):
        telemetry = make_telemetry(**options)
        rows = np.flatnonzero(telemetry[col.LABEL].eq(1) & telemetry[col.RACK].eq("RackA1"))
        pnr = telemetry[col.TIMESTAMP].max() + pd.Timedelta(seconds=after_s)
        telemetry[col.PNR] = pd.Series(pnr, rows).reindex(telemetry.index)
        return telemetry, rows

    return with_pnr


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize("event_ids", [False, True])
@pytest.mark.parametrize("kept", [slice(None), slice(3, 4)])
def test_all_rows_of_an_event_have_its_pnr(with_pnr, reread, racks, event_ids, kept):
    telemetry, rows = with_pnr(300, event_ids=event_ids)
    left = np.setdiff1d(rows, rows[kept])
    telemetry.loc[left, col.PNR] = pd.NaT
    if event_ids:  # its build-up belongs to it
        build_up = np.arange(rows[0] - 5, rows[0])
        for name in (col.EVENT_ID, col.EVENT_TYPE):
            telemetry.loc[build_up, name] = telemetry[name].iloc[rows[0]]
        rows = np.append(build_up, rows)
    found = reread(telemetry, racks=racks)
    until_pnr = (found[col.PNR] - telemetry[col.TIMESTAMP].max()).dt.total_seconds()
    in_it, labelled = telemetry.index.isin(rows), telemetry[col.LABEL] == 1
    assert until_pnr[in_it].eq(300).all()
    assert (labelled & ~in_it).any(), "an event without a PNR has the usual one"
    assert until_pnr[labelled & ~in_it].eq(30).all()
    assert until_pnr[~labelled & ~in_it].isna().all()
    assert not [warning for warning in warnings_of(found) if warning.startswith(col.PNR)]


@pytest.mark.parametrize("racks", [False, True])
def test_a_pnr_on_a_row_that_burns_is_that_of_the_event(with_pnr, reread, racks):
    telemetry, rows = with_pnr(40)
    pnr = telemetry[col.PNR].iloc[rows[0]]
    telemetry.loc[rows[:-1], col.PNR] = pd.NaT
    telemetry.loc[rows[-4:], col.LABEL] = 0  # what comes after the last label is left out
    found = reread(telemetry, racks=racks)
    assert rows[-1] not in found.index[found[col.TIMESTAMP] == telemetry[col.TIMESTAMP].max()]
    assert pnr in found.loc[found[col.LABEL] == 1, col.PNR].unique()


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize("event_ids", [False, True])
def test_an_event_with_a_pnr_and_no_label_is_named(with_pnr, reread, racks, event_ids):
    telemetry, rows = with_pnr(10, event_ids=event_ids)
    telemetry.loc[rows, col.LABEL] = 0
    found = reread(telemetry, racks=racks)
    (warning,) = [each for each in warnings_of(found) if each.startswith(col.PNR)]
    assert f"PNR in {len(rows)} rows" in warning and "without a row of label 1" in warning
    name = telemetry[col.EVENT_ID if event_ids else col.MODULE].iloc[rows[0]]
    assert warning.endswith(f"(1: {name})")
    assert found.loc[rows, col.PNR].isna().all()


def test_telemetry_without_any_label_may_have_a_pnr(with_pnr, reread):
    telemetry, rows = with_pnr(10)
    (warning,) = [w for w in warnings_of(reread(telemetry.assign(**{col.LABEL: 0}))) if "PNR" in w]
    assert f"(1: {telemetry[col.EVENT_ID].iloc[rows[0]]})" in warning
    scored = reread(telemetry.drop(columns=col.LABEL))
    assert scored[col.PNR].equals(telemetry[col.PNR])


@pytest.mark.parametrize("racks", [False, True])
@pytest.mark.parametrize("event_ids", [False, True])
def test_a_pnr_that_contradicts_its_event_is_refused(with_pnr, reread, event_ids, racks):
    telemetry, _ = with_pnr(-10, event_ids=event_ids)
    with pytest.raises(DataError, match="PNR must not lie before a labelled row, but does"):
        reread(telemetry, racks=racks)
    telemetry, rows = with_pnr(10, event_ids=event_ids)
    telemetry.loc[rows[2], col.PNR] += pd.Timedelta(seconds=1)
    with pytest.raises(DataError, match=r"PNR must be one time for an event, got several \(1: "):
        reread(telemetry, racks=racks)


def test_a_pnr_that_is_no_time_is_refused(with_pnr, reread):
    telemetry, rows = with_pnr(10)
    telemetry[col.PNR] = telemetry[col.PNR].astype("str")
    telemetry.loc[rows, col.PNR] = "soon"
    with pytest.raises(DataError, match=r"PNR must be an ISO 8601 time such as .*, got 'soon' at"):
        reread(telemetry)


def test_a_pnr_stays_with_the_partitions_of_a_fleet(with_pnr, make_fleet):
    telemetry, rows = with_pnr(300)
    fleet = make_fleet(telemetry)
    both = pd.concat([fleet.telemetry(k)[col.PNR] for k in range(len(fleet.paths))])
    assert len(fleet.paths) > 1 and fleet.rows[col.PNR].equals(both)
    assert set(both.iloc[rows] - telemetry[col.TIMESTAMP].max()) == {pd.Timedelta(seconds=300)}
