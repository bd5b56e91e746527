"""Print the class of image files: `python predict.py FILE ...`. Reads the files next to it.

Needs onnxruntime, numpy and Pillow. `--int8` before the files uses the int8 model.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # no usage data is sent
import onnxruntime

HERE = Path(__file__).resolve().parent
# Modes that Pillow does not convert to all others
FIRST_TO = {"La": "LA", "LAB": "RGB"}
# A line per file, in columns that tabs separate
ESCAPED = str.maketrans({"\t": "\\t", "\n": "\\n", "\r": "\\r"})


def read_pixels(file: str, about: dict[str, Any]) -> np.ndarray:
    """Return the (1, H, W, C) uint8 pixels of an image file, as the student learned from them."""
    opened = Image.open(file)
    if has_wrong_colors(opened):
        raise ValueError("Pillow before 13 reads other colors: convert it to RGB")
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16-bit gray: the high byte
        values = np.asarray(image)
        if opened.format == "TIFF" or values.max() < 256:
            raise ValueError("it is not known which value is white: convert it to 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels: convert it to 8 bits")
    image = image.convert(FIRST_TO.get(image.mode, image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    image = image.convert(about["mode"])
    size, shorter = about["size_px"], about["shorter_side_px"]
    width, height = size, size
    if shorter is not None:
        width, height = (int(shorter * side / min(image.size)) for side in image.size)
        limit = Image.MAX_IMAGE_PIXELS  # None: switched off
        if limit is not None and width * height > max(limit, shorter**2):
            raise ValueError("too elongated for a center crop")
    image = image.resize((width, height), Image.Resampling[about["interpolation"].upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(1, size, size, about["channels"])


def has_wrong_colors(image: Image.Image) -> bool:
    """Return whether a file is an uncompressed TIFF of luma and chroma that is read as RGB."""
    tags = getattr(image, "tag_v2", {})  # of TIFF; 262 is PhotometricInterpretation, 6 YCbCr
    is_raw = any(codec == "raw" for codec, *_ in getattr(image, "tile", ()))
    return bool(tags.get(262) == 6 and image.mode == "RGB" and is_raw)


def open_model(name: str, about: dict[str, Any]) -> onnxruntime.InferenceSession:
    """Return a session of an ONNX file; without that of the described student, exit."""
    file = HERE / name
    if not file.is_file():
        sys.exit(f"{file} is missing: export it, or choose the other model (--int8, or without)")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map.get("student_fingerprint")
    if found != about["provenance"]["student"]:
        sys.exit(f"{file} is not of the student that preprocessing.json describes: export again")
    return session


def classify(file: str, about: dict[str, Any], session: onnxruntime.InferenceSession) -> str:
    """Return the class of a file and its probability, or why there is none."""
    try:
        pixels = read_pixels(file, about)
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        return f"cannot be read: {str(error).translate(ESCAPED)}"
    [probabilities] = session.run(["probabilities"], {"pixels": pixels})[0]
    best = probabilities.argmax()
    if not np.isfinite(probabilities[best]):
        return "the student computes no probabilities for it"
    return f"{about['classes'][best].translate(ESCAPED)}\t{probabilities[best]:.4f}"


def main(arguments: list[str]) -> None:
    """Print a line per file: its name, its class, and the probability of that class."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names need not fit into its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    about = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    model = "student.onnx"
    if arguments[:1] == ["--int8"]:
        model = "student_int8.onnx"
        arguments = arguments[1:]
    session = open_model(model, about)
    for file in arguments:
        print(f"{file.translate(ESCAPED)}\t{classify(file, about, session)}")


if __name__ == "__main__":
    main(sys.argv[1:])
