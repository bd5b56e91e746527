"""Networks: published sizes, gray and color images, and errors for wrong names."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn
from torch.testing import assert_close

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


def _n_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_own_network_maps_images_to_logits(name, in_channels):
    network = build_network(name, 7, in_channels).eval()
    size_px = SIZES[name]
    images = torch.rand(2, in_channels, size_px, size_px)
    logits = network(images)

    assert logits.shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "in_channels", "n_parameters"),
    [
        # LeCun et al. 1998, counted: convolutions 156 + 2,416 + 48,120, linear 10,164 + 850
        ("lenet5", 1, 61_706),
        ("cifar_resnet18", 3, 11_173_962),
        ("cifar_resnet34", 3, 21_282_122),
    ],
)
def test_own_networks_have_the_published_size(name, in_channels, n_parameters):
    network = build_network(name, 10, in_channels)
    assert _n_parameters(network) == n_parameters


def test_resnet20_has_the_published_size_and_two_shortcuts():
    network = build_network("cifar_resnet", 10, 3)
    # He et al. 2016, table 6: 0.27 M. The two 1x1 shortcuts with their BatchNorms add 2,752.
    assert _n_parameters(network) == 269_722 + 2_752


def _n_layers(network):
    """Count the layers as He et al. do: the 1x1 convolutions of the shortcuts do not count."""
    n_layers = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.shape[-1] != 1:
            n_layers += 1
    return n_layers


@pytest.mark.parametrize(("depth", "width"), [(8, 32), (14, 8)])
def test_narrow_resnets_have_their_depth_and_width(depth, width):
    network = build_network("cifar_resnet", 10, 3, {"depth": depth, "width": width})
    assert _n_layers(network) == depth

    images = torch.rand(1, width, 32, 32)
    first = network.layer1(images)
    second = network.layer2(first)
    third = network.layer3(second)

    # Each stage after the first has twice the channels at half the resolution.
    assert first.shape == (1, width, 32, 32)
    assert second.shape == (1, 2 * width, 16, 16)
    assert third.shape == (1, 4 * width, 8, 8)


def test_a_narrow_resnet_sees_the_means_of_squares_of_pixels():
    options = {"depth": 8, "width": 4}
    network = build_network("cifar_resnet", 10, 3, options).eval()
    downscaling = build_network("cifar_resnet", 10, 3, {**options, "downscale": 3}).eval()
    downscaling.load_state_dict(network.state_dict())
    small_images = torch.rand(2, 3, 32, 32)
    large_images = small_images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert torch.allclose(downscaling(large_images), network(small_images), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 18}, r"6 n \+ 2"),
        ({"width": 0}, "width must be at least 1"),
        ({"downscale": 0}, "downscale must be at least 1"),
    ],
)
def test_a_narrow_resnet_of_an_impossible_shape_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_network("cifar_resnet", 10, 3, options)


def test_cifar_stem_keeps_the_resolution():
    network = build_network("cifar_resnet18", 10, 3).eval()
    images = torch.rand(1, 3, 32, 32)
    maps = network.conv1(images)
    maps = network.relu(network.bn1(maps))
    # torchvision's stem would have 8x8 here.
    stem = network.maxpool(maps)

    assert stem.shape == (1, 64, 32, 32)


@pytest.mark.parametrize(("name", "n_convolutions"), [("cifar_vgg13", 10), ("cifar_vgg19", 16)])
def test_a_vgg_for_small_images_has_the_layers_of_its_depth(name, n_convolutions):
    network = build_network(name, 10, 3)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]

    assert len(convolutions) == n_convolutions


@pytest.mark.parametrize("name", ["cifar_vgg13", "cifar_vgg19"])
def test_a_vgg_for_small_images_is_tapped_before_each_pooling(name):
    network = build_network(name, 10, 3)
    taps = default_taps(network, (3, 32, 32))

    assert len(taps) == 4

    for tap in taps:
        _, _, index = tap.rpartition(".")
        following = network.features[int(index) + 1]
        assert isinstance(following, nn.MaxPool2d)


@pytest.mark.parametrize("name", ["cifar_vgg13", "cifar_vgg19"])
def test_a_vgg_for_small_images_has_the_features_of_torchvisions(name):
    network = build_network(name, 10, 3).eval()
    torchvision_name = name.removeprefix("cifar_") + "_bn"
    reference = build_network(torchvision_name, 10, 3).eval()
    network.features.load_state_dict(reference.features.state_dict())
    images = torch.rand(2, 3, 32, 32)
    maps = network.features(images)
    expected = reference.features(images)

    assert_close(maps, expected)
    assert maps.shape == (2, 512, 1, 1)


def test_torchvision_classifiers_work_by_name():
    network = build_network("squeezenet1_1", 5, 3).eval()
    images = torch.rand(1, 3, 64, 64)
    logits = network(images)

    assert logits.shape == (1, 5)


def test_a_torchvision_classifier_for_gray_images_is_refused_with_the_parameter_to_set():
    with pytest.raises(ValueError, match=r"set input\.channels to 3"):
        build_network("resnet18", 10, 1)


def test_an_unknown_architecture_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="no architecture 'lenet-5'; did you mean 'lenet5'"):
        build_network("lenet-5", 10, 1)


def test_detection_models_are_refused():
    with pytest.raises(ValueError, match="no architecture"):
        build_network("fasterrcnn_resnet50_fpn", 10, 3)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "user_nets.py").write_text(
        "from torch import nn\n"
        "def ours(n_classes, in_channels, width=4):\n"
        "    hidden = nn.Linear(in_channels * 64, width)\n"
        "    return nn.Sequential(nn.Flatten(), hidden, nn.Linear(width, n_classes))\n"
        "def theirs(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))\n"
        "def text(n_classes): return 'a network'\n"
        "def absent(n_classes): raise OSError('no disk')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    # So that the next test imports its own file.
    sys.modules.pop("user_nets", None)


def test_a_user_factory_is_built_with_what_it_accepts(user_module):
    ours = build_network("user_nets:ours", 5, 1, {"width": 9})
    hidden = ours[1]

    assert isinstance(hidden, nn.Linear)
    assert hidden.out_features == 9

    # This factory calls the number of classes as torchvision does, and takes no channels.
    theirs = build_network("user_nets:theirs", 5, 3)
    logits = theirs(torch.rand(1, 3, 8, 8))

    assert logits.shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("user_nets:our", "no function 'our'; did you mean 'ours'"),
        ("no_such_module:build", "cannot be imported"),
        ("user_nets:text", "returned str, not a torch.nn.Module"),
        ("user_nets:absent", "'user_nets:absent' with options {} fails: OSError: no disk"),
    ],
)
def test_a_wrong_factory_is_refused_with_the_reason(user_module, name, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, 5, 1)


def test_options_that_the_architecture_does_not_take_are_refused():
    with pytest.raises(ValueError, match="refuses its options"):
        build_network("lenet5", 10, 1, {"depth": 3})


def test_a_network_for_images_of_another_size_is_refused():
    # LeNet-5 has no map left of an image of 8 pixels.
    network = build_network("lenet5", 10, 1)
    with pytest.raises(ValueError, match="fails on an image of shape"):
        check_network(network, 10, 1, 8)


def test_a_network_with_another_number_of_classes_is_refused():
    network = build_network("digits_cnn", 10, 1)
    message = r"returns \(1, 10\) for one image; expected logits of shape \(1, 4\)"

    with pytest.raises(ValueError, match=message):
        check_network(network, 4, 1, 8)


def test_auxiliary_outputs_are_refused_and_the_network_stays_unchanged():
    auxiliary = build_network("googlenet", 5, 3, {"init_weights": False})
    before = {name: value.clone() for name, value in auxiliary.state_dict().items()}

    # In eval mode GoogLeNet returns logits alone, so only the check of training fails.
    check_network(auxiliary, 5, 3, 64)
    message = r"returns GoogLeNetOutputs with .* for two images.*aux_logits: false"

    with pytest.raises(ValueError, match=message):
        check_training(auxiliary, 5, 3, 64)
    for name, value in auxiliary.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_network_without_its_auxiliary_outputs_is_accepted():
    options = {"init_weights": False, "aux_logits": False}
    network = build_network("googlenet", 5, 3, options)
    check_training(network, 5, 3, 64)
