"""What the project's own files promise to each other."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from hvs_lib.project import set_environment

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
REQUIRED = PROJECT["dependencies"] + [
    each for extra in ("dev", "dask", "remote") for each in PROJECT["optional-dependencies"][extra]
]

# The order of the flow: files and folders of hvs_lib, each imports only from those before it.
FLOW = [
    "project", "cache", "sqlite_store", "parallel", "progress", "columns", "simulator",
    "telemetry", "features", "external_memory", "models", "samplers", "evaluation", "search",
    "report", "tracking", "score", "trial", "runner", "reproduce", "cli",
]  # fmt: skip


def test_environment_yml_asks_for_the_same_as_pyproject():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    named = [entry for entry in conda if isinstance(entry, str)]
    assert named[0] == "python=3.11"
    assert sorted(set(named) - {"python=3.11", "pip"}) == sorted(REQUIRED)


def test_lock_pins_every_requirement_and_names_no_index():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--" not in text
    pinned = {}
    for line in text.splitlines():
        found = Requirement(line)
        if found.marker is None or found.marker.evaluate({"python_version": "3.11"}):
            pinned[found.name] = next(iter(found.specifier)).version
    for requirement in map(Requirement, REQUIRED):
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


@pytest.mark.parametrize("path", sorted((ROOT / "hvs_lib").rglob("*.py")), ids=lambda p: p.stem)
def test_data_only_moves_down_the_flow(path):
    this = path.relative_to(ROOT / "hvs_lib").with_suffix("").parts[0]
    if this == "__init__":
        return
    for imported in _imports_of_the_library(path) - {this}:
        assert FLOW.index(imported) < FLOW.index(this), f"{this} imports {imported}"


@pytest.mark.slow
def test_the_workbook_may_be_imported_in_any_order():
    """Neighbours looked for in several threads at once would leave another number behind."""
    program = (
        "import logging, numpy, scipy.linalg, sklearn, mlflow, threadpoolctl\n"
        "from hvs_lib import models\n"
        "from hvs_lib.project import set_environment\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "print(logging.getLogger('mlflow').level)\n"
        "set_environment()\n"
        "blas = {info['num_threads'] for info in threadpoolctl.threadpool_info()"
        " if info['user_api'] == 'blas'}\n"
        "print(logging.getLogger('mlflow').level, is_telemetry_disabled(), blas)"
    )
    settings = ("OMP_", "OPENBLAS_", "MKL_", "MLFLOW_", "PYTEST_")
    unset = {k: v for k, v in os.environ.items() if not k.startswith(settings)}
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=unset, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["20", "40 True {1}"]


def test_files_beside_the_code_are_packaged():
    package_data = PYPROJECT["tool"]["setuptools"]["package-data"]
    packaged = {f"{name.replace('.', '/')}/{file}" for name, (file,) in package_data.items()}
    others = [path for ext in ("md", "yaml", "json") for path in ROOT.glob(f"hvs_lib/**/*.{ext}")]
    assert {path.relative_to(ROOT).as_posix() for path in others} == packaged


def test_readme_commands_are_make_targets():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.M))
    assert {"run", "test"} <= named <= targets
    assert "{{" not in readme, "a figure is missing"


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    job = workflow["jobs"]["test"]
    assert {"run": "bash .ci/run"} in job["steps"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def _imports_of_the_library(path: Path) -> set[str]:
    """Name the files and folders of hvs_lib that a file imports from, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hvs_lib"):
            parts = node.module.split(".")
            found.update(parts[1:2] or [alias.name for alias in node.names])
    return found - {"__version__"}


def test_filters_that_threads_mix_up_show_no_deprecation_in_a_package():
    with warnings.catch_warnings(record=True) as told:
        set_environment()
        warnings.simplefilter("always")  # as pandas does for a moment
        for place in ("site-packages", "notebooks"):
            for category in (FutureWarning, DeprecationWarning):
                warnings.warn_explicit(place, category, f"/{place}/code.py", 1)
    shown = [(str(each.message), each.category) for each in told]
    hidden = ("site-packages", DeprecationWarning)
    assert len(shown) == 3 and hidden not in shown


@pytest.mark.parametrize("level", ["", "no level"])
def test_a_log_level_that_is_none_is_left_to_mlflow(monkeypatch, level):
    monkeypatch.setenv("MLFLOW_LOGGING_LEVEL", level)
    set_environment()
