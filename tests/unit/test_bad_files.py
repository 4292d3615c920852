"""Malformed telemetry files: each loads as it should, or is refused by name, place and cure."""

import gzip
import io
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as arrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvs_lib import columns as col
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.features import build_features
from hvs_lib.telemetry import files
from hvs_lib.telemetry.files import DataError
from hvs_lib.telemetry.read import load_telemetry, read_racks

LOADS = ""  # instead of a message: the file is sound, and gives the table it was made from


def written(frame: pd.DataFrame) -> str:
    buffer = io.StringIO(newline="")
    frame.to_csv(buffer, index=False, date_format="%Y-%m-%dT%H:%M:%S")
    return buffer.getvalue()


def text(edit, *, encoding="utf-8", newline="\n"):
    """Edit the text of the CSV file."""

    def write(frame, path):
        path.write_bytes(edit(written(frame)).replace("\n", newline).encode(encoding))
        return path

    return write


def cells(column, value, rows=slice(3, 5)):
    """Put a value, or what a function makes of the column, into some rows."""

    def write(frame, path):
        table = frame.assign(**{column: frame[column].astype(object)})
        found = table[column].to_numpy(copy=True)
        found[rows] = value(found[rows]) if callable(value) else value
        path.write_text(written(table.assign(**{column: found})))
        return path

    return write


def table(edit, suffix=".csv"):
    """Edit the table before it is written."""

    def write(frame, path):
        frame, path = edit(frame), path.with_suffix(suffix)
        if suffix == ".csv":
            path.write_text(written(frame))
        else:
            frame.to_parquet(path, index=False)
        return path

    return write


def scaled(column, factor=1.0, offset=0.0):
    return table(lambda frame: frame.assign(**{column: frame[column] * factor + offset}))


def without_readings(*columns):
    return table(lambda frame: frame.assign(**dict.fromkeys(columns, np.nan)))


def dashes(text):
    """Put a row of dashes, where a unit may stand, under the header."""
    header, rest = text.split("\n", 1)
    return "\n".join([header, ",".join("-" * (header.count(",") + 1)), rest])


def swap(one, other):
    return table(lambda frame: frame.rename(columns={one: other, other: one}))


def times(change):
    return table(lambda frame: frame.assign(Timestamp=change(frame.Timestamp)))


def iso(zone):
    return lambda times: times.dt.strftime("%Y-%m-%dT%H:%M:%S") + zone


def stored_as(column, kind, change=lambda array: array):
    """Store a column of a Parquet file as another Arrow type."""

    def write(frame, path):
        plain = frame.astype({col.RACK: "str"})
        content = arrow.Table.from_pandas(plain, preserve_index=False)
        place = content.column_names.index(column)
        array = change(content.column(place)).cast(kind)
        path = path.with_suffix(".parquet")
        arrow.parquet.write_table(content.set_column(place, column, array), path)
        return path

    return write


def far(unit, count):
    """Count from 1970 beyond what microseconds can hold."""
    kind = arrow.timestamp(unit)
    return stored_as(col.TIMESTAMP, kind, lambda a: arrow.array([count] + [0] * (len(a) - 1)))


def nothing(frame, path):
    path.touch()
    return path


def folder(frame, path):
    path.mkdir()
    return path


def pipe(frame, path):
    os.mkfifo(path)
    return path


def loop(frame, path):
    path.symlink_to(path)
    return path


def cut(suffix, share=0.6):
    def write(frame, path):
        path = path.with_name(f"telemetry{suffix}")
        if suffix == ".parquet":
            frame.to_parquet(path)
        else:
            path.write_bytes(gzip.compress(written(frame).encode()))
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        return path

    return write


def autumn(times):
    """Write local times of a night in which the clock is set back."""
    start = pd.Timestamp("2025-10-26T00:55:00", tz="UTC")
    local = (12 * (times - times.min()) + start).dt.tz_convert("Europe/Berlin")
    return local.dt.strftime("%Y-%m-%dT%H:%M:%S")


def zones_of_two_sites(times):
    east = (times + pd.Timedelta(hours=2)).dt.strftime("%Y-%m-%dT%H:%M:%S+02:00")
    return east.where(np.arange(len(times)) % 2 == 0, iso("Z")(times))


def one_row_gap(frame):
    later = frame[col.TIMESTAMP] >= frame[col.TIMESTAMP].min() + pd.Timedelta(minutes=3)
    return frame.assign(Timestamp=frame[col.TIMESTAMP] + later.astype(int) * pd.Timedelta(hours=5))


def noted(words, *, times=1):
    """Add a column of notes, as written, to the text; words maps rows to them."""

    def edit(content):
        header, *rows = content.splitlines()
        rows = [f"{row},{words.get(number, '')}" for number, row in enumerate(rows * times)]
        return "\n".join([f"{header},Note", *rows]) + "\n"

    return text(edit)


COMMENT = "# exported by a site\n"
CASES = {
    # text of another kind
    "latin-1": (text(lambda t: t.replace("Rack", "Räck"), encoding="latin-1"), "UTF-8"),
    "utf-16": (text(str, encoding="utf-16"), "UTF-8"),
    "byte order mark": (text(str, encoding="utf-8-sig"), LOADS),
    "Windows line ends": (text(str, newline="\r\n"), LOADS),
    "old Mac line ends": (text(str, newline="\r"), "LF or CR LF"),
    "semicolons": (text(lambda t: t.replace(",", ";")), "separated by commas"),
    "tabs": (text(lambda t: t.replace(",", "\t")), "separated by commas"),
    "bars": (text(lambda t: t.replace(",", "|")), "separated by commas"),
    "semicolons and decimal commas": (
        text(lambda t: t.replace(",", ";").replace(".", ",")), "separated by commas"),
    "decimal commas": (cells(col.VOLTAGE, "52,1"), "Voltage_V must be a number, got '52,1' at lin"),
    "thousands": (cells(col.CO, "1,200.5"), "CO_ppm_proxy must be a number, got '1,200.5' at line"),
    "quotes": (text(lambda t: "\n".join(
        ",".join(f'"{w}"' for w in line.split(",")) for line in t.splitlines())), LOADS),
    "unclosed quote": (text(lambda t: t.replace("RackA1,", '"RackA1,', 1)), "row at line 2; close"),
    "unclosed quote, hundreds of rows to go": (
        text(lambda t: t.replace("RackB1,", '"RackB1,', 1)), "row at line 482; close"),
    "unclosed quote that the next row closes": (
        text(lambda t: t.replace("RackA1,", '"RackA1,', 2)), "row at line 2; close"),
    "unclosed quote in a large file": (
        noted({0: '"open'}, times=300), "row at line 2; close"),
    **{f"unclosed quote, {name}": (noted(words), f"row at line {line}; close")
       for name, words, line in [
           ("of a note", {3: '"open'}, 5), ("above the last row", {718: '"'}, 720),
           ("below an inch", {3: '5" pipe', 700: '"open'}, 702),
           ("above an inch", {3: '"open', 9: '5" pipe'}, 5),
           ("twice", {3: '"open', 600: '"open'}, 5),
           ("above a quoted note", {3: '"open', 4: '"fine"'}, 5)]},
    "notes of two lines, inches and quotes in quotes": (
        noted({3: '"two\nlines"', 9: '5" pipe', 11: '"a 5"" pipe,\n\n"'}), LOADS),
    "blank lines": (text(lambda t: t.replace("\n", "\n\n")), LOADS),
    "comment above the header": (text(lambda t: COMMENT + t), "must be a column"),
    "units under the header": (text(dashes), "line 2"),
    "total at the end": (text(lambda t: t + "Total" + "," * 13), "line 722"),
    "short line": (text(lambda t: t.replace(",23.", "\n", 1)), "line 2"),
    "zero bytes": (cells(col.VOLTAGE, "52\0"), "Voltage_V must be a number"),
    "CR within a cell": (cells(col.TIMESTAMP, "2025-06-01\r"), "Every row must have"),
    "cut off": (text(lambda t: t[: t.rindex("23.")]), "line 721"),
    "a line of ten megabytes": (text(lambda t: t.replace("\n", " ")[:80] * 2**17),
        "must name the columns"),
    "a row of twenty megabytes": (
        text(lambda t: t.replace("RackB1,", "Rack" * 5 * 2**20 + ",", 1)), "longer one at line 4"),
    "header alone": (text(lambda t: t.split("\n")[0]), "must have rows"),
    # no file
    "empty": (nothing, "empty"),
    "empty folder": (folder, "must hold telemetry files, got none"),
    "named pipe": (pipe, "must name a regular file"),
    "zero byte in the name": (lambda frame, path: path.with_name("a\0b.csv"), "must lead to"),
    "link to itself": (loop, "must"),
    "absent": (lambda frame, path: path, "path to nothing"),
    "cut Parquet": (cut(".parquet"), "readable as Parquet"),
    "cut gzip": (cut(".csv.gz"), "readable as CSV"),
    "CSV called Parquet": (
        lambda f, p: text(str)(f, p.with_suffix(".parquet")), "readable as Parquet"),
    "spreadsheet": (lambda f, p: text(str)(f, p.with_suffix(".xlsx")), "format must be one of"),
    # times
    "zones of two sites": (times(zones_of_two_sites), LOADS),
    "zone in some rows": (cells(col.TIMESTAMP, lambda t: t.astype(str) + "Z"), "zone"),
    "clock set back, local": (times(autumn), "unique within a module, got 2025-10-26 02:"),
    "day first": (times(lambda t: t.dt.strftime("%d/%m/%Y %H:%M:%S")), "ISO 8601"),
    "seconds since 1970": (times(lambda t: t.astype("int64") // 10**6), "ISO 8601"),
    **{f"offset {zone}": (cells(col.TIMESTAMP, f"2025-06-01T00:00:33{zone}"),
                         f"ISO 8601 time such as 2025-06-01T12:00:00 or 2025-06-01T12:00:00+02:00,"
                         f" got '2025-06-01T00:00:33{zone}' at line 5")
       for zone in ["+2", "+2:00", "-5", "+020", "+02:0"]},
    "zone after short hours": (
        cells(col.TIMESTAMP, ["2025-06-01T0:0:33+02:00", "2025-06-01T0:0:34+02:00"]), "zone"),
    "seconds beyond microseconds": (far("s", 2**53), "must be an ISO 8601 time"),
    "milliseconds beyond microseconds": (far("ms", 2**61), "must be an ISO 8601 time"),
    "year 9999": (cells(col.TIMESTAMP, "9999-12-31T00:00:00"), "Timestamp must"),
    "year 1": (cells(col.TIMESTAMP, "0001-01-01T00:00:00"), "Timestamp must"),
    "30 February": (cells(col.TIMESTAMP, "2025-02-30T00:00:00"), "got '2025-02-30T00:00:00' at li"),
    "not sorted": (table(lambda f: f.sample(frac=1, random_state=0)), LOADS),
    "newest first": (table(lambda f: f.iloc[::-1]), LOADS),
    "rows twice": (table(lambda f: pd.concat([f, f.iloc[5:7]])), "unique within a module"),
    "gap": (table(one_row_gap), None),
    # readings
    "text": (cells(col.CURRENT, "ERR"), "Current_A must be a number, got 'ERR' at line 5"),
    "formula as a reading": (cells(col.CURRENT, "=A1*2"), "must be a number, got '=A1*2' at line"),
    "formula as an id": (table(lambda f: f.assign(
        Module_ID="=cmd|' /C calc'!A" + f.Module_ID.astype(str))), None),
    "huge integers": (cells(col.H2, 10**30), "H2_ppm_proxy must lie between"),
    "duration": (
        stored_as(col.CURRENT, arrow.duration("s"), lambda a: arrow.array([5] * len(a))),
        "Current_A must be a number, got '5 s' at row 0"),
    "blank of another kind": (cells(col.CURRENT, "\u00a05.5"), None),
    "huger than a float": (cells(col.H2, "1" + "0" * 400), "H2_ppm_proxy must be finite"),
    "huge integers as ids": (table(lambda f: f.assign(
        Module_ID=[str(10**40 + m) for m in f.Module_ID.cat.codes])), None),
    "infinite": (cells(col.SOC, "inf"), "SoC_percent must be finite"),
    "fill value": (cells(col.TEMP_AVG, -9999), None),
    "unusual fill value": (
        cells(col.TEMP_AVG, -9998), "must lie between -60 and 1500 degC, got -9998"),
    "no reading of one sensor": (without_readings(col.VOC), None),
    "no reading at all": (without_readings(*col.SENSORS), "at least one"),
    "millivolt": (scaled(col.VOLTAGE, 1000), "Voltage_V must"),
    "kilovolt": (scaled(col.VOLTAGE, 1e-3), "Voltage_V must"),
    "milliampere": (scaled(col.CURRENT, 1000), "Current_A"),
    "millidegrees": (scaled(col.TEMP_AVG, 1000), "Surface"),
    "kelvin": (scaled(col.TEMP_AVG, offset=273.15), "Surface"),
    "state of charge as a fraction": (
        scaled(col.SOC, 1e-2), "SoC_percent must be in percent"),
    **{f"state of charge as a fraction, one of {odd}": (table(lambda f, odd=odd: f.assign(
        **{col.SOC: np.where(np.arange(len(f)) == 7, odd, f[col.SOC] / 100)})),
        "SoC_percent must be in percent") for odd in [55, -1]},
    # columns
    "average and maximum swapped": (swap(col.TEMP_AVG, col.TEMP_MAX), "must not be below"),
    "current and state of charge swapped": (swap(col.CURRENT, col.SOC), "SoC_percent must"),
    "voltage and current swapped": (swap(col.CURRENT, col.VOLTAGE), "Voltage_V must"),
    "label and voltage swapped": (swap(col.LABEL, col.VOLTAGE), "Hazard_Label must be 0 or 1"),
    "time and rack swapped": (swap(col.TIMESTAMP, col.RACK), "Timestamp must be an ISO 8601 time"),
    "column twice": (text(lambda t: t.replace(col.VOC, col.CO, 1)), "must appear once"),
    "near name": (text(lambda t: t.replace("Rack_ID", "rack id", 1)), "did you mean 'rack id'"),
    "more columns": (table(lambda f: f.assign(Note="fine, so far")), LOADS),
    "label in words": (table(lambda f: f.assign(Hazard_Label="no")), "must be 0 or 1, got 'no'"),
    "label missing": (cells(col.LABEL, ""), "Hazard_Label must be 0 or 1, got nothing at line 5"),
    "label almost 1": (
        cells(col.LABEL, "0.99999999"), "must be 0 or 1, got 0.99999999 at line 5"),
    "label almost 0": (cells(col.LABEL, "1e-60"), "must be 0 or 1, got 1e-60 at line 5"),
    "label above 1": (cells(col.LABEL, 1.0000001), "must be 0 or 1, got 1.0000001 at line 5"),
    "label almost 1 in Parquet": (
        table(lambda f: f.assign(Hazard_Label=0.99999999), ".parquet"), "got 0.99999999 at row 0"),
    **{f"ids of {bits} bits without a sign": (
        stored_as(col.RACK, arrow.dictionary(kind, arrow.string()), lambda a: a.cast("string")),
        LOADS) for bits, kind in [(8, arrow.uint8()), (32, arrow.uint32()), (64, arrow.uint64())]},
    "ids as views": (stored_as(col.RACK, arrow.string_view()), LOADS),
    "label of 2": (cells(col.LABEL, 2), "Hazard_Label must be 0 or 1, got 2 at line 5"),
    "id missing": (cells(col.RACK, ""), "Rack_ID must not be missing, got nothing at line 5"),
    # too little
    "one row": (table(lambda f: f.iloc[:1]), "events"),
    "one module": (table(lambda f: f[f.Module_ID == "RackA1_Module01"]), "at least 4 racks"),
    "no event": (table(lambda f: f.assign(Hazard_Label=0)), "is 0 in every row"),
    "events in one rack": (
        table(lambda f: f.assign(Hazard_Label=f.Hazard_Label * (f.Rack_ID == "RackA1"))),
        "at least 4 racks with an event"),
    "hazard in every row": (table(lambda f: f.assign(Hazard_Label=1)), "It must hold normal rows"),
}  # fmt: skip


def use(path):
    """Do with a file what the notebooks do before they fit."""
    telemetry = load_telemetry(path)
    features = build_features(telemetry)
    assert len(features) == len(telemetry)
    split_fleet(telemetry, test_size=0.25, n_folds=3, seed=0)
    return telemetry


@pytest.mark.parametrize("case", CASES)
def test_file(make_telemetry, tmp_path, case):
    make, found = CASES[case]
    frame = make_telemetry(event_ids=False)
    path = make(frame, tmp_path / "telemetry.csv")
    if found:
        with pytest.raises(DataError) as refused:
            use(path)
        assert found in str(refused.value)
        assert str(refused.value).count(";") >= 1, "a cure follows the problem"
    elif found == LOADS:
        expected = load_telemetry(table(lambda f: f)(frame, tmp_path / "plain.csv"))
        pd.testing.assert_frame_equal(use(path), expected, check_like=True)
    else:
        assert len(use(path)) == len(frame)

    # scoring reads it alike
    try:
        whole = load_telemetry(path, require_label=False)
    except DataError as refused:
        with pytest.raises(DataError) as also_refused:
            list(read_racks(path))
        assert set(also_refused.value.problems) <= set(refused.problems)
    else:
        racks = pd.concat([piece for _, piece in read_racks(path)], ignore_index=True)
        pd.testing.assert_frame_equal(racks[col.SENSORS], whole[col.SENSORS])


def in_first_rack(column, value):
    """Change a column throughout one rack, which is handed out by itself."""

    def edit(frame):
        words = frame[column].astype("str").astype(object)
        return frame.assign(**{column: words.mask(frame[col.RACK] == "RackA1", value(words))})

    return table(edit)


ONE_RACK = {
    "zone": (in_first_rack(col.TIMESTAMP, lambda t: t + "+02:00"), "must have a time zone"),
    "no site": (in_first_rack(col.SITE, lambda site: None), "Site_ID must not be missing"),
    "no label": (in_first_rack(col.LABEL, lambda label: None), "Hazard_Label must be 0 or 1"),
    "no reading": (table(lambda f: f.assign(
        **{name: f[name].mask(f[col.RACK] == "RackA1") for name in col.SENSORS})), LOADS),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_RACK)
def test_a_rack_is_judged_with_its_file(make_telemetry, tmp_path, monkeypatch, case):
    monkeypatch.setattr("hvs_lib.telemetry.read.ROWS_TOGETHER", 1)
    make, found = ONE_RACK[case]
    path = make(make_telemetry(event_ids=False), tmp_path / "telemetry.csv")
    if found:
        for read in (load_telemetry, lambda path: list(read_racks(path))):
            with pytest.raises(DataError, match=found):
                read(path)
        return
    pieces = [piece for _, piece in read_racks(path)]
    together = pd.concat(pieces, ignore_index=True)
    expected = load_telemetry(path)
    pd.testing.assert_frame_equal(together[col.SENSORS], expected[col.SENSORS])
    assert len(pieces) == 6


def test_a_row_has_a_number_where_its_file_is_not(make_telemetry, tmp_path, monkeypatch):
    """As on a worker of a cluster whose machine has no copy."""
    monkeypatch.setattr("hvs_lib.telemetry.read.ROWS_TOGETHER", 1)
    frame = make_telemetry(event_ids=False).astype({col.LABEL: float})
    frame.loc[frame.index[-3], col.LABEL] = 2
    path = table(lambda f: f)(frame, tmp_path / "telemetry.csv")
    racks = read_racks(path)
    next(racks)
    path.unlink()
    with pytest.raises(DataError, match=rf"got 2 at row {len(frame) - 3} \(the first is 0\)"):
        list(racks)


def test_racks_come_in_the_order_of_their_ids(make_telemetry, tmp_path, monkeypatch):
    monkeypatch.setattr("hvs_lib.telemetry.read.ROWS_TOGETHER", 1)
    frame = make_telemetry(sites=3, racks=2, event_ids=False)
    frame[col.SITE] = frame[col.SITE].cat.rename_categories(["Site 2", "Site", "Site's"])
    path = table(lambda f: f)(frame, tmp_path / "telemetry.csv")
    together = pd.concat([piece for _, piece in read_racks(path)])
    assert list(together[col.SITE].astype(str)) == list(load_telemetry(path)[col.SITE])


def test_racks_of_one_row_cost_little(make_telemetry, tmp_path):
    frame = make_telemetry(racks=1, modules=1, rows=20_000, event_racks=(), event_ids=False)
    ids = pd.Series(np.arange(len(frame))).astype("str")
    frame = frame.assign(**{col.SITE: ids, col.RACK: ids})
    frame.to_parquet(tmp_path / "telemetry.parquet")
    start = time.process_time()
    pieces = [piece for _, piece in read_racks(tmp_path / "telemetry.parquet")]
    assert sum(map(len, pieces)) == len(frame)
    assert time.process_time() - start < 20  # the product of sites and racks would fill the memory


def test_line_breaks_in_cells(make_telemetry, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 2**14)
    frame = make_telemetry(event_ids=False).assign(Comment='a "filter"\n,\nchanged ' * 20)
    path = table(lambda f: f)(frame, tmp_path / "telemetry.csv")
    assert path.stat().st_size > 20 * 2**14, "the parser's pieces must end within a cell"
    plain = load_telemetry(table(lambda f: f.iloc[:, :-1])(frame, tmp_path / "plain.csv"))
    pieces = [piece for _, piece in read_racks(path)]
    for found in (load_telemetry(path), pd.concat(pieces, ignore_index=True)):
        pd.testing.assert_frame_equal(found, plain)


def test_lines_are_counted_as_an_editor_does(make_telemetry, tmp_path):
    frame = make_telemetry(event_ids=False).astype(object)
    frame.insert(0, "Comment", "")
    frame.loc[:9, "Comment"] = "x\ny"
    frame.loc[30, col.VOLTAGE] = "high"
    path = table(lambda f: f)(frame, tmp_path / "telemetry.csv")
    line = next(n for n, text in enumerate(path.read_text().split("\n"), 1) if "high" in text)
    assert line == 42
    with pytest.raises(DataError, match="line 42"):
        load_telemetry(path)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="file modes are Unix's")
@pytest.mark.parametrize("forbidden", ["file", "folder"])
def test_unreadable_file(make_telemetry, forbidden):
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    folder.chmod(0o755)
    path = table(lambda f: f)(make_telemetry(), folder / "telemetry.csv")
    (path if forbidden == "file" else folder).chmod(0)
    as_root = os.geteuid() == 0
    try:
        if as_root:
            os.seteuid(65534)  # root may read everything
        with pytest.raises(DataError, match="Permission denied"):
            load_telemetry(path)
    finally:
        if as_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


WORDS = st.one_of(
    st.text(max_size=12),
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(["NaN", "=1+1", "<script>", "../..", "1e999", "2025-13-01", '"', ",", "\n"]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 24), st.sampled_from(col.TELEMETRY[:13]), WORDS), max_size=6
    )
)
@pytest.mark.slow
def test_any_words_in_any_cell(make_telemetry, tmp_path_factory, edits):
    frame = make_telemetry(rows=4, event_rows=2, modules=1, event_ids=False).astype(object)
    for row, column, word in edits:
        if column in frame:
            frame.loc[row % len(frame), column] = word
    path = tmp_path_factory.mktemp("any") / "telemetry.csv"
    path.write_text(written(frame), encoding="utf-8", errors="surrogatepass", newline="")
    try:
        telemetry = load_telemetry(path)
    except DataError as refused:
        assert all(";" in problem for problem in refused.problems)
    else:
        build_features(telemetry)
