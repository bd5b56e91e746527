"""What the user of an exported student needs to know: pixels, classes, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pu_kd_pipeline.export.graph import LOGITS, PIXELS, PROBABILITIES
from pu_kd_pipeline.models.cards import ModelCard

PREPROCESSING_FILE = "preprocessing.json"
_VERSION = 1
# Where predict.py and the pipeline read a file differently; see `images.pixel_formats`.
_DIFFERENCES = (
    "The pipeline refuses color images of 16 bits without a value above 255, because they may hold "
    "8-bit values; predict.py reads their high bytes, which are black.",
    "predict.py refuses gray TIFF files of more than 8 bits, of which the pipeline reads some.",
    "Of images too elongated for a center crop, predict.py refuses those that would be resized to "
    "more than Pillow's MAX_IMAGE_PIXELS, and the pipeline more than its max_image_pixels.",
    "predict.py reads every format that Pillow reads; the pipeline reads JPEG, PNG, BMP, WebP, "
    "GIF, TIFF, PPM and AVIF, and refuses images that declare more than its max_image_pixels.",
    "Of a file with damaged metadata, the pipeline ignores the orientation; predict.py may refuse "
    "it.",
)


def preprocessing(card: ModelCard, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that turns an image file into a class, as JSON can hold it.

    Args:
        card: of the student.
        provenance: fingerprints of what it was made from.
    """
    spec = card.input
    mode = "RGB" if spec.channels == 3 else "L"
    return {
        "version": _VERSION,
        "classes": list(card.classes),
        # Read by predict.py, with Pillow's names.
        "mode": mode,
        "channels": spec.channels,
        "size_px": spec.size_px,
        "shorter_side_px": spec.shorter_side_px,
        "interpolation": spec.interpolation,
        "before_the_graph": _steps(card),
        "input": {
            "name": PIXELS,
            "dtype": "uint8",
            "layout": "NHWC",
            "shape": ["batch", spec.size_px, spec.size_px, spec.channels],
            "colors": "red, green, blue" if mode == "RGB" else "gray",
        },
        "inside_the_graph": {
            "channel_order": spec.channel_order,
            "value_range": list(spec.value_range),
            "mean": list(spec.mean),
            "std": list(spec.std),
            "formula": "(pixel * (high - low) / 255 + low - mean) / std, with [low, high] = "
            "value_range, in the network's channel_order",
        },
        "outputs": {
            LOGITS: ["batch", len(card.classes)],
            PROBABILITIES: ["batch", len(card.classes)],
        },
        # For student.safetensors, which holds the weights of the network alone.
        "network": {
            "architecture": card.architecture,
            "options": dict(card.architecture_options),
            "input": "float32 NCHW, after the formula of inside_the_graph",
            "output": LOGITS,
        },
        "predict_py_differs": list(_DIFFERENCES),
        "provenance": dict(provenance),
    }


def _steps(card: ModelCard) -> list[str]:
    """Return what happens to an image file in front of the graph, in order."""
    spec = card.input
    size = f"{spec.size_px} x {spec.size_px} px"
    steps = [
        "Turn the image as its EXIF orientation says; of an animation, take the first frame.",
        "Reduce 16-bit values to their high byte.",
        "Put transparent images on white (of 16-bit gray, ignore the transparency).",
        "Convert to RGB." if spec.channels == 3 else "Convert to gray (mode L of Pillow).",
    ]
    if spec.shorter_side_px is None:
        steps.append(
            f"Resize to {size}, whatever the shape, with Pillow's antialiased filter "
            f"{spec.interpolation}."
        )
    else:
        steps += [
            f"Resize so that the shorter side is {spec.shorter_side_px} px and the longer one "
            f"rounded down, with Pillow's antialiased filter {spec.interpolation}.",
            f"Cut out the center of {size}; halves of pixels are rounded to even.",
        ]
    return steps
