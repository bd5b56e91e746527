"""Images in folders, local and remote."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Decoder, Reason, Unusable
from pu_kd_pipeline.images.file_kinds import readable_formats
from pu_kd_pipeline.images.sources.folder import FolderSource
from tests.images.sources.examples import gray_levels, image_folder, listed, opened, png, source_of


def faults_of(root: Path) -> pd.Series:
    """Return the fault of every image in a folder, by id; null where there is none."""
    listing = listed("folder", path=root)
    return listing.set_index("id")["fault"]


def versions_of(root: Path) -> pd.Series:
    listing = listed("folder", path=root)
    return listing["version"]


def test_a_folder_lists_its_images_sorted_with_the_first_folder_as_class(tmp_path: Path) -> None:
    image_folder(tmp_path, dog__b=2, dog__a=1, cat__deep__c=3, loose=4)
    upper_case = tmp_path / "dog" / "D.JPEG"
    upper_case.write_bytes(png(5))

    reader = opened("folder", path=tmp_path)
    listing = reader.listing()
    ids = listing["id"].tolist()
    assert ids == ["cat/deep/c.png", "dog/D.JPEG", "dog/a.png", "dog/b.png", "loose.png"]
    # An image that lies in no folder has no class.
    classes = listing["label_name"].fillna("-")
    assert classes.tolist() == ["cat", "dog", "dog", "dog", "-"]

    grays = gray_levels(reader.read(listing))
    assert grays == [3, 5, 1, 2, 4]

    some_rows = listing.iloc[[0, 3]]
    some_grays = gray_levels(reader.read(some_rows))
    assert some_grays == [3, 2]


def test_other_files_and_hidden_ones_are_not_images_of_a_folder(tmp_path: Path) -> None:
    image_folder(tmp_path, cat__a=1)
    notes = tmp_path / "cat" / "notes.txt"
    notes.write_text("no image")
    hidden = tmp_path / ".hidden.png"
    hidden.write_bytes(png(9))
    # As file managers leave it behind: its images are small copies of the others.
    thumbnails = tmp_path / ".thumbnails"
    image_folder(thumbnails, x=9)

    reader = opened("folder", path=tmp_path)
    for _ in range(2):  # listed again, they are not counted twice
        listing = reader.listing()
        assert listing["id"].tolist() == ["cat/a.png"]
        assert listing.attrs["passed_over"] == {
            "hidden folder": 1,
            "hidden file": 1,
            "extension .txt": 1,
        }


NAMES_BY_FORMAT = {
    "PNG": ["a.png", "a.apng", "UPPER.PNG", "two.dots.png", "nameless", "scan.000017"],
    "JPEG": ["b.jpg", "b.jpeg", "b.jpe", "b.jfif", "B.JFIF", "jpeg_without_extension"],
    "PPM": ["c.ppm", "c.pgm", "c.pnm", "C.PPM", "netpbm"],
    "BMP": ["d.bmp", "bitmap"],
    "GIF": ["e.gif", "e2"],
    "TIFF": ["f.tif", "f.tiff", "f2"],
    "WEBP": ["g.webp", "g2"],
    "AVIF": ["h.avif", "h2"],
}


def test_images_of_every_kind_are_found_and_all_others_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "cat"
    folder.mkdir()
    names = []
    for kind in readable_formats():
        for name in NAMES_BY_FORMAT.get(kind, []):
            names.append(f"cat/{name}")
            Image.new("L", (8, 8), 90).save(folder / name, kind)
    for name in ("README", "LICENSE.1", "notes.txt", "photo.HEIC", "photo.jpg.bak"):
        (folder / name).write_text("no image")

    reader = opened("folder", path=tmp_path)
    for _ in range(2):  # listed again, they are not counted twice
        listing = reader.listing()
        assert listing["id"].tolist() == sorted(names)
        assert listing.attrs["passed_over"] == {
            "no extension": 2,
            "extension .txt": 1,
            "extension .heic": 1,
            "extension .bak": 1,
        }
    decoder = Decoder(channels=1, size_px=8, max_image_pixels=100)
    for raw in reader.read(listing):
        pixels = decoder.decode(raw)
        assert isinstance(pixels, np.ndarray)
        assert abs(int(pixels[0, 0, 0]) - 90) <= 2


def test_images_without_an_extension_are_found_behind_a_url() -> None:
    system = fsspec.filesystem("memory")
    system.pipe_file("/nameless/dog/one", png(1))
    system.pipe_file("/nameless/dog/two.png", png(2))
    system.pipe_file("/nameless/README", b"no image")

    reader = opened("folder", path="memory://nameless")
    listing = reader.listing()
    assert listing["id"].tolist() == ["dog/one", "dog/two.png"]
    assert listing.attrs["passed_over"] == {"no extension": 1}
    assert gray_levels(reader.read(listing)) == [1, 2]


def test_a_file_without_an_extension_that_changes_is_another_state(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1)
    nameless = tmp_path / "nameless"
    nameless.write_text("no image yet")
    source = source_of("folder", path=tmp_path)
    before = FolderSource.state(source)
    assert listed("folder", path=tmp_path)["id"].tolist() == ["a.png"]

    nameless.write_bytes(png(2))
    assert FolderSource.state(source) != before
    assert listed("folder", path=tmp_path)["id"].tolist() == ["a.png", "nameless"]


def test_nothing_without_an_extension_is_opened_outside_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(png(9))
    root = image_folder(tmp_path / "images", a=1)
    (root / "leak").symlink_to(outside)
    os.mkfifo(root / "pipe")

    # Opening the pipe would wait forever.
    listing = listed("folder", path=root)
    assert listing["id"].tolist() == ["a.png"]
    assert listing.attrs["passed_over"] == {
        "no extension": 1,
        "link without extension to a file outside of the folder": 1,
    }


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "photo.heic").write_bytes(b"x")
    (tmp_path / "README").write_bytes(b"x")
    expected = r"without an extension. Passed over: extension .heic \(1\), no extension \(1\)"
    with pytest.raises(InputError, match=expected):
        listed("folder", path=tmp_path)


def test_links_out_of_a_folder_are_listed_as_faults_and_links_inside_are_followed(
    tmp_path: Path,
) -> None:
    outside = image_folder(tmp_path / "outside", secret=1)
    root = image_folder(tmp_path / "images", a=2)
    targets = {
        "leak.png": outside / "secret.png",
        "leaks": outside,
        "broken.png": outside / "nothing.png",
        "inside.png": root / "a.png",
    }
    for name, target in targets.items():
        link = root / name
        link.symlink_to(target)

    faults = faults_of(root)
    assert len(faults) == 5
    for name in ("leak.png", "leaks"):
        assert faults[name] == Reason.LINK
    assert faults["broken.png"] == Reason.BROKEN_LINK
    without_fault = faults[["a.png", "inside.png"]]
    assert without_fault.isna().all()


def test_a_pipe_named_like_an_image_is_never_opened(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1)
    # Opening a pipe would wait forever for somebody to write into it.
    os.mkfifo(tmp_path / "pipe.png")
    faults = faults_of(tmp_path)
    assert faults["pipe.png"] == Reason.UNREADABLE


def test_a_file_name_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    raw_path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    path = Path(os.fsdecode(raw_path))
    try:
        path.write_bytes(png(1))
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")

    faults = faults_of(tmp_path)
    assert faults.to_dict() == {"caf\\xe9.png": Reason.NAME}


def test_a_changed_file_has_another_version(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1, b=2)
    before = versions_of(tmp_path)
    os.utime(tmp_path / "a.png", ns=(0, 1))
    after = versions_of(tmp_path)

    is_changed = before != after
    assert is_changed.tolist() == [True, False]


def test_a_file_that_vanished_is_unusable_not_fatal(tmp_path: Path) -> None:
    image_folder(tmp_path, a=1, b=2)
    reader = opened("folder", path=tmp_path)
    listing = reader.listing()
    vanished = tmp_path / "a.png"
    vanished.unlink()

    found = gray_levels(reader.read(listing))
    assert found == [Unusable(Reason.NOT_OPENED), 2]


def test_a_folder_behind_a_url_is_read_like_a_local_one() -> None:
    remote = fsspec.filesystem("memory")
    # The last two are not images: another ending, and a hidden folder.
    grays = {"cat/a.png": 1, "dog/b.png": 2, "dog/notes.txt": 0, ".x/c.png": 3}
    for name, gray in grays.items():
        remote.pipe(f"/folder_test/{name}", png(gray))

    reader = opened("folder", path="memory://folder_test")
    listing = reader.listing()
    assert listing["id"].tolist() == ["cat/a.png", "dog/b.png"]
    assert listing["label_name"].tolist() == ["cat", "dog"]
    assert listing.attrs["passed_over"] == {"extension .txt": 1, "hidden file": 1}

    found = gray_levels(reader.read(listing))
    assert found == [1, 2]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "images"
    with pytest.raises(InputError, match="there is no folder"):
        listed("folder", path=missing)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no image: files ending"):
        listed("folder", path=tmp_path)


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    message = r"cloud://bucket cannot be read \(Protocol not known: cloud\): correct `path`"
    with pytest.raises(InputError, match=message):
        listed("folder", path="cloud://bucket")


def test_a_url_whose_package_is_not_installed_is_refused_with_its_name() -> None:
    # fsspec has such entries for s3, gs and others, whose packages are optional.
    missing = "no_such_package.NeedyFileSystem"
    fsspec.register_implementation("needy", missing, errtxt="Install no_such_package")
    message = "needy://b/x.parquet cannot be read yet: Install no_such_package, with pip"
    with pytest.raises(InputError, match=message):
        listed("parquet", path="needy://b/x.parquet")
