"""The oracles of the benchmark: what they know, and that the script runs."""

import pytest
from click.testing import CliRunner

from hvs_lib import columns as col
from hvs_lib.simulator.fleet import simulate_site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def oracle(load_benchmark):
    return load_benchmark("oracle")


@pytest.mark.parametrize("battery", ["module", "pack"])
def test_hidden_state_has_no_gap_and_shows_the_hottest_cell(oracle, battery):
    seen, hottest = {}, {}
    for name, instruments in oracle.INSTRUMENTS.items():
        with instruments():
            seen[name], _ = simulate_site(0, 6.0, 42, battery)
        in_window = seen[name][seen[name][col.LABEL] == 1]
        hottest[name] = in_window.groupby(col.EVENT_ID, observed=True)[col.TEMP_MAX].max()
    assert not seen["the hidden state"][col.SENSORS].isna().to_numpy().any()
    assert seen["as installed"][col.SENSORS].isna().to_numpy().any()
    shown = [hottest[name].mean() for name in oracle.INSTRUMENTS]
    assert len(hottest["as installed"]) > 1 and shown[0] < shown[1] < shown[2]
    for name, other in seen.items():  # the events are the same
        assert other[col.LABEL].equals(seen["as installed"][col.LABEL]), name


def test_table_names_all_oracles(oracle):
    sites = {"--sites": 3, "--fresh-sites": 2, "--fresh-seed": 1}
    found = CliRunner().invoke(oracle.main, [f"{name}={n}" for name, n in sites.items()])
    assert found.exit_code == 0, found.output
    header, *rows = found.output.splitlines()
    names = ["fixed thresholds", *oracle.INSTRUMENTS, "each fault is known from its onset"]
    assert "0.1 a day" in header
    assert [row.startswith(name) for row, name in zip(rows, names, strict=False)] == [True] * 5
    assert rows[4].count("1.00 [") == 5  # budgets
