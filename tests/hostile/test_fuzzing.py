"""A few hundred broken files of every kind, the same each time, and all that ever broke something."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.fuzzing import CORPUS, TARGETS, run_case, run_many

FILES = sorted(CORPUS.glob("*.bin"))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged metadata
N_CASES = {
    "image_folder": 6,
    "parquet_source": 25,
}  # a store is written for each, and flushed to the disk
KNOWN = {
    "good",
    "refused",
    "empty",
    "unreadable",
    "truncated",
    "too many pixels",
    "unsupported pixel format",
}
KNOWN |= {"compressed metadata too large"}


@pytest.mark.parametrize("name", TARGETS)
def test_broken_files_are_refused_or_set_aside_with_a_reason(name: str) -> None:
    n_cases = N_CASES.get(name, 6 if name.startswith("ingest_over") else 25)
    outcomes = run_many(TARGETS[name], n_cases)
    assert sum(outcomes.values()) >= n_cases
    assert outcomes.keys() <= KNOWN


@pytest.mark.parametrize("name", TARGETS)
def test_the_files_that_are_broken_are_good_before(name: str) -> None:
    outcomes = {run_case(TARGETS[name], seed) for seed in TARGETS[name].seeds()}
    assert outcomes <= {"good", "unsupported pixel format"}
    assert "good" in outcomes


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_broke_something_once_does_not_any_more(file: Path) -> None:
    name = max((name for name in TARGETS if file.name.startswith(f"{name}-")), key=len)
    assert run_case(TARGETS[name], file.read_bytes()) in KNOWN


def test_the_corpus_is_small_and_says_what_each_file_is() -> None:
    text = (CORPUS / "README.md").read_text(encoding="utf-8")
    assert FILES
    assert [file.name for file in FILES if f"`{file.name}`" not in text] == []
    assert sum(file.stat().st_size for file in CORPUS.iterdir()) < 200_000
