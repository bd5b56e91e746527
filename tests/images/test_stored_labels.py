"""Stored labels are those of the present rules: images with other labels are written again."""

from __future__ import annotations

from pathlib import Path

import pytest

from pu_kd_pipeline.datasets import ImageStoreDataset
from pu_kd_pipeline.images import labels
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.label_joining import JoinedLabel, Rule
from pu_kd_pipeline.images.label_keys import SourceLabel
from pu_kd_pipeline.provenance.code_index import CodeIndex
from tests.images.numbered_images import KINDS, contents, parquet_of, plan_of


@KINDS
def test_a_store_of_other_label_rules_is_not_used_again(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", range(12)), kind=kind)
    before = write_store(plan, tmp_path / "store")
    assert before.index["label"].tolist() == [0, 1, 2] * 4
    images = contents(before)

    def in_reverse(found: list[SourceLabel], *_: object) -> list[JoinedLabel]:
        return [JoinedLabel(2 - int(str(label)), Rule.POSITION) for label in found]

    monkeypatch.setattr(labels, "join_labels", in_reverse)
    after = write_store(plan, tmp_path / "store")
    assert after.index["label"].tolist() == [2, 1, 0] * 4
    assert after.fingerprint != before.fingerprint
    assert contents(after) == images


def test_a_changed_label_rule_runs_ingestion_again() -> None:
    # A node runs again after a change of the code that its data sets depend on.
    code = CodeIndex().code_digests(ImageStoreDataset)
    for rule in (
        "labels:with_teacher_labels",
        "label_joining:join_labels",
        "label_keys:match_keys",
        "label_names:plain_spelling",
        "label_conflicts:find_label_conflicts",
        "sources.parquet_labels:labels_of_file",
        "source_reports:report_source",
    ):
        assert f"pu_kd_pipeline.images.{rule}" in code
