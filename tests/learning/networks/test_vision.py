"""torchvision comes through one door, beside a CPU build of torch as well as beside a matching one."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pu_kd_pipeline.learning.networks.vision as vision


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_models_and_feature_extraction_work_whatever_the_pair():
    result = _python(
        "from pu_kd_pipeline.learning.networks.vision import models, feature_extraction, datasets\n"
        "nodes = feature_extraction.get_graph_node_names(models.get_model('resnet18', weights=None))[1]\n"
        "print(nodes[-1], datasets.MNIST.__name__)"
    )
    assert result.stdout.split() == ["fc", "MNIST"], result.stderr


def test_the_door_is_needed_beside_a_torch_without_torchvisions_operators():
    if vision._load_extension():
        pytest.skip("torchvision's compiled operators load beside this torch: nothing to mend here")
    result = _python("import torchvision")
    assert "operator torchvision::nms does not exist" in result.stderr


def test_on_a_matched_pair_nothing_is_defined():
    result = _python(
        "import torch, importlib.util\n"
        "defined = []\n"
        "torch.library.define = lambda name, schema, **_: defined.append(name)\n"
        "torch.ops.load_library = lambda path: None\n"  # as where the operators load
        "try:\n    import pu_kd_pipeline.learning.networks.vision\nexcept Exception as error:\n    print(type(error))\n"
        "print('defined', [name for name in defined if name.startswith('torchvision')])"
    )
    assert "defined []" in result.stdout, result.stderr
