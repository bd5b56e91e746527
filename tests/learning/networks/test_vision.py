"""torchvision can be imported with a CPU build of torch as well as with a matching one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

# What a torchvision whose library cannot be loaded does: torch refuses the missing operators.
UNLOADABLE = """
import torch

# A module that a failed import leaves behind.
from torchvision import extension

for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: dets)
"""
# What a matching torchvision does: its library aborts the process where the operator exists.
MATCHING = """
import os
import torch
from torchvision import extension

try:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except RuntimeError:
    os.abort()
"""
# What another package or a user's own module may have tried first.
FAILED_IMPORT = """
try:
    import torchvision
except RuntimeError:
    pass
else:
    raise AssertionError("torchvision can be imported")
"""
# Prints "imported" with the number of modules that are from an earlier, failed import.
IMPORT = """
import sys
import pu_kd_pipeline.learning.networks.vision as vision

package = sys.modules["torchvision"]
submodules = [package.extension, vision.models, vision.datasets, vision.feature_extraction]
n_stale = sum(module is not sys.modules[module.__name__] for module in submodules)
print("imported", n_stale, vision.torchvision is package)
"""


def _python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, because a module is imported once per process.

    Args:
        code: Python.
        folder: where packages are looked for first.
    """
    paths = [os.environ.get("PYTHONPATH", "")]
    if folder is not None:
        paths.insert(0, str(folder))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _write_torchvision(folder: Path, code: str) -> None:
    """Write a package `torchvision` with this code and the modules that are imported from it."""
    package = folder / "torchvision"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text(code)
    for name in ("datasets.py", "extension.py", "models/__init__.py"):
        (package / name).touch()
    (package / "models" / "feature_extraction.py").touch()


def test_models_and_feature_extraction_work_with_any_pair():
    result = _python(
        """
        from pu_kd_pipeline.learning.networks.vision import datasets, feature_extraction, models

        network = models.get_model("resnet18", weights=None)
        nodes = feature_extraction.get_graph_node_names(network)[1]
        print(nodes[-1], datasets.MNIST.__name__)
        """
    )

    assert result.stdout.split() == ["fc", "MNIST"], result.stderr


def test_it_works_after_somebody_elses_import_has_failed():
    result = _python(
        """
        try:
            import torchvision
        except RuntimeError as error:
            assert "operator torchvision::nms does not exist" in str(error)
        from pu_kd_pipeline.learning.networks import vision

        print(vision.models.get_model("resnet18", weights=None).fc.out_features)
        """
    )

    assert result.stdout.split() == ["1000"], result.stderr


@pytest.mark.parametrize("before", ["", FAILED_IMPORT], ids=["first", "second"])
def test_missing_operators_are_defined_and_the_import_starts_again(tmp_path, before):
    _write_torchvision(tmp_path, UNLOADABLE)

    result = _python(before + IMPORT, tmp_path)

    assert result.stdout.split() == ["imported", "0", "True"], result.stderr


def test_nothing_is_defined_before_torchvision_defines_its_own_operators(tmp_path):
    _write_torchvision(tmp_path, MATCHING)

    result = _python(IMPORT, tmp_path)

    assert result.returncode == 0, "the process ended as it does where nms was defined before"
    assert result.stdout.split() == ["imported", "0", "True"], result.stderr


@pytest.mark.parametrize(
    "message",
    [
        # It has been defined, and torchvision still refuses it.
        "operator torchvision::nms does not exist",
        # An operator that is not needed for what we use, or that a later release needs.
        "operator torchvision::roi_align does not exist",
        "PyTorch and torchvision were compiled with different CUDA major versions",
    ],
)
def test_a_torchvision_that_cannot_be_helped_says_which_torch_it_met(tmp_path, message):
    _write_torchvision(tmp_path, f"raise RuntimeError({message!r})")

    result = _python(IMPORT, tmp_path)

    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("ImportError: torchvision cannot be imported with torch ")
    assert message in last_line
    assert last_line.endswith("install the torchvision that was made for this torch")


def test_a_missing_torchvision_is_said_with_what_to_install():
    result = _python("import sys; sys.modules['torchvision'] = None" + IMPORT)

    last_line = result.stderr.splitlines()[-1]
    assert last_line.startswith("ModuleNotFoundError: torchvision is not installed")
    assert "pip install --constraint constraints.txt ." in last_line


def test_a_missing_module_that_torchvision_needs_keeps_its_own_error(tmp_path):
    _write_torchvision(tmp_path, "import a_missing_module")

    result = _python(IMPORT, tmp_path)

    last_line = result.stderr.splitlines()[-1]
    assert last_line == "ModuleNotFoundError: No module named 'a_missing_module'"
