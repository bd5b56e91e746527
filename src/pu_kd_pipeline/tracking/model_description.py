"""What an MLflow model says about itself to whoever did not make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.reporting.markdown import markdown_text
from pu_kd_pipeline.tracking.certificates import CERTIFICATE_FILE

# Stands for the address of the model, which is known only when MLflow has created it.
MODEL_URI = "models:/MODEL_ID"
REGISTERED_DESCRIPTION = (
    "Image classifiers made by pu_kd_pipeline. They take pixels and normalize them themselves; the "
    "description of each version says which images it takes and how to predict with it."
)
REGISTERED_FILES_DESCRIPTION = (
    "The students of the model without `files` in its name, for `mlflow models serve`: they take "
    "the bytes of image files, such as JPEG, and decode them as pu_kd_pipeline does."
)
# Ends the name of a logged model that takes files.
FILES_SUFFIX = "_files"
# The catalog entry whose versions the registry has.
REGISTERED_ENTRY = "student_model"
# `base64` of GNU writes several lines, that of macOS one.
SERVING_COMMANDS = f"""\
mlflow models serve --env-manager local --port 5001 --model-uri {MODEL_URI}

(printf '{{"dataframe_records": [{{"image": "'; base64 < photo.jpg | tr -d '\\n'; printf '"}}]}}') |
  curl --header 'Content-Type: application/json' --data @- http://127.0.0.1:5001/invocations"""
N_CLASSES_SHOWN = 20
# The tag and the key of the metadata that hold `Model.fingerprint()`.
FINGERPRINT = "fingerprint"
# Of the origin of a model; a path of a machine would help nobody elsewhere.
ORIGIN_TAGS = ("teacher", "distilled_by", "rule", "n_updates")


@dataclass(frozen=True)
class ModelRecord:
    """What MLflow stores with an exported model."""

    name: str
    registered_name: str | None
    """Name in the model registry; None: the model is not registered."""
    description: str
    """In Markdown; `MODEL_URI` stands for the model's address."""
    tags: Mapping[str, str]


def model_record(
    name: str, card: ModelCard, registered_name: str | None, fingerprint: str
) -> ModelRecord:
    """Return what MLflow stores with a model.

    Args:
        name: that of the model's catalog entry.
        card: the model's card.
        fingerprint: of the model, by which its certificate finds it.
        registered_name: name in the model registry for `student_model`; other models are logged
            and not registered. None: no model is.
    """
    if name != REGISTERED_ENTRY:
        registered_name = None
    tags = {**model_tags(card), FINGERPRINT: fingerprint}
    return ModelRecord(name, registered_name, model_description(name, card), tags)


def file_model_record(record: ModelRecord, registered_name: str) -> ModelRecord:
    """Return what MLflow stores with the form of a model that takes files.

    Args:
        record: of the model that takes pixels.
        registered_name: name in the model registry.
    """
    description = "\n\n".join(
        [
            f"The classifier of `{record.name}`, for servers. **Input:** a column `image` with the "
            "bytes of JPEG, PNG or other image files, in base64 in a request. They are decoded as "
            "the run decodes images: orientation, colors, resizing.",
            "**Output:** as of the model that takes pixels, with the same `params`.",
            f"```console\n{SERVING_COMMANDS}\n```",
        ]
    )
    tags = {**record.tags, "input": "files of images"}
    return ModelRecord(f"{record.name}{FILES_SUFFIX}", registered_name, description, tags)


def base_name(logged_name: str) -> str:
    """Return the catalog entry of a logged model, whatever it takes."""
    return logged_name.removesuffix(FILES_SUFFIX)


def model_tags(card: ModelCard) -> dict[str, str]:
    """Return tags of a model: its architecture, its input, and how it was made."""
    tags = {
        "architecture": card.architecture,
        "n_classes": str(len(card.classes)),
        "input": f"float32 {_shape(card.input)} in [0, 1]",
    }
    for name in ORIGIN_TAGS:
        value = card.origin.get(name)
        if value is not None:
            tags[name] = str(value)
    return tags


def model_metadata(card: ModelCard) -> dict[str, Any]:
    """Return all facts about a model that a program may need, as JSON has them."""
    spec = card.input
    origin = {}
    for name in ORIGIN_TAGS:
        if name in card.origin:
            origin[name] = card.origin[name]
    return {
        "classes": list(card.classes),
        "architecture": card.architecture,
        "architecture_options": dict(card.architecture_options),
        "origin": origin,
        "input": {
            "dtype": "float32",
            "layout": "NCHW",
            "range": [0.0, 1.0],
            "colors": _colors(spec),
            "size_px": spec.size_px,
            "channels": spec.channels,
            "resize": spec.resize,
            "shorter_side_px": spec.shorter_side_px,
            "interpolation": spec.interpolation,
        },
        # Done by the model itself.
        "normalization": {
            "mean": list(spec.mean),
            "std": list(spec.std),
            "channel_order": spec.channel_order,
            "value_range": list(spec.value_range),
        },
        "outputs": ["probabilities", "logits", "classes"],
    }


def model_description(name: str, card: ModelCard) -> str:
    """Return the Markdown page of a model; `MODEL_URI` in it stands for its address."""
    spec = card.input
    classes = ", ".join(markdown_text(class_name) for class_name in card.classes[:N_CLASSES_SHOWN])
    n_more = len(card.classes) - N_CLASSES_SHOWN
    if n_more > 0:
        classes += f" and {n_more} more (`classes` in the model's metadata)"
    paragraphs = [
        f"`{name}`: {markdown_text(card.architecture)}, an image classifier of {len(card.classes)} "
        f"classes: {classes}.",
        f"**Input:** float32 pixels in [0, 1] of shape {_shape(spec)} ({_colors(spec)}). The model "
        f"normalizes them itself (mean {list(spec.mean)}, std {list(spec.std)}). Values outside of "
        "[0, 1] are refused.",
        '**Output:** one row for each image. `params={"output": ...}` is `probabilities` (a column '
        "for each class, the default), `logits`, or `classes` (the columns `class` and "
        "`probability`). `mlflow.pytorch.load_model` returns a network with the same input that "
        "returns logits.",
        "**Needed:** the packages in `requirements.txt`; pu_kd_pipeline is not one of them.",
        "The tag `accuracy` is the share of correct predictions on the test images of the run.",
        f"**Certificate:** once a run has evaluated the model, `{CERTIFICATE_FILE}` next to the "
        "model's files says how often it gives its teacher's class, overall and by class, and how "
        "far its confidence can be used. `provenance.student` in it is the tag `fingerprint`. The "
        "tags `certified_agreement` and `certified_accuracy` are the lower ends of 95 % intervals.",
        f"```python\n{example_code(spec)}\n```",
    ]
    return "\n\n".join(paragraphs)


def example_code(spec: InputSpec) -> str:
    """Return Python code that predicts the class of an image file as the run does."""
    mode = "RGB" if spec.channels == 3 else "L"
    size = spec.size_px
    lines = [
        "import mlflow",
        "import numpy as np",
        "from PIL import Image, ImageOps",
        "",
        f'image = ImageOps.exif_transpose(Image.open("image.png")).convert("{mode}")',
    ]
    resampling = f"Image.Resampling.{spec.interpolation.upper()}"
    if spec.shorter_side_px is None:
        lines.append(f"image = image.resize(({size}, {size}), {resampling})")
    else:
        lines += [
            "shorter = min(image.size)",
            f"sides = [int({spec.shorter_side_px} * side / shorter) for side in image.size]",
            f"image = image.resize(sides, {resampling})",
            f"left, top = [round((side - {size}) / 2) for side in image.size]",
            f"image = image.crop((left, top, left + {size}, top + {size}))",
        ]
    to_batch = "pixels.transpose(2, 0, 1)[None]" if spec.channels == 3 else "pixels[None, None]"
    lines += [
        "pixels = np.asarray(image, dtype=np.float32) / 255",
        f"batch = {to_batch}  # {_shape(spec)}",
        f'model = mlflow.pyfunc.load_model("{MODEL_URI}")',
        'print(model.predict(batch, params={"output": "classes"}))',
    ]
    return "\n".join(lines)


_KIND = "model"  # ends the names of models in the catalog


def accuracies_of_models(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy of each model in a run's metrics, by its name in the catalog."""
    accuracies = {}
    for name, facts in metrics.items():
        if isinstance(facts, Mapping) and isinstance(facts.get("accuracy"), int | float):
            accuracies[f"{name}_{_KIND}"] = float(facts["accuracy"])
    return accuracies


def _shape(spec: InputSpec) -> str:
    return f"(N, {spec.channels}, {spec.size_px}, {spec.size_px})"


def _colors(spec: InputSpec) -> str:
    if spec.channels == 3:
        return "red, green, blue"
    return "gray"
