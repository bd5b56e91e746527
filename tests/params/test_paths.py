"""A path in a parameter means the same file for everybody, wherever the command is started."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.paths import (
    is_url,
    resolved_location,
    resolved_path,
    set_project_folder,
)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder; the working directory is another one, and so is the home folder."""
    folder = tmp_path / "project"
    for name in (folder, tmp_path / "elsewhere"):
        name.mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    set_project_folder(folder)
    return folder


def test_relative_paths_start_at_the_project(project: Path) -> None:
    for text in ("data/a", "./data/a", "file:data/a", "file://data/a", "local://data/a"):
        assert resolved_path(text) == project / "data" / "a"
    assert resolved_path("../a") == project / ".." / "a"


def test_absolute_paths_and_urls_of_files_are_the_same(project: Path) -> None:
    for text in (
        "/a b/c",
        "file:///a b/c",
        "file://localhost/a b/c",
        "FILE:///a b/c",
        "file:/a b/c",
    ):
        assert not is_url(text)
        assert resolved_path(text) == Path("/a b/c")
    # Nothing is decoded, as fsspec does not: `%20` may be part of a name.
    assert resolved_path("file:///a%20b") == Path("/a%20b")


def test_home_folders_are_expanded(project: Path) -> None:
    for text in ("~/a", "file://~/a"):
        assert resolved_path(text) == project.parent / "home" / "a"
    assert resolved_path("~root/a").is_absolute()
    assert resolved_path("~root/a").name == "a"
    with pytest.raises(InputError, match="'~nobody-at-all/a' is not a path"):
        resolved_path("~nobody-at-all/a")


def test_variables_of_the_environment_are_not_expanded(project: Path) -> None:
    assert resolved_path("$HOME/a") == project / "$HOME" / "a"


def test_without_a_project_relative_paths_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolved_path("a") == tmp_path / "a"


def test_a_process_that_is_started_resolves_paths_alike(project: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(resolved_path, ("a",)) == project / "a"


def test_urls_stay_and_a_chain_may_end_in_a_local_path(project: Path) -> None:
    for url in ("s3://bucket/a", "memory://a", "simplecache::https://host/a", "zip://*::s3://b/a"):
        assert is_url(url)
        assert resolved_location(url) == url
    assert resolved_location("zip://*.png::a.zip") == f"zip://*.png::{project / 'a.zip'}"
    assert resolved_location("zip://*.png::file:///a.zip") == "zip://*.png::/a.zip"
    assert resolved_location("a::b/c") == str(project / "a::b" / "c")


def test_a_chain_that_is_the_name_of_something_that_exists_is_a_path(project: Path) -> None:
    folder = project / "run::1"
    (folder / "zip::a").mkdir(parents=True)
    texts = ["run::1", "run::1/*.parquet", "run::1/zip::a", f"file://{folder}", "./run::1"]
    for text in texts:
        assert not is_url(text)
        assert resolved_path(text).is_relative_to(folder)
    for text in ("run::2", "zip::a", "zip://*::run::1"):
        assert is_url(text)
