"""Which files a folder, a file or a pattern means, and what is said of those that are unusable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from pu_kd_pipeline.images.found_files import files_state, find_files

WHERE = "predict.images"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.png", "a.png", "more/c.jpg"):
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def names(text: Path | str) -> list[str]:
    return [file.path for file in find_files(str(text), WHERE).files]


def test_a_folder_a_file_and_a_pattern_are_listed_in_order(photos):
    assert names(photos) == ["a.png", "b.png", "more/c.jpg"]
    assert names(photos / "b.png") == ["b.png"]
    assert names(photos / "*.png") == ["a.png", "b.png"]
    assert names(photos / "**" / "*.*") == ["a.png", "b.png", "more/c.jpg", "notes.txt"]
    assert names(photos / "{a.png,more/c.jpg}") == ["a.png", "more/c.jpg"]
    found = find_files(str(photos), WHERE)
    assert list(found.read()) == [(photos / file.path).read_bytes() for file in found.files]


def test_what_is_not_there_is_named(photos, tmp_path):
    for text in ("nothing", "nothing/*.png", "*.gif"):
        with pytest.raises(InputError, match=rf"{WHERE}: there is no .*name a folder, a file"):
            find_files(str(photos / text), WHERE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"{WHERE}: .*holds no image"):
        find_files(str(tmp_path / "empty"), WHERE)
    with pytest.raises(InputError, match="not on this machine"):
        find_files("s3://bucket/photos", WHERE)


def test_a_broken_link_is_listed_with_its_reason(photos):
    (photos / "link.png").symlink_to(photos / "gone.png")
    found = find_files(str(photos), WHERE)
    by_name = dict(zip([file.path for file in found.files], found.read(), strict=True))
    assert by_name["link.png"] == Unusable(Reason.BROKEN_LINK)


def test_the_state_changes_with_files_and_their_content(photos):
    states = [files_state(str(photos))]
    assert files_state(str(photos)) == states[0]
    Image.new("RGB", (4, 4)).save(photos / "d.png")
    states.append(files_state(str(photos)))
    (photos / "d.png").write_bytes(b"another")
    states.append(files_state(str(photos)))
    os.remove(photos / "d.png")
    assert files_state(str(photos)) == states[0]
    assert len(set(states)) == 3
    # A missing folder has a state of its own, and is reported by the stage.
    assert files_state(str(photos / "missing")) not in states
