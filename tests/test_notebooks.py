"""Every notebook runs from its first cell to its last, and is committed light and clean."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # it runs for longer than it compiles
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    folder = tmp_path / "notebooks"  # where no run is, so that the notebook trains its own
    folder.mkdir()
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(folder))
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_light_and_its_links_lead_somewhere(path):
    assert path.stat().st_size < 300_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    links = [
        part.split(")")[0]
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for part in cell.source.split("](")[1:]
    ]
    missing = [x for x in links if "://" not in x and not (path.parent / x).exists()]
    assert not missing
    assert not [cell for cell in notebook.cells if "/home/" in str(cell) or "/tmp/" in str(cell)]


def test_there_is_a_notebook():
    assert NOTEBOOKS
