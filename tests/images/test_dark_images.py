"""Images that look black because of their file format are named."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.images.ingestion import write_store
from tests.images.numbered_images import numbered_store, plan_of


def folder_of_12_bits(folder: Path, n: int, n_bits: int = 12) -> Path:
    """Write images of 12 bits into files of 16 bits."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(n):
        pixels = rng.integers(0, 2**n_bits, (8, 8), dtype=np.uint16)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        (folder / f"i{number:02d}.png").write_bytes(buffer.getvalue())
    return folder


def write(folder: Path) -> None:
    plan = plan_of(folder, source={"type": "folder", "labels": "ignore"})
    write_store(plan, folder.parent / "store")


@pytest.mark.parametrize("n_bits", [10, 12, 14])
def test_a_source_of_fewer_bits_than_its_files_is_reported(
    tmp_path: Path, n_bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    write(folder_of_12_bits(tmp_path / "images", 12, n_bits))
    brightest = (2**n_bits - 1) >> 8
    expected = f"no value of 12 new images is above {brightest} of 255. If their values have 10"
    assert f"data_ingestion.pool: {expected}" in caplog.text


def test_a_few_black_images_are_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of_12_bits(tmp_path / "images", 2)
    Image.new("L", (8, 8), 200).save(folder / "j.png")
    write(folder)
    assert "2 of 3 new images have no value above 15 of 255, such as i00.png" in caplog.text


def test_images_of_the_full_range_are_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbered_store(tmp_path, range(12))
    assert "of 255" not in caplog.text
