from hvs_lib import resume
from hvs_lib.resume import fingerprint

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output


@pytest.fixture
def notebook(tmp_path):
    """Return a function that writes a notebook."""

    def write(*sources, text="Why", outputs=()):
        cells = [new_markdown_cell(text)]
        cells += [new_code_cell(source, outputs=list(outputs)) for source in sources]
        path = tmp_path / "05_tiny.ipynb"
        nbformat.write(new_notebook(cells=cells), path)
        return path

    return write


def test_text_and_outputs_do_not_count(notebook):
    first = fingerprint(notebook("a = 1"), {"seed": 1})
    outputs = [new_output("stream", text="1")]
    assert fingerprint(notebook("a = 1", text="Because", outputs=outputs), {"seed": 1}) == first


def test_code_cells_and_parameters_count(notebook):
    path = notebook("a = 1")
    found = {fingerprint(path, {"seed": 1}), fingerprint(path, {"seed": 2})}
    found.add(fingerprint(notebook("a = 2"), {"seed": 1}))
    found.add(fingerprint(notebook("a = 2", "b = 1"), {"seed": 1}))
    assert len(found) == 4


def test_telemetry_counts_by_its_content(notebook, tmp_path):
    path, one, two = notebook("a = 1"), tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("1")
    two.write_text("1")
    first = fingerprint(path, {"data_path": str(one)})
    assert fingerprint(path, {"data_path": str(two)}) == first
    two.write_text("2")
    assert fingerprint(path, {"data_path": str(two)}) != first
    assert fingerprint(path, {"data_path": ""}) != first


@pytest.mark.parametrize("what", ["sources_sha256", "package_versions"])
def test_code_and_packages_count(notebook, monkeypatch, what):
    first = fingerprint(notebook("a = 1"), {})
    monkeypatch.setattr(resume, what, lambda *_: "another")
    assert fingerprint(notebook("a = 1"), {}) != first
