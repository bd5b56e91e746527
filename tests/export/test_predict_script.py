"""predict.py reads the same pixels as the pipeline, also from awkward files."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pu_kd_pipeline.export.preprocessing import preprocessing
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.params.teacher import InputSpec

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
from pu_kd_pipeline.export import predict
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


def color_tiff(photometric: int, n_bits: int) -> bytes:
    """Return an uncompressed TIFF of three values per pixel, which Pillow cannot write itself."""
    height, width = 31, 22
    pixels = noise(height, width, 3, dtype=f"<u{n_bits // 8}", high=2**n_bits).tobytes()
    n_tags = 9
    extra = 8 + 2 + 12 * n_tags + 4  # where the values that do not fit into a tag are
    tags = [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, extra),  # bits per sample
        (259, 3, 1, 1),  # uncompressed
        (262, 3, 1, photometric),
        (273, 4, 1, extra + 6),  # where the pixels are
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, len(pixels)),
    ]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    bits = struct.pack("<HHH", n_bits, n_bits, n_bits)
    directory = struct.pack("<H", n_tags) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + bits + pixels


FILES: dict[str, Callable[[Path], object]] = {
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
    "color_16_bits.tif": lambda path: path.write_bytes(color_tiff(2, 16)),
    "lab.tif": lambda path: path.write_bytes(color_tiff(8, 8)),
    "inverted.tif": lambda path: Image.fromarray(noise(31, 22)).save(path, tiffinfo={262: 0}),
    "rgba.tif": lambda path: Image.fromarray(noise(31, 22, 4)).save(path),
    "small.bmp": lambda path: Image.fromarray(noise(2, 3, 3)).save(path),
}
# What the pipeline refuses, mostly because it is not known which value is white.
REFUSED: dict[str, Callable[[Path], None]] = {
    "float.tif": lambda path: Image.fromarray(noise(31, 22, dtype=np.float32)).save(path),
    "wide.tif": lambda path: Image.fromarray(noise(31, 22, dtype=np.int32)).save(path),
    "signed_16_bits.tif": lambda path: Image.fromarray(
        noise(31, 22, dtype=np.uint16, high=65536)
    ).save(path, tiffinfo={339: 2}),
    "line.png": lambda path: Image.new("L", (1, 10**6)).save(path),
    "dark_16_bits.png": lambda path: Image.fromarray(noise(31, 22, dtype=np.uint16)).save(path),
    "broken.png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20)) and None,
}
REFUSALS = "white|floating-point|cannot identify|truncated|elongated"


def about(spec: InputSpec) -> dict[str, Any]:
    card = ModelCard(architecture="digits_cnn", classes=("a", "b"), input=spec)
    return preprocessing(card, {"student": "one"})


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
    with pytest.raises(
        Exception, match=r"white|floating-point|cannot identify|truncated|elongated"
    ):
        read_pixels(str(path), about(CROPPED))


def test_luma_and_chroma_are_not_taken_for_colors():
    # As Pillow before 13 opens an uncompressed TIFF of them; later ones have the mode YCbCr.
    opened = SimpleNamespace(mode="RGB", tag_v2={262: 6}, tile=[("raw", (0, 0, 22, 31), 0, "")])
    assert predict.has_wrong_colors(opened)
    opened.tag_v2 = {262: 2}
    assert not predict.has_wrong_colors(opened)


def written_student(folder: Path, fingerprint: str, bias: float = 0.0) -> None:
    """Write the script with a model that gives the class "a\tü" to dark gray images."""
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    helper = onnx.helper
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=float32),
        helper.make_node("ReduceMax", ["floats"], ["highest"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["highest", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "one"], ["column"]),
        helper.make_node("Add", ["column", "answer"], ["probabilities"]),
    ]
    values = [
        onnx.numpy_helper.from_array(np.float32(0), "zero"),
        onnx.numpy_helper.from_array(np.array([1]), "one"),
        onnx.numpy_helper.from_array(np.array([[0.75, 0.25]], np.float32) + bias, "answer"),
    ]
    pixels = helper.make_tensor_value_info("pixels", uint8, [None, 9, 9, 1])
    found = helper.make_tensor_value_info("probabilities", float32, [None, 2])
    graph = helper.make_graph(nodes, "student", [pixels], [found], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"student_fingerprint": fingerprint})
    onnx.save(model, folder / "student.onnx")
    facts = {**about(SQUASHED), "classes": ["a\tü", "b"]}
    (folder / "preprocessing.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "predict.py").write_text(Path(predict.__file__).read_text())


def run_script(
    folder: Path, *arguments: bytes | str, encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "predict.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        encoding=encoding,
        check=False,
    )


def test_awkward_names_take_a_line_each_in_any_encoding(tmp_path):
    written_student(tmp_path, "one")
    names = [b"tab\tand\nline.png", b"caf\xe9.png", b"last.png"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            color().save(file, "PNG")
    result = run_script(tmp_path, *names, b"mis\tsing.png", encoding="ascii")
    assert result.returncode == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[:3] == [
        ["tab\\tand\\nline.png", "a\\t\\xfc", "0.7500"],
        ["caf\\udce9.png", "a\\t\\xfc", "0.7500"],
        ["last.png", "a\\t\\xfc", "0.7500"],
    ]
    assert lines[3][0] == "mis\\tsing.png"
    assert lines[3][1].startswith("cannot be read")


def test_a_missing_or_foreign_model_is_named_without_a_traceback(tmp_path):
    written_student(tmp_path, "another")
    foreign = run_script(tmp_path, "last.png")
    assert foreign.returncode == 1
    assert "student.onnx is not of the student that preprocessing.json describes" in foreign.stderr
    missing = run_script(tmp_path, "--int8", "last.png")
    assert missing.returncode == 1
    assert "student_int8.onnx is missing" in missing.stderr
    assert "Traceback" not in foreign.stderr + missing.stderr

    written_student(tmp_path, "one", np.nan)
    color().save(tmp_path / "last.png")
    nothing = run_script(tmp_path, "last.png")
    assert nothing.stdout == "last.png\tthe student computes no probabilities for it\n"
