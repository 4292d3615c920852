"""What the project's own files promise to each other."""

import ast
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIRED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]

# The order of the flow: a module imports only from those before it.
FLOW = [
    ["project"], ["sqlite_store"], ["progress"], ["columns"], ["simulator"],
    ["data.files"], ["data.codes"], ["data.quality"], ["data.reading"], ["data.conversion"],
    ["data.schema"],
    ["data.loading"], ["data.streaming"], ["data.summary"], ["data.saving"],
    ["data.simulated"], ["data"],
    ["features"], ["splits"], ["models"], ["samplers"], ["scores"],
    ["alarms"], ["metrics"], ["calibration"], ["protocol"], ["search"], ["champion"], ["audit"],
    ["model_files"],
    ["report"], ["card"], ["plots"],
    ["tracking.store"], ["tracking.contents"], ["tracking.children"], ["tracking.comparison"],
    ["tracking.executions"], ["tracking.notebook_run"], ["tracking.registry"], ["tracking"],
    ["resume"], ["scoring"], ["runner"], ["reproduction"], ["cli"],
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
    order = {name: place for place, names in enumerate(FLOW) for name in names}
    this = _name(path.relative_to(ROOT / "hvs_lib").with_suffix("").parts)
    if this == "__init__":
        return
    for imported in _imports_of_the_library(path):
        if imported != this:
            assert order[imported] < order[this], f"{this} imports {imported}"


def test_readme_commands_are_make_targets():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", readme, re.M))
    assert {"run", "test"} <= named <= targets
    assert "{{" not in readme, "a figure is missing"


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ".ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def _imports_of_the_library(path: Path) -> set[str]:
    """Name the modules of hvs_lib that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hvs_lib"):
            parts = node.module.split(".")
            names = [_name(parts[1:])] if len(parts) > 1 else [alias.name for alias in node.names]
            found.update(name for name in names if name != "__version__")
    return found


def _name(parts: Sequence[str]) -> str:
    """Return a module as FLOW names it: with its package if the flow goes through that."""
    full = ".".join(parts[:2])
    return full if [full] in FLOW else parts[0]
