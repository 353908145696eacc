"""The notebooks of examples/ run from top to bottom in an empty folder, and reach what their text says."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import ddfast

ROOT = Path(ddfast.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SECONDS = 900  # of a cell, on a machine that runs other tests too; alone a whole notebook takes one to two minutes
CHECKS = {  # the last cell, run after those of the notebook
    "1-first-distillation": """
assert result.accuracy["distilled"]["mean"] > result.accuracy["random_real"]["mean"] + 10
assert accuracy > 0.8 and not result.useless
""",
    "2-your-own-photographs": """
assert classes == [str(k) for k in range(10)] and len(data.test_labels) > 150
assert derived and tuple(result.synthetic.images.shape) == (10, 1, 16, 16)
assert result.accuracy["distilled"]["mean"] > result.accuracy["random_real"]["mean"] + 5
""",
    "3-your-own-network-and-loss": """
assert difference < 1e-4 and history[-1] < 0.5 * history[0]
assert distilled.mean > random_real.mean + 5
assert torch.equal(ddfast.SyntheticSet.load("runs/own/synthetic").images, images.detach())
""",
    "4-a-new-method": """
assert same and result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
assert result.accuracy["distilled"]["mean"] > result.accuracy["random_real"]["mean"]
""",
    "5-reading-the-numbers": """
assert len(evaluations) == 5 and on_test["mean"] >= last["mean"]
assert max(draws) - min(draws) > 5 and all(both[0] > both[1] for both in table.values())
assert difference > error > 0
""",
}


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_a_check():
    assert [path.stem for path in NOTEBOOKS] == sorted(CHECKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None


def test_the_method_has_at_most_forty_lines():
    cells = code_cells(nbformat.read(ROOT / "examples" / "4-a-new-method.ipynb", as_version=4))
    (method,) = [cell.source for cell in cells if "@register" in cell.source]
    assert len(method.splitlines()) <= 40


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_an_empty_folder(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # not the user's settings
    work = tmp_path / "work"
    work.mkdir()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[path.stem]))
    resources = {"metadata": {"path": str(work)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources).execute()
