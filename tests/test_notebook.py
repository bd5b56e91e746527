"""The notebook about a finished run: it runs from top to bottom, and has no outputs in git."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "tour.ipynb"


@pytest.fixture(scope="module")
def run_folder(request: pytest.FixtureRequest) -> Path:
    """The data folder of a finished run: PU_KD_NOTEBOOK_DATA, or else that of `finished_run`."""
    folder = os.environ.get("PU_KD_NOTEBOOK_DATA")
    if folder:
        return Path(folder).resolve()
    return request.getfixturevalue("finished_run")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = code_cells(nbformat.read(NOTEBOOK, as_version=4))

    assert cells

    for cell in cells:
        assert not cell.outputs
        assert cell.execution_count is None


@pytest.mark.xdist_group("finished_run")
def test_the_notebook_shows_a_finished_run(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PU_KD_RUN", str(run_folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Relative paths in the notebook start from its own folder, as in Jupyter.
    resources = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    n_figures = 0
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            n_figures += "image/png" in data
            texts.append(data.get("text/plain", ""))

    assert n_figures == 4

    printed = " ".join(texts)

    assert "agreement with the teacher" in printed
    assert "pool images selected" in printed
    assert "'rule'" in printed
    assert "size_px" in printed
    assert "Name: probability" in printed
