"""Images that were answered with yes become labeled images of a next run."""

from __future__ import annotations

import numpy as np
import pytest

from pu_kd_pipeline.datasets import ImageFolderDataset
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.duplicates import find_duplicates
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.store import find_rows
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.pool_audit.answers import checked_answers
from pu_kd_pipeline.pool_audit.estimation import estimate_audit
from pu_kd_pipeline.pool_audit.labeled import audited_images
from tests.images.numbered_images import plan_of
from tests.pool_audit.conftest import answers_to

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def audit(pool):
    drawn = pool.audit()
    return estimate_audit(checked_answers(answers_to(drawn), drawn, CLASSES), CLASSES)


def test_a_folder_source_takes_them_with_the_class_that_was_chosen(pool, audit, tmp_path):
    folder = tmp_path / "audited_labeled"
    ImageFolderDataset(filepath=str(folder)).save(audited_images(audit, pool.images))
    assert (folder / "images.csv").read_text().count("\n") == 1 + len(audit["positives"])

    labeled = write_store(plan_of(folder, source={"type": "folder"}), tmp_path / "labeled")
    assert len(labeled) == len(audit["positives"])
    expected = {}
    for positive in audit["positives"]:
        [row] = find_rows(pool.images, np.array([positive["id"]]), "pool")
        expected[pool.images.index["sha256"].iloc[row]] = CLASSES.index(positive["class"])
    found = dict(zip(labeled.index["sha256"], labeled.index["label"], strict=True))
    assert found == expected


def test_their_copies_in_the_pool_are_found_by_their_pixels(pool, audit, tmp_path):
    folder = tmp_path / "audited_labeled"
    ImageFolderDataset(filepath=str(folder)).save(audited_images(audit, pool.images))
    labeled = write_store(plan_of(folder, source={"type": "folder"}), tmp_path / "labeled")
    empty = ImageSubset.of(pool.images, np.arange(0))
    stores = {"test": empty, "labeled": labeled, "pool": pool.images, "teacher_training": empty}
    duplicates = find_duplicates(stores, None)
    assert sorted(duplicates["id"]) == sorted(each["id"] for each in audit["positives"])
    assert set(duplicates["store"]) == {"pool"}
    assert set(duplicates["other_store"]) == {"labeled"}


def test_without_images_the_list_is_empty_and_earlier_images_are_gone(pool, audit, tmp_path):
    dataset = ImageFolderDataset(filepath=str(tmp_path / "audited_labeled"))
    dataset.save(audited_images(audit, pool.images))
    dataset.save({})
    assert [path.name for path in dataset.load().iterdir()] == ["images.csv"]
    assert (dataset.load() / "images.csv").read_text().strip() == "path,label"


def test_ids_that_are_no_file_names_stay_different(pool, audit):
    first, second = audit["positives"][:2]
    # Only the id names the file; the pixels are looked up by it.
    names = list(audited_images(audit, pool.images))
    assert len(set(names)) == len(audit["positives"])
    assert first["id"] in names[0]
    assert second["id"] in names[1]


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", "a\\b", "a:b", " ", "a\nb"])
def test_a_class_that_cannot_be_a_folder_is_refused(pool, audit, name):
    positives = [{**audit["positives"][0], "class": name}]
    with pytest.raises(InputError, match="cannot be the name of a folder"):
        audited_images({**audit, "positives": positives}, pool.images)


def test_images_of_another_pool_are_refused(pool, audit):
    positives = [{"id": "elsewhere", "class": "cat"}]
    with pytest.raises(InputError, match="pool_audit: 1 of 1 ids are not in the image store"):
        audited_images({**audit, "positives": positives}, pool.images)
