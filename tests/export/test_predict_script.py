"""predict.py reads the same pixels as the pipeline, also from awkward files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.export.preprocessing import preprocessing
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.params.teacher import InputSpec

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
from pu_kd_pipeline.export.predict import read_pixels

SQUASHED = InputSpec(size_px=9, channels=1, mean=(0.5,), std=(0.5,))
CROPPED = InputSpec(
    size_px=12,
    channels=3,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    resize="crop",
    crop_ratio=0.75,
    interpolation="bicubic",
)
ORIENTATION = 0x0112


def noise(*shape: int, dtype: Any = np.uint8, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(dtype)


def color() -> Image.Image:
    return Image.fromarray(noise(31, 22, 3))


def saved_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    color().save(path, exif=exif)


def saved_with_clear_color(path: Path) -> None:
    color().save(path, transparency=tuple(int(value) for value in noise(31, 22, 3)[0, 0]))


FILES: dict[str, Callable[[Path], None]] = {
    "rgb.png": lambda path: color().save(path),
    "gray.png": lambda path: Image.fromarray(noise(31, 22)).save(path),
    "bilevel.png": lambda path: Image.fromarray(noise(31, 22)).convert("1").save(path),
    "palette.png": lambda path: color().quantize(16).save(path),
    "clear_palette.png": lambda path: color().quantize(16).save(path, transparency=3),
    "clear_color.png": saved_with_clear_color,
    "rgba.png": lambda path: Image.fromarray(noise(31, 22, 4)).save(path),
    "gray_alpha.png": lambda path: Image.fromarray(noise(31, 22, 2), "LA").save(path),
    "gray_16_bits.png": lambda path: Image.fromarray(
        noise(31, 22, dtype=np.uint16, high=65536)
    ).save(path),
    "rotated.jpg": saved_rotated,
    "cmyk.jpg": lambda path: color().convert("CMYK").save(path),
    "animated.gif": lambda path: color().save(
        path, save_all=True, append_images=[Image.new("RGB", (22, 31))]
    ),
    "lossless.webp": lambda path: Image.fromarray(noise(31, 22, 4)).save(path, lossless=True),
    "small.bmp": lambda path: Image.fromarray(noise(2, 3, 3)).save(path),
}
# What the pipeline refuses because it is not known which value is white.
REFUSED: dict[str, Callable[[Path], None]] = {
    "float.tif": lambda path: Image.fromarray(noise(31, 22, dtype=np.float32)).save(path),
    "wide.tif": lambda path: Image.fromarray(noise(31, 22, dtype=np.int32)).save(path),
    "dark_16_bits.png": lambda path: Image.fromarray(noise(31, 22, dtype=np.uint16)).save(path),
    "broken.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20)) and None,
}


def about(spec: InputSpec) -> dict[str, Any]:
    card = ModelCard(architecture="digits_cnn", classes=("a", "b"), input=spec)
    return preprocessing(card, {})


def decoded(path: Path, spec: InputSpec) -> np.ndarray | Unusable:
    decoder = Decoder(spec.channels, spec.size_px, 10**6, spec.shorter_side_px, spec.interpolation)
    return decoder.decode(path.read_bytes())


@pytest.mark.parametrize("spec", [SQUASHED, CROPPED], ids=["squashed gray", "cropped color"])
@pytest.mark.parametrize("name", FILES)
def test_the_script_makes_the_pixels_of_the_pipeline(name, spec, tmp_path):
    path = tmp_path / name
    FILES[name](path)
    expected = decoded(path, spec)
    assert isinstance(expected, np.ndarray), expected
    [pixels] = read_pixels(str(path), about(spec))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels.transpose(2, 0, 1), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_the_script_refuses_what_the_pipeline_refuses(name, tmp_path):
    path = tmp_path / name
    REFUSED[name](path)
    assert isinstance(decoded(path, CROPPED), Unusable)
    with pytest.raises(Exception, match=r"white|floating-point|cannot identify|truncated"):
        read_pixels(str(path), about(CROPPED))
