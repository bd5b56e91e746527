"""Model cards that do not describe their weights: refused, and the entry is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model, load_model, load_pu_classifier, save_model
from pu_kd_pipeline.params.teacher import TeacherParams
from tests.hostile.valid_files import CARD, INPUT, state_dict


def write_model(folder: Path, card: dict[str, Any]) -> Path:
    """Write good weights and a card, and return the folder."""
    save_file(state_dict(), folder / "weights.safetensors")
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a", "b"]}, "of another shape: fc.bias (3,) instead of (2,)"),
        ({"classes": []}, "two classes or more"),
        ({"classes": ["a", "a", "b"]}, "of different names"),
        ({"architecture_options": {"width": -1}}, "negative dimension"),
        ({"architecture_options": {"width": 10**9}}, "digits_cnn"),
        ({"architecture": "digits_cnm"}, "did you mean 'digits_cnn'"),
        ({"architecture": "..:x"}, "relative import"),
        ({"input": {**INPUT, "size_px": 10**9}}, "input.size_px"),
        ({"input": {**INPUT, "mean": [float("nan")]}}, "input.mean.0"),
        ({"input": {**INPUT, "std": [0.0]}}, "std must be positive"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_card_with_wrong_entries_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_model(tmp_path, CARD | changes)

    with pytest.raises(InputError) as error:
        load_model(tmp_path)
    assert message in str(error.value)
    # torch's own errors end with a C++ stack trace, which a user cannot read.
    assert "Exception raised from" not in str(error.value)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["nowhere"], "not a layer of the network: 'nowhere'"),
        ([], "no layer is named"),
    ],
)
def test_taps_that_are_not_layers_are_refused(
    tmp_path: Path, taps: list[str], message: str
) -> None:
    write_model(tmp_path, {**CARD, "taps": taps})

    with pytest.raises(InputError, match=message):
        load_model(tmp_path).extractor()

    block = {**CARD, "weights": str(tmp_path / "weights.safetensors"), "taps": taps}

    with pytest.raises(InputError, match=message):
        new_teacher(TeacherParams.model_validate(block))


@pytest.mark.parametrize(
    "text",
    [
        "",
        # Deeper than Python's parser recurses.
        "[" * 100_000,
        "null",
        "\udcff",
        '{"classes": 1e999}',
        # More digits than Python converts to a number.
        '{"origin": {"a": ' + "9" * 9_999 + "}}",
    ],
)
@pytest.mark.parametrize("load", [load_model, load_pu_classifier])
def test_a_card_that_is_not_json_is_refused(
    tmp_path: Path, text: str, load: Callable[[Path], Any]
) -> None:
    (tmp_path / "card.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"card\.json is not the card of a"):
        load(tmp_path)


def test_a_model_that_cannot_be_written_completely_is_not_written_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build_network("digits_cnn", 3, 1, {"width": 2})
    model = Model(network, ModelCard.model_validate(CARD))

    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)

    with pytest.raises(OSError, match="No space left"):
        save_model(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
