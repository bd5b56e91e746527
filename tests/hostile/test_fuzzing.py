"""Fuzz every target with the same cases each time, and replay all files that once failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.fuzzing import CORPUS, run_case, run_many
from tests.hostile.targets import TARGETS

CORPUS_FILES = sorted(CORPUS.glob("*.bin"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # damaged metadata

N_CASES = 25
# Ingestion writes a store per case and flushes it to the disk.
N_INGESTION_CASES = 6
KNOWN_OUTCOMES = {
    "good",
    "refused",
    "empty",
    "unreadable",
    "truncated",
    "too many pixels",
    "image format that is not read",
    "unsupported pixel format",
    "floating-point pixels",
    "integer pixels of 32 bits or more",
    "signed integer pixels",
    "16-bit pixels without a value above 255",
    "compressed metadata too large",
}


@pytest.mark.parametrize("name", TARGETS)
def test_broken_files_are_refused_or_set_aside_with_a_reason(name: str) -> None:
    n_cases = N_CASES
    if name == "image_folder" or name.startswith("ingest_over"):
        n_cases = N_INGESTION_CASES
    outcomes = run_many(TARGETS[name], n_cases)

    assert sum(outcomes.values()) >= n_cases
    assert outcomes.keys() <= KNOWN_OUTCOMES


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_are_valid_before_they_are_damaged(name: str) -> None:
    target = TARGETS[name]
    outcomes = set()
    for data in target.valid_files():
        outcomes.add(run_case(target, data))

    # Among the TIFF files is one of float32 pixels.
    assert outcomes <= {"good", "floating-point pixels"}
    assert "good" in outcomes


def target_of(file: Path) -> str:
    """Return the target that a corpus file is named after."""
    names = []
    for name in TARGETS:
        if file.name.startswith(f"{name}-"):
            names.append(name)
    # The names of some targets begin with the name of another.
    return max(names, key=len)


@pytest.mark.parametrize("file", CORPUS_FILES, ids=lambda file: file.stem)
def test_files_that_once_failed_are_handled(file: Path) -> None:
    target = TARGETS[target_of(file)]
    outcome = run_case(target, file.read_bytes())
    assert outcome in KNOWN_OUTCOMES


def test_the_corpus_is_small_and_describes_each_file() -> None:
    text = (CORPUS / "README.md").read_text(encoding="utf-8")
    size_bytes = 0
    for file in CORPUS.iterdir():
        size_bytes += file.stat().st_size

    assert CORPUS_FILES
    for file in CORPUS_FILES:
        assert f"`{file.name}`" in text
    assert size_bytes < 200_000
