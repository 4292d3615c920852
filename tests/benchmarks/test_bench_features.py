"""Rows per second of the features, beside a plain pandas rolling in the same run.

Both should grow with the rows, and the features not with the rows of a window (1 s against 10 s).
"""

import numpy as np
import pandas as pd
import pytest

from hvs_lib import columns as col
from hvs_lib import features
from hvs_lib.features import build_features, feature_names

ROWS = 34_560  # 2 racks of 8 modules for 6 hours of 10 s
MODULE_KEYS = [col.SITE, col.RACK, col.MODULE]


def synthetic_telemetry(scale, step_s=10, rows_per_module=2160):
    """Return `scale` times `ROWS` rows of noise."""
    n = scale * ROWS
    rng = np.random.default_rng(0)
    module = np.arange(n) // rows_per_module
    times = (np.arange(n) % rows_per_module * step_s * 1_000_000).astype("timedelta64[us]")
    ids = {
        col.SITE: pd.Categorical.from_codes(np.zeros(n, dtype=int), ["Site01"]),
        col.RACK: pd.Categorical.from_codes(module // 8, [f"R{k:03d}" for k in range(16)]),
        col.MODULE: pd.Categorical.from_codes(module, [f"M{k:03d}" for k in range(128)]),
    }
    sensors = {c: rng.normal(25.0, 1.0, n).astype(np.float32) for c in col.SENSORS}
    return pd.DataFrame(
        {col.TIMESTAMP: np.datetime64("2024-03-01", "us") + times, **ids, **sensors}
    )


def plain_rolling(telemetry):
    """Return the means and deviations only, which is about half of the features."""
    grouped = telemetry.groupby(MODULE_KEYS, observed=True, sort=False)
    rolling = [grouped.rolling(f"{w}min", on=col.TIMESTAMP) for w in features.WINDOWS_MIN]
    return pd.concat([f for r in rolling for f in (r[col.SENSORS].mean(), r[col.SENSORS].std())])


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("compute", [build_features, plain_rolling])
def test_rows(benchmark, compute, scale):
    telemetry = synthetic_telemetry(scale)
    benchmark.group = f"{len(telemetry):,} rows, 10 s"
    result = benchmark.pedantic(compute, args=(telemetry,), rounds=3, warmup_rounds=1)
    benchmark.extra_info["rows_per_second"] = round(len(telemetry) / benchmark.stats["min"])
    assert len(result) == len(telemetry) * (1 if compute is build_features else 6)


@pytest.mark.parametrize("step_s", [1, 10, 30])
def test_sampling(benchmark, step_s):
    telemetry = synthetic_telemetry(4, step_s)
    benchmark.group = f"{len(telemetry):,} rows, any sampling"
    X = benchmark.pedantic(build_features, args=(telemetry,), rounds=3, warmup_rounds=1)
    benchmark.extra_info["rows_per_second"] = round(len(telemetry) / benchmark.stats["min"])
    assert X.shape == (len(telemetry), len(feature_names()))
