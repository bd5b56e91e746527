"""Models of networks that do not return logits as a tensor."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.factory import is_known_to_build, new_student, new_teacher, teacher_card
from pu_kd_pipeline.models.model import load_model, save_model
from pu_kd_pipeline.models.weights import read_weights_file
from pu_kd_pipeline.params.teacher import OutputSpec
from tests.models.examples import teacher_params


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A module of a user with networks that do not return logits as a tensor."""
    (tmp_path / "networks_of_a_user.py").write_text(NETWORKS_OF_A_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "networks_of_a_user"
    sys.modules.pop("networks_of_a_user", None)


NETWORKS_OF_A_USER = """
from torch import nn


class Base(nn.Module):
    def __init__(self, n_classes, in_channels):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, 4, 3)
        self.fc = nn.Linear(4, n_classes)

    def logits(self, images):
        return self.fc(self.layer(images).relu().mean((2, 3)))


class Softmax(Base):
    def forward(self, images):
        return self.logits(images).softmax(1)


class Outputs(Base):
    def forward(self, images):
        return {"features": images.mean(), "probs": self.logits(images).softmax(1)}
"""
PROBS = {"key": "probs", "kind": "probabilities"}


def test_a_teacher_that_ends_in_softmax_is_refused_before_anything_runs(networks):
    teacher = teacher_params(architecture=f"{networks}:Softmax", architecture_options={})
    message = r"the network returns probabilities .* set teacher\.output\.kind to probabilities"
    with pytest.raises(InputError, match=message):
        new_teacher(teacher)


def test_a_student_that_ends_in_softmax_is_refused(model, networks):
    with pytest.raises(InputError, match="of a student, leave out the last softmax"):
        new_student(model, f"{networks}:Softmax", {}, {})


def test_stated_outputs_are_converted_in_every_copy_of_the_teacher(networks, tmp_path):
    params = teacher_params(
        architecture=f"{networks}:Outputs", architecture_options={}, output=PROBS, taps=["layer"]
    )
    teacher = new_teacher(params)
    images = torch.randn(4, 1, 8, 8)
    logits = teacher.network(images)
    expected = teacher.network.logits(images).log_softmax(1)
    torch.testing.assert_close(logits.log_softmax(1), expected)
    _, of_features = teacher.extractor()(images)
    torch.testing.assert_close(of_features, logits)

    save_model(teacher, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.card == teacher.card
    assert again.fingerprint() == teacher.fingerprint()
    assert torch.equal(again.network(images), logits)
    # The weights have the names of the network itself.
    names = set(read_weights_file(tmp_path / "m" / "weights.safetensors"))
    assert names == {"layer.weight", "layer.bias", "fc.weight", "fc.bias"}


def test_the_output_of_a_teacher_is_read_from_its_card_and_not_given_to_students(
    networks, tmp_path
):
    architecture = f"{networks}:Outputs"
    params = teacher_params(architecture=architecture, architecture_options={}, output=PROBS)
    save_model(new_teacher(params), tmp_path / "m")
    again = teacher_params(
        architecture=architecture, architecture_options={}, weights=str(tmp_path / "m")
    )
    teacher = new_teacher(again)
    assert teacher.card.output == OutputSpec.model_validate(PROBS)

    student = new_student(teacher, "digits_cnn", {"width": 2}, {})
    assert student.card.output is None
    assert student.network(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_a_stated_output_is_checked_even_if_the_network_is_sure_to_build():
    params = teacher_params(output={"kind": "probabilities"})
    assert not is_known_to_build(teacher_card(params))
    with pytest.raises(InputError, match="is probabilities, and the network returns logits"):
        new_teacher(params)


def test_cards_without_an_output_stay_as_they_were(model, saved):
    # Features and scores of earlier runs are checked by a hash of the card.
    assert "output" not in json.loads((saved / "card.json").read_text())
    assert "output" not in model.card.model_dump_json()


@pytest.mark.parametrize(
    "output", [{"kind": "sigmoid"}, {"key": True}, {"key": 1.5}, {"keys": "x"}, "logits"]
)
def test_a_malformed_output_is_refused_by_the_parameters(output):
    with pytest.raises(ValueError, match="output"):
        teacher_params(output=output)
