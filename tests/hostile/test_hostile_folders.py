"""Folders of images with odd names, links and special files: set aside by image, or refused."""

from __future__ import annotations

import os
import socket
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from tests.hostile.valid_files import noise_png, plan_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for images."""
    images = tmp_path / "images"
    images.mkdir()
    return images


def ingested(folder: Path) -> ImageStore:
    plan = plan_of({"type": "folder", "path": str(folder)})
    return write_store(plan, folder.parent / "store")


# --- names

ODD_NAMES = ["caf\u00e9.png", "cafe\u0301.png", "\u202egnp.png", "a\nb.png", "a\\b.png", "%00.png"]
ODD_NAMES += ["<b>&amp;.png", "-rf.png", "x" * 250 + ".png", "\U0001f600.png", "nan.png", "a b.png"]
ODD_NAMES += ["'; drop.png"]
# Hidden files are left out.
HIDDEN_NAMES = ["..png", "...png"]


def test_odd_file_names_are_kept_as_ids(folder: Path) -> None:
    for seed, name in enumerate([*ODD_NAMES, *HIDDEN_NAMES]):
        (folder / name).write_bytes(noise_png(seed))
    store = ingested(folder)

    assert sorted(store.index["id"]) == sorted(ODD_NAMES)

    # Two of the names are one in the composed form of Unicode; their images stay apart.
    composed = {unicodedata.normalize("NFC", name) for name in ODD_NAMES}

    assert len(composed) == len(ODD_NAMES) - 1


def write_image(folder: Path, name: bytes, seed: int) -> None:
    """Write an image to a file whose name is no text; skip where the file system refuses it."""
    path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(noise_png(seed))
    except OSError:
        pytest.skip("this file system refuses names that are not UTF-8")


def test_names_that_are_not_utf8_are_set_aside_in_printable_form(folder: Path) -> None:
    (folder / "good.png").write_bytes(noise_png(0))
    write_image(folder, b"class\xff/a.png", seed=1)
    write_image(folder, b"b\xfe.png", seed=2)
    store = ingested(folder)

    assert store.index["id"].tolist() == ["good.png"]
    assert sorted(store.quarantine["id"]) == ["b\\xfe.png", "class\\xff/a.png"]
    assert store.quarantine_counts == {"file name is not UTF-8": 2}


def test_names_that_are_not_utf8_are_set_aside_in_torchvisions_folders_too(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "cat").mkdir()
    (folder / "cat" / "a.png").write_bytes(noise_png(0))
    os.symlink(tmp_path / "nothing.png", folder / "cat" / "dangling.png")
    write_image(folder, b"cat/b\xfe.png", seed=2)
    source = {"type": "torchvision", "dataset": "ImageFolder", "path": str(folder)}
    store = write_store(plan_of(source), tmp_path / "store")

    assert store.index["id"].tolist() == ["a.png"]

    # The other one is the dangling link.
    quarantined = store.quarantine["id"].tolist()

    assert "b\\xfe.png" in quarantined
    assert store.quarantine_counts == {"file name is not UTF-8": 1, "broken link": 1}


# --- links and special files


def test_links_that_lead_out_or_nowhere_or_in_a_circle_are_not_followed(
    folder: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(noise_png(9))
    (folder / "good.png").write_bytes(noise_png(0))
    # Within the folder, to an image that is there already.
    os.symlink("good.png", folder / "inside.png")
    # Out of the folder: directly, through "..", through another link, and to a whole folder.
    os.symlink(outside / "secret.png", folder / "absolute.png")
    os.symlink("../outside/secret.png", folder / "relative.png")
    os.symlink("absolute.png", folder / "twice.png")
    os.symlink(outside, folder / "folder")
    # In a circle: to the folder itself, and two links to each other.
    os.symlink(".", folder / "self")
    os.symlink("loop_b.png", folder / "loop_a.png")
    os.symlink("loop_a.png", folder / "loop_b.png")
    # To nothing, and to a device.
    os.symlink("nothing.png", folder / "dangling.png")
    os.symlink("/proc/self/mem", folder / "device.png")
    store = ingested(folder)

    assert store.index["id"].tolist() == ["good.png"]
    # The link within the folder is the only one that is followed.
    assert store.quarantine_counts == {
        "link out of the folder": 6,
        "broken link": 3,
        "duplicate": 1,
    }


def test_pipes_sockets_and_folders_named_like_images_are_not_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "good.png").write_bytes(noise_png(0))
    (folder / "directory.png").mkdir()
    # Opening a pipe would wait for ever.
    os.mkfifo(folder / "pipe.png")
    # A socket's path has about 100 characters at most, so it is bound by its name alone.
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind("socket.png")
        store = ingested(folder)

    assert store.index["id"].tolist() == ["good.png"]
    assert store.quarantine_counts == {"unreadable": 2}


def test_a_file_of_terabytes_is_not_read(folder: Path) -> None:
    (folder / "good.png").write_bytes(noise_png(0))
    # A sparse file: it takes no space on the disk.
    with open(folder / "sparse.png", "wb") as file:
        file.truncate(2**40)

    assert ingested(folder).quarantine_counts == {"file too large": 1}


def test_files_and_folders_without_permission_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "good.png").write_bytes(noise_png(0))
    (folder / "closed").mkdir()
    (folder / "closed" / "a.png").write_bytes(noise_png(1))
    (folder / "locked.png").write_bytes(noise_png(2))
    scandir = os.scandir
    read_bytes = Path.read_bytes

    def refuse_folder(path: Any = ".") -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def refuse_file(self: Path) -> bytes:
        if self.name == "locked.png":
            raise PermissionError(13, "Permission denied", str(self))
        return read_bytes(self)

    # Patched, and not by chmod: root, as which containers run, may read everything.
    monkeypatch.setattr(os, "scandir", refuse_folder)
    monkeypatch.setattr(Path, "read_bytes", refuse_file)
    store = ingested(folder)

    assert store.index["id"].tolist() == ["good.png"]

    status_by_id = dict(store.quarantine[["id", "status"]].values)
    expected = {"closed": "could not be opened", "locked.png": "could not be opened"}

    assert status_by_id == expected


# --- paths of sources


@pytest.mark.parametrize("kind", ["folder", "parquet", "torchvision"])
@pytest.mark.parametrize(
    "path",
    [
        "",
        "a\0b",
        "x" * 5_000,
        "/dev/null",
        "/proc/self/mem",
        "~nobody_of_this_name/x",
        "[",
        "a\udcff",
    ],
)
def test_invalid_paths_are_refused_with_a_message(
    tmp_path: Path, kind: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty path is the current folder, which must be one without images.
    monkeypatch.chdir(tmp_path)
    source = {"type": kind, "path": path}
    if kind == "torchvision":
        source["dataset"] = "ImageFolder"

    with pytest.raises(InputError) as error:
        write_store(plan_of(source), tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert str(error.value)
