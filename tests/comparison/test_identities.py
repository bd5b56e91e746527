"""What decides a cell's result, and with it the name of its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pu_kd_pipeline.comparison import cells
from pu_kd_pipeline.comparison.cells import comparison_shards
from pu_kd_pipeline.comparison.grid import Blocks, make_cells
from pu_kd_pipeline.comparison.inputs import ComparisonInputs
from pu_kd_pipeline.params.class_weighting import ClassWeightingParams
from pu_kd_pipeline.params.comparison import ComparisonParams
from pu_kd_pipeline.params.distillation import OPTION_BLOCKS
from tests.comparison.builders import block_of, grid


def names_of(
    inputs: ComparisonInputs, blocks: Blocks, params: ComparisonParams, **changes: dict[str, Any]
) -> list[str]:
    """Return the names of the cells' files, with changes of the parameter blocks."""
    for name, values in changes.items():
        changed = getattr(blocks, name).model_copy(update=values)
        blocks = replace(blocks, **{name: changed})
    return list(comparison_shards(inputs, blocks, params))


def test_names_change_with_the_parameters_that_decide_a_result(inputs, blocks):
    params = grid(seeds=[0])
    before = names_of(inputs, blocks, params)
    warmer = names_of(inputs, blocks, params, distillation={"temperature": 2.0})
    assert set(warmer).isdisjoint(before)
    longer = names_of(inputs, blocks, params, pu_training={"epochs": 3})
    # `random` is as large as the selection of `pu`, which follows from the PU training.
    assert set(longer[:2]).isdisjoint(before)


def test_names_change_with_code_and_libraries(inputs, blocks, monkeypatch):
    params = grid(seeds=[0])
    before = names_of(inputs, blocks, params)
    monkeypatch.setattr(cells, "maker_fingerprint", lambda *_: "0123456789ab")
    assert set(names_of(inputs, blocks, params)).isdisjoint(before)


def test_names_of_a_random_draw_do_not_follow_the_pu_training(inputs, blocks):
    variants = {"pu": {"rule": "nnpu"}, "random": {"rule": "random", "budget": 20}}
    params = grid(seeds=[0], variants=variants)
    before = names_of(inputs, blocks, params)
    after = names_of(inputs, blocks, params, pu_training={"epochs": 3})
    is_same = [name in before for name in after]
    # Two variants for each of two numbers of labeled images.
    assert is_same == [False, True, False, True]


# A change of each block that only some objectives read.
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
    [cell] = make_cells(grid(**one), changed)
    return cell.identity()


def test_names_do_not_follow_the_device_or_the_title(inputs, blocks):
    before = names_of(inputs, blocks, grid(seeds=[0]))
    device = {"n_threads": 2, "inference_batch_size": 7}
    compute = blocks.distillation.compute.model_copy(update=device)
    renamed = grid(seeds=[0], title="renamed")
    after = names_of(inputs, blocks, renamed, distillation={"compute": compute})
    assert after == before


def test_names_follow_the_precision_of_the_pu_classifier(inputs, blocks):
    before = names_of(inputs, blocks, grid(seeds=[0]))
    compute = blocks.pu_training.compute.model_copy(update={"precision": "bf16"})
    after = names_of(inputs, blocks, grid(seeds=[0]), pu_training={"compute": compute})
    assert after != before


def test_names_of_a_seed_do_not_follow_the_other_seeds(inputs, blocks):
    before = names_of(inputs, blocks, grid(seeds=[0]))
    with_another_seed = names_of(inputs, blocks, grid(seeds=[1, 0]))
    # The cells of seed 1 come first: two variants for each of two numbers of labeled images.
    assert with_another_seed[4:] == before


@pytest.mark.parametrize("objective", OPTION_BLOCKS)
@pytest.mark.parametrize("name", CHANGES_OF_OBJECTIVES)
def test_an_identity_holds_what_its_objective_uses_and_nothing_of_the_others(
    blocks, objective, name
):
    block = getattr(blocks.distillation, name)
    changed = block.model_copy(update=CHANGES_OF_OBJECTIVES[name])
    # A change to what conf/base has already would prove nothing.
    assert block != changed

    before = identity_of(blocks, objective)
    after = identity_of(blocks, objective, **{name: changed})
    is_used = name in OPTION_BLOCKS[objective]
    has_changed = after != before
    has_block = name in before["distillation"]
    assert has_changed == is_used
    assert has_block == is_used


def test_an_identity_holds_no_key_of_weighting_modes_that_it_does_not_use(blocks):
    def weighting_of(**changes):
        weighting = ClassWeightingParams.model_validate(block_of("class_weighting", **changes))
        identity = identity_of(replace(blocks, class_weighting=weighting), "robust_kd")
        return identity["class_weighting"]

    wider = {"smoothing": 1.0, "clip": [0.1, 10.0]}
    assert weighting_of(mode="paper") == weighting_of(mode="paper", shrunk=wider)
    assert weighting_of(mode="shrunk") != weighting_of(mode="shrunk", shrunk=wider)
    assert weighting_of(mode="none") != weighting_of(mode="shrunk")


@pytest.mark.parametrize("objective", ["kd", "robust_kd"])
def test_an_identity_holds_no_key_of_objectives_that_it_does_not_use(blocks, objective):
    without = dict.fromkeys(CHANGES_OF_OBJECTIVES)
    identity = identity_of(blocks, objective)
    assert identity == identity_of(blocks, objective, **without)
    assert set(identity["distillation"]) == {
        "seed",
        "student_architecture",
        "student_options",
        "objective",
        "temperature",
        "n_updates",
        "record_every",
        "batch_size",
        "labeled_share",
        "teacher_cache",
        "cached_views",
        "keep",
        "optimizer",
        "augmentation",
        "mixing",
        "final_phase",
        "weight_averaging",
    }

    expected_blocks = {
        "variant",
        "method",
        "labeled_per_class",
        "seed",
        "precision of distillation",
        "precision of pu_training",
        "like",
        "distillation",
        "pu_training",
        "subset_materialization",
    }
    # Only this objective weights classes.
    if objective == "robust_kd":
        expected_blocks.add("class_weighting")
    assert set(identity) == expected_blocks


def test_names_of_listed_lengths_are_those_of_runs_with_these_lengths(inputs, blocks):
    assert blocks.distillation.n_updates == 8
    before = names_of(inputs, blocks, grid(seeds=[0]))
    longer = names_of(inputs, blocks, grid(seeds=[0]), distillation={"n_updates": 16})
    listed = names_of(inputs, blocks, grid(seeds=[0], n_updates=[8, 16]))
    assert len(set(listed)) == len(listed)
    assert set(listed) == {*before, *longer}
