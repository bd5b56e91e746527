"""The block `teacher`: what its input can state, and what is refused."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pu_kd_pipeline.images.resizing import INTERPOLATIONS
from pu_kd_pipeline.params.teacher import InputSpec


def spec_of(size_px: int = 224, channels: int = 3, **keys: Any) -> InputSpec:
    mean = (0.5,) * channels
    std = (0.25,) * channels
    return InputSpec(size_px=size_px, channels=channels, mean=mean, std=std, **keys)


def shorter_side_px(size_px: int, ratio: float) -> int | None:
    return spec_of(size_px, resize="crop", crop_ratio=ratio).shorter_side_px


@pytest.mark.parametrize(
    ("size_px", "ratio", "shorter"),
    [
        (224, 0.875, 256),
        (224, 1.0, 224),
        # timm rounds 248.9, 235.8, 272.1 and 331.9 down.
        (224, 0.9, 248),
        (224, 0.95, 235),
        (240, 0.882, 272),
        (300, 0.904, 331),
    ],
)
def test_the_shorter_side_is_rounded_down_as_timm_does(
    size_px: int, ratio: float, shorter: int
) -> None:
    assert shorter_side_px(size_px, ratio) == shorter


# Crop and resize of torchvision's weights, where the ratio has many digits
@pytest.mark.parametrize(
    ("crop_px", "resized_px"),
    [
        *[(224, resized_px) for resized_px in (230, 232, 235, 236, 238, 242, 246, 256)],
        *[(240, 255), (240, 256), (256, 260), (256, 272), (299, 342), (300, 320), (380, 384)],
        *[(384, 384), (528, 528)],
    ],
)
def test_five_digits_of_a_ratio_give_the_sizes_of_torchvisions_weights(
    crop_px: int, resized_px: int
) -> None:
    ratio = crop_px / resized_px
    assert shorter_side_px(crop_px, ratio) == resized_px
    assert shorter_side_px(crop_px, round(ratio, 5)) == resized_px


def test_without_a_crop_there_is_no_shorter_side() -> None:
    assert spec_of().shorter_side_px is None


def test_the_accepted_filters_are_those_of_the_decoder() -> None:
    annotation = InputSpec.model_fields["interpolation"].annotation
    assert get_args(annotation) == INTERPOLATIONS


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop_ratio": 0.875}, "crop_ratio has no effect with resize: squash: set resize: crop"),
        ({"resize": "crop", "crop_ratio": 0.0}, "greater than 0"),
        ({"resize": "crop", "crop_ratio": 1.1}, "less than or equal to 1"),
        ({"resize": "crop", "crop_ratio": 0.01}, "shorter side of 22400 px, above 16384"),
        ({"resize": "pad"}, "'squash' or 'crop'"),
        ({"interpolation": "cubic"}, "'bicubic'"),
        ({"channels": 1, "channel_order": "bgr"}, "bgr needs 3 channels, and channels is 1"),
        ({"value_range": [1, 1]}, r"value_range is \[black, white\], and 1 is not below 1"),
        ({"value_range": [255, 0]}, "255 is not below 0"),
        ({"value_range": [0, float("inf")]}, "finite"),
        ({"value_range": [0, 127, 255]}, "value_range"),
    ],
)
def test_an_input_that_cannot_be_meant_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec_of(**keys)


def test_keys_at_their_default_are_left_out_of_cards() -> None:
    # The fingerprints of models from before these keys contain the card.
    plain = {"size_px", "channels", "mean", "std"}
    assert spec_of().model_dump().keys() == plain
    stated = spec_of(resize="squash", interpolation="bilinear", value_range=[0, 1])
    assert stated.model_dump_json() == spec_of().model_dump_json()


def test_a_card_states_a_crop_in_full_and_is_read_back() -> None:
    spec = spec_of(
        resize="crop", interpolation="bicubic", channel_order="bgr", value_range=[0, 255]
    )
    content = spec.model_dump(mode="json")
    assert content["crop_ratio"] == 0.875
    assert InputSpec.model_validate(content) == spec
