"""The block `distillation`: its objective and the option blocks that belong to it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pu_kd_pipeline.params.distillation import (
    OPTION_BLOCKS,
    DistillationParams,
    LatentKDParams,
    PUCriticParams,
    check_option_blocks,
)
from tests.training.scene import ATTENTION, params_with


@pytest.mark.parametrize(
    ("objective", "missing", "sentence"),
    [
        ("noisy_kd", ["noise_matrix"], "objective 'noisy_kd' needs noise_matrix next to it"),
        ("latent", ["latent"], "objective 'latent' needs latent next to it"),
        ("attention", ["attention"], "objective 'attention' needs attention next to it"),
        ("pu_critic", ["critic"], "objective 'pu_critic' needs critic next to it"),
        (
            "pu_critic",
            ["attention", "critic"],
            "objective 'pu_critic' needs attention and critic next to it",
        ),
    ],
)
def test_an_objective_needs_its_option_blocks_and_no_others(objective, missing, sentence):
    without_blocks = dict.fromkeys(missing)
    with pytest.raises(ValidationError, match=sentence):
        params_with(objective=objective, **without_blocks)

    # Blocks of other objectives may be missing.
    params_with(objective="kd", **without_blocks)


@pytest.mark.parametrize("objective", OPTION_BLOCKS)
def test_the_objective_params_are_those_of_the_chosen_objective(objective):
    params = params_with(objective=objective)
    blocks = OPTION_BLOCKS[objective]
    chosen = params.objective_params

    assert chosen.name == objective
    fields = set(type(chosen).model_fields)
    assert fields == {"name", *blocks}
    for block in blocks:
        expected = getattr(params, block)
        assert getattr(chosen, block) == expected


def test_a_copy_with_another_objective_has_the_params_of_that_one():
    params = params_with(objective="latent")
    assert isinstance(params.objective_params, LatentKDParams)

    # A cached property would still hold the parameters of `latent`.
    copy = params.model_copy(update={"objective": "pu_critic"})

    assert isinstance(copy.objective_params, PUCriticParams)
    unread_blocks = copy.unread_keys() & {"noise_matrix", "latent", "attention", "critic"}
    assert unread_blocks == {"noise_matrix", "latent"}


def test_a_copy_with_an_unknown_objective_has_no_params():
    params = params_with()
    # A copy is not validated, so that an unknown name can get this far.
    copy = params.model_copy(update={"objective": "new"})
    with pytest.raises(ValidationError, match="'new'"):
        _ = copy.objective_params


def test_an_unknown_objective_is_refused_with_the_known_ones():
    known = ".*".join(repr(name) for name in OPTION_BLOCKS)
    with pytest.raises(ValidationError, match=known):
        params_with(objective="new")


def test_an_option_block_without_a_key_is_refused_with_the_place_to_add_it():
    message = "'new' reads the option block 'gate', .*DistillationParams"
    with pytest.raises(TypeError, match=message):
        check_option_blocks({"new": ("gate",)}, DistillationParams.model_fields)


def test_mixed_images_have_no_label_to_learn():
    labels = ATTENTION | {"label_weight": 0.1}
    with pytest.raises(ValidationError, match="set it to 0, or mixing to none"):
        params_with(objective="attention", attention=labels, mixing="mixup")

    # Objectives that do not read labels may be mixed.
    params_with(objective="kd", attention=labels, mixing="mixup")


def test_options_of_a_mixing_that_is_off_are_not_read():
    off = params_with().unread_keys()
    on = params_with(mixing="cutmix").unread_keys()
    assert off - on == {"mixing_alpha", "mixing_share"}
    averaged = params_with(weight_averaging="ema").unread_keys()
    assert off - averaged == {"ema_decay"}


def test_an_average_over_the_final_phase_needs_one():
    with pytest.raises(ValidationError, match=r"needs a final_phase.share above 0"):
        params_with(weight_averaging="final_phase")
    params_with(weight_averaging="final_phase", final_phase={"share": 0.2})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"resized_crop_scale": [0.8, 0.3]}, "resized_crop_scale is .smallest, largest., and 0.8"),
        ({"resized_crop_scale": [0.3, 1.5]}, "share of the image's area, at most 1"),
        ({"resized_crop_scale": [0.0, 1.0]}, "greater than 0"),
        ({"resized_crop_scale": [0.3, 1.0], "padding_px": 2}, "set padding_px to 0"),
        ({"brightness": -0.1}, "greater than or equal to 0"),
    ],
)
def test_views_of_photos_that_make_no_sense_are_refused(changes, sentence):
    given = {"padding_px": 0, "horizontal_flip": True, **changes}
    with pytest.raises(ValidationError, match=sentence):
        params_with(augmentation=given)
