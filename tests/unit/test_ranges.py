"""How far telemetry lies outside the range of a model's training."""

import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.evaluation.ranges import (
    count_outside,
    outside_by_sensor,
    ranges_from_json,
    ranges_to_json,
)
from hvs_lib.features import build_features


def test_ranges_by_hand_and_as_json():
    X = pd.DataFrame({"a": np.arange(1001, dtype=np.float32), "b": np.float32(np.nan)})
    text = ranges_to_json(X)
    assert "NaN" not in text
    ranges = ranges_from_json(text)
    assert ranges.loc["a"].tolist() == [1.0, 999.0]
    assert ranges.loc["b"].isna().all()
    assert ranges_from_json("{}").empty


def test_a_feature_never_seen_is_outside_and_a_constant_one_is_not():
    """0.1 has no exact value, and is not the same in four and in eight bytes."""
    X = pd.DataFrame({"a": np.full(9, 0.1, np.float32), "b": np.float32(np.nan)})
    other = X.assign(b=np.float32(1))
    before = other.copy()
    counts = count_outside(other, ranges_from_json(ranges_to_json(X)))
    assert counts.loc["a"].tolist() == [0, 0, 9]
    assert counts.loc["b"].tolist() == [0, 9, 9]
    pd.testing.assert_frame_equal(other, before)


def test_two_in_a_thousand_training_rows_lie_outside_and_the_worst_feature_is_named(make_telemetry):
    X = build_features(make_telemetry(rows=600))
    ranges = ranges_from_json(ranges_to_json(X))
    assert outside_by_sensor(count_outside(X, ranges))["outside"].between(0, 0.0025).all()
    warmer = X.copy()
    warmer[f"{col.TEMP_MAX}__vs_rack__mean_5min"] += 100
    found = outside_by_sensor(count_outside(warmer, ranges))
    assert found.index[0] == f"{col.TEMP_MAX}__vs_rack", "not the sensor, whose name it begins with"
    assert found["feature"].iloc[0] == f"{col.TEMP_MAX}__vs_rack__mean_5min"
    assert found["above"].iloc[0] == 1
    assert found["outside"].iloc[1:].max() < 0.0025
