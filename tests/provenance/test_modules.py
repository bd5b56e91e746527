"""Whom a package belongs to: recognized by names and metadata, wherever it is installed."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pu_kd_pipeline.provenance import modules
from pu_kd_pipeline.provenance.code_index import CodeIndex
from pu_kd_pipeline.provenance.factories import factory_digest
from pu_kd_pipeline.provenance.modules import MISSING, PROJECT, PYTHON, ModuleFinder

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return a function that puts a package into a folder, with or without metadata."""

    def put(folder: str, package: str, metadata: str = "", direct_url: bool = False) -> Path:
        place = tmp_path / folder
        (place / package).mkdir(parents=True)
        (place / package / "__init__.py").write_text("VALUE = 1\n\ndef get():\n    return VALUE\n")
        if metadata:
            information = place / metadata
            information.mkdir()
            text = "Metadata-Version: 2.1\nName: the-distribution\nVersion: 1.0\n"
            (information / "METADATA").write_text(text)
            (information / "PKG-INFO").write_text(text)
            (information / "top_level.txt").write_text(package)
            if direct_url:
                url = json.dumps({"url": "file:///home/user/project", "dir_info": {}})
                (information / "direct_url.json").write_text(url)
        if metadata.endswith("egg-info"):
            (information / "METADATA").unlink()
        monkeypatch.syspath_prepend(str(place))
        importlib.invalidate_caches()
        return place / package

    return put


DIST_INFO = "the_distribution-1.0.dist-info"


@pytest.mark.parametrize(
    ("folder", "metadata", "direct_url", "owner"),
    [
        ("src", "", False, PROJECT),
        ("site-packages", "", False, PROJECT),
        ("lib/python3/dist-packages", DIST_INFO, False, "the-distribution"),
        ("site-packages", DIST_INFO, False, "the-distribution"),
        # Installed from a folder, whose version stays when its code changes.
        ("site-packages", DIST_INFO, True, PROJECT),
        ("lib/python3/dist-packages", "the_distribution-1.0.egg-info", False, "the-distribution"),
        # What `pip install -e` leaves next to the sources.
        ("src", "the_distribution.egg-info", False, PROJECT),
    ],
)
def test_a_package_is_of_the_project_unless_an_index_version_tells_its_code(
    install, folder: str, metadata: str, direct_url: bool, owner: str
):
    package = f"owned_{abs(hash((folder, metadata, direct_url))) % 10**8}"
    install(folder, package, metadata, direct_url)
    assert ModuleFinder().owner(package) == owner


def test_code_below_the_prefix_of_python_counts(install, monkeypatch, tmp_path):
    # As in Debian, whose Python has packages in /usr/lib/python3/dist-packages.
    package = "below_the_prefix"
    file = install("usr/lib/python3/dist-packages", package) / "__init__.py"
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "usr"))
    before = factory_digest(f"{package}:get")
    assert before
    file.write_text("VALUE = 2\n\ndef get():\n    return VALUE\n")
    assert factory_digest(f"{package}:get") != before


def test_this_package_and_that_of_the_kedro_project_count_wherever_they_are(install, monkeypatch):
    assert ModuleFinder().owner("pu_kd_pipeline") == PROJECT
    package = "installed_project"
    install("site-packages", package, DIST_INFO)
    monkeypatch.setattr(modules, "_package_of_kedros_project", lambda: package)
    assert ModuleFinder().owner(package) == PROJECT


def test_modules_of_python_and_of_others_are_distinguished(install):
    finder = ModuleFinder()
    assert [finder.owner(name) for name in ("json", "sys", "zlib")] == [PYTHON] * 3
    owners = {name: finder.owner(name) for name in ("torch", "PIL", "sklearn", "yaml", "kedro")}
    assert owners == {
        "torch": "torch",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "yaml": "PyYAML",
        "kedro": "kedro",
    }
    assert finder.owner("no_such_package") == MISSING
    # A module of the project may have the name of one of Python's that is not imported.
    install("src", "antigravity")
    assert ModuleFinder().owner("antigravity") == PROJECT


def test_code_in_an_archive_counts(tmp_path, monkeypatch):
    archive = tmp_path / "code.zip"
    digests = []
    for value in (1, 2):
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("zipped/__init__.py", "")
            opened.writestr("zipped/nets.py", f"def build():\n    return {value}\n")
        monkeypatch.syspath_prepend(str(archive))
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()
        nets = importlib.import_module("zipped.nets")
        digests.append(CodeIndex().code_digests(nets.build)["zipped.nets:build"])
        for name in ("zipped", "zipped.nets"):
            del sys.modules[name]
    assert digests[0] != digests[1]


def test_a_factory_counts_with_all_modules_of_the_project_that_it_imports(install):
    package = install("src", "factory_package")
    (package / "nets.py").write_text(
        "def build():\n    from factory_package.deep import layers\n    return layers.make()\n"
    )
    (package / "deep").mkdir()
    deep = package / "deep"
    layers = deep / "layers.py"
    layers.write_text("import json\nfrom .. import helper\n\ndef make():\n    return helper.X\n")
    helper = package / "helper.py"
    helper.write_text("X = 1\n")
    unrelated = package / "unrelated.py"
    unrelated.write_text("")

    seen = [factory_digest("factory_package.nets:build")]
    # None of them has been imported.
    assert "factory_package" not in sys.modules
    for file in (helper, layers, package / "nets.py", package / "__init__.py"):
        file.write_text(file.read_text() + "# edited\n")
        digest = factory_digest("factory_package.nets:build")
        assert digest not in seen
        seen.append(digest)
    unrelated.write_text("# edited\n")
    assert factory_digest("factory_package.nets:build") == seen[-1]


@pytest.mark.parametrize("text", ["", "resnet18", "no_such:thing", "os:system", "..:x", "a b:c"])
def test_text_that_names_no_factory_has_no_digest(text):
    assert factory_digest(text) == ""
