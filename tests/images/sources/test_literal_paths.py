"""Existing paths with characters that mean something elsewhere are taken as they are."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from pu_kd_pipeline.images.sources.registry import source_state
from pu_kd_pipeline.params.paths import set_project_folder
from tests.images.sources.examples import (
    gray_levels,
    image_folder,
    listed,
    opened,
    parquet_file,
    png,
    source_of,
)

NAMES = [
    *(
        "run[1]",
        "a::b",
        "zip::x",
        "what?",
        "all*",
        "100%25",
        "#1",
        "two words",
        "größe_猫",
        "a{1,2}",
    ),
    *("x=1&y=2", "user:pw@host", "~tilde", "$HOME"),
]
# A file of each type below a folder
FILES = {"folder": "", "parquet": "in[0]::x.parquet", "list": "list#1?.csv"}


def write_parquet(file: Path, n: int) -> None:
    # Under a plain name first: `parquet_file` takes URLs, and so would split this one.
    plain = file.parents[1] / "plain.parquet"
    parquet_file(plain, n, first=1)
    plain.rename(file)


@pytest.mark.parametrize("is_relative", [False, True])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_exists_is_taken_as_it_is(
    name: str, kind: str, is_relative: bool, tmp_path: Path
) -> None:
    set_project_folder(tmp_path)
    folder = image_folder(tmp_path / name, a=1)
    # What the name would match as a pattern, or where it would lead if it were decoded
    for other in ("run1", "what1", "all1", "100%", "a1"):
        image_folder(tmp_path / other, a=2)
    write_parquet(folder / FILES["parquet"], 1)
    (folder / FILES["list"]).write_text("path\na.png\n")

    path = f"{name}/{FILES[kind]}" if is_relative else f"{folder}/{FILES[kind]}"
    if is_relative and name.startswith("~"):
        path = f"./{path}"  # a home folder else
    reader = opened(kind, path=path.rstrip("/"))
    assert gray_levels(reader.read(reader.listing())) == [1]

    source = source_of(kind, path=path.rstrip("/"))
    before = source_state(source)
    image_folder(folder, a=3, b=4)
    write_parquet(folder / FILES["parquet"], 2)
    assert source_state(source) != before


def test_names_in_a_list_are_taken_as_they_are(tmp_path: Path) -> None:
    root = image_folder(tmp_path, **{f"{name}__x": 1 for name in NAMES})
    lines = [f'"{name}/x.png"' for name in NAMES]
    (root / "list.csv").write_text("\n".join(["path", *lines]))
    listing = listed("list", path=root / "list.csv")
    assert len(listing) == len(NAMES)
    assert listing["fault"].isna().all()


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_chained_urls_of_archives_still_work(tmp_path: Path, kind: str) -> None:
    archive = tmp_path / f"images.{kind}"
    image = tmp_path / "a.png"
    image.write_bytes(png(5))
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.write(image, "cat/a.png")
    else:
        with tarfile.open(archive, "w") as tarred:
            tarred.add(image, "cat/a.png")
    reader = opened("folder", path=f"{kind}://::{archive}")
    listing = reader.listing()
    assert listing["label_name"].tolist() == ["cat"]
    assert gray_levels(reader.read(listing)) == [5]
