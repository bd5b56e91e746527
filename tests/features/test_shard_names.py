"""The names of shards follow the code and the libraries that make them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pu_kd_pipeline.features import extraction, scoring
from pu_kd_pipeline.provenance import fingerprint
from pu_kd_pipeline.selection import relatedness
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.conftest import PROJECT
from tests.features.made_files import MadeFiles

EVERYTHING = {"store", "features", "scores", "relatedness"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package's source."""
    folder = tmp_path_factory.mktemp("src")
    package = folder / "pu_kd_pipeline"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PROJECT / "src" / "pu_kd_pipeline", package, ignore=ignored)
    return folder


def names_by(source: Path, work: Path) -> dict[str, str]:
    """Return the names of shards that another process makes with the package in a folder."""
    command = [sys.executable, "-m", "tests.features.made_files", str(work)]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{PROJECT}"}
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return names


@pytest.fixture(scope="module")
def names_of_copy(copy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return names_by(copy, tmp_path_factory.mktemp("before"))


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        (
            "learning/features.py",
            "return descriptor.float(), ",
            "return 2 * descriptor.float(), ",
            EVERYTHING - {"store"},
        ),
        (
            "learning/networks/lenet.py",
            "features = self.conv1(images)",
            "features = 2 * self.conv1(images)",
            EVERYTHING - {"store"},
        ),
        (
            "storage/parquet_files.py",
            "pq.write_table(described, temporary)",
            'pq.write_table(described, temporary, compression="zstd")',
            EVERYTHING,
        ),
        # Encoded images are decoded when they are read.
        ("images/resizing.py", "image.resize(size, ", "image.resize(size[:], ", EVERYTHING),
        ("images/pixel_formats.py", ">> (n_bits - 8)", ">> (n_bits - 9)", EVERYTHING),
    ],
)
def test_names_follow_the_code_that_makes_a_shard(
    copy: Path,
    names_of_copy: dict[str, str],
    tmp_path: Path,
    file: str,
    old: str,
    new: str,
    changed: set[str],
) -> None:
    source = copy / "pu_kd_pipeline" / file
    text = source.read_text(encoding="utf-8")
    assert old in text
    try:
        source.write_text(text.replace(old, new), encoding="utf-8")
        names = names_by(copy, tmp_path)
    finally:
        source.write_text(text, encoding="utf-8")
    assert {key for key in names if names[key] != names_of_copy[key]} == changed


@pytest.fixture
def made(tmp_path: Path) -> MadeFiles:
    return MadeFiles.in_folder(tmp_path)


def test_names_follow_the_versions_of_libraries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = MadeFiles.in_folder(tmp_path / "before").names()
    versions = {**fingerprint.library_versions(), "pillow": "999"}
    monkeypatch.setattr(fingerprint, "library_versions", lambda _: versions)
    after = MadeFiles.in_folder(tmp_path / "after").names()
    assert {key for key in after if after[key] != before[key]} == EVERYTHING


@pytest.mark.parametrize("module", [extraction, scoring, relatedness])
def test_names_follow_the_device_and_the_number_format(
    made: MadeFiles, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    makers_of = {
        extraction: made.feature_makers,
        scoring: made.score_makers,
        relatedness: made.relatedness_makers,
    }[module]
    before = list(makers_of())
    assert list(makers_of()) == before

    monkeypatch.setattr(module, "arithmetic", lambda *_: "cuda bf16")
    assert not set(makers_of()) & set(before)


@pytest.mark.parametrize("module", [extraction, scoring, relatedness])
def test_other_code_makes_all_shards_again(
    made: MadeFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object
) -> None:
    makers_of = {
        extraction: made.feature_makers,
        scoring: made.score_makers,
        relatedness: made.relatedness_makers,
    }[module]
    folder = tmp_path / "table"
    before = ShardedTable.write(folder, makers_of())
    times_before = modification_times(folder)
    ShardedTable.write(folder, makers_of())
    assert modification_times(folder) == times_before

    monkeypatch.setattr(module, "maker_fingerprint", lambda *_: "0123456789ab")
    after = ShardedTable.write(folder, makers_of())
    assert set(after.names).isdisjoint(before.names)
    # The shards of the other code are gone.
    assert set(modification_times(folder)) == {f"{name}.parquet" for name in after.names}
    assert after.arrays("id").tolist() == made.pool.index["id"].tolist()


def modification_times(folder: Path) -> dict[str, int]:
    """Return the modification time of every shard by its file name."""
    times_ns = {}
    for file in folder.glob("*.parquet"):
        times_ns[file.name] = file.stat().st_mtime_ns
    return times_ns
