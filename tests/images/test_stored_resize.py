"""The resize of a store: it is part of the store, and another than the network's is refused."""

from __future__ import annotations

import dataclasses
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import normalization, predict_logits
from pu_kd_pipeline.images.decoding import Decoder
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.storage.checked_json import from_checked_json, to_checked_json
from tests.features.made_files import CARD, COMPUTE, MadeFiles
from tests.images.numbered_images import KINDS, plan_of

CROP = {"shorter_side_px": 9, "interpolation": "bicubic"}
N_IMAGES = 6


def wide_images(folder: Path) -> list[bytes]:
    """Write images that are not square into `a.parquet`, and return their files."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(N_IMAGES):
        pixels = rng.integers(0, 256, (11, 15 + number, 3), dtype=np.uint8)
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        files.append(buffer.getvalue())
    ids = [f"i{number}" for number in range(N_IMAGES)]
    labels = [0, 1, 2] * (N_IMAGES // 3)
    pq.write_table(pa.table({"id": ids, "image": files, "label": labels}), folder / "a.parquet")
    return files


def plan(folder: Path, kind: str = "packed", **resize: Any) -> IngestionPlan:
    return dataclasses.replace(plan_of(folder / "a.parquet", kind=kind), **resize)


def description(store: ImageStore) -> dict[str, Any]:
    content: dict[str, Any] = from_checked_json((store.folder / "store.json").read_text())
    return content


def write_description(store: ImageStore, content: dict[str, Any]) -> None:
    (store.folder / "store.json").write_text(to_checked_json(content))


@KINDS
def test_a_store_holds_the_center_crops_of_its_images(tmp_path: Path, kind: str) -> None:
    files = wide_images(tmp_path)
    store = write_store(plan(tmp_path, kind, **CROP), tmp_path / "store")

    decoder = Decoder(3, 8, 10_000, 9, "bicubic")
    expected = np.stack([np.asarray(decoder.decode(file)) for file in files])
    np.testing.assert_array_equal(store.read(np.arange(N_IMAGES)), expected)
    assert description(store)["specification"].items() >= CROP.items()
    # Opened by another process, it is decoded the same way.
    again = ImageStore.open(store.folder)
    np.testing.assert_array_equal(again.read(np.arange(N_IMAGES)), expected)


@KINDS
@pytest.mark.parametrize("change", [{"shorter_side_px": 10}, {"interpolation": "lanczos"}])
def test_another_resize_makes_the_images_again(
    tmp_path: Path, kind: str, change: dict[str, Any], n_decoded: Any
) -> None:
    wide_images(tmp_path)
    before = write_store(plan(tmp_path, kind, **CROP), tmp_path / "store")
    n_decoded()
    after = write_store(plan(tmp_path, kind, **{**CROP, **change}), tmp_path / "store")

    assert n_decoded() == N_IMAGES
    assert after.fingerprint != before.fingerprint
    assert after.shards[0].name != before.shards[0].name
    # And back again: nothing is kept under a name that has become wrong.
    back = write_store(plan(tmp_path, kind, **CROP), tmp_path / "store")
    assert back.fingerprint == before.fingerprint
    assert back.shards[0].name == before.shards[0].name


def test_a_store_from_before_these_keys_was_squashed_with_the_bilinear_filter(
    tmp_path: Path,
) -> None:
    wide_images(tmp_path)
    store = write_store(plan(tmp_path), tmp_path / "store")
    fingerprint = store.fingerprint
    content = description(store)
    del content["specification"]["shorter_side_px"]
    del content["specification"]["interpolation"]
    write_description(store, content)

    old = ImageStore.open(store.folder)
    assert old.specification == store.specification
    assert old.specification.shorter_side_px is None
    assert old.specification.interpolation == "bilinear"
    # What was made from it is still right.
    assert old.fingerprint == fingerprint


def test_the_shard_names_of_squashed_images_are_those_of_earlier_versions(tmp_path: Path) -> None:
    wide_images(tmp_path)
    store = write_store(plan(tmp_path), tmp_path / "store")
    fields = store.specification.content_fields()
    assert fields.keys() == {"kind", "channels", "size_px", "max_image_pixels", "format"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interpolation", "cubic"),
        ("interpolation", ["box"]),
        ("shorter_side_px", 7),
        ("shorter_side_px", True),
        ("shorter_side_px", "9"),
        ("resize", "crop"),
    ],
)
def test_a_description_with_another_resize_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    wide_images(tmp_path)
    store = write_store(plan(tmp_path), tmp_path / "store")
    content = description(store)
    content["specification"][key] = value
    write_description(store, content)
    with pytest.raises(InputError, match="is damaged"):
        ImageStore.open(store.folder)


# --- a store that a network must not read

OTHER_INPUTS = pytest.mark.parametrize(
    "change",
    [
        {"resize": "crop"},
        {"interpolation": "bicubic"},
        {"size_px": 16},
    ],
)


def with_input(model: Model, **change: Any) -> Model:
    """Return the model with a card that expects another input."""
    content = {**model.card.input.model_dump(), **change}
    card = model.card.model_copy(update={"input": InputSpec.model_validate(content)})
    return Model(model.network, card)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeFiles:
    return MadeFiles.in_folder(tmp_path_factory.mktemp("made"))


@OTHER_INPUTS
def test_a_store_of_another_resize_is_refused_everywhere(
    made: MadeFiles, change: dict[str, Any]
) -> None:
    other = with_input(made.teacher, **change)
    made_for_other = dataclasses.replace(made, teacher=other)
    message = r"store holds images of 8 × 8 px, color, bilinear, and the network expects .* run"
    with pytest.raises(InputError, match=message):
        predict_logits(other, made.pool, COMPUTE)
    with pytest.raises(InputError, match=message):
        made_for_other.feature_makers()
    with pytest.raises(InputError, match=message):
        made_for_other.relatedness_makers()
    with pytest.raises(InputError, match=message):
        normalization(other, COMPUTE.device, made.pool)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"channel_order": "bgr"}, {"value_range": [0, 255]}])
def test_what_acts_in_the_normalization_leaves_the_store_as_it_is(
    made: MadeFiles, change: dict[str, Any]
) -> None:
    other = with_input(made.teacher, **change)
    before = predict_logits(made.teacher, made.pool, COMPUTE)
    after = predict_logits(other, made.pool, COMPUTE)
    assert not np.allclose(before, after)
    # Features of another input have other names.
    names = next(iter(made.feature_makers()))
    assert next(iter(dataclasses.replace(made, teacher=other).feature_makers())) != names


def test_a_card_without_these_keys_is_the_card_of_earlier_versions() -> None:
    keys = json.loads(CARD.model_dump_json())["input"].keys()
    assert keys == {"size_px", "channels", "mean", "std"}
