"""A small model, and the folder that it was saved in."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model, save_model
from pu_kd_pipeline.params.teacher import InputSpec
from tests.models.examples import INPUT


@pytest.fixture
def model():
    card = ModelCard(
        architecture="digits_cnn",
        architecture_options={"width": 4},
        classes=("a", "b", "c"),
        input=InputSpec.model_validate(INPUT),
        taps=("block1",),
    )
    network = build_network("digits_cnn", 3, 1, {"width": 4})
    return Model(network.eval(), card)


@pytest.fixture
def saved(model, tmp_path):
    """Return the folder that the model was saved to."""
    folder = tmp_path / "m"
    save_model(model, folder)
    return folder
