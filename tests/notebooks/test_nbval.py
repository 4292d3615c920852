"""The committed notebooks, executed at their defaults: outputs that are marked come out again."""

import subprocess
import sys

from hvs_lib import runner

import pytest
from projects import environment_of

pytestmark = pytest.mark.slow


def test_committed_outputs_come_out_again(tmp_path):
    options = ["--nbval-lax", "--nbval-cell-timeout=1200", "-q", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *map(str, runner.notebooks().values())]
    # in a project of its own, so with a fleet and a store of its own
    result = subprocess.run(command, env=environment_of(tmp_path), capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-5000:]


def test_enough_outputs_are_compared():
    """A notebook whose outputs are not compared would pass whatever it says."""
    for path in runner.notebooks().values():
        assert path.read_text(encoding="utf-8").count('"nbval-check-output"') >= 1, path.name
