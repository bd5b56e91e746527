"""What every source type must have, and the state that each of them reports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from pydantic import ValidationError

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.sources import files, registry
from pu_kd_pipeline.images.sources.base import default_name
from pu_kd_pipeline.images.sources.registry import SOURCES, check_source_types, source_state
from pu_kd_pipeline.incremental.file_states import FileStates
from pu_kd_pipeline.incremental.node_records import external_states
from pu_kd_pipeline.params.data_ingestion import SOURCE_TYPES, ImageSource, SourceType
from pu_kd_pipeline.params.paths import set_project_folder
from tests.images.sources.examples import listed, source_of


class CameraSource:
    """A source without a path, as a plug-in might have it."""

    def __init__(self, source: ImageSource, seed: int) -> None:
        self.part = source.part

    @staticmethod
    def state(source: ImageSource) -> str:
        return f"camera {source.part}"

    def listing(self) -> pd.DataFrame:
        return pd.DataFrame({"id": [self.part]})

    def why_not_shared(self, n_images: int) -> str | None:
        return None

    def read(self, rows: pd.DataFrame) -> Iterator[bytes]:
        for _ in range(len(rows)):
            yield b""


CAMERA = SourceType(required_key="part", path_must_exist=False)
# The two registries with a plug-in's type in them.
SOURCES_WITH_CAMERA = {**SOURCES, "camera": CameraSource}
TYPES_WITH_CAMERA = {**SOURCE_TYPES, "camera": CAMERA}


def folder_state(path: Path | str) -> str:
    source = source_of("folder", path=path)
    return source_state(source)


# --- registering a type


def test_a_type_without_parameters_is_named_at_import() -> None:
    with pytest.raises(RuntimeError, match="'camera' has no entry in SOURCE_TYPES of params/data"):
        check_source_types(SOURCES_WITH_CAMERA, SOURCE_TYPES)


def test_a_type_without_a_class_is_named_at_import() -> None:
    with pytest.raises(RuntimeError, match="'camera' has no class in SOURCES of images/sources"):
        check_source_types(SOURCES, TYPES_WITH_CAMERA)


def test_a_required_key_that_is_not_a_parameter_is_named_at_import() -> None:
    # `ImageSource` has no field `lens`, so that no block of parameters could give it.
    with_lens = SourceType(required_key="lens", path_must_exist=False)
    types = {**SOURCE_TYPES, "camera": with_lens}
    with pytest.raises(RuntimeError, match="'camera' needs the key 'lens', which is not a field"):
        check_source_types(SOURCES_WITH_CAMERA, types)


@pytest.mark.parametrize("method", ["state", "listing", "read", "why_not_shared"])
def test_a_class_without_a_method_is_named_at_import(method: str) -> None:
    methods = {"state": CameraSource.state, "listing": CameraSource.listing}
    methods["read"] = CameraSource.read
    methods["why_not_shared"] = CameraSource.why_not_shared
    del methods[method]
    incomplete = type("IncompleteSource", (), methods)
    sources = {**SOURCES, "camera": incomplete}
    message = f"'camera' has a class without the method `{method}`"
    with pytest.raises(RuntimeError, match=message):
        check_source_types(sources, TYPES_WITH_CAMERA)


def test_a_class_that_reads_two_types_is_named_at_import() -> None:
    # As it happens where an entry is copied and its class forgotten.
    sources = {**SOURCES, "camera": SOURCES["folder"]}
    with pytest.raises(RuntimeError, match="'camera' has the class of 'folder'"):
        check_source_types(sources, TYPES_WITH_CAMERA)


def test_a_complete_type_passes_the_check() -> None:
    check_source_types(SOURCES_WITH_CAMERA, TYPES_WITH_CAMERA)


@pytest.mark.parametrize("name", sorted(SOURCE_TYPES))
def test_the_required_key_of_every_type_is_asked_for(name: str) -> None:
    key = SOURCE_TYPES[name].required_key
    message = f"a source of type '{name}' needs the key '{key}'"
    with pytest.raises(ValidationError, match=message):
        ImageSource.model_validate({"type": name})


def test_an_unknown_type_is_refused_with_the_known_ones() -> None:
    known = ".*".join(repr(name) for name in SOURCE_TYPES)
    with pytest.raises(ValidationError, match=known):
        ImageSource.model_validate({"type": "camera"})


# --- states


# An example of each type that has files; the demo's images are code.
EXAMPLES = {
    "folder": lambda folder: source_of("folder", path=folder),
    "parquet": lambda folder: source_of("parquet", path=folder / "*.parquet"),
    "list": lambda folder: source_of("list", path=folder / "list.csv"),
    "webdataset": lambda folder: source_of("webdataset", path=folder),
    "torchvision": lambda folder: source_of("torchvision", dataset="MNIST", path=folder),
}
# One that each of them reads
FILES_OF_EXAMPLES = ("part.parquet", "image.png", "part.tar")


def test_every_type_with_files_has_an_example() -> None:
    assert {*EXAMPLES, "demo"} == set(SOURCES)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_the_state_follows_the_files_of_the_source_and_no_others(name: str, tmp_path: Path) -> None:
    own = tmp_path / "own"
    other = tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
        for file in FILES_OF_EXAMPLES:
            (folder / file).write_bytes(b"first")
        (folder / "list.csv").write_text("path\nimage.png\n")
    source = EXAMPLES[name](own)
    before = source_state(source)

    for file in FILES_OF_EXAMPLES:
        (other / file).write_bytes(b"another length")
    assert source_state(source) == before

    for file in FILES_OF_EXAMPLES:
        (own / file).write_bytes(b"another length")
    assert source_state(source) != before


def test_a_type_without_a_path_has_its_own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(path: Any) -> None:
        pytest.fail(f"{path} was looked at")

    monkeypatch.setitem(registry.SOURCES, "camera", CameraSource)
    monkeypatch.setitem(SOURCE_TYPES, "camera", CAMERA)
    for name in ("file_system", "file_state", "state_of"):
        monkeypatch.setattr(files, name, fail)

    # Not validated: the type of a plug-in is none of those that pydantic knows here.
    source = ImageSource.model_construct(type="camera", part="pool")
    assert default_name(source) == "camera"
    file_states = FileStates(tmp_path / "states.json")
    states = external_states("pool", [source], file_states)
    assert states == {"pool[0]": "camera pool"}


def test_embedded_images_have_an_empty_state() -> None:
    source = source_of("demo", part="pool")
    assert source_state(source) == ""


def test_torchvision_is_looked_for_where_it_keeps_its_data_sets(
    tmp_path: Path,
) -> None:
    # The default folder is relative to the project.
    set_project_folder(tmp_path)
    folder = tmp_path / "data" / "01_raw"
    folder.mkdir(parents=True)
    images = folder / "images-ubyte"
    images.write_bytes(b"1")

    source = source_of("torchvision", dataset="MNIST")
    before = source_state(source)
    images.write_bytes(b"22")
    default = source_state(source)
    assert default != before

    for other_way in ({"path": "data/01_raw"}, {"options": {"root": str(folder)}}):
        source = source_of("torchvision", dataset="MNIST", **other_way)
        assert source_state(source) == default
    elsewhere = source_of("torchvision", dataset="MNIST", path="elsewhere")
    assert source_state(elsewhere) != default


def test_a_state_changes_with_names_sizes_and_times_of_local_files(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"1")
    states = [folder_state(tmp_path)]

    image.write_bytes(b"22")
    states.append(folder_state(tmp_path))
    os.utime(image, ns=(0, 1))
    states.append(folder_state(tmp_path))
    image.rename(tmp_path / "b.png")
    states.append(folder_state(tmp_path))
    # A link to nothing has no size and no time, but its name counts.
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "nothing")
    states.append(folder_state(tmp_path))

    assert len(set(states)) == len(states)


def test_a_state_does_not_read_the_images(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_bytes(b"not Parquet")
    source = source_of("parquet", path=tmp_path)
    assert source_state(source)
    # Whoever reads the file notices that it is not one.
    with pytest.raises(InputError):
        listed("parquet", path=tmp_path)


@pytest.mark.parametrize(
    "path", ["cloud://bucket", "memory://nowhere/x", "memory://nowhere/*.parquet", "broken://b"]
)
def test_a_remote_source_that_cannot_be_reached_has_a_state(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # File systems raise errors of their own, such as botocore's, which are not OSError.
    fsspec.register_implementation("broken", "no_such_package.BrokenFileSystem", clobber=True)
    assert folder_state(path)


def test_a_state_changes_with_remote_files() -> None:
    remote = fsspec.filesystem("memory")
    url = "memory://state_test"
    remote.pipe("/state_test/a.png", b"1")
    before = folder_state(url)
    # A state that differs each time would read the images again in every run.
    assert folder_state(url) == before

    remote.pipe("/state_test/b.png", b"1")
    assert folder_state(url) != before
