from hvs_lib import columns as col
from hvs_lib.evaluation.audit import audit
from hvs_lib.features import build_features

import numpy as np
import pytest

HONEST = {"rack": 0.6, "row": 0.65}


@pytest.fixture
def telemetry(make_telemetry):
    """Events that the noise nearly hides."""
    telemetry = make_telemetry(racks=8, rows=120, event_racks=(0, 1, 2, 3), look_alike_racks=(4, 5))
    noise = np.random.default_rng(1).normal(0, 6, len(telemetry)).astype(np.float32)
    return telemetry.assign(**{col.TEMP_MAX: telemetry[col.TEMP_MAX] + noise})


def verdicts(telemetry, X, *, cv_pr_auc=HONEST, build=build_features):
    found = audit(telemetry, X, np.arange(len(X)), cv_pr_auc=cv_pr_auc, build=build)
    return found.set_index("check")["verdict"].tolist(), found


def test_sound_telemetry_passes(telemetry):
    found, table = verdicts(telemetry, build_features(telemetry))
    assert found == ["ok", "ok", "ok"]
    assert list(table.columns) == ["check", "found", "limit", "verdict", "meaning"]


def test_a_row_split_that_looks_too_good_is_named(telemetry):
    X = build_features(telemetry)
    assert verdicts(telemetry, X, cv_pr_auc={"rack": 0.6, "row": 0.98})[0][0] == "row split leaks"
    assert len(verdicts(telemetry, X, cv_pr_auc={"rack": 0.6})[0]) == 2, "nothing to compare"


def test_a_planted_copy_of_the_label_is_caught(telemetry):
    X = build_features(telemetry)
    X["planted"] = telemetry[col.LABEL].to_numpy() * 0.01
    found, table = verdicts(telemetry, X, build=lambda t: build_features(t).assign(planted=0.0))
    assert found[1] == "label given away"
    assert "planted" in table["meaning"][1]


def test_a_planted_look_into_the_future_is_caught(telemetry):
    def build(rows):
        modules = rows.groupby(col.KEYS[:3], observed=True)[col.TEMP_AVG]
        centred = modules.transform(lambda t: t.rolling(5, center=True, min_periods=1).mean())
        return build_features(rows).assign(centred=centred.to_numpy())

    found, table = verdicts(telemetry, build(telemetry), build=build)
    assert found == ["ok", "ok", "future used"]
    assert table["meaning"][2] == "they use the future: centred"
    assert table["found"][2] == 1


def test_statistics_of_the_whole_series_are_caught(telemetry):
    def build(rows):
        return build_features(rows).assign(z=(rows[col.VOC] - rows[col.VOC].mean()).to_numpy())

    assert verdicts(telemetry, build(telemetry), build=build)[0][2] == "future used"


def test_the_original_projects_data_would_be_flagged(make_telemetry):
    """One anomaly painted on one module of 64: five sensor columns give it away, none subtly."""
    telemetry = make_telemetry(racks=8, modules=8, rows=60, event_racks=(0,))
    hazard = telemetry[col.LABEL] == 1
    for name, painted in ((col.TEMP_AVG, 40), (col.TEMP_MAX, 45), (col.CO, 200), (col.H2, 150)):
        telemetry.loc[hazard, name] += painted
    found, table = verdicts(telemetry, build_features(telemetry), cv_pr_auc={"row": 1.0})
    assert found[0] == "label given away"
    assert table["found"][0] == 1.0
