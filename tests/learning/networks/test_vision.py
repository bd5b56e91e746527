"""torchvision can be imported with a CPU build of torch as well as with a matching one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import pu_kd_pipeline.learning.networks.vision as vision


def _python(code: str) -> subprocess.CompletedProcess[str]:
    # In a process of its own, because a module is imported once per process.
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


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


def test_the_workaround_is_needed_where_torchvisions_operators_do_not_load():
    if vision._load_extension():
        pytest.skip("torchvision's compiled operators load with this torch: nothing to work around")
    result = _python("import torchvision")

    assert "operator torchvision::nms does not exist" in result.stderr


def test_on_a_matched_pair_nothing_is_defined():
    # With a load_library that succeeds, as where the operators load.
    result = _python(
        """
        import torch

        defined = []
        torch.library.define = lambda name, schema, **_: defined.append(name)
        torch.ops.load_library = lambda path: None
        try:
            import pu_kd_pipeline.learning.networks.vision
        except Exception as error:
            print(type(error))
        print("defined", [name for name in defined if name.startswith("torchvision")])
        """
    )

    assert "defined []" in result.stdout, result.stderr
