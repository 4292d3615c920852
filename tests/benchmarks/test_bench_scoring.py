"""Raw telemetry in, alarms out, on one core."""

import pandas as pd
import pytest
from xgboost import XGBClassifier

from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.calibration import CalibratedClassifier
from hvs_lib.features import build_features
from hvs_lib.models import XGBOOST_BY_HAND, make_pipeline
from hvs_lib.score import Champion, score_file
from hvs_lib.telemetry.files import save_telemetry
from hvs_lib.telemetry.fleet import load_fleet


@pytest.fixture(scope="module")
def fleet():
    return load_fleet(sites=8, seed=42)


@pytest.fixture(scope="module")
def path(fleet, tmp_path_factory):
    """Write all sites to one file."""
    path = tmp_path_factory.mktemp("bench") / "eight_sites.parquet"
    sites = [fleet.telemetry(site).astype(fleet.rows.dtypes) for site in range(8)]
    save_telemetry(pd.concat(sites), path)
    return path


@pytest.fixture(scope="module")
def champion(fleet):
    telemetry = fleet.telemetry(0)
    classifier = XGBClassifier(**XGBOOST_BY_HAND, n_jobs=1)
    pipeline = make_pipeline(classifier).fit(build_features(telemetry), telemetry["Hazard_Label"])
    alarm = Alarm(AlarmRule(), 0.9)
    return Champion(CalibratedClassifier(pipeline, None), alarm, intervals_s=(10.0, 10.0))


def test_score_file(benchmark, path, champion, tmp_path):
    tally = benchmark(score_file, path, tmp_path / "alarms.csv", champion)
    benchmark.extra_info["rows"] = tally.rows
    benchmark.extra_info["rows per second"] = round(tally.rows / benchmark.stats.stats.min)
    print(f"{tally.rows / benchmark.stats['min']:,.0f} rows/s")
