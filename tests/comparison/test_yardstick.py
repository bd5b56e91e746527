"""Every cell of a comparison is measured on one yardstick, and none learns from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pu_kd_pipeline.comparison import computation
from pu_kd_pipeline.comparison.cells import comparison_shards
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.images.duplicates import excluded_images, find_duplicates
from pu_kd_pipeline.images.yardstick import Yardstick
from pu_kd_pipeline.params.yardstick import YardstickParams
from pu_kd_pipeline.selection.yardstick import choose_yardstick
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.comparison.builders import BASE, grid, results_of

# One variant for each source of images.
VARIANTS = {
    "random": {"rule": "random", "budget": 100},
    "all": {"rule": "all"},
    "related": {"method": "preferential"},
    "labeled": {"method": "labeled_only"},
    "original": {"method": "original"},
}


@pytest.fixture(scope="module")
def measured(inputs: ComparisonInputs) -> ComparisonInputs:
    """The demo's images with a yardstick of 60 pool images and one labeled image of each class."""
    stores = {
        "test": inputs.test_images,
        "labeled": inputs.labeled_images,
        "pool": inputs.pool_images,
        "teacher_training": inputs.teacher_training_images,
    }
    duplicates = find_duplicates(stores, None)
    params = YardstickParams(
        seed=0,
        n_images=60,
        uniform_share=1.0,
        max_share=0.1,
        labeled_share=0.1,
        min_labeled_per_class=10,
    )
    table = choose_yardstick(
        inputs.labeled_images,
        inputs.pool_images,
        inputs.labeled_features,
        inputs.pool_features,
        inputs.teacher,
        duplicates,
        params,
    )
    excluded = excluded_images(duplicates, BASE.subset_materialization, table)
    return replace(inputs, excluded=excluded, yardstick=Yardstick(table, stores))


def test_no_student_learns_from_the_yardstick_and_each_is_measured_on_it(
    measured, blocks, tmp_path, monkeypatch
):
    hashes = set(measured.yardstick.table["sha256"])
    learned = []
    distill = computation.distill

    def recorded(manifest, labeled, pool, *args, **options):
        for origin, store in (("labeled", labeled), ("pool", pool)):
            ids = manifest["id"][manifest["origin"] == origin]
            index = store.index
            learned.append(set(index["sha256"][index["id"].isin(ids)]))
        return distill(manifest, labeled, pool, *args, **options)

    monkeypatch.setattr(computation, "distill", recorded)
    params = grid(seeds=[0, 1], labeled_per_class=[9], variants=VARIANTS)
    shards = comparison_shards(measured, blocks, params)
    results = ShardedTable.write(tmp_path, shards).to_pandas()

    assert results["failure"].isna().all()
    assert len(learned) == 2 * len(results)
    assert all(pixels.isdisjoint(hashes) for pixels in learned)
    assert results["yardstick_agreement"].between(0, 1).all()
    assert (results["yardstick_kl"] > 0).all()
    assert set(results["n_yardstick"]) == {70}
    assert set(results["yardstick"]) == {measured.yardstick.fingerprint}
    # The original images hold the labeled ones, under other ids.
    original = measured.without_excluded().teacher_training_images
    assert hashes.isdisjoint(original.index["sha256"])


def test_cells_of_another_yardstick_have_other_names(measured, blocks):
    params = grid(seeds=[0], labeled_per_class=[2], variants={"all": {"rule": "all"}})
    table = measured.yardstick.table
    fewer = table[1:]
    fewer.attrs = table.attrs
    other = replace(measured, yardstick=Yardstick(fewer, measured.yardstick.stores))
    [name] = comparison_shards(measured, blocks, params)
    [other_name] = comparison_shards(other, blocks, params)
    assert name != other_name


def page_of(**columns: object) -> str:
    results = results_of(
        variant=["pu", "pu"],
        method=["selection"] * 2,
        rule=["nnpu"] * 2,
        labeled_per_class=[1] * 2,
        seed=[0, 1],
        accuracy=[0.8, 0.9],
        n_selected=[10, 10],
        **columns,
    )
    variants = {"pu": {"rule": "nnpu", "criterion": "sign"}}
    return comparison_page(results, grid(labeled_per_class=[1], variants=variants))


MEASURED = {
    "yardstick_agreement": [0.6, 0.7],
    "yardstick_kl": [0.5, 0.3],
    "n_yardstick": [200, 200],
}


def test_the_page_shows_agreement_with_its_interval_and_the_divergence():
    page = page_of(**MEASURED, yardstick=["a", "a"])
    assert "## On the yardstick" in page
    # Clopper and Pearson's interval of 130 of 200.
    assert "| pu | 1 | 65.0 % (58.0 to 71.6) | 0.400 |" in page
    assert "different yardsticks" not in page


def test_the_page_says_that_different_yardsticks_are_not_compared():
    page = page_of(**MEASURED, yardstick=["a", "b"])
    assert "These students were measured on different yardsticks" in page


def test_results_of_earlier_versions_have_no_such_section():
    assert "yardstick" not in page_of()
