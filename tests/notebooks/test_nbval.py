"""The notebooks of the smoke run, executed again: outputs that are marked come out again.

`make test-outputs` does the same with the committed notebooks, at their defaults.
"""

import shutil
import subprocess
import sys

import pytest
from projects import copy_telemetry, environment_of

from hvs_lib import runner

pytestmark = pytest.mark.slow


def test_marked_outputs_come_out_again(workplace, fleet, tmp_path):
    copy_telemetry(fleet, tmp_path)  # a project of its own, in which nothing is fitted again
    shutil.copytree(workplace.root / "data" / "cache", tmp_path / "data" / "cache")
    executed = sorted(workplace.root.glob("runs/*/*.ipynb"))
    assert [path.stem for path in executed] == list(runner.notebooks())
    options = ["--nbval-lax", "--nbval-cell-timeout=600", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, executed)]
    result = subprocess.run(command, env=environment_of(tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]


def test_enough_outputs_are_compared():
    """A notebook whose outputs are not compared would pass whatever it says."""
    for path in runner.notebooks().values():
        assert path.read_text(encoding="utf-8").count('"nbval-check-output"') >= 1, path.name
