"""Pictures with two labels: none of them is used, and all are reported."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images import ingestion
from pu_kd_pipeline.images.decoding import Decoder
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import ImageStore
from tests.images.numbered_images import KINDS, contents, expected, parquet_of, plan_of, png


def statuses(store: ImageStore) -> dict[str, str]:
    quarantine = store.quarantine.set_index("id")
    by_id: dict[str, str] = quarantine["status"].to_dict()
    return by_id


@KINDS
def test_a_picture_in_two_classes_is_in_none(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Image 2 is an owl. Its copies in the next shards are a cat and an owl; that of 4 is as 4 is.
    copies = {"i12": png(2), "i23": png(2), "i13": png(4)}
    file = parquet_of(tmp_path / "a.parquet", range(25), **copies)
    plan = plan_of(file, kind=kind)
    with caplog.at_level(logging.WARNING):
        store = write_store(plan, tmp_path / "store")

    assert statuses(store) == {
        "i2": "conflicting labels: owl and cat",
        "i12": "conflicting labels: owl and cat",
        "i23": "conflicting labels: owl and cat",
        "i13": "duplicate of i4",
    }
    assert store.quarantine_counts == {"conflicting labels": 3, "duplicate": 1}
    remaining = set(range(25)) - {2, 12, 13, 23}
    assert contents(store) == expected(remaining)
    assert "3 images have pixels that also occur under another label" in caplog.text

    # Neither a second run nor one from the beginning finds anything else.
    again = write_store(plan, tmp_path / "store")
    from_nothing = write_store(plan, tmp_path / "from_nothing")
    assert again.fingerprint == store.fingerprint
    assert statuses(again) == statuses(store) == statuses(from_nothing)
    assert contents(again) == contents(store) == contents(from_nothing)


def test_a_store_that_is_made_again_keeps_none_of_its_old_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(65), i12=png(2))
    folder = tmp_path / "store"
    monkeypatch.setattr(ingestion, "maker_fingerprint", lambda *_: "0123456789ab")
    decode = Decoder.decode
    with monkeypatch.context() as inverted:
        inverted.setattr(Decoder, "decode", lambda self, raw: 255 - decode(self, raw))
        before = write_store(plan_of(file), folder)
    # The old shards are whole, and their images are those that are wanted.
    store = write_store(plan_of(file), folder, makes_again=True)
    assert store.fingerprint != before.fingerprint
    assert contents(store) == expected(set(range(65)) - {2, 12})
    assert set(statuses(store)) == {"i2", "i12"}


def test_labels_that_agree_later_are_used_then(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(12), i11=png(3))
    folder = tmp_path / "store"
    assert set(statuses(write_store(plan_of(file), folder))) == {"i3", "i11"}

    # A map that makes one class of both.
    joint = {"label_map": {"0": 0, "1": 1, "2": 0}}
    store = write_store(plan_of(file, source=joint), folder)
    assert statuses(store) == {"i11": "duplicate of i3"}
    # And the other way.
    assert set(statuses(write_store(plan_of(file), folder))) == {"i3", "i11"}


@pytest.mark.parametrize(
    ("source", "expected_statuses"),
    [
        # Class 0 is the only one that is relevant: 2 and 5 are both of none.
        ({"labels": "truth", "label_map": {"0": 0}}, {"i4": "duplicate of i2"}),
        ({"labels": "ignore"}, {"i4": "duplicate of i2"}),
    ],
)
def test_labels_that_mean_the_same_are_no_conflict(
    tmp_path: Path, source: dict[str, Any], expected_statuses: dict[str, str]
) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(6), i4=png(2))
    store = write_store(plan_of(file, source=source), tmp_path / "store")
    assert statuses(store) == expected_statuses


def test_a_class_and_no_class_are_a_conflict(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(6), i5=png(3))
    source = {"labels": "truth", "label_map": {"0": 0}}
    store = write_store(plan_of(file, source=source), tmp_path / "store")
    assert statuses(store) == {
        "i5": "conflicting labels: cat and no class",
        "i3": "conflicting labels: cat and no class",
    }


def test_too_many_conflicts_stop_the_run(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", range(6), i4=png(0), i5=png(1))
    strict = plan_of(file, max_quarantined_share=0.5)
    with pytest.raises(InputError, match=r"4 of 6 images cannot be used \(conflicting labels 4"):
        write_store(strict, tmp_path / "store")
    assert not list((tmp_path / "store").glob("*"))
