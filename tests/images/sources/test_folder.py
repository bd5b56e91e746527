"""Images in folders, local and remote."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason, Unusable
from tests.images.sources.examples import gray_levels, image_folder, listed, opened, png


def test_a_folder_lists_its_images_sorted_with_the_first_folder_as_class(tmp_path: Path) -> None:
    image_folder(tmp_path, dog__b=2, dog__a=1, cat__deep__c=3, loose=4)
    (tmp_path / "dog" / "D.JPEG").write_bytes(png(5))
    # neither other files nor hidden ones are images
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(png(9))
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "x.png").write_bytes(png(9))
    reader = opened("folder", path=tmp_path)
    listing = reader.listing()
    ids = ["cat/deep/c.png", "dog/D.JPEG", "dog/a.png", "dog/b.png", "loose.png"]
    assert listing["id"].tolist() == ids
    assert listing["label_name"].fillna("-").tolist() == ["cat", "dog", "dog", "dog", "-"]
    assert gray_levels(reader.read(listing)) == [3, 5, 1, 2, 4]
    assert gray_levels(reader.read(listing.iloc[[0, 3]])) == [3, 2]


def test_links_out_of_a_folder_are_listed_as_faults_and_links_inside_are_followed(
    tmp_path: Path,
) -> None:
    outside = image_folder(tmp_path / "outside", secret=1)
    root = image_folder(tmp_path / "images", a=2)
    (root / "leak.png").symlink_to(outside / "secret.png")
    (root / "leaks").symlink_to(outside)
    (root / "broken.png").symlink_to(outside / "nothing.png")
    (root / "inside.png").symlink_to(root / "a.png")
    faults = listed("folder", path=root).set_index("id")["fault"]
    assert faults[["leak.png", "leaks", "broken.png"]].tolist() == [Reason.LINK] * 3
    assert faults[["a.png", "inside.png"]].isna().all()
    assert len(faults) == 5


def test_a_pipe_named_like_an_image_is_never_opened(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1)
    os.mkfifo(tmp_path / "pipe.png")
    faults = listed("folder", path=tmp_path).set_index("id")["fault"]
    assert faults["pipe.png"] == Reason.UNREADABLE


def test_a_file_name_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    try:
        Path(name).write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    listing = listed("folder", path=tmp_path)
    assert listing[["id", "fault"]].values.tolist() == [["caf\\xe9.png", Reason.NAME]]


def test_a_changed_file_has_another_version(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1, b=2)
    before = listed("folder", path=tmp_path)["version"]
    os.utime(tmp_path / "a.png", ns=(0, 1))
    after = listed("folder", path=tmp_path)["version"]
    assert (before != after).tolist() == [True, False]


def test_a_file_that_vanished_is_unusable_not_fatal(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1, b=2)
    reader = opened("folder", path=tmp_path)
    listing = reader.listing()
    (tmp_path / "a.png").unlink()
    assert gray_levels(reader.read(listing)) == [Unusable(Reason.NOT_OPENED), 2]


def test_a_folder_behind_a_url_is_read_like_a_local_one() -> None:
    remote = fsspec.filesystem("memory")
    grays = {"cat/a.png": 1, "dog/b.png": 2, "dog/notes.txt": 0, ".x/c.png": 3}
    for name, gray in grays.items():
        remote.pipe(f"/folder_test/{name}", png(gray))
    reader = opened("folder", path="memory://folder_test")
    listing = reader.listing()
    found = listing[["id", "label_name"]].values.tolist()
    assert found == [["cat/a.png", "cat"], ["dog/b.png", "dog"]]
    assert gray_levels(reader.read(listing)) == [1, 2]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        listed("folder", path=tmp_path / "images")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image: files ending"):
        listed("folder", path=tmp_path)


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    message = r"cloud://bucket cannot be read \(Protocol not known: cloud\): correct `path`"
    with pytest.raises(InputError, match=message):
        listed("folder", path="cloud://bucket")


def test_a_url_whose_package_is_not_installed_is_refused_with_its_name() -> None:
    missing = "no_such_package.NeedyFileSystem"
    fsspec.register_implementation("needy", missing, errtxt="Install no_such_package")
    message = "needy://b/x.parquet cannot be read yet: Install no_such_package, with pip"
    with pytest.raises(InputError, match=message):
        listed("parquet", path="needy://b/x.parquet")
