import errno
import json
import os
import pickle
import signal
import sys
import tempfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow
import pytest
from click.testing import CliRunner
from odd_telemetry import ODD
from scipy.special import logit
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from xgboost import XGBClassifier

from hvs_lib import columns as col
from hvs_lib import score
from hvs_lib.cli import main
from hvs_lib.evaluation.alarms import Alarm, AlarmRule, raise_alarms
from hvs_lib.evaluation.calibration import CalibratedClassifier
from hvs_lib.evaluation.outcomes import OUTCOMES
from hvs_lib.evaluation.protocol import Protocol
from hvs_lib.evaluation.scores import scores_frame
from hvs_lib.evaluation.splits import split_fleet
from hvs_lib.features import NO_SET, SENSOR_SETS, build_features
from hvs_lib.models import make_pipeline
from hvs_lib.score import contributions, load_champion, score_file, sensor_sets_told
from hvs_lib.sqlite_store import sqlite_path
from hvs_lib.telemetry import racks
from hvs_lib.telemetry.files import DataError, save_telemetry
from hvs_lib.telemetry.read import load_telemetry, read_racks
from hvs_lib.tracking.champion import promote, register_version
from hvs_lib.tracking.model_files import ModelError
from hvs_lib.tracking.runs import log_assessment, prepare, tags_of

pytestmark = pytest.mark.slow
NEVER_QUIET = Alarm(AlarmRule(k=1, n=1), threshold=0.0)


@pytest.fixture(scope="module")
def telemetry(make_telemetry):
    return make_telemetry(racks=8, rows=120, event_racks=(0, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def registered(telemetry, make_fleet, tmp_path_factory):
    """Train, log and register a small model; return it and the URI of its store."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HVS_PROJECT_ROOT", str(root))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        fleet = make_fleet(telemetry)
        split = split_fleet(fleet.rows, test_size=0.25, n_folds=2, seed=1)
        protocol = Protocol(
            fleet, split, normal_stride=3, hazard_stride=1, max_nuisance_alarms_per_site_day=1000.0
        )
        prepare()
        mlflow.set_experiment("HVS_Fire_Prediction_Baseline")  # whose artifacts lie in `root`
        mlflow.start_run(tags=tags_of("01_baseline"))
        found = protocol.assess(make_pipeline(XGBClassifier(n_estimators=20, max_depth=3)))
        run_id = log_assessment(found, protocol, model_name="XGBoost")
        promote(register_version(run_id), {}, "# The card")
        mlflow.end_run()
        yield load_champion(), score.mlflow.get_tracking_uri()


@pytest.fixture
def champion(registered):
    return registered[0]


@pytest.fixture
def uri(registered, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registered[1])
    return registered[1]


def test_a_model_without_an_alarm_is_refused(monkeypatch):
    monkeypatch.setattr(score, "load_model", lambda uri: (None, {"intervals_s": [10.0, 10.0]}))
    with pytest.raises(ModelError, match="lacks alarm_threshold, data_sha256, fault_types, train"):
        load_champion("models:/foreign/1")


def test_a_champion_tells_what_it_was_trained_on(registered, monkeypatch):
    fixed, logged = score.load_model(score.CHAMPION_URI)
    assert logged["intervals_s"] == [10.0, 10.0]
    own = {"intervals_s": [1.0, 30.0], "fault_types": '["hot, then cold", "short"]'}
    monkeypatch.setattr(score, "load_model", lambda uri: (fixed, logged | own))
    champion = load_champion()
    assert champion.intervals_s == (1.0, 30.0)
    assert champion.fault_types == {"hot, then cold", "short"}


@pytest.fixture
def expected(telemetry, champion):
    """Alarms of the plain way: everything in memory at once."""
    X = build_features(telemetry)
    scores = champion.model.predict_proba(X)[:, 1]
    frame = scores_frame(telemetry, np.arange(len(X)), scores)
    return raise_alarms(frame, champion.alarm)


def of_model(path):
    """Read the alarms that the model raises."""
    alarms = pd.read_csv(path)
    return alarms[alarms["rule"] == "model"].reset_index(drop=True)


@pytest.fixture(params=["parquet", "csv", "interleaved.csv", "interleaved.parquet"])
def file(request, telemetry, tmp_path):
    order = [col.TIMESTAMP] if "interleaved" in request.param else col.KEYS
    path = tmp_path / f"telemetry.{request.param}"
    save_telemetry(telemetry.sort_values(order, kind="stable", ignore_index=True), path)
    return path


def test_alarms_are_those_of_the_whole_file_in_memory(file, champion, expected, tmp_path):
    tally = score_file(file, tmp_path / "alarms.csv", champion)
    alarms = of_model(tmp_path / "alarms.csv")
    assert list(alarms.columns) == score.COLUMNS + score.OUTCOME_COLUMNS
    assert len(expected) > 2
    assert (tally.racks, tally.rows, tally.alarms["model"]) == (8, 1920, len(expected))
    for name in (col.SITE, col.RACK, col.MODULE):
        assert alarms[name].tolist() == expected[name].astype(str).tolist()
    assert pd.to_datetime(alarms["alarm_start"]).tolist() == expected[col.TIMESTAMP].tolist()
    np.testing.assert_allclose(alarms["score"], expected["y_score"], rtol=0, atol=1e-6)
    assert alarms["outcome"].tolist() == expected["outcome"].tolist()
    assert alarms[col.EVENT_ID].equals(expected[col.EVENT_ID].astype("str"))
    np.testing.assert_allclose(alarms["lead_time_min"], expected["lead_time_min"], rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("rows_in_memory", [1, 500])
def test_rows_that_wait_on_the_disk_come_back_whole(file, tmp_path, monkeypatch, rows_in_memory):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(racks, "ROWS_IN_MEMORY", rows_in_memory)
    found = list(read_racks(file))
    assert found[-1][0] == 1.0
    again = pd.concat([table for _, table in found], ignore_index=True)
    plain = load_telemetry(file)
    assert again[col.MODULE].astype(str).tolist() == plain[col.MODULE].astype(str).tolist()
    pd.testing.assert_frame_equal(again[col.SENSORS], plain[col.SENSORS])
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("rows_in_memory", [500, 10_000])
def test_racks_take_no_other_rows_along_to_a_worker(
    tmp_path, monkeypatch, rows_in_memory, telemetry
):
    monkeypatch.setattr(racks, "ROWS_IN_MEMORY", rows_in_memory)
    table = pyarrow.Table.from_pandas(telemetry, preserve_index=False)
    sorter = racks.Racks(tmp_path)
    for first in range(0, len(table), 100):
        sorter.add(table.slice(first, 100))
    sent = [len(pickle.dumps(rows)) for rows in sorter.complete(1)]
    assert len(sent) == 8
    assert sum(sent) < 2 * len(pickle.dumps(table))


def test_a_temporary_folder_without_room_is_told(file, monkeypatch):
    def new_file(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pyarrow.ipc, "new_file", new_file)
    monkeypatch.setattr(racks, "ROWS_IN_MEMORY", 1)
    with pytest.raises(DataError, match=r"hvs-racks-.* No space left .*; free some, or set TMPDIR"):
        list(read_racks(file))


def test_racks_are_never_cut(telemetry, tmp_path, monkeypatch):
    monkeypatch.setattr("hvs_lib.telemetry.read.ROWS_TOGETHER", 300)
    save_telemetry(telemetry, tmp_path / "t.parquet")
    sizes = [table.groupby(col.RACK, observed=True).size() for _, table in
             read_racks(tmp_path / "t.parquet")]  # fmt: skip
    assert [size.tolist() for size in sizes] == [[240, 240]] * 4


def test_neither_label_nor_site_is_needed(telemetry, champion, expected, tmp_path):
    bare = telemetry.drop(columns=[col.LABEL, col.SITE, col.EVENT_ID, col.EVENT_TYPE])
    save_telemetry(bare, tmp_path / "bare.csv")
    tally = score_file(tmp_path / "bare.csv", tmp_path / "alarms.csv", champion)
    assert tally.alarms["model"] == len(expected)
    assert tally.outcomes == []
    assert list(pd.read_csv(tmp_path / "alarms.csv").columns) == score.COLUMNS


@pytest.fixture
def loud(champion):
    """Raise an alarm at every row, so that every outcome shows."""
    return replace(champion, alarm=Alarm(AlarmRule(1, 1, refractory_min=0), -1.0))


@pytest.fixture
def mixed(make_telemetry, tmp_path, monkeypatch):
    """Write a file of four parts: events, a fault of the same cause, and a look-alike."""
    monkeypatch.setattr("hvs_lib.telemetry.read.ROWS_TOGETHER", 100)
    made = make_telemetry(racks=4, event_racks=(2, 3), look_alike_racks=(0, 1))
    made = made.astype({col.EVENT_TYPE: object})
    made.loc[made[col.EVENT_ID] == "LE000", col.EVENT_TYPE] = "short"  # as those in later parts
    save_telemetry(made, tmp_path / "t.parquet")
    return tmp_path / "t.parquet", made


@pytest.mark.parametrize("known", [(), ("hot_day",)])
def test_a_cause_is_a_faults_where_it_was_one_in_training(loud, mixed, tmp_path, known):
    path, made = mixed
    loud = replace(loud, fault_types=frozenset(["short", *known]))
    tally = score_file(path, tmp_path / "alarms.csv", loud)
    alarms = of_model(tmp_path / "alarms.csv")
    scores = scores_frame(made, np.arange(len(made)), np.zeros(len(made)), fault_types=known)
    expected = raise_alarms(scores, loud.alarm)["outcome"]
    assert alarms["outcome"].tolist() == expected.tolist()
    # The shorts without a label, the hot days if they are named, and the events' rack-mates.
    assert (expected == "fault").sum() == 12 + 12 * len(known) + 24
    n_nuisance = (expected == "nuisance").sum()
    assert tally.outcomes[:2] == [
        f"model: 0 early, 24 timely, {480 - 24 - n_nuisance} fault, {n_nuisance} nuisance",
        "model: 2 of 2 events caught, median lead time 2.3 min",
    ]


def test_events_that_no_alarm_catches_are_counted(champion, mixed, tmp_path):
    mute = replace(champion, alarm=Alarm(AlarmRule(), 2.0))
    tally = score_file(mixed[0], tmp_path / "alarms.csv", mute)
    nothing = ": 0 early, 0 timely, 0 fault, 0 nuisance"
    for rule in ("model", "fixed thresholds"):
        assert tally.outcomes[:2] == [rule + nothing, f"{rule}: 0 of 2 events caught"]
        tally.outcomes = tally.outcomes[2:]
    columns = pd.read_csv(tmp_path / "alarms.csv").columns
    assert list(columns) == score.COLUMNS + score.OUTCOME_COLUMNS


def test_a_label_without_event_ids_is_enough_for_outcomes(loud, mixed, tmp_path):
    made = mixed[1].drop(columns=[col.EVENT_ID, col.EVENT_TYPE])
    save_telemetry(made, tmp_path / "bare.parquet")
    tally = score_file(tmp_path / "bare.parquet", tmp_path / "alarms.csv", loud)
    # An hour before its point of no return, each event has set on: from the module's first row.
    # In its label window, so has the rack.
    assert tally.outcomes[0] == "model: 96 early, 24 timely, 24 fault, 336 nuisance"
    assert tally.outcomes[1] == "model: 2 of 2 events caught, median lead time 10.3 min"


@pytest.mark.parametrize("what", sorted({*ODD} - {"one sensor"}))
def test_odd_telemetry_is_scored(make_telemetry, loud, tmp_path, what):
    """Where every row raises an alarm, each event is caught and each labelled row is timely."""
    made = make_telemetry(racks=8, rows=90, event_racks=(0, 1, 2, 3, 4), look_alike_racks=(5, 6))
    made = ODD[what](made)
    save_telemetry(made, tmp_path / "t.parquet")
    tally = score_file(tmp_path / "t.parquet", tmp_path / "alarms.csv", loud)
    alarms = of_model(tmp_path / "alarms.csv")
    loaded = load_telemetry(tmp_path / "t.parquet")  # no rows after the last label of a module
    assert tally.alarms["model"] == len(alarms) == len(loaded)
    assert set(alarms["outcome"]) <= set(OUTCOMES)
    assert (alarms["outcome"] == "timely").sum() == made[col.LABEL].sum()
    n_events = made.loc[made[col.LABEL] == 1, col.MODULE].nunique()
    assert tally.outcomes[1].startswith(
        f"model: {n_events} of {n_events} events caught, median lead time"
    )


def test_top_features_are_the_largest_contributions(telemetry, champion, tmp_path):
    save_telemetry(telemetry, tmp_path / "t.parquet")
    score_file(tmp_path / "t.parquet", tmp_path / "alarms.csv", champion)
    first = of_model(tmp_path / "alarms.csv").iloc[0]
    same = telemetry[col.MODULE].astype(str) == first[col.MODULE]
    row = np.flatnonzero(same & (telemetry[col.TIMESTAMP] == first["alarm_start"]))
    found = contributions(champion.model, build_features(telemetry).iloc[row]).iloc[0]
    top = found.sort_values(ascending=False, kind="stable").head(3)
    assert [first[f"feature_{k}"] for k in (1, 2, 3)] == top.index.tolist()
    np.testing.assert_allclose([first[f"contribution_{k}"] for k in (1, 2, 3)], top, rtol=1e-5)


def fitted(classifier, telemetry):
    X, y = build_features(telemetry), telemetry[col.LABEL].to_numpy()
    return make_pipeline(classifier).fit(X, y), X.iloc[::50]


def test_contributions_add_up_to_the_score(telemetry):
    """Up to a constant that is the same for every row: the score where nothing is known."""
    for classifier, link in [
        (XGBClassifier(n_estimators=9, max_depth=3), logit),
        (LogisticRegression(C=0.01), logit),
        (RandomForestClassifier(n_estimators=7, max_depth=4, random_state=0), lambda p: p),
    ]:
        model, X = fitted(classifier, telemetry)
        parts = contributions(CalibratedClassifier(model, None), X)
        rest = link(model.predict_proba(X)[:, 1].astype(float)) - parts.sum(axis=1)
        assert np.ptp(rest) < 1e-3, type(classifier).__name__


def test_ids_that_look_like_formulas_are_written_as_text(telemetry, champion, tmp_path):
    names = telemetry[col.MODULE].astype(str)
    events = telemetry[col.EVENT_ID].astype("str")
    odd = {col.MODULE: "=HYPERLINK(" + names, col.EVENT_ID: "=HYPERLINK(" + events}
    odd = telemetry.assign(**odd)
    save_telemetry(odd, tmp_path / "t.csv")
    score_file(tmp_path / "t.csv", tmp_path / "alarms.csv", champion)
    found = pd.read_csv(tmp_path / "alarms.csv")
    for name in (col.MODULE, col.EVENT_ID):
        assert found[name].dropna().str.startswith("'=HYPERLINK(").all()
    assert found[col.EVENT_ID].notna().any()


def test_bad_telemetry_is_refused_and_leaves_no_output(telemetry, champion, tmp_path):
    broken = telemetry.astype({col.TEMP_MAX: object})
    broken.loc[1500, col.TEMP_MAX] = "hot"
    broken.to_csv(tmp_path / "broken.csv", index=False)
    absurd = telemetry.copy()
    absurd.loc[1500, col.TEMP_MAX] = 1e5
    save_telemetry(absurd, tmp_path / "absurd.parquet")
    save_telemetry(telemetry.drop(columns=col.RACK), tmp_path / "no_rack.csv")
    for name, said in [
        ("broken.csv", "'hot' at line 1502"),
        ("absurd.parquet", r"row 1500 \(the first is 0\)"),
        ("no_rack.csv", "Rack_ID"),
        ("nothing.csv", "must exist"),
    ]:
        with pytest.raises(DataError, match=said):
            score_file(tmp_path / name, tmp_path / "alarms.csv", champion)
    assert not (tmp_path / "alarms.csv").exists()
    with pytest.raises(DataError, match="The folder must exist"):
        score_file(tmp_path / "absurd.parquet", tmp_path / "no" / "alarms.csv", champion)


def test_output_takes_the_place_of_older_alarms_only(telemetry, champion, tmp_path):
    own = tmp_path / "own.csv"
    save_telemetry(telemetry, own)
    before = own.read_bytes()
    (tmp_path / "link.csv").symlink_to(own)
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "kept.csv").touch(mode=0o444)
    for name, said in [
        ("own.csv", "the telemetry itself"),
        ("link.csv", "the telemetry itself"),
        ("pipe.csv", "pipe or device"),
        ("kept.csv", "read-only"),
        ("", "got a directory"),
        ("alarms.parquet", "must end in .csv"),
    ]:
        with pytest.raises(DataError, match=said):
            score_file(own, tmp_path / name, champion)
    assert own.read_bytes() == before
    assert (tmp_path / "pipe.csv").is_fifo()


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9/x", "http://[bad", "s3://bucket/x", "a\0b"])
def test_odd_model_addresses_are_told(store, uri):
    with pytest.raises(ModelError, match="there is no model"):
        load_champion(uri)


def test_command_says_what_it_did(telemetry, uri, expected, project, tmp_path):
    save_telemetry(telemetry, tmp_path / "t.parquet")
    call = ["score", str(tmp_path / "t.parquet"), "--output", str(tmp_path / "alarms.csv")]
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 0, result.output
    assert "8 racks, 1,920 rows" in result.output
    assert f"alarms.csv: {len(expected)} by model" in result.output
    assert "sensors: all sensors (8 racks)" in result.output
    counts = expected["outcome"].value_counts()
    told = ", ".join(f"{counts.get(name, 0)} {name}" for name in OUTCOMES)
    *_, outcomes, events, _, fixed = result.output.splitlines()
    assert outcomes == f"model: {told}"
    assert fixed.startswith("fixed thresholds: ")
    assert events.startswith(
        f"model: {expected[col.EVENT_ID].nunique()} of 5 events caught, median lead"
    )
    assert "100 of 100 percent, 0 s left" in (project / "runs" / "hvs.log").read_text()
    result = CliRunner().invoke(main, ["score", str(tmp_path / "none.csv")])
    assert (result.exit_code, "must exist" in result.output) == (1, True)


def test_command_scores_an_address(telemetry, uri, expected, project, tmp_path, bucket):
    half = len(telemetry) // 2
    for number, part in enumerate((telemetry[:half], telemetry[half:])):
        save_telemetry(part, tmp_path / f"{number}.parquet")
        bucket.put(str(tmp_path / f"{number}.parquet"), f"fleet/days/{number}.parquet")
    save_telemetry(telemetry, tmp_path / "t.parquet")
    for place, name in [("s3://fleet/days", "far.csv"), (tmp_path / "t.parquet", "near.csv")]:
        call = ["score", str(place), "--output", str(tmp_path / name)]
        result = CliRunner().invoke(main, call)
        assert result.exit_code == 0, result.output
        assert f"{name}: {len(expected)} by model" in result.output
        assert "secretofthetest" not in result.output
    assert (tmp_path / "far.csv").read_bytes() == (tmp_path / "near.csv").read_bytes()


def test_command_scores_an_export_through_a_map(telemetry, uri, expected, project, tmp_path):
    exported = telemetry.rename(columns={col.RACK: "rack"})
    save_telemetry(exported, tmp_path / "t.parquet")
    (tmp_path / "map.yaml").write_text("Rack_ID: rack\n")
    call = ["score", str(tmp_path / "t.parquet"), "--output", str(tmp_path / "alarms.csv")]
    refused = CliRunner().invoke(main, call)
    assert (refused.exit_code, "did you mean 'rack'?" in refused.output) == (1, True)
    result = CliRunner().invoke(main, [*call, "--columns", str(tmp_path / "map.yaml")])
    assert result.exit_code == 0, result.output
    assert f": {len(expected)} by model" in result.output


def test_without_a_champion_the_way_to_one_is_said(store):
    result = CliRunner().invoke(main, ["score", "t.parquet"])
    assert result.exit_code == 1
    assert "there is no model models:/hvs-fire-prediction@champion" in result.output
    assert "`hvs run` trains and registers one" in result.output


def test_without_a_store_the_way_to_one_is_said_and_none_is_made(project, telemetry, registered):
    for command in ("score", "reproduce"):
        result = CliRunner().invoke(main, [command, "any"])
        assert result.exit_code == 1
        assert f"there is no tracking store {project / 'mlflow.db'}: `hvs run`" in result.output
    save_telemetry(telemetry, project / "t.parquet")
    words = ["check", str(project / "t.parquet")]
    assert CliRunner().invoke(main, words).exit_code == 0
    model = next(sqlite_path(registered[1]).parent.rglob("MLmodel")).parent
    words = ["score", words[1], "--model", str(model), "--output", str(project / "alarms.csv")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    nowhere = CliRunner().invoke(main, ["score", words[1], "--model", str(project / "nowhere")])
    assert nowhere.exit_code == 1 and "there is no model" in nowhere.output
    assert "The store is" not in nowhere.output
    assert not (project / "mlflow.db").exists()


def test_served_model_answers_the_same_scores(telemetry, champion, uri, serve):
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", score.CHAMPION_URI]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PATH": path}
    server = serve(lambda port: [*command, port], env=environment)
    rows = build_features(telemetry).iloc[::40]
    body = rows.to_json(orient="split", index=False, double_precision=15)
    request = urllib.request.Request(
        f"{server.address}/invocations",
        data=json.dumps({"dataframe_split": json.loads(body)}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)["predictions"]
    expected = champion.model.predict_proba(rows)
    np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)


def test_telemetry_at_another_rate_and_doubtful_readings_are_told(uri, make_telemetry, tmp_path):
    telemetry = make_telemetry(racks=2, event_racks=(0,), interval_s=60.0)
    telemetry.loc[:59, col.TEMP_MAX] = 327.67
    save_telemetry(telemetry, tmp_path / "t.csv")
    command = ["score", str(tmp_path / "t.csv"), "--output", str(tmp_path / "a.csv")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    told = [line for line in result.output.splitlines() if line.startswith("Warning: ")]
    assert len(told) == 3
    assert "a row every 60 s leaves one reading in windows of 1 min" in told[0]
    assert "trained on a row every 10 s, and this file has one every 60 s" in told[1]
    assert f"{col.TEMP_MAX} in 60 rows (25.00%): 327.67" in told[2]
    kept = CliRunner().invoke(main, [*command, "--keep-fill-values"]).output
    assert "327.67" not in kept


def test_each_rack_is_scored_at_the_threshold_of_its_sensor_set(champion, make_telemetry, tmp_path):
    """A threshold of 0 is always reached, one of 1 never."""
    made = make_telemetry(racks=4, event_racks=(0, 1))
    racks = made[col.RACK].astype(str)
    first, second, third, _ = racks.unique()
    made.loc[racks == first, [col.CO, col.VOC]] = np.nan
    made.loc[racks == second, col.TEMP_AVG] = np.nan
    made.loc[racks == third, col.VOLTAGE] = np.nan
    save_telemetry(made, tmp_path / "t.parquet")
    never = {"threshold": 1.0, "event_recall": 0.9, "lead_time_median_min": 7.0}
    sets = dict.fromkeys(SENSOR_SETS, never) | {"no gas": {"threshold": 0.0}}
    tally = score_file(tmp_path / "t.parquet", tmp_path / "a.csv", replace(champion, sets=sets))
    assert of_model(tmp_path / "a.csv")[col.RACK].unique().tolist() == [first]
    assert tally.sets == {"no gas": 1, NO_SET: 1, "no voltage": 1, "all sensors": 1}
    assert (tally.racks, tally.rows) == (3, len(made) * 3 // 4)
    told = sensor_sets_told(tally.sets, replace(champion, sets=sets))
    assert "sensors: no gas (1 rack); events caught there out of fold: –" in told[0]
    assert any(
        "out of fold: 0.90, median lead 7 min; not used, or absent: voltage" in t for t in told
    )
    assert any("left out" in line and NO_SET in line for line in told)


def test_the_fixed_thresholds_take_every_sensor_that_is_there(champion, make_telemetry):
    """Without H2 the set is "no gas", but 500 ppm of CO are over the limit of a site."""
    made = make_telemetry(racks=2, event_racks=()).assign(**{col.H2: np.nan, col.CO: 500.0})
    alarms = score.score_racks(made.astype({col.CO: "float32"}), champion, "no gas")
    fixed = alarms[alarms["rule"] == "fixed thresholds"]
    assert len(fixed) and (fixed["feature_1"] == col.CO).all()
    np.testing.assert_allclose(fixed["contribution_1"], 5.0)


def test_a_model_without_sensor_sets_and_shares_of_all_rows_are_told(
    champion, make_telemetry, tmp_path
):
    made = make_telemetry(racks=4, event_racks=(0,), rows=80)
    racks = made[col.RACK].astype(str)
    made.loc[racks != racks.iloc[0], [col.TEMP_AVG, col.TEMP_MAX]] = 0.0  # cannot be scored
    made.loc[racks == racks.iloc[0], col.VOC] = np.nan
    save_telemetry(made, tmp_path / "t.parquet")
    tally = score_file(tmp_path / "t.parquet", tmp_path / "a.csv", champion)
    assert any("no threshold for racks with no gas" in warning for warning in tally.warnings)
    assert any("(75.00%)" in warning for warning in tally.warnings)


def test_what_is_absent_does_not_enter_a_score(champion, make_telemetry):
    """H2 alone is no set of gas sensors, so its reading must not matter."""
    made = make_telemetry(racks=2, event_racks=(0,))
    loud = replace(champion, alarm=NEVER_QUIET)
    found = [score.score_racks(made.assign(**{col.H2: np.float32(h2)}), loud, "no gas")["score"]
             for h2 in (1.0, 90.0)]  # fmt: skip
    assert found[0].equals(found[1])


def test_telemetry_without_temperature_is_refused(champion, make_telemetry, tmp_path):
    save_telemetry(ODD["one sensor"](make_telemetry(racks=2)), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=f"readings of both {col.TEMP_AVG} and {col.TEMP_MAX}"):
        score_file(tmp_path / "t.parquet", tmp_path / "a.csv", champion)
    assert not (tmp_path / "a.csv").exists()


def test_limits_are_among_what_raises_a_score(telemetry, champion):
    """What they add to the log-odds, beside the model's features."""
    model = CalibratedClassifier(champion.model.classifier, champion.model.calibrator, 50.0)
    loud = replace(champion, model=model, alarm=NEVER_QUIET)
    alarms = score.score_racks(telemetry, loud, "all sensors")
    top = alarms[[f"feature_{k}" for k in (1, 2, 3)]]
    assert not (top == "fixed limits").to_numpy().any(), "all readings are below their limits"
    hot = telemetry.assign(**{col.TEMP_MAX: np.float32(120.0)})
    alarms = score.score_racks(hot, loud, "all sensors")
    of_model = alarms["rule"] == "model"
    assert (alarms["feature_1"][of_model] == "fixed limits").all()
    np.testing.assert_allclose(alarms["contribution_1"][of_model], 50 * np.log(2.0))
    assert (alarms["feature_1"][~of_model] == col.TEMP_MAX).all()
    np.testing.assert_allclose(alarms["contribution_1"][~of_model], 2.0)


def test_a_score_that_is_terminated_leaves_nothing_behind(uri, telemetry, tmp_path, monkeypatch):
    save_telemetry(telemetry, tmp_path / "t.csv")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(score, "score_racks", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    command = ["score", str(tmp_path / "t.csv"), "--output", str(tmp_path / "a.csv")]
    try:
        result = CliRunner().invoke(main, command)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 143, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
