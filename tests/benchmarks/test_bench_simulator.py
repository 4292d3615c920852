"""How fast a fleet is simulated, telemetry table included."""

import pytest

from hvs_lib.simulator.fleet import simulate_fleet


@pytest.mark.parametrize("sites", [1, 8])
def test_bench_simulate_fleet(benchmark, sites):
    simulate_fleet(1, 0.1, 0)  # compile first
    telemetry, _ = benchmark.pedantic(simulate_fleet, (sites, 6.0, 42), rounds=3)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["module_samples_per_s"] = round(len(telemetry) / seconds)
