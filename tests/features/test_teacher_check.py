"""A wrong input or class order is recognized on a few images; a right one is left alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.input_alternatives import input_alternatives, to_gray
from pu_kd_pipeline.features.labeled_images import LabeledImages
from pu_kd_pipeline.features.teacher_advice import report_check
from pu_kd_pipeline.features.teacher_check import check_on_images
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.compute import ComputeParams
from pu_kd_pipeline.params.teacher import InputSpec, TeacherCheckParams
from tests.features.striped_images import (
    CLASSES,
    MEAN,
    SIZE_PX,
    STD,
    StripesNetwork,
    striped_images,
    trained_network,
)

COMPUTE = ComputeParams(
    device="cpu",
    precision="float32",
    n_threads=1,
    resident_limit_gb=1,
    inference_batch_size=None,
)
PARAMS = TeacherCheckParams(compute=COMPUTE)


@pytest.fixture(scope="module")
def network():
    return trained_network()


@pytest.fixture(scope="module")
def images():
    return LabeledImages(*striped_images(120, seed=5))


def spec(**changes):
    fields = {"size_px": SIZE_PX, "channels": 3, "mean": MEAN, "std": STD}
    return InputSpec.model_validate({**fields, **changes})


def model_of(network, classes=CLASSES, **changes):
    card = ModelCard(architecture="stripes", classes=tuple(classes), input=spec(**changes))
    return Model(network, card)


def check(network, images, classes=CLASSES, **changes):
    model = model_of(network, classes, **changes)
    return check_on_images(model, images, PARAMS, states_input=True)


def counted(network):
    """Return a list to which each forward pass appends its number of images."""
    passes = []
    network.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    return passes


def test_a_right_teacher_gets_no_advice_and_costs_few_forward_passes(network, images):
    network = copy.deepcopy(network)
    passes = counted(network)
    found = check(network, images)

    assert found["accuracy"] > 0.95
    assert found["verdict"] == "usable"
    assert found["advice"] == found["better_alternatives"] == found["larger_margins"] == []
    # All images once, and a quarter of them with nearly every one of the other inputs.
    assert passes[0] == len(images.labels)
    assert sum(passes[1:]) < 0.5 * len(images.labels) * (found["n_alternatives"] - 1)


# What is configured -> the name of the cause, and the YAML that the advice has to contain
MISTAKES = {
    "mean and std": (
        {"mean": (0, 0, 0), "std": (1, 1, 1)},
        "with ImageNet's mean and std",
        "teacher.input: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}",
    ),
    "value range": (
        {"value_range": (0, 255)},
        "mean and std as they are, of values in [0, 1]",
        "teacher.input: {value_range: [0, 1]}",
    ),
    "channel order": (
        {"channel_order": "bgr"},
        "channels in the order RGB",
        "teacher.input: {channel_order: rgb}",
    ),
}


@pytest.mark.parametrize(("changes", "cause", "yaml"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_input_is_named_with_the_yaml_that_fixes_it(network, images, changes, cause, yaml):
    found = check(network, images, **changes)
    advice = ". ".join(found["advice"])
    best = found["better_alternatives"][0]

    assert found["accuracy"] < 0.5
    assert cause in advice
    assert yaml in advice
    assert best["accuracy"] > 0.95
    # Following the advice gives the accuracy that it promises.
    for entry in found["better_alternatives"]:
        if not entry["changes"]:
            continue
        fixed = check(network, images, **{**changes, **entry["changes"]})
        assert fixed["accuracy"] == entry["accuracy"], entry["name"]


def test_reversed_classes_are_named_without_measuring_any_input(network, images):
    network = copy.deepcopy(network)
    passes = counted(network)
    labels = len(CLASSES) - 1 - images.labels
    reversed_images = LabeledImages(images.pixels, labels)
    found = check(network, reversed_images, CLASSES[::-1])

    assert found["is_refused"]
    assert [entry["kind"] for entry in found["better_alternatives"]] == ["class_order"]
    listed = ", ".join(f"'{name}'" for name in CLASSES)
    assert f"Set teacher.classes: [{listed}]" in ". ".join(found["advice"])
    assert len(passes) == 1


def test_classes_that_have_only_numbers_get_a_label_map(network, images):
    labels = np.array([1, 0, 2, 3, 4, 5])[images.labels]
    found = check(network, LabeledImages(images.pixels, labels), classes=list("012345"))

    assert "Set label_map: {'0': 1, '1': 0} on the sources" in ". ".join(found["advice"])


def test_a_random_teacher_is_refused_and_no_cause_is_invented(images):
    torch.manual_seed(1)
    found = check(StripesNetwork().eval(), images)

    assert found["is_refused"]
    assert found["better_alternatives"] == []
    with pytest.raises(InputError, match="no better than chance.*teacher.weights belong") as error:
        report_check(found, "stop")
    assert "teacher_check.mode: warn" in str(error.value)


def test_a_teacher_at_chance_is_only_reported_if_asked(images, caplog):
    torch.manual_seed(1)
    report_check(check(StripesNetwork().eval(), images), "warn")

    assert "no better than chance" in caplog.text


def test_fewer_than_20_images_do_not_stop_the_run(caplog):
    torch.manual_seed(1)
    few = LabeledImages(*striped_images(12, seed=5))
    report_check(check(StripesNetwork().eval(), few), "stop")

    assert "95 % interval by Clopper-Pearson" in caplog.text


def test_an_input_from_the_card_is_given_completely(network, images):
    model = model_of(network, value_range=(0, 255))
    found = check_on_images(model, images, PARAMS, states_input=False)

    yaml = (
        "teacher.input: {size_px: 16, channels: 3, mean: [0.485, 0.456, 0.406], "
        "std: [0.229, 0.224, 0.225], value_range: [0, 1]}"
    )
    assert yaml in ". ".join(found["advice"])


def test_another_resize_is_decoded_from_the_files(network, images):
    asked = []
    noise = np.random.default_rng(0).integers(0, 256, images.pixels.shape, dtype=np.uint8)

    def decode(wanted):
        asked.append((wanted.resize, wanted.crop_ratio))
        if wanted.resize == "crop" and wanted.crop_ratio == 1.0:
            return images.pixels
        return noise

    found = check(network, LabeledImages(noise, images.labels, decode))

    assert asked == [("crop", 0.875), ("crop", 1.0)]
    assert found["better_alternatives"][0]["changes"] == {"resize": "crop", "crop_ratio": 1.0}
    assert "teacher.input: {resize: crop, crop_ratio: 1}" in ". ".join(found["advice"])


def test_alternatives_differ_from_what_is_configured_and_from_each_other(images):
    for configured in (spec(), spec(mean=(0.5,) * 3, std=(0.5,) * 3), spec(value_range=(0, 255))):
        alternatives = input_alternatives(configured, images.pixels, has_files=True)
        specs = [entry.spec for entry in alternatives if not entry.is_gray]
        assert configured not in specs
        assert len({each.model_dump_json() for each in specs}) == len(specs)
        assert len(specs) >= 10


def test_gray_images_have_no_alternatives_of_color():
    pixels = striped_images(12, seed=0)[0][:, :1]
    gray = spec(channels=1, mean=(0.5,), std=(0.5,))
    names = [entry.name for entry in input_alternatives(gray, pixels, has_files=False)]

    assert "MNIST's mean and std" in names
    assert not any("BGR" in name or "gray" in name for name in names)
    # Images of a single value have no standard deviation to divide by.
    input_alternatives(gray, np.zeros_like(pixels), has_files=False)


def test_gray_is_what_pillow_makes_of_an_image():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 9), dtype=np.uint8)
    expected = [Image.fromarray(each.transpose(1, 2, 0)).convert("L") for each in pixels]
    gray = to_gray(pixels)

    for channel in range(3):
        np.testing.assert_array_equal(gray[:, channel], np.stack(expected))
