"""The rules that every committed notebook keeps, read from its file."""

import ast
import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml

from hvs_lib.report import plots

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [
    "00_data", "01_baseline", "02_tuning", "03_smote", "04_comparison", "05_field_trial",
]  # fmt: skip

MACHINE = re.compile(r"(?<![\w.])/(home|root|tmp|work|Users|opt|usr|var)/")
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")


def test_the_six_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == NAMES


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, 4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_size(path, notebook):
    assert 20 <= len(notebook.cells) <= 35
    assert path.stat().st_size < 500_000
    figures = [output for output in outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(figures) <= 8


def test_opening_and_end(path, notebook):
    first, parameters, imports = notebook.cells[:3]
    assert first.source.startswith(f"# {int(path.stem[:2])}. ")
    assert "?**" in first.source, "the question, in bold"
    assert "parameters" in parameters.metadata.tags
    assert "imports" in imports.metadata.tags
    last_prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"][-1]
    assert "## What we found" in last_prose.source


def test_links_lead_to_notebooks(notebook):
    links = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", "".join(c.source for c in notebook.cells))
    assert links
    assert set(links) <= {path.name for path in NOTEBOOKS}


def test_parameters_are_explained_literals(notebook):
    lines = tagged(notebook, "parameters")[0].source.splitlines()
    assert len(lines) <= 20
    for line in lines:
        assignment = ast.parse(line).body[0]
        ast.literal_eval(assignment.value)
        assert re.search(r"  # \w+", line), f"no comment: {line}"


def test_parameter_files_name_real_parameters():
    known = {
        ast.parse(line).body[0].targets[0].id
        for path in NOTEBOOKS
        for line in tagged(nbformat.read(path, 4), "parameters")[0].source.splitlines()
    }
    for profile in ("smoke", "full"):
        text = (ROOT / "notebooks" / "params" / f"{profile}.yaml").read_text(encoding="utf-8")
        assert set(yaml.safe_load(text)) <= known


def test_shared_parameters_agree():
    """A parameter of several notebooks has one default, or the runs are not comparable."""
    defaults = {}
    for path in NOTEBOOKS:
        for line in tagged(nbformat.read(path, 4), "parameters")[0].source.splitlines():
            assignment = ast.parse(line).body[0]
            value = ast.literal_eval(assignment.value)
            assert defaults.setdefault(assignment.targets[0].id, value) == value


def test_executed_top_to_bottom(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))


def test_outputs_are_clean(path, notebook):
    assert not [output for output in outputs(notebook) if output.output_type == "error"]
    assert not [output for output in outputs(notebook) if output.get("name") == "stderr"]
    text = path.read_text(encoding="utf-8")
    assert not MACHINE.search(text)
    assert not RUN_ID.search(text)
    assert "widgets" not in json.loads(text)["metadata"]
    assert "papermill" not in json.loads(text)["metadata"]


def test_code_keeps_to_the_rules(notebook):
    for cell in code_cells(notebook):
        for forbidden in ("import *", "%run", "sys.path", "pip install", "filterwarnings"):
            assert forbidden not in cell.source
        assert not re.search(r"except\s*:", cell.source)


def test_code_cells_are_short(notebook):
    for cell in code_cells(notebook):
        if not {"imports", "parameters"} & set(cell.metadata.get("tags", [])):
            assert len(cell.source.splitlines()) <= 15, cell.source


def test_functions_that_it_calls_have_an_example(notebook):
    code = ast.parse("\n".join(cell.source for cell in code_cells(notebook)))
    known = {}
    for node in code.body:
        if isinstance(node, ast.ImportFrom) and node.module.startswith("hvs_lib"):
            exec(ast.unparse(node), known)
    called = set()
    for node in ast.walk(code):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                called.add(known.get(name))
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name)):
                called.add(getattr(known.get(module), name, None))
    functions = list(filter(inspect.isfunction, called))
    assert functions
    assert [each.__name__ for each in functions if ">>>" not in each.__doc__] == []


def test_intervals_may_lie_beside_the_estimate():
    """As the bootstrap's of average precision do over few racks."""
    cells = code_cells(nbformat.read(ROOT / "notebooks" / "04_comparison.ipynb", 4))
    (drawn,) = (cell.source for cell in cells if "hlines" in cell.source)
    metrics = ["pr_auc", "event_recall", "event_recall_5min", "event_recall_10min"]
    metrics = [prefix + metric for prefix in ("", "cv_") for metric in metrics]
    ends = {"": 0.5, "_low": 0.6, "_high": 0.7}
    found = {metric + end: value for metric in metrics for end, value in ends.items()}
    space = {"fair": pd.DataFrame([found], ["XGBoost"]), "np": np, "plt": plt, "plots": plots}
    exec(drawn, space | {"mlflow": SimpleNamespace(log_figure=lambda *_: None)})
    plt.close("all")


def test_prose_is_finished(notebook):
    assert not [cell.source for cell in notebook.cells if "{{" in cell.source]
