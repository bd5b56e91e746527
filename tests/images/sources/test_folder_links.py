"""Links in folders of images, with and without `follow_links`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.sources.registry import source_state
from tests.images.numbered_images import plan_of
from tests.images.sources.examples import (
    gray_levels,
    image_folder,
    listed,
    opened,
    png,
    source_of,
)


def linked_files(root: Path, cache: Path, **grays: int) -> Path:
    """Write images into a cache without extensions, and links to them into class folders."""
    cache.mkdir()
    for name, gray in grays.items():
        (cache / name).write_bytes(png(gray))
        link = root / f"{name.replace('__', '/')}.png"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cache / name)
    return root


def test_links_to_a_cache_are_refused_with_what_to_do_and_followed_on_request(
    tmp_path: Path,
) -> None:
    root = linked_files(tmp_path / "in", tmp_path / "cache", cat__a=1, dog__b=2)
    message = (
        "in: 2 links, such as 'cat/a.png', lead to folders or out of .* and are not followed: set "
        "`follow_links: true` on the source to read what they lead to, or give the real folder as "
        "`path`. There is no other image"
    )
    with pytest.raises(InputError, match=message):
        listed("folder", path=root)

    reader = opened("folder", path=root, follow_links=True)
    listing = reader.listing()
    assert listing["id"].tolist() == ["cat/a.png", "dog/b.png"]
    assert listing["label_name"].tolist() == ["cat", "dog"]
    assert listing["fault"].isna().all()
    assert gray_levels(reader.read(listing)) == [1, 2]


def test_links_without_an_extension_are_named_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = linked_files(tmp_path / "in", tmp_path / "cache", cat__a=1, dog__b=2)
    for link in list(root.rglob("*.png")):
        link.rename(link.with_suffix(""))
    message = r"link without extension .* \(2\)\. As for the links, set `follow_links: true`"
    with pytest.raises(InputError, match=message):
        listed("folder", path=root)
    assert len(listed("folder", path=root, follow_links=True)) == 2

    # Next to other images
    image_folder(root, cat__c=3)
    with caplog.at_level(logging.WARNING):
        assert len(listed("folder", path=root)) == 1
    assert "2 links without an extension lead out of it and are not followed" in caplog.text


def test_class_folders_that_are_links_are_warned_of_and_followed_on_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "in", cat__a=1)
    elsewhere = image_folder(tmp_path / "elsewhere", b=2, deep__c=3)
    (root / "dog").symlink_to(elsewhere)

    listing = listed("folder", path=root)
    assert listing["id"].tolist() == ["cat/a.png", "dog"]
    assert "1 links, such as 'dog', lead to folders or out of" in caplog.text
    assert "set `follow_links: true`" in caplog.text

    followed = listed("folder", path=root, follow_links=True)
    assert followed["id"].tolist() == ["cat/a.png", "dog/b.png", "dog/deep/c.png"]
    assert followed["label_name"].tolist() == ["cat", "dog", "dog"]


def test_a_circle_of_links_ends_and_each_folder_is_read_once_per_class(tmp_path: Path) -> None:
    shared = image_folder(tmp_path / "shared", x=1)
    root = image_folder(tmp_path / "in", cat__a=2)
    links = {
        "all": root,
        "cat/up": root,
        "cat/self": root / "cat",
        # For two classes, and twice for one of them
        "cat/shared": shared,
        "cat/zz": shared,
        "dog": shared,
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (shared / "back").symlink_to(root / "cat")

    listing = listed("folder", path=root, follow_links=True)
    ids = listing["id"].tolist()
    assert ids == ["cat/a.png", "cat/shared/x.png", "dog/back/a.png", "dog/x.png"]
    # `all`, `cat/up`, `cat/self`, `cat/zz`, `cat/shared/back` and `dog/back/…` below `cat`
    reasons = listing.attrs["passed_over"]
    assert reasons["link to a folder that is read already"] >= 5


def test_folders_that_all_link_to_each_other_do_not_multiply(tmp_path: Path) -> None:
    names = [f"f{number}" for number in range(9)]
    for name in names:
        image_folder(tmp_path / "in" / "cat" / name, a=1)
        for other in names:
            (tmp_path / "in" / "cat" / name / other).symlink_to(tmp_path / "in" / "cat" / other)
    listing = listed("folder", path=tmp_path / "in", follow_links=True)
    assert len(listing) == len(names)


def test_a_new_link_to_a_real_folder_does_not_rename_its_images(tmp_path: Path) -> None:
    root = image_folder(tmp_path, cat__real__a=1)
    before = listed("folder", path=root, follow_links=True)
    (root / "cat" / "a_link").symlink_to(root / "cat" / "real")
    after = listed("folder", path=root, follow_links=True)
    assert after["id"].tolist() == before["id"].tolist() == ["cat/real/a.png"]


def test_broken_links_are_named_also_those_of_class_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = image_folder(tmp_path / "in", cat__a=1)
    (root / "cat" / "b.png").symlink_to(tmp_path / "not_fetched")
    (root / "dog").symlink_to(tmp_path / "not_mounted")
    (root / "dog2").symlink_to("dog2")
    for follow_links in (False, True):
        caplog.clear()
        listing = listed("folder", path=root, follow_links=follow_links)
        faults = listing.set_index("id")["fault"].dropna()
        broken = dict.fromkeys(["cat/b.png", "dog", "dog2"], Reason.BROKEN_LINK)
        assert faults.to_dict() == broken
        assert "3 links, such as 'cat/b.png', lead to nothing: fetch the files" in caplog.text


def test_followed_links_never_open_pipes_or_devices(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "in", a=1)
    os.mkfifo(tmp_path / "pipe")
    (root / "pipe.png").symlink_to(tmp_path / "pipe")
    (root / "null.png").symlink_to("/dev/null")
    listing = listed("folder", path=root, follow_links=True)
    faults = listing.set_index("id")["fault"].dropna()
    assert faults.to_dict() == dict.fromkeys(["null.png", "pipe.png"], Reason.UNREADABLE)


def test_a_change_behind_a_followed_link_is_seen(tmp_path: Path) -> None:
    root = linked_files(tmp_path / "in", tmp_path / "cache", cat__a=1)
    elsewhere = image_folder(tmp_path / "elsewhere", b=2)
    (root / "dog").symlink_to(elsewhere)
    source = source_of("folder", path=root, follow_links=True)
    states = [source_state(source)]
    (tmp_path / "cache" / "cat__a").write_bytes(png(3))
    states.append(source_state(source))
    image_folder(elsewhere, c=4)
    states.append(source_state(source))
    assert len(set(states)) == 3
    assert source_state(source) == states[-1]


def test_links_of_a_remote_folder_cannot_be_followed() -> None:
    with pytest.raises(ValidationError, match="follow_links is for local folders"):
        source_of("folder", path="memory://links", follow_links=True)


def test_too_many_links_next_to_good_images_end_with_the_switch(tmp_path: Path) -> None:
    root = linked_files(tmp_path / "in", tmp_path / "cache", cat__a=1, cat__b=2)
    image_folder(root, cat__c=3)
    plan = plan_of(root, source={"type": "folder", "labels": "ignore"}, max_quarantined_share=0.1)
    with pytest.raises(InputError, match="As for the links, set `follow_links: true`"):
        write_store(plan, tmp_path / "store")
