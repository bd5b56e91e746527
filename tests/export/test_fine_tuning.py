"""Fine-tuning with the rounding of int8: it comes closer to the student, which stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.export import FineTuningParams
from pu_kd_pipeline.params.teacher import InputSpec
from tests.features.made_files import COMPUTE

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
from pu_kd_pipeline.export.fine_tuning import fine_tune, predict_classes, split_images
from pu_kd_pipeline.export.quantization import CalibrationImages
from pu_kd_pipeline.learning.fake_quantization import input_ranges, with_rounding
from pu_kd_pipeline.learning.losses.distillation import kl_divergence
from pu_kd_pipeline.reporting.export_page import _fine_tuning_text


class Images:
    """A store of random 1x6x6 images."""

    image_shape = (1, 6, 6)

    def __init__(self, n: int) -> None:
        self.fingerprint = f"{n} images"
        self._images = np.random.default_rng(0).integers(0, 256, (n, 1, 6, 6), dtype=np.uint8)

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self._images[rows]


def student_of(excluded: bool) -> Model:
    """A network whose first layer has channels of very different size, which int8 rounds away."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))
    factors = torch.logspace(0, 2, 8)
    with torch.no_grad():
        network[0].weight.mul_(factors.view(-1, 1, 1, 1))
        network[0].bias.mul_(factors)
        network[3].weight.div_(factors.repeat_interleave(16))
    spec = InputSpec(size_px=6, channels=1, mean=(0.5,), std=(0.5,))
    card = ModelCard(architecture="made", classes=("a", "b", "c"), input=spec)
    if excluded:
        network.append(WithoutLastClass())
    return Model(network.eval(), card)


class WithoutLastClass(nn.Module):
    """Minus infinity for the last class, as for one that a student excludes."""

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(1, torch.tensor([2]), -torch.inf)


@pytest.mark.parametrize("excluded", [False, True])
def test_the_rounded_network_comes_closer_to_the_student(excluded):
    student = student_of(excluded)
    before = {name: tensor.clone() for name, tensor in student.network.state_dict().items()}
    store = Images(256)
    every = CalibrationImages([(store, np.arange(256))], "made")
    params = FineTuningParams(
        above_points=0, n_updates=80, learning_rate=0.001, n_images=1, n_checked=1
    )
    tuned = fine_tune(student, every, every, params, COMPUTE, seed=0)
    again = fine_tune(student, every, every, params, COMPUTE, seed=0)

    inputs = (torch.from_numpy(store.read(np.arange(256))) / 255 - 0.5) / 0.5
    ranges = input_ranges(student.network, [inputs])
    kept = [0, 1] if excluded else [0, 1, 2]

    def divergence(model: Model) -> float:
        with torch.no_grad():
            exact = student.network(inputs)[:, kept]
            with with_rounding(model.network, ranges):
                rounded = model.network(inputs)[:, kept]
        return float(kl_divergence(exact, rounded).mean())

    assert divergence(tuned) < 0.75 * divergence(student)
    for name, tensor in student.network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tuned.network.state_dict()[name], again.network.state_dict()[name])
    assert tuned.network.state_dict().keys() == before.keys()


def test_images_are_split_without_those_that_calibrate():
    store, other = Images(20), Images(10)
    drawn = CalibrationImages([(store, np.arange(20)), (other, np.arange(10))], "made")
    taken = CalibrationImages([(store, np.arange(0, 20, 2))], "made")
    split = split_images(drawn, taken, n_checked=6, seed=0)
    assert len(split.checked) == 6
    found = []
    for images in (split.checked, split.learned):
        for owner, rows in images.parts:
            found += [(owner.fingerprint, int(row)) for row in rows]
    expected = [(store.fingerprint, row) for row in range(1, 20, 2)]
    expected += [(other.fingerprint, row) for row in range(10)]
    assert sorted(found) == sorted(expected)
    # At least as many are left to learn from.
    assert len(split_images(drawn, taken, n_checked=100, seed=0).checked) == 10
    nothing = split_images(drawn, drawn, n_checked=6, seed=0)
    assert len(nothing.checked) == len(nothing.learned) == 0
    assert len(predict_classes(student_of(excluded=False), nothing.checked, COMPUTE)) == 0


def test_the_page_states_what_fine_tuning_did():
    found = {"n_checked": 1000, "n_agreed_float32": 950, "n_agreed": 930, "n_agreed_after": None}
    assert _fine_tuning_text({**found, "is_used": False}) == ""
    found["n_agreed_after"] = 945
    assert "in int8 for 930; after fine-tuning" in _fine_tuning_text({**found, "is_used": True})
    assert "gave 945, too few" in _fine_tuning_text({**found, "is_used": False})
