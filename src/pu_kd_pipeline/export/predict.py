"""Print the class of image files: `python predict.py FILE ...`. Reads the files next to it.

Needs onnxruntime, numpy and Pillow. `--int8` before the files uses the int8 model.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent


def read_pixels(file: str, about: dict[str, Any]) -> np.ndarray:
    """Return the (1, H, W, C) uint8 pixels of an image file, as the student learned from them."""
    opened = Image.open(file)
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16-bit gray: the high byte
        values = np.asarray(image)
        if opened.format == "TIFF" or values.max() < 256:
            raise ValueError("it is not known which value is white: convert it to 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels: convert it to 8 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    image = image.convert(about["mode"])
    size, shorter = about["size_px"], about["shorter_side_px"]
    width, height = size, size
    if shorter is not None:
        width, height = (int(shorter * side / min(image.size)) for side in image.size)
    image = image.resize((width, height), Image.Resampling[about["interpolation"].upper()])
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    return np.asarray(image).reshape(1, size, size, about["channels"])


def main(arguments: list[str]) -> None:
    """Print a line per file: its name, its class, and the probability of that class."""
    about = json.loads((HERE / "preprocessing.json").read_text(encoding="utf-8"))
    model = "student.onnx"
    if arguments[:1] == ["--int8"]:
        model = "student_int8.onnx"
        arguments = arguments[1:]
    session = onnxruntime.InferenceSession(str(HERE / model), providers=["CPUExecutionProvider"])
    for file in arguments:
        try:
            pixels = read_pixels(file, about)
        except Exception as error:  # a damaged file makes Pillow raise nearly anything
            print(f"{file}\tcannot be read: {error}")
            continue
        [probabilities] = session.run(["probabilities"], {"pixels": pixels})[0]
        best = probabilities.argmax()
        print(f"{file}\t{about['classes'][best]}\t{probabilities[best]:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
