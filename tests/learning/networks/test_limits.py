"""The limits within which our networks work; tests/hooks/test_preflight.py builds their corners."""

from __future__ import annotations

import inspect

import pytest

from pu_kd_pipeline.learning.networks.build import NETWORKS
from pu_kd_pipeline.learning.networks.limits import LIMITS, is_known_to_work

# The arguments that every network gets, and that are not its options.
NOT_OPTIONS = {"n_classes", "in_channels"}


def test_limits_are_of_our_own_networks():
    assert set(LIMITS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_own_network_has_limits_of_all_its_options(name):
    signature = inspect.signature(NETWORKS[name])
    options = set(signature.parameters) - NOT_OPTIONS

    assert set(LIMITS[name].options) == options


@pytest.mark.parametrize(
    ("name", "n_classes", "in_channels", "size_px", "options"),
    [
        # Not our own networks
        ("resnet18", 10, 3, 32, {}),
        ("our_networks:build", 10, 3, 32, {}),
        # Sizes, classes, channels and options outside of the limits
        ("lenet5", 10, 1, 31, {}),
        ("lenet5", 10, 1, 36, {}),
        ("lenet5", 10**9, 1, 32, {}),
        ("lenet5", 10, 2, 32, {}),
        ("lenet5", 10, 1, 32, {"width": 4}),
        # Options of wrong values and types; True would pass as an integer
        ("digits_cnn", 10, 1, 8, {"width": 0}),
        ("digits_cnn", 10, 1, 8, {"width": 4.0}),
        ("digits_cnn", 10, 1, 8, {"width": True}),
        ("digits_cnn", 10, 1, 8, {"width": "4"}),
        ("digits_cnn", 10, 1, 8, {"n_classes": 10}),
        ("cifar_resnet", 10, 3, 32, {"depth": 18}),
        ("cifar_resnet", 10, 3, 32, {"depth": [8]}),
        ("cifar_resnet18", 10, 3, 100_000, {}),
        ("cifar_vgg19", 10, 3, 31, {}),
    ],
)
def test_anything_else_is_left_to_be_built(name, n_classes, in_channels, size_px, options):
    assert not is_known_to_work(name, n_classes, in_channels, size_px, options)
