"""Every notebook runs in fast mode and asserts its claim."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

ROOT = Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "experiments/notebooks").glob("*.py"))


def test_every_package_has_a_notebook():
    names = {path.name.split("_")[0] for path in NOTEBOOKS}
    assert {"sam", "lion", "ntk", "scaling", "in"} <= names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_text_and_claims_something(path):
    notebook = jupytext.read(path)
    kinds = {cell.cell_type for cell in notebook.cells}
    assert kinds == {"code", "markdown"}
    tree = ast.parse(path.read_text())
    assert any(isinstance(node, ast.Assert) for node in ast.walk(tree))
    assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    environment = {**os.environ, "FAST": "1", "MPLBACKEND": "Agg", "JAX_NUM_CPU_DEVICES": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
