"""The ranges in pyproject.toml are what CI tests: both ends, and the one version between them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).resolve().parents[1]
METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
EXTRAS = METADATA["optional-dependencies"]
TESTED_AT_BOTH_ENDS = [*METADATA["dependencies"], *EXTRAS["export"], *EXTRAS["test"]]
TESTED_AT_ONE_VERSION = [
    *EXTRAS["viz"],
    *EXTRAS["caltech"],
    *EXTRAS["server"],
    *EXTRAS["dev"],
]
# The version of Python that .ci/versions looks for at each end.
ENDS = re.compile(r"^ *(oldest|newest)\) python_version=([\d.]+)", flags=re.MULTILINE)


def _pinned(file: str) -> dict[str, Version]:
    """Return package -> version of a file of constraints."""
    versions = {}
    for line in (PROJECT / file).read_text().splitlines():
        name, separator, version = line.partition("==")
        if separator:
            versions[canonicalize_name(name)] = Version(version)
    return versions


OLDEST = _pinned(".ci/constraints-oldest.txt")
NEWEST = _pinned(".ci/constraints-newest.txt")
BETWEEN = _pinned("constraints.txt")


def _bounds(requirement: Requirement) -> tuple[Version, Version]:
    """Return the lower bound, which is allowed, and the upper one, which is not."""
    bounds = {}
    for each in requirement.specifier:
        bounds[each.operator] = Version(each.version)
    assert set(bounds) == {">=", "<"}, f"{requirement} needs a lower and an upper bound"
    return bounds[">="], bounds["<"]


def _next_minor(version: Version) -> Version:
    """Return the first version that is no bug fix of this one."""
    return Version(f"{version.major}.{version.minor + 1}")


@pytest.mark.parametrize("text", TESTED_AT_BOTH_ENDS)
def test_a_range_reaches_from_the_oldest_to_the_newest_tested_version(text):
    requirement = Requirement(text)
    if requirement.name == METADATA["name"]:
        pytest.skip("an extra of this project")
    name = canonicalize_name(requirement.name)
    lower, upper = _bounds(requirement)

    assert lower == OLDEST[name], "after a change of bounds: make constraints-ends"
    # Bug fixes are let in, and no minor release that was not tested.
    assert upper == _next_minor(NEWEST[name]), "after a change of bounds: make constraints-ends"
    assert BETWEEN[name] in requirement.specifier, "after a change of bounds: make constraints"


@pytest.mark.parametrize("text", TESTED_AT_ONE_VERSION)
def test_a_range_of_tools_is_the_minor_release_that_is_pinned(text):
    requirement = Requirement(text)
    if requirement.name == METADATA["name"]:
        pytest.skip("an extra of this project")
    name = canonicalize_name(requirement.name)
    lower, upper = _bounds(requirement)
    pinned = BETWEEN[name]

    assert pinned in requirement.specifier
    assert lower.release[:2] == pinned.release[:2]
    assert upper == _next_minor(pinned)


@pytest.mark.parametrize("versions", [OLDEST, NEWEST])
def test_the_ends_leave_the_cuda_packages_to_the_build_of_torch(versions):
    of_torch = []
    for name, version in versions.items():
        if version.local or name.startswith(("nvidia", "cuda", "triton")):
            of_torch.append(name)

    assert of_torch == ["nvidia-ml-py"]


def test_the_oldest_and_the_newest_python_are_those_of_the_ends():
    script = (PROJECT / ".ci" / "versions").read_text()
    pythons = dict(ENDS.findall(script))
    oldest = pythons["oldest"]
    newest = pythons["newest"]
    declared = []
    for classifier in METADATA["classifiers"]:
        if classifier.startswith("Programming Language"):
            declared.append(classifier.rpartition(" ")[2])

    after_newest = _next_minor(Version(newest))
    expected = SpecifierSet(f">={oldest},<{after_newest}")
    assert SpecifierSet(METADATA["requires-python"]) == expected
    assert declared[0] == oldest
    assert declared[-1] == newest


def test_the_core_of_the_suite_exists_and_has_no_test_twice():
    text = (PROJECT / ".ci" / "core_tests.txt").read_text()
    lines = text.splitlines()
    paths = {Path(line) for line in lines if not line.startswith("#")}

    assert paths
    missing = []
    inside_another = []
    for path in sorted(paths):
        if not (PROJECT / path).exists():
            missing.append(path)
        if paths.intersection(path.parents):
            inside_another.append(path)
    assert missing == []
    assert inside_another == []


def test_ci_tests_both_ends():
    script = (PROJECT / ".ci" / "run").read_text()

    assert ".ci/versions oldest" in script
    assert ".ci/versions newest" in script


PYTHON_WITHOUT_PACKAGES = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/pip" ;;
  "-c import sys"*) echo 3.11 ;;
  "-m pip "*) echo "ERROR: {complaint}" && exit 1 ;;
esac
"""


@pytest.fixture
def project_with_python(tmp_path):
    """Return a function that makes a project whose `pip install` ends with a complaint."""

    def make(complaint: str) -> subprocess.CompletedProcess[str]:
        shutil.copytree(PROJECT / ".ci", tmp_path / ".ci")
        subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
        commands = tmp_path / "commands"
        commands.mkdir()
        python = commands / "python3.11"
        python.write_text(PYTHON_WITHOUT_PACKAGES.format(complaint=complaint))
        python.chmod(0o755)
        path = os.environ["PATH"]
        environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{path}"}
        # Another folder of environments must not be changed.
        environment.pop("CI_VERSIONS_DIR", None)
        command = [tmp_path / ".ci" / "versions", "oldest"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return make


@pytest.mark.parametrize(
    "complaint",
    [
        "No matching distribution found for torch==2.11.0",
        "Could not install packages due to an OSError: HTTPSConnectionPool(host='index', "
        "port=443): Max retries exceeded with url: /simple",
    ],
)
def test_versions_that_cannot_be_downloaded_are_skipped_and_reported(
    project_with_python, complaint
):
    result = project_with_python(complaint)

    assert result.returncode == 0, result.stderr
    assert complaint in result.stdout
    last_line = result.stdout.splitlines()[-1]
    assert last_line.startswith("SKIPPED: the oldest versions cannot be downloaded here")


def test_versions_that_exclude_each_other_fail(project_with_python):
    result = project_with_python("ResolutionImpossible: numpy 2.4 and pandas 2.2 conflict")

    assert result.returncode == 1
    assert "SKIPPED" not in result.stdout
