"""Folders whose file names hold the class."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.sources import class_patterns
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.numbered_images import plan_of
from tests.images.numbered_images import png as colored_png
from tests.images.sources.examples import image_folder, listed, png, source_of

PATTERN = r"(?P<label>[a-z]+)_\d+\.png"


def test_the_class_is_found_in_the_file_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path, cat_1=1, cat_22=2, dog_3=3, DOG_4=4, cat_5_copy=5, sub__cat_6=6)
    listing = listed("folder", path=root, class_pattern=PATTERN)
    assert listing["id"].tolist() == ["cat_1.png", "cat_22.png", "dog_3.png"]
    assert listing["label_name"].tolist() == ["cat", "cat", "dog"]
    reasons = listing.attrs["passed_over"]
    assert reasons == {"name that class_pattern does not match": 3}
    assert (
        "does not match the paths of 3 images, such as 'DOG_4.png': they are left out, and 3 are "
        "read"
    ) in caplog.text


def test_the_pattern_is_for_the_entire_path_below_the_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path, train__cat__1=1, test__dog__2=2)
    listing = listed("folder", path=root, class_pattern=r"train/(?P<label>.*)/.*")
    assert listing["id"].tolist() == ["train/cat/1.png"]
    assert listing["label_name"].tolist() == ["cat"]


def test_a_remote_folder_has_class_patterns_too() -> None:
    remote = fsspec.filesystem("memory")
    for name in ("cat_1.png", "dog_2.png"):
        remote.pipe(f"/class_patterns/{name}", png(1))
    listing = listed("folder", path="memory://class_patterns", class_pattern=PATTERN)
    assert listing["label_name"].tolist() == ["cat", "dog"]


def test_an_empty_group_is_an_image_without_a_label(tmp_path: Path) -> None:
    root = image_folder(tmp_path, cat_1=1, **{"2": 2, "_3": 3})
    listing = listed("folder", path=root, class_pattern=r"((?P<label>[a-z]*)_)?\d\.png")
    assert listing["label_name"].fillna("-").tolist() == ["-", "-", "cat"]


def test_names_with_line_breaks_and_other_scripts_are_matched(tmp_path: Path) -> None:
    root = image_folder(tmp_path, **{"größe\n_1": 1, "猫_2": 2})
    listing = listed("folder", path=root, class_pattern=r"(?P<label>\w+)\s?_\d\.png")
    assert listing["label_name"].tolist() == ["größe", "猫"]


def test_a_pattern_that_matches_nothing_is_refused_with_an_example(tmp_path: Path) -> None:
    root = image_folder(tmp_path, cat1=1)
    message = "does not match the paths of 1 images, such as 'cat1.png', and matches none"
    with pytest.raises(InputError, match=message):
        listed("folder", path=root, class_pattern=PATTERN)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?P<label>[a-z", "is not a regular expression: unterminated character set"),
        (r"(?P<label>a){99999999999}", "is not a regular expression"),
        (r"([a-z]+)_\d+", r"has no group `label`: write \(\?P<label>…\)"),
        ("", "has no group `label`"),
    ],
)
def test_a_pattern_that_cannot_work_is_refused_at_the_start(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source_of("folder", path="x", class_pattern=pattern)


def test_a_pattern_that_takes_exponential_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_patterns, "_TIMEOUT_S", 1.0)
    root = image_folder(tmp_path, **{"a" * 60: 1})
    with pytest.raises(InputError, match="one repetition in another"):
        listed("folder", path=root, class_pattern="(?P<label>(a+)+)b")


def test_the_state_is_that_of_the_images_that_match(tmp_path: Path) -> None:
    root = image_folder(tmp_path, cat_1=1, other=2)
    source = source_of("folder", path=root, class_pattern=PATTERN)
    before = source_state(source)
    image_folder(root, other=3, more=4)
    assert source_state(source) == before
    image_folder(root, cat_2=4)
    assert source_state(source) != before


def test_labels_of_a_pattern_are_joined_like_others(tmp_path: Path) -> None:
    for number, name in enumerate(["Cat_1", "dog_2", "chien_3", "junk_4"]):
        (tmp_path / f"{name}.png").write_bytes(colored_png(number))
    source = {
        "type": "folder",
        "class_pattern": r"(?P<label>[A-Za-z]+)_\d+\.png",
        "label_map": {"Cat": 0, "dog": 1, "chien": 1},
        "exclude_labels": ["junk"],
        "name": "flat",
    }
    store = write_store(plan_of(tmp_path, source=source), tmp_path / "store")
    labels = dict(zip(store.index["id"], store.index["label"], strict=True))
    assert labels == {"flat/Cat_1.png": 0, "flat/dog_2.png": 1, "flat/chien_3.png": 1}
