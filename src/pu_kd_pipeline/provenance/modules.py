"""Where modules are and whom they belong to, found without importing them."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import metadata
from importlib.machinery import SOURCE_SUFFIXES, ModuleSpec
from pathlib import Path

from pu_kd_pipeline.provenance.libraries import LIBRARIES
from pu_kd_pipeline.provenance.loaded_code import OWN_PACKAGE, read_source, recorder

# Whom a package belongs to, unless it is a distribution.
PROJECT = "the project"
PYTHON = "python"
MISSING = "nobody"
# What decides whether a node runs, and names results, does not make them.
_NOT_COUNTED = (f"{OWN_PACKAGE}.provenance", f"{OWN_PACKAGE}.incremental")
# Names of packages and of their distributions, where they differ, so that they are found quickly.
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "PyYAML"}
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Module:
    """A module of the project, as it runs: the loaded source, or else the file on the disk.

    Attributes:
        name: dotted name.
        content: of its file.
        is_source: whether the file holds Python's source, and not compiled code.
        is_package: whether it is a package's `__init__`.
        folder: of its file; None for one in an archive.
        archive: that holds its file; None for one in a folder.
    """

    name: str
    content: bytes
    is_source: bool
    is_package: bool
    folder: Path | None
    archive: Path | None

    @cached_property
    def digest(self) -> str:
        """Digest of the content."""
        return content_digest(self.content)

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        if self.is_package:
            return self.name
        return self.name.rpartition(".")[0]


class ModuleFinder:
    """Finds modules as an import would, and remembers what it found."""

    def __init__(self) -> None:
        self._specs: dict[str, ModuleSpec | None] = {}
        self._owners: dict[str, str] = {}

    def module(self, name: str) -> Module | None:
        """Return a module of the project; None for any other, and for a folder without file."""
        top_level = name.partition(".")[0]
        if name.startswith(_NOT_COUNTED) or self.owner(top_level) != PROJECT:
            return None
        spec = self.spec(name)
        if spec is None or spec.origin is None:
            return None
        content = None
        if name in sys.modules:
            content = recorder.sources.get(name)
        if content is None:
            content = _content_on_disk(spec)
        if content is None:
            return None
        file = Path(spec.origin)
        folder: Path | None = file.parent
        archive = getattr(spec.loader, "archive", None)  # of zipimport
        if archive is not None:
            folder = None
            archive = Path(archive)
        return Module(
            name=name,
            content=content,
            is_source=file.suffix in SOURCE_SUFFIXES,
            is_package=spec.submodule_search_locations is not None,
            folder=folder,
            archive=archive,
        )

    def owner(self, top_level: str) -> str:
        """Return whom a package belongs to: `PROJECT`, `PYTHON`, `MISSING`, or a distribution.

        It is recognized by names: a project may be installed anywhere, even in Python's own folder.
        """
        if top_level not in self._owners:
            self._owners[top_level] = self._find_owner(top_level)
        return self._owners[top_level]

    def spec(self, name: str) -> ModuleSpec | None:
        """Return where a module is; None if there is none."""
        if name not in self._specs:
            self._specs[name] = self._find_spec(name)
        return self._specs[name]

    def locations(self, name: str) -> list[str]:
        """Return the folders of a package, several for one without `__init__`."""
        spec = self.spec(name)
        if spec is None or spec.submodule_search_locations is None:
            return []
        return list(spec.submodule_search_locations)

    def _find_spec(self, name: str) -> ModuleSpec | None:
        loaded = sys.modules.get(name)
        spec: ModuleSpec | None = getattr(loaded, "__spec__", None)
        if spec is not None:
            return spec
        parent, _, _ = name.rpartition(".")
        path = None
        if parent:
            path = self.locations(parent)
            if not path:
                return None
        try:
            return recorder.find_without_recording(name, path)
        except KeyError:  # a folder without `__init__` in a package that has not been imported
            folders = [os.path.join(location, name.rpartition(".")[2]) for location in path or ()]
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [each for each in folders if os.path.isdir(each)]
            return spec
        except (ImportError, ValueError):  # such as a name with a null character
            return None

    def _find_owner(self, top_level: str) -> str:
        if top_level in (OWN_PACKAGE, _package_of_kedros_project()):
            return PROJECT
        spec = self.spec(top_level)
        if spec is None:
            return MISSING
        folders = _folders_around(spec)
        if not folders or _is_standard(top_level, folders):
            return PYTHON
        owner = MISSING
        for folder in folders:
            owner = _distribution_in(folder, top_level)
            # Of a package in several folders, one may be of the project.
            if owner == PROJECT:
                return PROJECT
        return owner


def content_digest(content: bytes) -> str:
    """Return a digest of the content of a file."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def _package_of_kedros_project() -> str | None:
    """Return the package of the Kedro project that this process runs, without importing Kedro."""
    project = sys.modules.get("kedro.framework.project")
    return getattr(project, "PACKAGE_NAME", None)


def _folders_around(spec: ModuleSpec) -> list[Path]:
    """Return the folders that hold a package or module at the top level; none for a built-in."""
    if spec.submodule_search_locations is not None:
        return [Path(location).parent for location in spec.submodule_search_locations]
    if spec.origin is None or not spec.has_location:
        return []
    return [Path(spec.origin).parent]


def _is_standard(top_level: str, folders: list[Path]) -> bool:
    """Return whether a module is one of the standard library, and not one of the same name."""
    if top_level not in sys.stdlib_module_names:
        return False
    paths = sysconfig.get_paths()
    standard = {Path(paths["stdlib"]), Path(paths["platstdlib"])}
    # Where compiled modules are.
    standard |= {folder / "lib-dynload" for folder in tuple(standard)}
    return any(folder in standard for folder in folders)


@cache
def _distribution_in(folder: Path, top_level: str) -> str:
    """Return the distribution that installed a package into a folder, or `PROJECT`."""
    name = _DISTRIBUTIONS.get(top_level, top_level)
    by_name = metadata.distributions(name=name, path=[str(folder)])
    found = [distribution for distribution in by_name if distribution.name]
    if not found:
        found = _distributions_by_package(folder).get(top_level, [])
    for distribution in found:
        if not _may_change_with_one_version(distribution):
            return distribution.name
    return PROJECT


@cache
def _distributions_by_package(folder: Path) -> dict[str, list[metadata.Distribution]]:
    by_package: dict[str, list[metadata.Distribution]] = {}
    for distribution in metadata.distributions(path=[str(folder)]):
        if not distribution.name:  # what an interrupted installation leaves
            continue
        for package in _packages_of(distribution):
            by_package.setdefault(package, []).append(distribution)
    return by_package


def _packages_of(distribution: metadata.Distribution) -> set[str]:
    listed = distribution.read_text("top_level.txt")
    if listed:
        return set(listed.split())
    packages = set()
    for file in distribution.files or ():
        first = file.parts[0]
        packages.add(first.partition(".")[0])
    return packages


def _may_change_with_one_version(distribution: metadata.Distribution) -> bool:
    """Return whether the version of a distribution does not tell its code.

    It does where the distribution came from an index. One from a folder or an address of the user
    often keeps its version when its code changes.
    """
    if distribution.name.lower() in LIBRARIES:
        return False
    if distribution.read_text("direct_url.json") is not None:
        return True
    # `pip install -e` leaves an egg-info next to sources, which is no installation.
    is_unpacked_egg = distribution.read_text("METADATA") is None
    folder = Path(str(distribution.locate_file("")))
    return is_unpacked_egg and folder.name not in ("site-packages", "dist-packages")


def _content_on_disk(spec: ModuleSpec) -> bytes | None:
    file = str(spec.origin)
    if not os.path.isfile(file):
        return read_source(spec)  # in an archive
    try:
        return file_content(file)
    except OSError:
        return None


def file_content(file: str) -> bytes:
    """Return the content of a source file; a run asks for the same ones often."""
    return _known_content(file).content


def file_content_digest(file: str) -> str:
    """Return the digest of a source file's content."""
    return _known_content(file).digest


@dataclass(frozen=True)
class _Content:
    """What a source file held when it had a signature."""

    signature: str
    content: bytes

    @cached_property
    def digest(self) -> str:
        return content_digest(self.content)


def _known_content(file: str) -> _Content:
    signature = file_signature(file)
    known = _known_contents.get(file)
    if known is None or known.signature != signature:
        with open(file, "rb") as opened:
            known = _Content(signature, opened.read())
        _known_contents[file] = known
    return known


def file_signature(file: str) -> str:
    """Return size, times and inode of a file, which change with its content."""
    about = os.stat(file)
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ctime_ns}-{about.st_ino}"


_known_contents: dict[str, _Content] = {}


def files_of_package(finder: ModuleFinder, top_level: str) -> Iterator[str]:
    """Yield the files of a package or module of the project, without those that Python makes."""
    spec = finder.spec(top_level)
    if spec is None:
        return
    archive = getattr(spec.loader, "archive", None)
    if archive is not None:  # of zipimport
        yield str(archive)
        return
    locations = finder.locations(top_level)
    for location in locations:
        for folder, subfolders, names in os.walk(location):
            subfolders[:] = sorted(
                name for name in subfolders if not name.startswith((".", "__pycache__"))
            )
            for name in sorted(names):
                if not name.startswith(".") and not name.endswith((".pyc", ".pyo")):
                    yield os.path.join(folder, name)
    if not locations and spec.origin is not None:
        yield spec.origin
