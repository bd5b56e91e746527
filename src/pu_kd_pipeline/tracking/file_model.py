"""A second form of an exported model, for servers: its input is the bytes of image files.

MLflow compares an input with one signature, before any code of a model runs. Pixels are a tensor
there, and files a column of bytes, so that one model cannot take both.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from pu_kd_pipeline.images import decoding, file_kinds, pixel_formats, resizing
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.tracking.file_classifier import IMAGE
from pu_kd_pipeline.tracking.run_metadata import requirement

# The modules that ingestion decodes with. They import NumPy, Pillow and each other alone.
DECODING = (decoding, file_kinds, pixel_formats, resizing)
OWN_PACKAGE = "pu_kd_pipeline.images"
FILE_CODE = Path(__file__).with_name("file_classifier.py")
# The default of ingestion: an image that declares more is refused before it is decoded.
MAX_IMAGE_PIXELS = 100_000_000
EXAMPLES = ("input_example.json", "serving_input_example.json")


def export_file_model(model: Model, exported: Path, folder: Path) -> None:
    """Write an MLflow model folder that predicts from files.

    Args:
        model: the classifier.
        exported: what `export_model` wrote of it; it is copied.
        folder: created.
    """
    from mlflow import pyfunc
    from mlflow.models import Model as Description
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    shutil.copytree(exported, folder, ignore=shutil.ignore_patterns(*EXAMPLES))
    of_pixels = Description.load(str(folder / "MLmodel"))
    flavor = of_pixels.flavors["python_function"]
    code = folder / "code"
    package = _copy_decoding(code)
    loader = _named_by_content(FILE_CODE)
    shutil.copyfile(FILE_CODE, code / f"{loader}.py")
    requirements = folder / "requirements.txt"
    text = requirements.read_text(encoding="utf-8").rstrip("\n")
    requirements.write_text(f"{text}\n{requirement('pillow')}\n", encoding="utf-8")

    signature = of_pixels.signature
    description = Description(
        signature=ModelSignature(
            Schema([ColSpec(DataType.binary, IMAGE)]), signature.outputs, signature.params
        ),
        metadata=of_pixels.metadata,
    )
    # It loads the network.
    description.add_flavor("pytorch", **of_pixels.flavors["pytorch"])
    spec = model.card.input
    pyfunc.add_to_model(
        description,
        loader_module=loader,
        data="data",
        code="code",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
        model_config={
            "classes": list(model.card.classes),
            "predicting_module": flavor["loader_module"],
            "decoding_package": package,
            "decoder": {
                "channels": spec.channels,
                "size_px": spec.size_px,
                "max_image_pixels": MAX_IMAGE_PIXELS,
                "shorter_side_px": spec.shorter_side_px,
                "interpolation": spec.interpolation,
            },
        },
    )
    description.save(str(folder / "MLmodel"))


def _copy_decoding(code: Path) -> str:
    """Copy the modules that decode, as a package of their own, and return its name."""
    sources = {}
    for module in DECODING:
        path = Path(str(module.__file__))
        sources[path.name] = path.read_text(encoding="utf-8")
    digest = hashlib.sha256("".join(sources.values()).encode()).hexdigest()
    # The content is a part of the name: a process may load models with different code.
    package = f"image_decoding_{digest[:8]}"
    (code / package).mkdir()
    (code / package / "__init__.py").write_text("", encoding="utf-8")
    for name, text in sources.items():
        renamed = text.replace(OWN_PACKAGE, package)
        (code / package / name).write_text(renamed, encoding="utf-8")
    return package


def _named_by_content(file: Path) -> str:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    return f"{file.stem}_{digest[:8]}"
