"""Comparisons: the grid, what its cells share, what a cell's result depends on, and how results are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch.optim.optimizer import register_optimizer_step_post_hook

from pu_kd_pipeline import progress
from pu_kd_pipeline.comparison import computation
from pu_kd_pipeline.comparison.cells import comparison_shards
from pu_kd_pipeline.comparison.computation import RESULT
from pu_kd_pipeline.comparison.figure import plot_comparison
from pu_kd_pipeline.comparison.grid import Blocks, cells_of, laid_over_each_other
from pu_kd_pipeline.comparison.inputs import ComparisonInputs, labeled_rows
from pu_kd_pipeline.comparison.starts import STARTS, check_starts
from pu_kd_pipeline.comparison.tables import comparison_page, means_over_seeds
from pu_kd_pipeline.datasets import ShardedTableDataset
from pu_kd_pipeline.devices import MemoryShortage
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.images.duplicates import Excluded
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.labels import with_teacher_labels
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.images.subset import ImageSubset
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import METHODS, ComparisonParams
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams, ImageSource
from pu_kd_pipeline.params.distillation import OBJECTIVE_BLOCKS, DistillationParams
from pu_kd_pipeline.params.pu_training import PUTrainingParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.params.teacher import TeacherParams
from pu_kd_pipeline.selection import proxy
from pu_kd_pipeline.storage.sharded_table import ShardedTable, TableInMemory
from pu_kd_pipeline.tracking.client import Tracker
from pu_kd_pipeline.tracking.config import TrackingConfig
from pu_kd_pipeline.training import distillation
from pu_kd_pipeline.training.checkpoints import keep_in, keep_nowhere

PROJECT = Path(__file__).resolve().parents[2]
COMPUTE = {
    "device": "cpu",
    "precision": "float32",
    "n_threads": 1,
    "resident_limit_gb": 1.0,
    "inference_batch_size": 1024,
}


def block_of(name: str, **changes: Any) -> dict[str, Any]:
    """Return a block of conf/base with the interpolations that its file takes from others."""
    [text] = [
        path.read_text()
        for path in (PROJECT / "conf" / "base").glob("parameters_*.yml")
        if f"\n{name}:\n" in "\n" + path.read_text()
    ]
    text = text.replace("${seed}", "0").replace("${compute}", json.dumps(COMPUTE))
    return {**yaml.safe_load(text)[name], **changes}


_PRIOR = block_of("pu_training")["prior_estimation"] | {
    "n_folds": 2,
    "epochs": 2,
    "n_bootstrap": 20,
}
BASE = Blocks(
    PUTrainingParams(
        **block_of("pu_training", epochs=2, held_out_folds=0, prior_estimation=_PRIOR)
    ),
    SubsetParams(**block_of("subset_materialization")),
    ClassWeightingParams(**block_of("class_weighting")),
    DistillationParams(**block_of("distillation", n_updates=8, record_every=4, batch_size=32)),
    RelatednessParams(**block_of("relatedness", n_noise_images=200)),
)


@pytest.fixture(scope="module")
def blocks() -> Blocks:
    return BASE


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ComparisonInputs:
    """The demo's images, and a teacher that was not trained: comparing needs no good one."""
    folder = tmp_path_factory.mktemp("inputs")
    ingestion = DataIngestionParams(**block_of("data_ingestion"))
    teacher_params = TeacherParams(**block_of("teacher", architecture_options={"width": 8}))
    with seeded(0):
        teacher = new_teacher(teacher_params)
    stores = {}
    for part in ("labeled", "pool", "test", "teacher_training"):
        plan = IngestionPlan(
            part, getattr(ingestion, part), 8, 1, teacher.card.classes, ingestion.store, 0
        )
        stores[part] = write_store(plan, folder / part)
    compute = DistillationParams(**block_of("distillation")).compute
    features = {
        part: ShardedTable.write(
            folder / f"{part}_features", feature_shards(stores[part], teacher, compute)
        )
        for part in ("labeled", "pool")
    }
    return ComparisonInputs(teacher, *stores.values(), features["labeled"], features["pool"])


def grid(**changes: Any) -> ComparisonParams:
    given = {
        "title": "a comparison",
        "labeled_per_class": [2, 4],
        "seeds": [0, 1],
        "objectives": ["robust_kd"],
        "sweeps": {},
        "hint_share": 0.5,
        "every_variant": {},
        "variants": {
            "pu": {"rule": "nnpu", "criterion": "quantile"},
            "random": {"rule": "random", "budget": "pu"},
        },
        **changes,
    }
    return ComparisonParams.model_validate(given)


# --- the grid


def test_a_grid_is_every_combination_seed_by_seed(blocks):
    variants = {
        "pu": {"rule": "nnpu"},
        "original": {"method": "original"},
        "few": {"rule": "all", "labeled_per_class": [4]},
    }
    cells = cells_of(grid(objectives=["kd", "robust_kd"], variants=variants), blocks)
    assert [str(cell) for cell in cells[: len(cells) // 2]] == [
        "pu, kd, 2 per class, seed 0",
        "pu, robust_kd, 2 per class, seed 0",
        "original, kd, seed 0",
        "pu, kd, 4 per class, seed 0",
        "pu, robust_kd, 4 per class, seed 0",
        "few, kd, 4 per class, seed 0",
        "few, robust_kd, 4 per class, seed 0",
    ]
    assert {cell.seed for cell in cells[len(cells) // 2 :]} == {1}
    for cell in cells:
        assert cell.blocks.distillation.objective == cell.objective
        assert {getattr(cell.blocks, name).seed for name in ("pu_training", "class_weighting")} == {
            cell.seed
        }


def test_overrides_reach_down_to_a_key_and_the_variants_own_win(blocks):
    every = {"pu_training": {"epochs": 7, "optimizer": {"learning_rate": 0.5}}}
    variants = {
        "one": {
            "rule": "nnpu",
            "budget": 9,
            "features": "descriptor",
            "pu_training": {"optimizer": {"momentum": 0.1}},
        },
        "two": {"rule": "nnpu", "pu_training": {"epochs": 3}},
        "labeled": {"method": "labeled_only"},
    }
    cells = cells_of(
        grid(labeled_per_class=[2], seeds=[3], every_variant=every, variants=variants), blocks
    )
    one, two, labeled = (cell.blocks for cell in cells)
    assert (one.pu_training.epochs, two.pu_training.epochs) == (7, 3)
    assert one.pu_training.optimizer.learning_rate == two.pu_training.optimizer.learning_rate == 0.5
    assert (one.pu_training.optimizer.momentum, two.pu_training.optimizer.momentum) == (0.1, 0.9)
    assert (one.pu_training.features, one.subset_materialization.budget) == ("descriptor", 9)
    assert (labeled.distillation.held_out_share, labeled.distillation.objective) == (0.0, "kd")


@pytest.mark.parametrize(
    ("variants", "sentences"),
    [
        (
            {"a": {"rule": "randm"}},
            ["comparison.variants.a.subset_materialization.rule", "'randm'"],
        ),
        ({"a": {"rule": "random"}}, ["rule 'random' needs a budget"]),
        (
            {"a": {"rule": "all", "distillation": {"n_updates": 5}}},
            ["n_updates: every student", "the same"],
        ),
        (
            {"a": {"rule": "all", "pu_training": {"epoch": 5}}},
            ["pu_training.epoch`", "did you mean `epochs`?"],
        ),
        ({"a": {"rule": "all", "objectives": ["kdd"]}}, ["distillation.objective", "'kdd'"]),
    ],
)
def test_a_variant_that_no_block_takes_is_refused_by_key(blocks, variants, sentences):
    with pytest.raises(InputError) as caught:
        cells_of(grid(variants=variants), blocks)
    for sentence in sentences:
        assert sentence in str(caught.value)


POINT = {"name": "size", "line": "random", "at": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {}}}, "method 'selection' needs a rule"),
        ({"variants": {"a": {"method": "fskd", "rule": "all"}}}, "selects nothing: remove rule"),
        (
            {"variants": {"a": {"method": "fskd", "objectives": ["robust_kd"]}}},
            "with the objective kd alone",
        ),
        (
            {"variants": {"a": {"rule": "random", "budget": "b"}}},
            "budget 'b' is not the name of a variant",
        ),
        ({"variants": {"a": None}}, "variants must name at least one"),
        ({"seeds": [1, 1]}, "seeds must not repeat"),
        (
            {"variants": {"a": {"rule": "all", "labeled_per_class": [3]}}},
            r"labeled_per_class \[3\] is not among",
        ),
        (
            {"sweeps": {"size": "n"}, "variants": {"a": {"rule": "all", "sweep": POINT}}},
            "has one number of labeled images",
        ),
        (
            {"variants": {"a": {"rule": "all", "labeled_per_class": [2], "sweep": POINT}}},
            "'size' is not a key of",
        ),
        (
            {"curves": {"n_images": 9, "panels": {"One": ["pu", "pi"]}}},
            "variants are pu, random",
        ),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        grid(**changes)


def test_names_follow_what_decides_a_result_and_nothing_else(inputs, blocks):
    def names(params: ComparisonParams, **changes: Any) -> list[str]:
        changed = {
            name: getattr(blocks, name).model_copy(update=value) for name, value in changes.items()
        }
        return list(comparison_shards(inputs, Blocks(**{**blocks.__dict__, **changed}), params))

    before = names(grid(seeds=[0]))
    other_compute = blocks.distillation.compute.model_copy(
        update={"n_threads": 2, "inference_batch_size": 7}
    )
    assert (
        names(grid(seeds=[0], title="renamed"), distillation={"compute": other_compute}) == before
    )
    assert names(grid(seeds=[1, 0]))[4:] == before
    assert not set(names(grid(seeds=[0]), distillation={"temperature": 2.0})) & set(before)
    # a random draw depends on the PU training only through the number of images
    pu, random = names(grid(seeds=[0]), pu_training={"epochs": 3})[:2]
    assert (pu in before, random in before) == (False, False)
    variants = {"pu": {"rule": "nnpu"}, "random": {"rule": "random", "budget": 20}}
    pu, random = names(grid(seeds=[0], variants=variants))[:2]
    pu_again, random_again = names(grid(seeds=[0], variants=variants), pu_training={"epochs": 3})[
        :2
    ]
    assert pu != pu_again
    assert random == random_again


CHANGES_OF_OBJECTIVES: dict[str, dict[str, Any]] = {
    "noise_matrix": {"diagonal": 0.8},
    "latent": {"shared_head": True},
    "attention": {"n_taps": 2},
    "critic": {"mode": "gan"},
}


def identity_of(blocks: Blocks, objective: str, **changes: Any) -> dict[str, Any]:
    """Return the identity of a cell of an objective, with changes of the block `distillation`."""
    changed = replace(blocks, distillation=blocks.distillation.model_copy(update=changes))
    one = {
        "objectives": [objective],
        "seeds": [0],
        "labeled_per_class": [2],
        "variants": {"pu": {"rule": "nnpu"}},
    }
    [cell] = cells_of(grid(**one), changed)
    return cell.identity()


@pytest.mark.parametrize("objective", OBJECTIVE_BLOCKS)
@pytest.mark.parametrize("name", CHANGES_OF_OBJECTIVES)
def test_an_identity_holds_what_its_objective_uses_and_nothing_of_the_others(
    blocks, objective, name
):
    block = getattr(blocks.distillation, name)
    changed = {name: block.model_copy(update=CHANGES_OF_OBJECTIVES[name])}
    assert block != changed[name]
    is_used = name in OBJECTIVE_BLOCKS[objective]
    assert (identity_of(blocks, objective, **changed) != identity_of(blocks, objective)) == is_used
    assert (name in identity_of(blocks, objective)["distillation"]) == is_used


def test_cells_from_before_there_were_further_objectives_are_found_again(blocks):
    """Their files are named after an identity that holds these keys and no others."""
    without = dict.fromkeys(CHANGES_OF_OBJECTIVES)
    for objective in ("kd", "robust_kd"):
        identity = identity_of(blocks, objective)
        assert identity == identity_of(blocks, objective, **without)
        assert set(identity["distillation"]) == {
            "seed", "student_architecture", "student_options", "objective", "temperature", "n_updates", "record_every",
            "batch_size", "held_out_share", "teacher_cache", "cached_views", "keep", "optimizer", "augmentation",
        }  # fmt: skip
        assert set(identity) == {
            "variant", "method", "labeled_per_class", "seed", "precision", "like", "distillation", "pu_training",
            "subset_materialization", *(["class_weighting"] if objective == "robust_kd" else []),
        }  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_pu_classifier_is_trained_where_the_rule_reads_its_scores(blocks, name):
    cells = cells_of(grid(variants={"one": {"rule": name, "budget": 5}}), blocks)
    for cell in cells:
        assert cell.needs_pu == RULES[name].reads_pu_score
        assert ("pu_training" in cell.identity()) == RULES[name].reads_pu_score
        assert cell.is_reference == RULES[name].uses_truth


def test_a_rule_that_is_added_needs_no_pu_classifier_where_it_reads_no_pu_score(
    blocks, monkeypatch
):
    monkeypatch.setitem(RULES, "added", RULES["random"])
    cells = cells_of(grid(variants={"one": {"rule": "added", "budget": 5}}), blocks)
    assert [cell.needs_pu for cell in cells] == [False] * 4


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_grid_follows_its_record(blocks, name):
    method = METHODS[name]
    variant = {"method": name, **({"rule": "all"} if method.selects else {})}
    cells = cells_of(grid(variants={"one": variant}), blocks)
    counts = {cell.labeled_per_class for cell in cells}
    assert counts == ({2, 4} if method.labeled_images == "drawn" else {None})
    for cell in cells:
        assert cell.is_reference == method.is_reference
        assert (cell.rule is not None) == method.selects
        assert ("relatedness" in cell.identity()) == method.samples_by_relatedness
        assert (cell.blocks.distillation.keep == "last") or method.has_held_out_images


def test_an_unknown_method_is_refused_with_all_names_and_the_nearest():
    with pytest.raises(ValueError, match=r"'selection', .* or 'fskd'; did you mean 'fitnet'\?"):
        grid(variants={"a": {"method": "fitnets"}})


def test_a_method_without_its_start_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(METHODS, "added", METHODS["fskd"])
    with pytest.raises(RuntimeError, match="STARTS lacks the methods added"):
        check_starts(set(STARTS))
    with pytest.raises(RuntimeError, match="STARTS has entries for other"):
        check_starts({*STARTS, "added", "other"})


# --- what the cells read


def test_draws_of_a_seed_nest_and_seeds_differ(inputs):
    store = inputs.labeled_images
    few, more, other = (labeled_rows(store, n, seed) for n, seed in ((2, 0), (5, 0), (2, 1)))
    labels = store.index["label"].to_numpy(dtype=int)
    assert np.bincount(labels[few]).tolist() == [2] * 10
    assert set(few) <= set(more)
    assert set(few) != set(other)
    assert (np.diff(few) > 0).all()


def test_a_subset_of_a_store_reads_like_a_store(inputs):
    store = inputs.labeled_images
    rows = labeled_rows(store, 2, 0)
    subset = ImageSubset.of(store, rows)
    assert isinstance(subset, ImageStore)
    assert len(subset) == 20
    assert subset.index["id"].tolist() == store.index["id"].iloc[rows].tolist()
    np.testing.assert_array_equal(subset.read(np.array([3, 0])), store.read(rows[[3, 0]]))
    assert subset.image_shape == store.image_shape
    assert subset.fingerprint != ImageSubset.of(store, rows[1:]).fingerprint


def test_a_table_in_memory_reads_like_one_on_disk(inputs):
    features = inputs.pool_features
    table = TableInMemory.of("copy", list(features.shards()))
    assert len(table) == len(features)
    assert table.facts == features.facts
    assert table.to_pandas()["id"].tolist() == features.arrays("id").tolist()
    np.testing.assert_array_equal(table.arrays("logits"), features.arrays("logits"))


# --- the cells


def test_cells_share_their_pu_training_and_tell_their_results(
    inputs, blocks, tmp_path, monkeypatch
):
    trained, told, records = [], [], []
    train = computation.train_head
    monkeypatch.setattr(
        computation, "train_head", lambda *args: trained.append(len(args[0])) or train(*args)
    )
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

    def listen(name, parameters, metrics):
        told.append((name, parameters["method"], metrics["accuracy"]))

    hear = lambda *record: records.append(record)  # noqa: E731
    progress.results.add(listen)
    progress.records.add(hear)
    try:
        shards = comparison_shards(inputs, blocks, grid(seeds=[0], variants=variants))
        table = ShardedTable.write(tmp_path, shards, keeps_others=True)
    finally:
        progress.results.remove(listen)
        progress.records.remove(hear)
    assert trained == [20, 40]  # once for each number of labeled images
    assert records == []
    results = table.to_pandas()
    assert list(results.columns) == RESULT.names
    assert results["failure"].isna().all()
    assert [accuracy for *_, accuracy in told] == results["accuracy"].tolist()
    assert results["accuracy"].between(0, 1).all()
    of = results[results["labeled_per_class"] != 4].set_index(["variant", "objective"])
    assert of.loc[("pu", "kd"), "n_selected"] == of.loc[("random", "robust_kd"), "n_selected"]
    assert of.loc[("original", "robust_kd"), "n_labeled"] == len(inputs.teacher_training_images)
    assert of.loc[("labeled", "kd"), "n_labeled"] == 20
    assert of.loc[("disagreement", "robust_kd"), "n_selected"] == 40
    assert of["auc"].notna().tolist() == [False, True, True, False, True, True, False, False, False]
    assert of["class_prior"].notna().tolist() == [
        False,
        True,
        True,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert of["true_class_prior"].dropna().unique() == pytest.approx([0.2])
    assert set(of["n_updates"]) == {8}


def test_curves_are_of_images_that_no_student_sees(inputs, blocks, tmp_path):
    variants = {
        "original": {"method": "original"},
        "fitnet": {"method": "fitnet", "labeled_per_class": [2]},
        "random": {"rule": "random", "budget": 40, "labeled_per_class": [2]},
    }
    curves = {"n_images": 150, "panels": {"All": list(variants)}}
    apart = inputs.watching(150)
    watched = set(apart.watched_images.index["sha256"])
    assert len(apart.watched_images) == 150
    for images in (apart.labeled_images, apart.teacher_training_images, apart.pool_images):
        assert watched.isdisjoint(images.index["sha256"])
    assert len(apart.teacher_training_images) == len(inputs.teacher_training_images) - 150

    params = grid(seeds=[0], variants=variants, curves=curves)
    shards = comparison_shards(inputs, blocks, params)
    assert set(shards).isdisjoint(
        comparison_shards(inputs, blocks, grid(seeds=[0], variants=variants))
    )
    results = (
        ShardedTable.write(tmp_path, shards, keeps_others=True).to_pandas().set_index("variant")
    )
    assert results["failure"].isna().all()
    assert results.loc["original", "n_labeled"] == len(apart.teacher_training_images)
    assert [updates.tolist() for updates in results["curve_updates"]] == [[4, 8], [8], [4, 8]]
    shares = np.concatenate(results["curve_accuracy"].tolist())
    np.testing.assert_allclose(
        150 * shares, np.round(150 * shares), atol=1e-9
    )  # shares of 150 images
    assert 0 < shares.max() <= 1


def test_no_cell_learns_from_an_excluded_image_and_cells_without_one_keep_their_names(
    inputs, blocks, tmp_path
):
    variants = {
        "all": {"rule": "all"},
        "related": {"method": "preferential"},
        "labeled": {"method": "labeled_only"},
    }
    params = grid(seeds=[0], labeled_per_class=[2], variants=variants)
    before = comparison_shards(inputs, blocks, params)
    assert list(comparison_shards(replace(inputs, excluded=Excluded()), blocks, params)) == list(
        before
    )
    kept = blocks.subset_materialization.model_copy(update={"exclude_test_duplicates": False})
    assert list(
        comparison_shards(inputs, replace(blocks, subset_materialization=kept), params)
    ) == list(before)
    pool_ids = inputs.pool_images.index["id"]
    of_pool = replace(inputs, excluded=Excluded(pool=frozenset(pool_ids[:500])))
    shards = comparison_shards(of_pool, blocks, params)
    assert [name in before for name in shards] == [False, False, True]
    results = ShardedTable.write(tmp_path, shards).to_pandas().set_index("variant")
    assert results["failure"].isna().all()
    assert results["n_selected"].to_dict() == {"all": 3000, "related": 3000, "labeled": 0}
    first = labeled_rows(inputs.labeled_images, 2, seed=0)
    labeled_ids = inputs.labeled_images.index["id"].iloc[first]
    of_labeled = replace(
        inputs, excluded=Excluded(labeled=frozenset(labeled_ids))
    ).without_excluded()
    assert len(of_labeled.labeled_images) == len(inputs.labeled_images) - 20
    again = labeled_rows(of_labeled.labeled_images, 2, seed=0)
    assert set(of_labeled.labeled_images.index["id"].iloc[again]).isdisjoint(labeled_ids)


def test_a_variant_cannot_have_its_own_exclusion(blocks):
    variants = {"a": {"rule": "all", "subset_materialization": {"exclude_test_duplicates": False}}}
    with pytest.raises(
        InputError,
        match="exclude_test_duplicates: every student of a comparison has the same; set sub",
    ):
        cells_of(grid(variants=variants), blocks)


def test_the_pool_and_what_has_no_label_are_not_watched(inputs):
    both = replace(inputs, pool_images=inputs.teacher_training_images)
    with pytest.raises(
        InputError,
        match="and 0 of the teacher's training images have a label and are not in the pool",
    ):
        both.watching(1)


def test_a_continued_comparison_comes_to_the_same_results(inputs, blocks, tmp_path):
    variants = {
        "pu": {"rule": "nnpu", "criterion": "quantile"},
        "random": {"rule": "random", "budget": "pu"},
        "fitnet": {"method": "fitnet"},
    }
    params = grid(seeds=[0], variants=variants)
    whole = ShardedTable.write(tmp_path / "whole", comparison_shards(inputs, blocks, params))
    (tmp_path / "continued").mkdir()
    for name in whole.names[:1] + whole.names[3:5]:
        (tmp_path / "continued" / f"{name}.parquet").write_bytes(
            (tmp_path / "whole" / f"{name}.parquet").read_bytes()
        )
    continued = ShardedTable.write(
        tmp_path / "continued", comparison_shards(inputs, blocks, params)
    )
    tables = (
        table.to_pandas().drop(columns=["seconds", "pu_seconds"]) for table in (whole, continued)
    )
    pd.testing.assert_frame_equal(*tables)


def test_the_proxy_is_a_student_of_the_chosen_images_with_half_the_updates(
    inputs, blocks, monkeypatch
):
    made = []
    distill = proxy.distill
    monkeypatch.setattr(
        proxy,
        "distill",
        lambda *args, **kw: made.append((args, distill(*args, **kw))) or made[-1][1],
    )
    index = inputs.pool_images.index
    manifest = pd.concat(
        [
            inputs.labeled_images.index[["id"]].assign(origin="labeled"),
            index[["id"]].iloc[:50].assign(origin="pool"),
        ]
    )
    chosen = proxy.Proxy(inputs.teacher, inputs.pool_features, blocks.distillation)
    divergence = chosen.divergence(manifest, inputs.labeled_images, inputs.pool_images)
    [(arguments, (student, history))] = made
    assert arguments[0] is manifest
    assert history["update"].max() == blocks.distillation.n_updates / 2
    teacher, mine = (
        predict_logits(model, inputs.pool_images, blocks.distillation.compute)
        .log_softmax(1)
        .numpy()
        for model in (inputs.teacher, student)
    )
    np.testing.assert_allclose(
        divergence, (np.exp(teacher) * (teacher - mine)).sum(axis=1), rtol=1e-3, atol=1e-5
    )


def test_every_method_gives_its_student_the_same_number_of_updates(
    inputs, blocks, tmp_path, monkeypatch
):
    updates: dict[str, int] = {}
    variants = {
        "labeled": {"method": "labeled_only"},
        "fitnet": {"method": "fitnet"},
        "fskd": {"method": "fskd"},
    }
    for name in variants:
        counted = torch.optim.SGD.step
        updates[name] = 0

        def count(
            self: Any, *args: Any, name: str = name, step: Any = counted, **kwargs: Any
        ) -> Any:
            updates[name] += 1
            return step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.SGD, "step", count)
            one = grid(labeled_per_class=[2], seeds=[0], variants={name: variants[name]})
            ShardedTable.write(tmp_path / name, comparison_shards(inputs, blocks, one))
    assert updates == dict.fromkeys(variants, 8)


def test_cells_keep_no_checkpoints_and_stop_where_memory_runs_out(inputs, blocks, tmp_path):
    """A cell is done as a whole; and one that failed for want of memory would not be computed again."""

    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    variants = {"pu": {"rule": "nnpu"}, "fitnet": {"method": "fitnet"}}
    makers = comparison_shards(
        inputs, blocks, grid(labeled_per_class=[2], seeds=[0], variants=variants)
    )
    keep_in(tmp_path / "checkpoints", 0.0)
    hook = register_optimizer_step_post_hook(full)
    try:
        with pytest.raises(MemoryShortage, match="memory of the device is not enough"):
            ShardedTable.write(tmp_path / "cells", makers)
        assert list(tmp_path.rglob("*.parquet")) == []
        hook.remove()
        assert len(ShardedTable.write(tmp_path / "cells", makers)) == 2
    finally:
        hook.remove()
        keep_nowhere()
    assert not (tmp_path / "checkpoints").exists()


def test_a_cell_that_cannot_be_computed_says_why_and_the_others_go_on(inputs, blocks, tmp_path):
    variants = {
        "precise": {
            "rule": "nnpu",
            "criterion": "precision",
            "pu_training": {"class_prior": 0.01},
            "subset_materialization": {"target_precision": 0.99},
        },
        "random": {"rule": "random", "budget": 30},
    }
    params = grid(labeled_per_class=[2], seeds=[0], variants=variants)
    results = ShardedTable.write(tmp_path, comparison_shards(inputs, blocks, params)).to_pandas()
    assert "rule 'nnpu' with criterion 'precision'" in results["failure"][0]
    assert np.isnan(results["accuracy"][0])
    assert results["accuracy"].notna()[1]
    page = comparison_page(results, grid())
    assert "- precise, robust_kd, 2 per class, seed 0: subset_materialization: rule 'nnpu'" in page
    assert "| precise | – |" in page
    assert plot_comparison(results, grid()).axes


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
                    "a": {"method": "fskd", "distillation": {"student_architecture": "lenet5"}}
                }
            },
            "comparison.variants.a: ",
        ),
        (
            {
                "variants": {
                    "a": {"method": "fskd", "distillation": {"student_options": {"width": 9}}}
                }
            },
            "narrower copy",
        ),
    ],
)
def test_what_would_stop_the_last_cell_stops_the_first(inputs, blocks, changes, message):
    with pytest.raises(InputError, match=message):
        comparison_shards(inputs, blocks, grid(**changes))


def test_results_are_kept_when_the_grid_shrinks(tmp_path):
    def maker(value: int) -> Any:
        return lambda: pa.table({"x": [value]})

    dataset = ShardedTableDataset(filepath=str(tmp_path), keeps_others=True)
    dataset.save({"a": maker(1), "b": maker(2)})
    dataset.save({"b": maker(3)})
    assert dataset.load().to_pandas()["x"].tolist() == [2]
    assert (tmp_path / "a.parquet").is_file()


# --- distillation without augmentation


@pytest.mark.parametrize("objective", ["kd", "robust_kd"])
def test_the_teacher_asked_once_for_each_image_teaches_the_same(inputs, blocks, objective):
    manifest = inputs.labeled_images.index[["id"]].assign(origin="labeled")
    vectors = pd.DataFrame(np.full((2, 10), 1.0))
    params = blocks.distillation.model_copy(
        update={"objective": objective, "n_updates": 12, "batch_size": 33}
    )
    asked = []

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = inputs.teacher.network

        def forward(self, views: torch.Tensor) -> torch.Tensor:
            asked.append(len(views))
            return self.network(views)

    teacher = Model(Counting(), inputs.teacher.card)

    def student() -> dict[str, torch.Tensor]:
        asked.clear()
        stores = (inputs.labeled_images, inputs.pool_images)
        model, _ = distillation.distill(
            manifest, *stores, teacher, vectors, params, name="distillation"
        )
        return model.network.state_dict()

    cached, n_cached = student(), len(asked)
    params = params.model_copy(update={"teacher_cache": "off"})
    fresh, n_fresh = student(), len(asked)
    assert n_fresh - n_cached == 12 - 3  # 95 images in batches of 33
    assert all(torch.equal(cached[name], fresh[name]) for name in fresh)


# --- what people read


def results_of(**columns: Any) -> pd.DataFrame:
    empty = {name: [None] * len(columns["accuracy"]) for name in RESULT.names}
    given = {
        "objective": "kd",
        "n_updates": 100,
        "teacher_accuracy": 0.99,
        "n_test": 500,
        "is_reference": False,
    }
    table = pa.Table.from_pandas(
        pd.DataFrame({**empty, **given, **columns}), schema=RESULT, preserve_index=False
    )
    return table.to_pandas()


@pytest.fixture
def results() -> pd.DataFrame:
    return results_of(
        variant=["original"] * 2 + ["pu"] * 4 + ["random"] * 3,
        method=["original"] * 2 + ["selection"] * 7,
        rule=[None] * 2 + ["nnpu"] * 4 + ["random"] * 3,
        labeled_per_class=[None] * 2 + [1, 1, 5, 5] + [1, 1, 5],
        seed=[0, 1, 0, 1, 0, 1, 0, 1, 0],
        accuracy=[0.985, 0.985, 0.90, 0.92, 0.96, 0.96, 0.93, 0.95, 0.95],
        is_reference=[True] * 2 + [False] * 7,
        n_selected=[0] * 2 + [700] * 7,
        auc=[None] * 2 + [0.9] * 4 + [None] * 3,
    )


def test_the_page_has_mean_and_deviation_over_seeds_and_marks_the_best(results):
    page = comparison_page(results, grid(title="MNIST"))
    assert page.startswith(
        "# MNIST\n\nTest accuracy in percent, mean ± standard deviation over 2 seeds"
    )
    assert "|  | 1 | 5 |" in page
    assert "| *original* | 98.50 ± 0.00 | 98.50 ± 0.00 |" in page
    assert "| pu | 91.00 ± 1.41 | **96.00 ± 0.00** |" in page
    assert "| random | **94.00 ± 1.41** | 95.00 (1) |" in page
    assert "| pu | 1 | 700 | 0.900 | – | – | – | – | – |" in page
    means = means_over_seeds(results).set_index(["row", "labeled_per_class"])
    assert means.loc[("pu", 1.0), "std"] == pytest.approx(100 * np.std([0.90, 0.92], ddof=1))


def test_the_plot_shows_every_row_with_its_deviation(results):
    figure = plot_comparison(results, grid(title="MNIST"))
    [axes] = figure.axes
    assert {text.get_text() for text in axes.get_legend().get_texts()} == {
        "teacher",
        "original",
        "pu",
        "random",
    }
    errors = {
        container.get_label(): container.lines[0].get_ydata() for container in axes.containers
    }
    np.testing.assert_allclose(errors["pu"], [9, 4])
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # better to the top
    assert (
        figure._suptitle.get_text()
        == "pu is best at 5 per class with 96.00 %, 1.00 points before random"
    )
    one = plot_comparison(results[results["labeled_per_class"] != 5], grid(title="MNIST")).axes[0]
    assert [label.get_text() for label in one.get_yticklabels()] == ["original", "random", "pu"]


def test_points_of_a_sweep_are_lines_over_their_axis_and_no_rows(results):
    points = results_of(
        variant=["small", "large", "small", "large", "top"], method=["selection"] * 5,
        rule=["random"] * 4 + ["nnpu"], objective=["kd", "kd", "robust_kd", "robust_kd", "kd"],
        labeled_per_class=[1] * 5, seed=[0] * 5, accuracy=[0.8, 0.9, 0.85, 0.95, 0.7],
        n_selected=[10, 100, 10, 100, 10],
    )  # fmt: skip

    def variant(line: str, at: int) -> dict[str, Any]:
        return {
            "rule": "random",
            "budget": at,
            "labeled_per_class": [1],
            "sweep": {"name": "size", "line": line, "at": at},
        }

    params = grid(
        title="Sizes", labeled_per_class=[1, 5], sweeps={"size": "images", "unused": "nothing"},
        variants={"small": variant("random", 10), "large": variant("random", 100), "top": variant("nnpu", 10)},
    )  # fmt: skip
    both = pd.concat([results, points], ignore_index=True)
    page = comparison_page(both, params)
    assert "## By images\n\n|  | 10 | 100 |\n" in page
    assert "| random · kd | 80.00 | 90.00 |\n| random · robust_kd | 85.00 | 95.00 |\n" in page
    assert "| nnpu | 70.00 | – |" in page
    assert "| small |" not in page.split("##")[0]
    assert "nothing" not in page
    rows, sweep = plot_comparison(both, params).axes
    assert {text.get_text() for text in rows.get_legend().get_texts()} == {
        "teacher",
        "original",
        "pu",
        "random",
    }
    lines = {
        container.get_label(): container.lines[0].get_xydata() for container in sweep.containers
    }
    np.testing.assert_allclose(lines["random · robust_kd"], [[10, 15], [100, 5]])
    assert sweep.get_xlabel() == "images"
    assert len(plot_comparison(points, params).axes) == 1  # sweeps alone


def test_a_long_title_takes_a_second_line_and_no_room_of_the_axes(results):
    short, long = (
        plot_comparison(results, grid(title=title))
        for title in ("MNIST", "Students of one teacher, " * 5)
    )
    heights = []
    for figure in (short, long):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        heights.append(axes.get_window_extent().height)
        evidence = figure.texts[-1].get_window_extent()
        assert (
            axes.get_tightbbox().y1
            < evidence.y0
            < evidence.y1
            < figure._suptitle.get_window_extent().y0
        )
    assert (long.texts[-1].get_text().count("\n"), short.texts[-1].get_text().count("\n")) == (1, 0)
    assert "updates each" in long.texts[-1].get_text()
    assert heights[1] == pytest.approx(heights[0], rel=0.02)


def test_curves_are_panels_and_tables_of_means(results):
    updates, shares = (
        [[50, 100]] * 2 + [None] + [[50, 100]] * 3,
        [[0.5, 0.9], [0.7, 0.9], None] + [[0.6, 0.8]] * 3,
    )
    with_curves = results_of(
        variant=["pu", "pu", "pu", "random", "random", "other"], method=["selection"] * 6, rule=["nnpu"] * 6,
        labeled_per_class=[1] * 6, seed=[0, 1, 2, 0, 1, 0], accuracy=[0.9, 0.9, None, 0.8, 0.8, 0.7],
        curve_updates=updates, curve_accuracy=shares, note=[None, "it won", "it won again", None, None, None],
    )  # fmt: skip
    variants = {name: {"rule": "random", "budget": 10} for name in ("pu", "random", "other")}
    params = grid(
        title="Curves", labeled_per_class=[1], variants={**variants, "left_out": None},
        curves={"n_images": 10, "panels": {"Two": ["pu", "random", "left_out"], "One": ["other"], "No": ["left_out"]}},
    )  # fmt: skip
    page = comparison_page(with_curves, params)
    assert "## Accuracy by updates: Two\n\nIn percent, of training images of the teacher" in page
    assert (
        "|  | 50 | 100 |\n| --- | ---: | ---: |\n| pu | 60.00 | 90.00 |\n| random | 60.00 | 80.00 |\n"
        in page
    )
    assert "## What to know of them\n\n- pu, kd (2 of 3 students): it won\n" in page
    _, two, one = plot_comparison(with_curves, params).axes
    assert two.get_title(loc="left") == "Two"
    lines = {line.get_label(): line.get_xydata() for line in two.get_lines()}
    np.testing.assert_allclose(lines["pu"], [[50, 40], [100, 10]])
    assert {line.get_label() for line in one.get_lines()} == {"other"}
    assert (
        len(plot_comparison(results, params).axes) == 1
    )  # cells that were computed before there were curves


def test_a_row_without_labeled_images_competes_in_every_column(results):
    results = pd.concat(
        [results, results_of(variant=["preferential"], method=["preferential"], rule=[None], labeled_per_class=[None],
                             seed=[0], accuracy=[0.955], n_selected=[700])],
        ignore_index=True,
    )  # fmt: skip
    page = comparison_page(results, grid(title="MNIST"))
    assert "| preferential | **95.50 (1)** | 95.50 (1) |" in page
    assert "| pu | 91.00 ± 1.41 | **96.00 ± 0.00** |" in page
    assert "| preferential | – | 700 |" in page
    results.loc[results["variant"] == "preferential", "accuracy"] = 0.99
    title = plot_comparison(results, grid(title="MNIST"))._suptitle.get_text()
    assert title == "preferential is best at 5 per class with 99.00 %, 3.00 points before pu"


def test_several_objectives_are_rows_of_their_own(results):
    results["objective"] = ["kd"] * 2 + ["kd", "kd", "robust_kd", "robust_kd"] + ["kd"] * 3
    assert list(means_over_seeds(results)["row"].unique()) == [
        "original",
        "pu · kd",
        "pu · robust_kd",
        "random",
    ]


def test_each_cell_is_a_child_run_of_the_run(folder):
    import sqlite3

    settings = {
        "enabled": True,
        "tracking_uri": None,
        "experiment": "tests",
        "registered_model": None,
    }
    config = TrackingConfig(folder="mlflow", system_metrics_interval_s=None, **settings)
    tracker = Tracker(
        config, project_path=folder, stage="comparison", environment="base", parameters={}
    )
    for seed in (0, 1):
        metrics = {"accuracy": 0.5 + seed, "auc": float("nan"), "failure": None}
        tracker.log_child(
            f"pu, seed {seed}", {"distillation": {"temperature": 1.0}, "seed": seed}, metrics
        )
    tracker.end("FINISHED")
    with sqlite3.connect(folder / "mlflow" / "mlflow.db") as store:
        runs = dict(store.execute("SELECT name, status FROM runs").fetchall())
        parents = store.execute(
            "SELECT DISTINCT value FROM tags WHERE key = 'mlflow.parentRunId'"
        ).fetchall()
        logged = store.execute("SELECT key, value FROM metrics ORDER BY value").fetchall()
        params = set(store.execute("SELECT key, value FROM params").fetchall())
    assert runs == {
        "comparison (base)": "FINISHED",
        "pu, seed 0": "FINISHED",
        "pu, seed 1": "FINISHED",
    }
    assert parents == [(tracker.open_run_id,)]
    assert logged == [("accuracy", 0.5), ("accuracy", 1.5)]
    assert params == {("distillation.temperature", "1.0"), ("seed", "0"), ("seed", "1")}


# --- configuration of the experiments


def environment(name: str) -> dict[str, Any]:
    text = OmegaConf.load(
        PROJECT / "conf" / name / "parameters.yml"
    )  # refuses a key that is there twice
    parameters: dict[str, Any] = OmegaConf.to_container(text, resolve=False)
    if "data_ingestion" in parameters:
        DataIngestionParams.model_validate(
            block_of("data_ingestion", **parameters.pop("data_ingestion"))
        )
    merged = laid_over_each_other(block_of("comparison"), parameters["comparison"])
    assert cells_of(ComparisonParams.model_validate(merged), BASE)
    parameters["comparison"].pop("title")
    return parameters


def test_the_mnist_environments_compare_the_same_students():
    """Sources apart, and in sweeps the number of updates: what is compared across them is made in the same way."""
    assert environment("mnist") == environment("mnist_planted")
    tables = environment("mnist_planted")
    sweeps, characters = environment("mnist_planted_sweeps"), environment("mnist_characters")
    for parameters in (sweeps, characters):
        assert parameters["pu_training"] == tables["pu_training"]
        assert parameters["distillation"] == {**tables["distillation"], "n_updates": 3000}
    assert {block: characters[block] for block in ("teacher", "teacher_training")} == {
        block: tables[block] for block in ("teacher", "teacher_training")
    }
    shared = {
        name: variant
        for name, variant in characters["comparison"]["variants"].items()
        if name.endswith("000")
    }
    assert len(shared) == 12
    assert {name: sweeps["comparison"]["variants"][name] for name in shared} == shared


def test_labels_can_be_left_out_by_number_or_name():
    listing = pd.DataFrame(
        {
            "label": pd.array([0, 1, 2, None], dtype="Int64"),
            "label_name": pd.Series(["zero", "one", None, "three"], dtype="str"),
        }
    )

    def kept(*labels: int | str, **options: Any) -> list[int]:
        source = ImageSource(type="folder", path="x", exclude_labels=labels, **options)
        return with_teacher_labels(
            listing, source, ("zero", "one", "two"), "pool[0]"
        ).index.tolist()

    assert kept(1, "three") == [0, 2]
    assert kept("2", labels="truth") == [0, 1, 3]
    with pytest.raises(
        InputError,
        match=r"pool\[0\]: no image has the labels 7, four of exclude_labels; found: zero",
    ):
        kept(7, "four")


def test_an_option_of_the_base_is_taken_away_with_null():
    teacher = TeacherParams(**block_of("teacher", architecture_options={"width": None, "depth": 3}))
    assert teacher.architecture_options == {"depth": 3}


def test_image_files_are_found_through_the_environment_variable(monkeypatch):
    from pu_kd_pipeline.params.environment import image_file

    monkeypatch.setenv("PU_KD_DATA", "/images")
    assert image_file("mnist_train.parquet") == "/images/mnist_train.parquet"
    monkeypatch.delenv("PU_KD_DATA")
    with pytest.raises(
        InputError, match="PU_KD_DATA is not set: name the folder that holds mnist_train.parquet"
    ):
        image_file("mnist_train.parquet")
