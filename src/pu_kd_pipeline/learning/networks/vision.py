"""The only module that imports torchvision; import it from here.

A CPU build of torch with PyPI's torchvision wheel (linked against CUDA) cannot load the compiled
operators, and `import torchvision` then fails because the schema of `nms` is missing. Models,
transforms, data sets and feature extraction are pure Python and only need such schemas to exist, so
they are defined here. That happens only after torchvision itself has reported one as missing:
where torch and torchvision match, its library defines the operators and aborts the process if they
exist already.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from types import ModuleType

import torch

# The operators that torchvision's own Python code needs to exist.
_SCHEMAS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_MISSING_OPERATOR = re.compile(r"operator (torchvision::\w+) does not exist")


def _import_torchvision() -> ModuleType:
    """Return torchvision, imported with stand-ins for the operators that it reports as missing.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        ImportError: it cannot be imported with this torch.
    """
    defined: set[str] = set()
    while True:
        try:
            return _fresh_import()
        except ModuleNotFoundError as error:
            if error.name != "torchvision":
                raise
            raise ModuleNotFoundError(
                "torchvision is not installed: networks, feature extraction and image sources need "
                f"the release made for torch {torch.__version__}. Install it, or everything at the "
                "tested versions with `pip install --constraint constraints.txt .`",
                name="torchvision",
            ) from error
        except RuntimeError as error:
            name = _missing_operator(error)
            if name not in _SCHEMAS or name in defined:
                raise ImportError(
                    f"torchvision cannot be imported with torch {torch.__version__} ({error}): "
                    "install the torchvision that was made for this torch",
                    name="torchvision",
                ) from error
        torch.library.define(name, _SCHEMAS[name])
        defined.add(name)


def _missing_operator(error: RuntimeError) -> str | None:
    """Return the operator that an error reports as missing; None for any other error."""
    match = _MISSING_OPERATOR.search(str(error))
    if match is None:
        return None
    return match[1]


def _fresh_import() -> ModuleType:
    """Import torchvision as if no import of it had failed before, by this module or by another."""
    if "torchvision" not in sys.modules:
        # Its modules that a failed import left behind would not be run again.
        for name in list(sys.modules):
            if name.startswith("torchvision."):
                del sys.modules[name]

    register_fake = torch.library.register_fake
    # A failed import has registered its implementations with the missing operators, and torch up to
    # 2.12 refuses to replace them.
    torch.library.register_fake = functools.partial(register_fake, allow_override=True)
    try:
        return importlib.import_module("torchvision")
    finally:
        torch.library.register_fake = register_fake


torchvision = _import_torchvision()

from torchvision import datasets, models  # noqa: E402  (`import torchvision` alone may fail)
from torchvision.models import feature_extraction  # noqa: E402

__all__ = ["datasets", "feature_extraction", "models", "torchvision"]
