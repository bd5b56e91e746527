"""The packages of the extra `export`, which are imported only where they are used."""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec

from pu_kd_pipeline.errors import InputError

# Format -> packages that write and check it
_PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "int8": ("onnx", "onnxscript", "onnxruntime"),
}


def check_packages(formats: Collection[str], where: str) -> None:
    """Check that the packages for some formats are installed.

    Args:
        formats: of `params.export`.
        where: the parameter that asks for them.

    Raises:
        InputError: names those that are missing, and the extra that installs them.
    """
    needed: dict[str, None] = {}
    for name in formats:
        needed |= dict.fromkeys(_PACKAGES.get(name, ()))
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        others = [name for name in formats if name not in _PACKAGES]
        hint = ""
        if others:
            hint = f", or leave these formats out: {where}={others}".replace("'", "")
        raise InputError(
            f"{where}: the packages {', '.join(missing)} are not installed: install the extra, "
            f"`pip install -e '.[export]'` (or `pip install {' '.join(missing)}`){hint}"
        )
