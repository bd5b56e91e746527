"""Which images calibrate int8: both origins, in the shares of the student's batches."""

from __future__ import annotations

import logging
from threading import Thread

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.storage.manifest import SAMPLING_PROBABILITY

pytest.importorskip("onnxruntime", reason="the extra export is not installed")
from pu_kd_pipeline.export.quantization import _drawn_rows, _without_advice


def card_of(share: float | None) -> ModelCard:
    origin = {} if share is None else {"sampling": {"labeled_share": share}}
    spec = InputSpec(size_px=8, channels=1, mean=(0.5,), std=(0.5,))
    return ModelCard(architecture="digits_cnn", classes=("a", "b"), input=spec, origin=origin)


def manifest_of(n_labeled: int, pool: list[float]) -> pd.DataFrame:
    """As `selection.manifest` writes it: pool images have a probability, labeled ones have none."""
    probabilities = [np.nan] * n_labeled + pool
    return pd.DataFrame(
        {
            "id": [str(number) for number in range(len(probabilities))],
            "origin": ["labeled"] * n_labeled + ["pool"] * len(pool),
            SAMPLING_PROBABILITY: probabilities,
        }
    )


def drawn(manifest: pd.DataFrame, share: float | None, n: int) -> pd.DataFrame:
    return _drawn_rows(manifest, card_of(share), n, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("share", "n_labeled", "n_pool", "expected"),
    [
        (0.25, 50, 50, 5),
        (None, 50, 50, 10),
        (0.25, 2, 50, 2),
        (0.25, 50, 4, 16),
        (0.25, 5, 0, 5),
        (0.25, 0, 50, 0),
    ],
)
def test_labeled_images_are_drawn_as_often_as_in_batches(share, n_labeled, n_pool, expected):
    found = drawn(manifest_of(n_labeled, [1 / 50] * n_pool), share, 20)
    origins = found["origin"].value_counts()
    assert origins.get("labeled", 0) == expected
    assert len(found) == min(20, n_labeled + n_pool)
    assert found["id"].is_unique


def test_pool_images_are_drawn_by_their_probabilities():
    manifest = manifest_of(4, [0.0] * 20 + [0.5, 0.5])
    found = drawn(manifest, 0.5, 20)
    assert found["id"].tolist() == ["0", "1", "2", "3", "24", "25"]


def test_a_manifest_without_an_image_to_draw_is_refused():
    with pytest.raises(InputError, match=r"int8 is calibrated .* sampling_probability above 0"):
        drawn(manifest_of(0, [0.0, 0.0]), 0.25, 20)


def test_only_the_advice_of_the_quantizer_is_dropped(caplog):
    with _without_advice():
        logging.warning("advice")
        logging.error("fault")
        logging.getLogger("pu_kd_pipeline").warning("of this project")
        other = Thread(target=logging.warning, args=("of another thread",))
        other.start()
        other.join()
    logging.warning("afterwards")
    assert caplog.messages == ["fault", "of this project", "of another thread", "afterwards"]
