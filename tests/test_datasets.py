"""The catalog's figures: pictures on disk, which kedro-viz shows."""

from __future__ import annotations

import base64
import inspect
import io

import pandas as pd
import pytest
from kedro.io.core import DatasetError
from matplotlib.figure import Figure
from PIL import Image

from pu_kd_pipeline.datasets import (
    CheckpointsDataset,
    FigureDataset,
    OptionalJSONDataset,
    OptionalTableDataset,
    TableDataset,
)


@pytest.fixture
def figure() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    return figure


def test_a_figure_is_saved_in_the_format_of_its_suffix_with_the_arguments_of_the_catalog(
    figure, tmp_path
):
    picture = tmp_path / "new" / "curve.png"
    drawing = tmp_path / "curve.svg"
    FigureDataset(filepath=str(picture), save_args={"dpi": 30}).save(figure)
    FigureDataset(filepath=str(drawing)).save(figure)

    assert Image.open(picture).size == (60, 30)
    assert "<svg" in drawing.read_text()

    expected = io.BytesIO()
    figure.savefig(expected, dpi=30)

    assert picture.read_bytes() == expected.getvalue()


def test_a_figure_that_cannot_be_drawn_leaves_the_last_picture(figure, tmp_path):
    dataset = FigureDataset(filepath=str(tmp_path / "curve.png"))

    assert not dataset.exists()

    dataset.save(figure)
    before = dataset.filepath.read_bytes()
    figure.axes[0].set_title("$unfinished_{$")

    with pytest.raises(DatasetError, match="unfinished"):
        dataset.save(figure)
    # No temporary file is left either.
    assert list(tmp_path.iterdir()) == [dataset.filepath]
    assert dataset.filepath.read_bytes() == before


def test_a_picture_cannot_be_loaded_as_a_figure(figure, tmp_path):
    dataset = FigureDataset(filepath=str(tmp_path / "curve.png"))
    dataset.save(figure)

    with pytest.raises(
        DatasetError, match=r"curve\.png is a picture and cannot be loaded as a figure again"
    ):
        dataset.load()


def test_kedro_viz_gets_the_picture(figure, tmp_path):
    dataset = FigureDataset(filepath=str(tmp_path / "curve.png"))
    dataset.save(figure)

    assert base64.b64decode(dataset.preview()) == dataset.filepath.read_bytes()

    # kedro-viz recognizes a preview by this annotation.
    signature = inspect.signature(dataset.preview)

    assert signature.return_annotation == "ImagePreview"


def test_the_checkpoint_dataset_names_its_folder_and_cannot_be_saved(tmp_path):
    dataset = CheckpointsDataset(filepath=str(tmp_path / "checkpoints"), every_s=30)

    assert dataset.load() == tmp_path / "checkpoints"
    assert dataset.every_s == 30
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="is not written by any node"):
        dataset.save("anything")


def test_an_optional_file_is_none_until_it_is_there_and_must_be_json(tmp_path):
    dataset = OptionalJSONDataset(filepath=str(tmp_path / "new" / "answers.json"))
    # Kedro refuses a run whose inputs do not exist.
    assert dataset.exists()
    assert dataset.load() is None
    dataset.save({"a": [1, 2.5, "ü"]})
    assert dataset.load() == {"a": [1, 2.5, "ü"]}
    dataset.filepath.write_text("{")
    with pytest.raises(DatasetError, match="answers.json is no JSON .*: delete it"):
        dataset.load()
    dataset.filepath.write_bytes(b"\xff")
    with pytest.raises(DatasetError, match="answers.json is no JSON"):
        dataset.load()


def test_an_optional_table_is_none_until_it_is_there_and_is_not_written(tmp_path):
    path = str(tmp_path / "table.parquet")
    dataset = OptionalTableDataset(filepath=path)
    assert dataset.exists()
    assert dataset.load() is None
    table = pd.DataFrame({"id": ["a"]})
    TableDataset(filepath=path).save(table)
    pd.testing.assert_frame_equal(dataset.load(), table)
    with pytest.raises(DatasetError, match="is written by another catalog entry"):
        dataset.save(table)
