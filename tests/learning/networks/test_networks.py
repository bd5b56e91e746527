"""Networks: sizes as published, gray and color, and what a wrong name is told."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pu_kd_pipeline.learning.features import default_taps
from pu_kd_pipeline.learning.networks.build import NETWORKS, build_network
from pu_kd_pipeline.learning.networks.checks import check_network, check_training

SIZES = {
    "lenet5": 32,
    "lenet5_half": 32,
    "digits_cnn": 8,
    "cifar_resnet": 32,
    "cifar_resnet18": 32,
    "cifar_resnet34": 32,
    "cifar_vgg13": 32,
    "cifar_vgg19": 32,
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_own_network_maps_images_to_logits(name, in_channels):
    network = build_network(name, 7, in_channels).eval()
    assert network(torch.rand(2, in_channels, SIZES[name], SIZES[name])).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "in_channels", "n_parameters"),
    [
        (
            "lenet5",
            1,
            61_706,
        ),  # LeCun et al. 1998, counted: convolutions 156 + 2,416 + 48,120, linear 10,164 + 850
        ("cifar_resnet18", 3, 11_173_962),
        ("cifar_resnet34", 3, 21_282_122),
    ],
)
def test_own_networks_have_the_published_size(name, in_channels, n_parameters):
    network = build_network(name, 10, in_channels)
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters


def test_narrow_resnets_have_the_layers_and_the_size_of_their_depth_and_width():
    # ResNet-20 of He et al. 2016, table 6, has 0.27 M; the two 1x1 shortcuts with their BatchNorms add 2,752
    network = build_network("cifar_resnet", 10, 3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 269_722 + 2_752
    for depth, width in ((8, 32), (14, 8)):
        network = build_network("cifar_resnet", 10, 3, {"depth": depth, "width": width})
        layers = [
            m
            for m in network.modules()
            if isinstance(m, nn.Conv2d | nn.Linear) and m.weight.shape[-1] != 1
        ]
        assert len(layers) == depth
        taps = [network.layer1, network.layer2, network.layer3]
        assert [stage[-1].conv2.out_channels for stage in taps] == [width, 2 * width, 4 * width]
    features = network.layer3(network.layer2(network.layer1(torch.rand(1, width, 32, 32))))
    assert features.shape == (1, 4 * width, 8, 8)


@pytest.mark.parametrize(
    ("options", "told"), [({"depth": 18}, "6 n \\+ 2"), ({"width": 0}, "width must be at least 1")]
)
def test_a_narrow_resnet_of_an_impossible_shape_is_refused(options, told):
    with pytest.raises(ValueError, match=told):
        build_network("cifar_resnet", 10, 3, options)


def test_cifar_stem_keeps_the_resolution():
    network = build_network("cifar_resnet18", 10, 3).eval()
    stem = network.maxpool(network.relu(network.bn1(network.conv1(torch.rand(1, 3, 32, 32)))))
    assert stem.shape == (1, 64, 32, 32)


@pytest.mark.parametrize(("name", "n_convolutions"), [("cifar_vgg13", 10), ("cifar_vgg19", 16)])
def test_a_vgg_for_small_images_has_the_layers_of_its_depth_and_taps_them_before_each_pooling(
    name, n_convolutions
):
    network = build_network(name, 10, 3).eval()
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == n_convolutions
    taps = default_taps(network, (3, 32, 32))
    following = [network.features[int(tap.rpartition(".")[2]) + 1] for tap in taps]
    assert [type(module) for module in following] == [nn.MaxPool2d] * 4
    reference = build_network(
        name.removeprefix("cifar_") + "_bn", 10, 3
    ).eval()  # torchvision's, with its classifier
    network.features.load_state_dict(reference.features.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(network.features(images), reference.features(images))
    assert network.features(images).shape == (2, 512, 1, 1)


def test_torchvision_classifiers_work_by_name():
    assert build_network("squeezenet1_1", 5, 3).eval()(torch.rand(1, 3, 64, 64)).shape == (1, 5)


def test_torchvision_classifier_of_gray_images_says_what_to_set():
    with pytest.raises(ValueError, match=r"set input\.channels to 3"):
        build_network("resnet18", 10, 1)


def test_unknown_architecture_is_told_the_nearest():
    with pytest.raises(ValueError, match="no architecture 'lenet-5'; did you mean 'lenet5'"):
        build_network("lenet-5", 10, 1)


def test_detection_models_are_no_classifiers():
    with pytest.raises(ValueError, match="no architecture"):
        build_network("fasterrcnn_resnet50_fpn", 10, 3)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_nets.py").write_text(
        "from torch import nn\n"
        "def ours(n_classes, in_channels, width=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 64, width), nn.Linear(width, n_classes))\n"
        "def theirs(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"
        "def text(n_classes): return 'a network'\n"
        "def absent(n_classes): raise OSError('no disk')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("user_nets", None)


def test_a_user_factory_is_built_with_what_it_accepts(user_module):
    ours = build_network("user_nets:ours", 5, 1, {"width": 9})
    assert isinstance(ours[1], nn.Linear)
    assert ours[1].out_features == 9
    assert build_network("user_nets:theirs", 5, 3)(torch.rand(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user_nets:our", "no function 'our'; did you mean 'ours'"),
        ("no_such_module:build", "cannot be imported"),
        ("user_nets:text", "returned str, not a torch.nn.Module"),
        ("user_nets:absent", "'user_nets:absent' with options {} fails: OSError: no disk"),
    ],
)
def test_a_wrong_factory_is_explained(user_module, name, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, 5, 1)


def test_options_that_the_architecture_does_not_take_are_refused():
    with pytest.raises(ValueError, match="refuses its options"):
        build_network("lenet5", 10, 1, {"depth": 3})


def test_a_network_of_another_size_is_found_out():
    with pytest.raises(ValueError, match="fails on an image of shape"):
        check_network(build_network("lenet5", 10, 1), 10, 1, 8)
    with pytest.raises(
        ValueError, match=r"returns \(1, 10\) for one image; expected logits of shape \(1, 4\)"
    ):
        check_network(build_network("digits_cnn", 10, 1), 4, 1, 8)


def test_auxiliary_outputs_are_found_before_training_which_leaves_the_network_as_it_was():
    auxiliary = build_network("googlenet", 5, 3, {"init_weights": False})
    before = {name: value.clone() for name, value in auxiliary.state_dict().items()}
    check_network(auxiliary, 5, 3, 64)
    with pytest.raises(
        ValueError, match=r"returns GoogLeNetOutputs for two images.*aux_logits: false"
    ):
        check_training(auxiliary, 5, 3, 64)
    assert all(torch.equal(value, before[name]) for name, value in auxiliary.state_dict().items())
    check_training(
        build_network("googlenet", 5, 3, {"init_weights": False, "aux_logits": False}), 5, 3, 64
    )
