"""The tour of a finished run: it runs from top to bottom, and is committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "tour.ipynb"


@pytest.fixture(scope="module")
def run_folder(request: pytest.FixtureRequest) -> Path:
    """The data folder of a finished run: the one that PU_KD_NOTEBOOK_DATA names, or that of the tests' own run."""
    named = os.environ.get("PU_KD_NOTEBOOK_DATA")
    return Path(named).resolve() if named else request.getfixturevalue("finished_run")


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = [
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.xdist_group("finished_run")
def test_the_notebook_tours_a_finished_run(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PU_KD_RUN", str(run_folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    outputs = [
        output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    ]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    said = " ".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    for name in (
        "agreement with the teacher",
        "pool images selected",
        "'rule'",
        "size_px",
        "Name: probability",
    ):
        assert name in said
