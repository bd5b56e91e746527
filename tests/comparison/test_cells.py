"""The cells of a comparison: what they share, their results, and what stops them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison import computation, pool_scores
from pu_kd_pipeline.comparison.cells import comparison_shards
from pu_kd_pipeline.comparison.computation import RESULT
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.grid import Blocks, make_cells
from pu_kd_pipeline.comparison.inputs import ComparisonInputs, labeled_rows
from pu_kd_pipeline.comparison.page import comparison_page
from pu_kd_pipeline.comparison.present import present_results
from pu_kd_pipeline.datasets import ShardedTableDataset
from pu_kd_pipeline.devices import MemoryShortage
from pu_kd_pipeline.errors import InputError, UnavailableError
from pu_kd_pipeline.features.reading import read_log_odds
from pu_kd_pipeline.images.duplicates import Excluded
from pu_kd_pipeline.learning.class_prior.readings import read_outputs
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.storage.sharded_table import InMemoryTable, ShardedTable
from pu_kd_pipeline.training.checkpoints import disable_checkpoints, set_checkpoint_folder
from tests.comparison.builders import grid
from tests.engines.works import engine_of


def computed(
    inputs: ComparisonInputs, blocks: Blocks, params: ComparisonParams, folder: Path
) -> pd.DataFrame:
    """Return the results of a comparison, in the order of its cells."""
    shards = comparison_shards(inputs, blocks, params)
    return ShardedTable.write(folder, shards, keeps_others=True).to_pandas()


@pytest.fixture
def published() -> Iterator[tuple[list[Any], list[Any]]]:
    """The results of cells, and the records of trainings, that are published during a test."""
    results: list[Any] = []
    records: list[Any] = []

    def add_result(name: str, parameters: dict[str, Any], metrics: dict[str, Any]) -> None:
        results.append((name, parameters, metrics))

    def add_record(*record: Any) -> None:
        records.append(record)

    progress.results.add(add_result)
    progress.records.add(add_record)
    yield results, records
    progress.results.remove(add_result)
    progress.records.remove(add_record)


@pytest.fixture
def n_labeled_of_trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of labeled images of each PU training during a test."""
    counts = []
    train_head = pool_scores.train_head

    def counted(labeled: ShardedTable, *others: Any) -> Any:
        counts.append(len(labeled))
        return train_head(labeled, *others)

    monkeypatch.setattr(pool_scores, "train_head", counted)
    return counts


def test_cells_share_their_pu_training_and_publish_their_results(
    inputs, blocks, tmp_path, n_labeled_of_trainings, published
):
    # Every method once, and rules with and without a score and a PU classifier.
    variants = {
        "original": {"method": "original", "objectives": ["robust_kd"]},
        "pu": {"rule": "nnpu", "criterion": "quantile", "objectives": ["kd", "robust_kd"]},
        "random": {"rule": "random", "budget": "pu"},
        "confident": {"rule": "confident", "budget": 40},
        "disagreement": {"rule": "disagreement", "budget": 40},
        "labeled": {"method": "labeled_only"},
        "fitnet": {"method": "fitnet"},
        "fskd": {"method": "fskd"},
    }
    # Given: two epochs of training estimate one that is flagged, and `quantile` does not cut by it.
    given = {"pu_training": {"class_prior": 250 / 3050}}
    params = grid(seeds=[0], variants=variants, every_variant=given)
    results = computed(inputs, blocks, params, tmp_path)

    # Once for each number of labeled images.
    assert n_labeled_of_trainings == [20, 40]
    published_results, published_records = published
    accuracies = [metrics["accuracy"] for *_, metrics in published_results]
    assert accuracies == list(results["accuracy"])
    # The curves of many short trainings would bury the results.
    assert published_records == []

    assert list(results.columns) == RESULT.names
    assert results["failure"].isna().all()
    assert results["accuracy"].between(0, 1).all()
    assert set(results["n_updates"]) == {8}
    assert set(results["teacher"]) == {inputs.teacher.fingerprint()}
    assert set(results["test_images"]) == {inputs.test_images.fingerprint}
    # What the page compares of each cell is what its results hold.
    found = present_results(results, params, blocks)
    assert len(found.results) == len(results)
    assert found.doubts() == []
    known_priors = results["true_class_prior"].dropna()
    assert known_priors.unique() == pytest.approx([250 / 3050])
    check_results_of_two_per_class(inputs, results)


EXCLUSION_VARIANTS = {
    "all": {"rule": "all"},
    "related": {"method": "preferential"},
    "labeled": {"method": "labeled_only"},
}


def check_results_of_two_per_class(inputs: ComparisonInputs, results: pd.DataFrame) -> None:
    # Rows without a number of labeled images stay: they are compared with all.
    is_kept = results["labeled_per_class"] != 4
    of = results[is_kept].set_index(["variant", "objective"])
    n_selected = of["n_selected"]
    assert n_selected["pu", "kd"] == n_selected["random", "robust_kd"]
    assert n_selected["disagreement", "robust_kd"] == 40

    n_labeled = of["n_labeled"]
    n_of_teacher = len(inputs.teacher_training_images)
    assert n_labeled["original", "robust_kd"] == n_of_teacher
    assert n_labeled["labeled", "kd"] == 20

    # An AUC needs a score that the rule ranks by.
    auc = results[is_kept].dropna(subset="auc")
    assert list(auc["variant"]) == ["pu", "pu", "confident", "disagreement"]
    # A class prior needs a PU classifier.
    class_prior = results[is_kept].dropna(subset="class_prior")
    assert list(class_prior["variant"]) == ["pu", "pu", "disagreement"]


CURVE_VARIANTS = {
    "original": {"method": "original"},
    "fitnet": {"method": "fitnet", "labeled_per_class": [2]},
    "random": {"rule": "random", "budget": 40, "labeled_per_class": [2]},
}


CURVES = {"n_images": 150, "panels": {"All": list(CURVE_VARIANTS)}}


def test_images_of_curves_are_taken_from_those_of_the_students(inputs):
    apart = inputs.watching(150)
    assert len(apart.watched_images) == 150
    assert len(apart.teacher_training_images) == len(inputs.teacher_training_images) - 150

    # By content, because a store may have the same image under another identifier.
    monitored = set(apart.watched_images.index["sha256"])
    for images in (apart.labeled_images, apart.teacher_training_images, apart.pool_images):
        assert monitored.isdisjoint(images.index["sha256"])


def test_cells_with_curves_have_other_names(inputs, blocks):
    # Their students have fewer images: results without curves are no results of them.
    with_curves = grid(seeds=[0], variants=CURVE_VARIANTS, curves=CURVES)
    without_curves = grid(seeds=[0], variants=CURVE_VARIANTS)
    names = set(comparison_shards(inputs, blocks, with_curves))
    other_names = comparison_shards(inputs, blocks, without_curves)
    assert names.isdisjoint(other_names)


def test_curves_are_shares_of_their_images(inputs, blocks, tmp_path):
    n_images = CURVES["n_images"]
    params = grid(seeds=[0], variants=CURVE_VARIANTS, curves=CURVES)
    results = computed(inputs, blocks, params, tmp_path)
    assert results["failure"].isna().all()

    by_variant = results.set_index("variant")
    n_left = len(inputs.teacher_training_images) - n_images
    assert by_variant.loc["original", "n_labeled"] == n_left

    updates = [list(of_cell) for of_cell in results["curve_updates"]]
    # The updates of FitNet's hidden layer come before its first record.
    assert updates == [[4, 8], [8], [4, 8]]

    curves = list(results["curve_accuracy"])
    n_correct = n_images * np.concatenate(curves)
    # Of any other number of images the counts would not be whole.
    np.testing.assert_allclose(n_correct, np.round(n_correct), atol=1e-9)
    most = n_correct.max()
    assert most > 0
    assert most <= n_images


def test_cells_without_an_excluded_image_keep_their_names(inputs, blocks):
    params = grid(seeds=[0], labeled_per_class=[2], variants=EXCLUSION_VARIANTS)
    before = list(comparison_shards(inputs, blocks, params))

    nothing_excluded = replace(inputs, excluded=Excluded())
    names = list(comparison_shards(nothing_excluded, blocks, params))
    assert names == before

    # What is excluded decides, not the wish to exclude.
    subset = blocks.subset_materialization.model_copy(update={"exclude_test_duplicates": False})
    without_wish = replace(blocks, subset_materialization=subset)
    names = list(comparison_shards(inputs, without_wish, params))
    assert names == before


def test_no_cell_learns_from_an_excluded_pool_image(inputs, blocks, tmp_path):
    params = grid(seeds=[0], labeled_per_class=[2], variants=EXCLUSION_VARIANTS)
    before = comparison_shards(inputs, blocks, params)
    excluded_ids = frozenset(inputs.pool_images.index["id"][:500])
    excluding = replace(inputs, excluded=Excluded(pool=excluded_ids))

    shards = comparison_shards(excluding, blocks, params)
    # The last variant uses no pool image: its result may be reused.
    is_reused = [name in before for name in shards]
    assert is_reused == [False, False, True]

    table = ShardedTable.write(tmp_path, shards)
    results = table.to_pandas().set_index("variant")
    assert results["failure"].isna().all()
    n_selected = results["n_selected"].to_dict()
    assert n_selected == {"all": 2550, "related": 2550, "labeled": 0}


def test_no_cell_learns_from_an_excluded_labeled_image(inputs):
    store = inputs.labeled_images
    ids = store.index["id"]
    # Exactly the images that would be drawn otherwise: others must replace them.
    rows = labeled_rows(store, 2, seed=0)
    drawn_ids = frozenset(ids.iloc[rows])
    excluded = Excluded(labeled=drawn_ids)
    excluding = replace(inputs, excluded=excluded)

    left = excluding.without_excluded().labeled_images
    assert len(left) == len(store) - 20
    ids_left = left.index["id"]
    rows = labeled_rows(left, 2, seed=0)
    drawn_again = set(ids_left.iloc[rows])
    assert drawn_again.isdisjoint(drawn_ids)


def test_a_continued_comparison_has_the_same_results(inputs, blocks, tmp_path):
    variants = {
        "pu": {"rule": "nnpu", "criterion": "quantile"},
        "random": {"rule": "random", "budget": "pu"},
        "fitnet": {"method": "fitnet"},
    }
    params = grid(seeds=[0], variants=variants)
    makers = comparison_shards(inputs, blocks, params)
    whole = ShardedTable.write(tmp_path / "whole", makers)

    # `random` needs the size of `pu`: here its own cell is missing and the other one exists.
    finished = whole.names[:1] + whole.names[3:5]
    (tmp_path / "continued").mkdir()
    for name in finished:
        shutil.copy(tmp_path / "whole" / f"{name}.parquet", tmp_path / "continued")

    # New makers: the first ones have their PU scores already.
    makers = comparison_shards(inputs, blocks, params)
    continued = ShardedTable.write(tmp_path / "continued", makers)
    durations = ["seconds", "pu_seconds"]
    expected = whole.to_pandas().drop(columns=durations)
    actual = continued.to_pandas().drop(columns=durations)
    pd.testing.assert_frame_equal(expected, actual)


def test_cells_of_other_processes_have_the_same_results(
    inputs, blocks, tmp_path, published, caplog
):
    variants = {
        # Refused for this pool: a failure is a row, too.
        "pu": {"rule": "nnpu", "criterion": "quantile"},
        "all": {"rule": "all"},
        "random": {"rule": "random", "budget": "all"},
    }
    params = grid(labeled_per_class=[2], seeds=[0], variants=variants)
    makers = comparison_shards(inputs, blocks, params)
    own = ShardedTable.write(tmp_path / "own", makers)
    results, records = published
    own_results = list(results)
    results.clear()

    with caplog.at_level(logging.INFO, logger="pu_kd_pipeline"):
        others = makers.on(engine_of("processes"))
        theirs = ShardedTable.write(tmp_path / "theirs", others)
    durations = ["seconds", "pu_seconds"]
    expected = own.to_pandas().drop(columns=durations)
    pd.testing.assert_frame_equal(theirs.to_pandas().drop(columns=durations), expected)
    # Trackers and the log see them as if they had been computed here.
    assert {name for name, _, _ in results} == {name for name, _, _ in own_results}
    assert sum("history" in metrics for _, _, metrics in results) == 2
    assert records == []
    for number in (1, 2, 3):
        assert f"cell {number} of 3: " in caplog.text


@pytest.mark.parametrize("method", ["labeled_only", "fitnet", "fskd"])
def test_every_method_gives_its_student_the_same_number_of_updates(
    inputs, blocks, tmp_path, method
):
    n_updates = 0

    # Counted in the optimizer: what a method reports may differ from what it does.
    def count(*_: Any) -> None:
        nonlocal n_updates
        n_updates += 1

    variants = {"one": {"method": method}}
    params = grid(labeled_per_class=[2], seeds=[0], variants=variants)
    hook = register_optimizer_step_post_hook(count)
    try:
        computed(inputs, blocks, params, tmp_path)
    finally:
        hook.remove()
    assert n_updates == 8


def test_cells_write_no_checkpoints_and_stop_where_memory_runs_out(inputs, blocks, tmp_path):
    """A cell is done as a whole, and one that failed for lack of memory would stay a failure."""

    def run_out_of_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    variants = {"pu": {"rule": "nnpu"}, "fitnet": {"method": "fitnet"}}
    params = grid(labeled_per_class=[2], seeds=[0], variants=variants)
    makers = comparison_shards(inputs, blocks, params)
    set_checkpoint_folder(tmp_path / "checkpoints", 0.0)
    hook = register_optimizer_step_post_hook(run_out_of_memory)
    try:
        with pytest.raises(MemoryShortage, match="memory of the device is not enough"):
            ShardedTable.write(tmp_path / "cells", makers)
        assert list(tmp_path.rglob("*.parquet")) == []

        # With enough memory again, both cells are computed.
        hook.remove()
        table = ShardedTable.write(tmp_path / "cells", makers)
        assert len(table) == 2
    finally:
        hook.remove()
        disable_checkpoints()
    assert not (tmp_path / "checkpoints").exists()


def test_a_store_that_fails_for_a_moment_is_no_result_of_a_cell(
    inputs, blocks, tmp_path, monkeypatch
):
    def fails(*_: Any, **__: Any) -> Any:
        raise UnavailableError("s3://images cannot be read now")

    params = grid(labeled_per_class=[2], seeds=[0], variants={"one": {"method": "labeled_only"}})
    with monkeypatch.context() as patch:
        patch.setattr(computation, "distill", fails)
        with pytest.raises(UnavailableError, match="cannot be read now"):
            computed(inputs, blocks, params, tmp_path)
    assert list(tmp_path.rglob("*.parquet")) == []
    assert computed(inputs, blocks, params, tmp_path)["failure"].isna().all()


def test_an_error_without_a_message_is_the_reason_of_a_cell_by_its_name(
    inputs, blocks, tmp_path, monkeypatch
):
    def fails(*_: Any, **__: Any) -> Any:
        raise FloatingPointError

    monkeypatch.setattr(computation, "distill", fails)
    params = grid(labeled_per_class=[2], seeds=[0], variants={"one": {"method": "labeled_only"}})
    assert list(computed(inputs, blocks, params, tmp_path)["failure"]) == ["FloatingPointError"]


def test_a_cell_that_cannot_be_computed_has_its_reason_and_the_others_are_computed(
    inputs, blocks, tmp_path
):
    # So few relevant images that no threshold reaches the precision.
    impossible = {
        "rule": "nnpu",
        "criterion": "precision",
        "pu_training": {"class_prior": 0.01},
        "subset_materialization": {"target_precision": 0.99},
    }
    variants = {"precise": impossible, "random": {"rule": "random", "budget": 30}}
    params = grid(labeled_per_class=[2], seeds=[0], variants=variants)

    results = computed(inputs, blocks, params, tmp_path)
    assert "rule 'nnpu' with criterion 'precision'" in results["failure"][0]
    assert results["accuracy"].notna().tolist() == [False, True]

    # The page and the figure show the failure and the others.
    page = comparison_page(results, grid())
    assert "- precise, robust_kd, 2 per class, seed 0: subset_materialization: rule 'nnpu'" in page
    assert "| precise | – |" in page
    figure = plot_comparison(results, grid())
    assert len(figure.axes) > 0


def fskd_with(**distillation: Any) -> dict[str, Any]:
    """Return the variants of a comparison whose only student is pruned from the teacher."""
    return {"variants": {"a": {"method": "fskd", "distillation": distillation}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"curves": {"n_images": 9_999, "panels": {}}},
            "curves.n_images is 9,999, and 497 of the teacher's",
        ),
        (
            {"labeled_per_class": [11]},
            "asks for 11 images of each class, and the labeled store has a class with 10",
        ),
        (
            {
                "variants": {
                    "a": {
                        "method": "preferential",
                        "distillation": {"final_phase": {"share": 0.5}},
                    }
                }
            },
            "variants.a.distillation.final_phase.share is 0.5, and the method 'preferential' has",
        ),
        (fskd_with(student_architecture="lenet5"), "comparison.variants.a: "),
        (fskd_with(student_options={"width": 9}), "narrower copy"),
    ],
)
def test_what_would_stop_the_last_cell_stops_the_first(inputs, blocks, changes, message):
    params = grid(**changes)
    with pytest.raises(InputError, match=message):
        comparison_shards(inputs, blocks, params)


def test_results_are_kept_when_the_grid_shrinks(tmp_path):
    def maker(value: int) -> Callable[[], pa.Table]:
        table = pa.table({"x": [value]})
        return lambda: table

    dataset = ShardedTableDataset(filepath=str(tmp_path), keeps_others=True)
    dataset.save({"a": maker(1), "b": maker(2)})
    dataset.save({"b": maker(3)})
    loaded = dataset.load().to_pandas()
    # The file of `b` is there, and is not written again.
    assert loaded["x"].tolist() == [2]
    assert (tmp_path / "a.parquet").is_file()


def test_students_of_each_length_get_their_updates_and_a_name_of_their_own(
    inputs, blocks, tmp_path, published
):
    variants = {"labeled": {"method": "labeled_only"}}
    params = grid(labeled_per_class=[2], seeds=[0], variants=variants, n_updates=[4, 12])
    results = computed(inputs, blocks, params, tmp_path / "cells")
    assert results["n_updates"].tolist() == [4, 12]
    assert results["failure"].isna().all()
    names = [name for name, _, _ in published[0]]
    assert names == [f"labeled, kd, 2 per class, seed 0, {n} updates" for n in (4, 12)]
    page = comparison_page(results, params)
    assert "## After 4 updates" in page
    assert "## After 12 updates" in page
    assert len(plot_comparison(results, params).axes) == 2


def test_a_mixture_by_the_outputs_draws_as_many_images_often_as_the_outputs_read(
    inputs, blocks, tmp_path, n_labeled_of_trainings, caplog
):
    caplog.set_level("INFO", logger="pu_kd_pipeline.selection.manifest")
    by_outputs = {"mixture": {"score": "teacher_log_odds"}}
    variants = {"outputs": {"rule": "mixture", "subset_materialization": by_outputs}}
    params = grid(labeled_per_class=[4], seeds=[0], variants=variants)
    results = computed(inputs, blocks, params, tmp_path)

    [cell] = make_cells(params, blocks)
    drawn_ids = pa.array(inputs.cell_labeled_images(cell).index["id"], pa.string())
    [table] = inputs.labeled_features.shards()
    drawn = table.filter(pa.compute.is_in(table["id"], drawn_ids))
    labeled = InMemoryTable.of("drawn", [drawn])
    outputs = (read_log_odds(labeled), read_log_odds(inputs.pool_features))
    expected = max(read_outputs(outputs)) / 2
    [message] = [text for text in caplog.messages if "temperature" in text]
    assert f"temperature {expected:.3g}, half of the largest reading" in message
    assert n_labeled_of_trainings == []
    # No estimate: the outputs alone give none.
    assert results["class_prior"].isna().all()
