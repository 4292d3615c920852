import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from hvs_lib import columns as col
from hvs_lib.evaluation.audit import audit, single_feature_average_precision
from hvs_lib.evaluation.protocol import TrainingRows
from hvs_lib.features import build_features

HONEST = {"honest": 0.6, "row": 0.64}


@pytest.fixture
def telemetry(make_telemetry):
    """Events that the noise nearly hides."""
    telemetry = make_telemetry(racks=8, rows=120, event_racks=(0, 1, 2, 3), look_alike_racks=(4, 5))
    noise = np.random.default_rng(1).normal(0, 6, len(telemetry)).astype(np.float32)
    return telemetry.assign(**{col.TEMP_MAX: telemetry[col.TEMP_MAX] + noise})


def training_rows(X, y, weight, *, whole=None):
    """Of one fold, without events."""
    fold, on, lead_min = np.zeros(len(y), np.int8), np.full(len(y), -1), np.full(len(y), np.nan)
    return TrainingRows(X, y, weight, fold, on, lead_min, X if whole is None else whole)


@pytest.fixture
def results(make_fleet, monkeypatch):
    """Return a function that audits telemetry and its features."""

    def found_in(telemetry, X, *, cv_pr_auc=HONEST, build=build_features):
        n = len(X)
        rows = training_rows(X, telemetry[col.LABEL].to_numpy(), np.ones(n))
        monkeypatch.setattr("hvs_lib.evaluation.audit.build_features", build)
        found = audit(make_fleet(telemetry), rows, cv_pr_auc=cv_pr_auc)
        return found.set_index("check")["result"].tolist(), found

    return found_in


def test_sound_telemetry_passes(telemetry, results):
    found, table = results(telemetry, build_features(telemetry))
    assert found == ["ok", "ok", "ok"]
    assert list(table.columns) == ["check", "found", "limit", "result", "meaning"]


@pytest.mark.slow
def test_a_row_split_that_looks_too_good_is_named(telemetry, results):
    X = build_features(telemetry)
    assert results(telemetry, X, cv_pr_auc={"honest": 0.6, "row": 0.98})[0][0] == "row split leaks"
    assert len(results(telemetry, X, cv_pr_auc={"honest": 0.6})[0]) == 2, "nothing to compare"


def test_a_planted_copy_of_the_label_is_caught(telemetry, results):
    X = build_features(telemetry)
    X["planted"] = telemetry[col.LABEL].to_numpy() * 0.01
    found, table = results(telemetry, X, build=lambda t: build_features(t).assign(planted=0.0))
    assert found[1] == "label given away"
    assert "planted" in table["meaning"][1]


def test_a_planted_look_into_the_future_is_caught(telemetry, results):
    def build(rows):
        modules = rows.groupby(col.KEYS[:3], observed=True)[col.TEMP_AVG]
        centred = modules.transform(lambda t: t.rolling(5, center=True, min_periods=1).mean())
        return build_features(rows).assign(centred=centred.to_numpy())

    found, table = results(telemetry, build(telemetry), build=build)
    assert found == ["ok", "ok", "future used"]
    assert table["meaning"][2] == "they use the future: centred"
    assert table["found"][2] == 1


def test_statistics_of_the_whole_series_are_caught(telemetry, results):
    def build(rows):
        return build_features(rows).assign(z=(rows[col.VOC] - rows[col.VOC].mean()).to_numpy())

    assert results(telemetry, build(telemetry), build=build)[0][2] == "future used"


@pytest.mark.slow
def test_the_original_projects_data_would_be_flagged(make_telemetry, results):
    """One anomaly painted on one module of 64: five sensor columns give it away, none subtly."""
    telemetry = make_telemetry(racks=8, modules=8, rows=60, event_racks=(0,))
    hazard = telemetry[col.LABEL] == 1
    for name, painted in ((col.TEMP_AVG, 40), (col.TEMP_MAX, 45), (col.CO, 200), (col.H2, 150)):
        telemetry.loc[hazard, name] += painted
    found, table = results(telemetry, build_features(telemetry), cv_pr_auc={"row": 1.0})
    assert found[0] == "label given away"
    assert table["found"][0] == 1.0


def test_single_features_by_hand():
    y = np.array([0, 0, 1, 1])
    X = pd.DataFrame(
        {
            "rising": [1, 2, 3, 4],
            "falling": [4.0, 3.0, 2.0, 1.0],
            "constant": [7.0] * 4,
            "missing": [np.nan] * 4,
            "known_negatives": [1.0, 2.0, np.nan, np.nan],
        },
        dtype=np.float32,
    )
    expected = {"rising": 1, "falling": 1, "constant": 0.5, "missing": 0.5, "known_negatives": 0.5}
    assert single_feature_average_precision(X, y).to_dict() == expected


values = st.one_of(st.just(np.nan), st.integers(-3, 3).map(float))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(values, st.sampled_from([0, 1])), min_size=2, max_size=40))
def test_single_features_agree_with_scikit_learn(rows):
    x, y = (np.array(part) for part in zip(*rows, strict=True))
    y[0] = 1
    both = [np.where(np.isnan(x), -99, direction * x) for direction in (1, -1)]
    expected = max(average_precision_score(y, score) for score in both)
    found = single_feature_average_precision(pd.DataFrame({"x": x}), y)["x"]
    assert found == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(values, st.sampled_from([0, 1])), min_size=2, max_size=30),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_weighted_single_features_are_those_of_all_rows(rows, strides):
    """A row of weight 3 counts as three rows do."""
    x, y = (np.array(part) for part in zip(*rows, strict=True))
    y[0] = 1
    weight = np.where(y == 1, strides[1], strides[0])
    X = pd.DataFrame({"x": x})
    found = single_feature_average_precision(X, y, weight=weight.astype(float))
    expected = single_feature_average_precision(X.loc[X.index.repeat(weight)], np.repeat(y, weight))
    assert found["x"] == pytest.approx(expected["x"], abs=1e-12)


def test_a_leak_is_caught_where_its_sensor_is_dropped(make_fleet, telemetry):
    """Models are fitted without the sensor on half of the rows; it gives the label away."""
    y = telemetry[col.LABEL].to_numpy()
    whole = build_features(telemetry).assign(**{col.CO: y.astype(np.float32)})
    X = whole.assign(**{col.CO: whole[col.CO].where(np.arange(len(y)) % 2 == 0)})
    rows = training_rows(X, y, np.ones(len(y)), whole=whole)
    found = audit(make_fleet(telemetry), rows, cv_pr_auc={})
    assert found["found"][0] == 1
    assert found["result"][0] == "label given away"


def test_the_audit_weighs_the_training_rows(make_fleet, telemetry):
    X = build_features(telemetry)[[col.TEMP_MAX]]
    y = telemetry[col.LABEL].to_numpy()
    fleet = make_fleet(telemetry)
    found = [
        audit(fleet, training_rows(X, y, np.where(y == 1, 1.0, each)), cv_pr_auc={})
        for each in (1.0, 100.0)
    ]
    assert found[0]["found"][0] > 3 * found[1]["found"][0]


def test_single_features_refuse():
    X = pd.DataFrame({"x": [1.0, 2.0]})
    for y in ([0, 0], [1, 2]):
        with pytest.raises(ValueError, match=r"y must be 0 or 1 with at least one 1, got \["):
            single_feature_average_precision(X, y)
