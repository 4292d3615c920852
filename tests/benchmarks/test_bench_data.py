"""How long the original project's file size takes to load: 64 modules, 6 h, every 10 s."""

import pytest

from hvs_lib import columns as col
from hvs_lib.telemetry.files import save_telemetry
from hvs_lib.telemetry.read import load_telemetry


@pytest.fixture(scope="module", params=["csv", "parquet"])
def original_file(request, tmp_path_factory, make_telemetry):
    telemetry = make_telemetry(racks=8, modules=8, rows=2160, event_racks=(2,), event_ids=False)
    path = tmp_path_factory.mktemp("bench") / f"original.{request.param}"
    save_telemetry(telemetry.drop(columns=col.SITE), path)
    return path


def test_load_original_size(benchmark, original_file):
    loaded = benchmark(load_telemetry, original_file)
    assert len(loaded) == 138_240
