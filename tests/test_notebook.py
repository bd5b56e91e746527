"""The notebooks about a finished run: they run from top to bottom, and have no outputs in git."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
# What the outputs of each notebook have, as text, and its number of figures.
SHOWN = {
    "tour": (
        4,
        (
            "agreement with the teacher",
            "pool images selected",
            "'rule'",
            "size_px",
            "Name: probability",
        ),
    ),
    "choosing_a_rule": (1, ("related, drawn", "nnpu", "mixture", "agreement")),
    "adding_an_objective": (0, ("all hold", "reverse_kd", "robust_kd", "Name: agreement")),
}


@pytest.fixture(scope="module")
def run_folder(request: pytest.FixtureRequest) -> Path:
    """The data folder of a finished run: PU_KD_NOTEBOOK_DATA, or else that of `finished_run`."""
    folder = os.environ.get("PU_KD_NOTEBOOK_DATA")
    if folder:
        return Path(folder).resolve()
    return request.getfixturevalue("finished_run")


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_are_committed_without_outputs(name: str) -> None:
    cells = code_cells(nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4))

    assert cells

    for cell in cells:
        assert not cell.outputs
        assert cell.execution_count is None


@pytest.mark.xdist_group("finished_run")
@pytest.mark.parametrize("name", SHOWN)
def test_notebooks_show_a_finished_run(
    name: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PU_KD_RUN", str(run_folder))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    # Relative paths in the notebook start from its own folder, as in Jupyter.
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    NotebookClient(notebook, timeout=120, resources=resources).execute()
    n_figures = 0
    texts = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            n_figures += "image/png" in data
            texts.append(data.get("text/plain", ""))
    n_expected, expected = SHOWN[name]

    assert n_figures == n_expected

    # Colors of a terminal stand between the words that Kedro's log prints.
    printed = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(texts))
    for text in expected:
        assert text in printed
