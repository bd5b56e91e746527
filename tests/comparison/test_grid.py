"""The grid of a comparison: its cells, their parameter blocks, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pu_kd_pipeline.comparison.grid import make_cells
from pu_kd_pipeline.comparison.starts import STARTS, check_starts
from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.selection import RULES
from pu_kd_pipeline.params.comparison import METHODS
from tests.comparison.builders import grid


def test_a_grid_is_every_combination_seed_by_seed(blocks):
    variants = {
        "pu": {"rule": "nnpu"},
        # Draws no labeled images: once per seed, whatever their number.
        "original": {"method": "original"},
        "few": {"rule": "all", "labeled_per_class": [4]},
    }
    params = grid(objectives=["kd", "robust_kd"], variants=variants)
    cells = make_cells(params, blocks)
    n_per_seed = len(cells) // 2
    first_seed = cells[:n_per_seed]
    second_seed = cells[n_per_seed:]
    assert [str(cell) for cell in first_seed] == [
        "pu, kd, 2 per class, seed 0",
        "pu, robust_kd, 2 per class, seed 0",
        "original, kd, seed 0",
        "pu, kd, 4 per class, seed 0",
        "pu, robust_kd, 4 per class, seed 0",
        "few, kd, 4 per class, seed 0",
        "few, robust_kd, 4 per class, seed 0",
    ]
    assert {cell.seed for cell in second_seed} == {1}


def test_the_blocks_of_a_cell_have_its_objective_and_seed(blocks):
    cells = make_cells(grid(objectives=["kd", "robust_kd"]), blocks)
    for cell in cells:
        assert cell.blocks.distillation.objective == cell.objective
        assert cell.blocks.pu_training.seed == cell.seed
        assert cell.blocks.class_weighting.seed == cell.seed


def test_overrides_merge_key_by_key_and_those_of_the_variant_win(blocks):
    every_variant = {"pu_training": {"epochs": 7, "optimizer": {"learning_rate": 0.5}}}
    variants = {
        "one": {"rule": "nnpu", "pu_training": {"optimizer": {"momentum": 0.1}}},
        "two": {"rule": "nnpu", "pu_training": {"epochs": 3}},
    }
    params = grid(labeled_per_class=[2], seeds=[3], every_variant=every_variant, variants=variants)
    cells = make_cells(params, blocks)
    one, two = [cell.blocks.pu_training for cell in cells]

    assert one.epochs == 7
    assert two.epochs == 3
    # A variant that changes one key of the optimizer keeps the others.
    assert one.optimizer.learning_rate == 0.5
    assert two.optimizer.learning_rate == 0.5
    assert one.optimizer.momentum == 0.1
    assert two.optimizer.momentum == 0.9


@pytest.mark.parametrize(
    ("variants", "fault_messages"),
    [
        (
            {"a": {"rule": "randm"}},
            ["comparison.variants.a.subset_materialization.rule", "'randm'"],
        ),
        (
            {"a": {"rule": "random", "budget": 0}},
            ["subset_materialization.budget", "greater than 0"],
        ),
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
def test_a_variant_that_no_block_takes_is_refused_by_key(blocks, variants, fault_messages):
    params = grid(variants=variants)
    with pytest.raises(InputError) as caught:
        make_cells(params, blocks)
    message = str(caught.value)
    for part in fault_messages:
        assert part in message


# A point of a sweep that no grid of these tests has, unless they add it.
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
        ({"n_updates": [9, 9]}, "n_updates must not repeat"),
        ({"variant_set": "best"}, "there is no set 'best'; variant_sets are empty"),
        ({"budgets": {"pu": 7}}, "budgets: pu are names of variants, too"),
        ({"budgets": {"few": 0}}, "greater than or equal to 1"),
        ({"budgets": [3]}, "budgets\n.*valid dictionary"),
        ({"variant_set": [3]}, "variant_set\n.*valid string"),
        ({"variant_sets": {"a": 3}, "variant_set": "a"}, "valid dictionary"),
        ({"n_updates": [0]}, "greater than or equal to 1"),
        ({"n_updates": []}, "at least 1 item"),
        (
            {
                "n_updates": [5, 9],
                "sweeps": {"size": "n"},
                "variants": {
                    "a": {
                        "rule": "all",
                        "labeled_per_class": [2],
                        "sweep": POINT,
                        "distillation": {"n_updates": 7},
                    }
                },
            },
            "cannot have its own distillation.n_updates where",
        ),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        grid(**changes)


@pytest.mark.parametrize("place", ["every_variant", "variants"])
def test_an_audit_is_one_for_all_variants(blocks, place):
    of_audit = {"pu_training": {"class_prior": "audit"}}
    changes = {"variants": {"a": {"rule": "nnpu"}}, "every_variant": of_audit}
    if place == "variants":
        changes = {"variants": {"a": {"rule": "nnpu", **of_audit}}}
    with pytest.raises(InputError, match="one audit for all students; set pu_training.class_prior"):
        make_cells(grid(**changes), blocks)


def test_cells_of_another_audit_are_other_cells(blocks):
    params = grid(variants={"a": {"rule": "nnpu"}})
    identities = []
    for prior in (0.1, 0.2):
        training = blocks.pu_training.model_copy(update={"class_prior": prior})
        [cell, *_] = make_cells(params, replace(blocks, pu_training=training))
        identities.append(cell.identity())
    assert identities[0] != identities[1]


def test_a_variant_cannot_have_its_own_exclusion(blocks):
    variants = {"a": {"rule": "all", "subset_materialization": {"exclude_test_duplicates": False}}}
    params = grid(variants=variants)
    # Students that may learn from copies of test images would win for that reason alone.
    expected = "exclude_test_duplicates: every student of a comparison has the same; set sub"
    with pytest.raises(InputError, match=expected):
        make_cells(params, blocks)


def test_shortcuts_of_a_variant_reach_their_blocks(blocks):
    variants = {
        "one": {"rule": "nnpu", "budget": 9, "features": "descriptor"},
        "labeled": {"method": "labeled_only"},
    }
    params = grid(labeled_per_class=[2], seeds=[3], variants=variants)
    cells = make_cells(params, blocks)
    one, labeled = [cell.blocks for cell in cells]

    assert one.pu_training.features == "descriptor"
    assert one.subset_materialization.budget == 9
    assert labeled.distillation.objective == "kd"


@pytest.mark.parametrize("name", RULES)
def test_a_pu_classifier_is_trained_where_the_rule_reads_its_scores(blocks, name):
    rule = RULES[name]
    variants = {"one": {"rule": name, "budget": 5}}
    cells = make_cells(grid(variants=variants), blocks)
    for cell in cells:
        assert cell.needs_pu == rule.reads_pu_score
        # Otherwise a change of these parameters would repeat the cell for nothing.
        is_in_identity = "pu_training" in cell.identity()
        assert is_in_identity == rule.reads_pu_score
        assert cell.is_reference == rule.uses_truth


def test_a_rule_that_is_added_needs_no_pu_classifier_where_it_reads_no_pu_score(
    blocks, monkeypatch
):
    monkeypatch.setitem(RULES, "added", RULES["random"])
    variants = {"one": {"rule": "added", "budget": 5}}
    cells = make_cells(grid(variants=variants), blocks)
    # Two numbers of labeled images by two seeds.
    assert len(cells) == 4
    for cell in cells:
        assert not cell.needs_pu


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_the_grid_follows_its_record(blocks, name):
    method = METHODS[name]
    variant = {"method": name}
    if method.selects:
        variant["rule"] = "all"
    cells = make_cells(grid(variants={"one": variant}), blocks)

    expected_counts = {None}
    if method.labeled_images == "drawn":
        expected_counts = {2, 4}
    assert {cell.labeled_per_class for cell in cells} == expected_counts

    for cell in cells:
        has_rule = cell.rule is not None
        reads_relatedness = "relatedness" in cell.identity()
        assert cell.is_reference == method.is_reference
        assert has_rule == method.selects
        assert reads_relatedness == method.samples_by_relatedness


def test_an_unknown_method_is_refused_with_all_names():
    with pytest.raises(ValueError, match=r"'selection', .* or 'fskd'"):
        grid(variants={"a": {"method": "fitnets"}})


def test_a_method_without_its_start_is_refused_by_name(monkeypatch):
    # As if a method had been added to the parameters alone.
    monkeypatch.setitem(METHODS, "added", METHODS["fskd"])
    with pytest.raises(RuntimeError, match="STARTS lacks the methods added"):
        check_starts(set(STARTS))


def test_a_start_without_its_method_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(METHODS, "added", METHODS["fskd"])
    starts = {*STARTS, "added", "other"}
    with pytest.raises(RuntimeError, match="STARTS has entries for other"):
        check_starts(starts)


def test_points_of_a_sweep_may_differ_in_learning_rate_and_number_of_updates(blocks):
    variants = {}
    for n_updates in (400, 1200):
        for rate in (0.1, 0.3):
            variants[f"at_{n_updates}_{rate}"] = {
                "rule": "nnpu",
                "labeled_per_class": [2],
                "distillation": {"n_updates": n_updates, "optimizer": {"learning_rate": rate}},
                "sweep": {"name": "length", "line": f"learning rate {rate}", "at": n_updates},
            }
    params = grid(seeds=[0], labeled_per_class=[2], sweeps={"length": "updates"}, variants=variants)
    cells = make_cells(params, blocks)
    found = []
    for cell in cells:
        params_of_cell = cell.blocks.distillation
        found.append((params_of_cell.n_updates, params_of_cell.optimizer.learning_rate))
    assert found == [(400, 0.1), (400, 0.3), (1200, 0.1), (1200, 0.3)]
    identities = {str(cell.identity()) for cell in cells}
    assert len(identities) == 4

    # In a row of the table, other updates would make its accuracy incomparable.
    row = {**variants["at_400_0.1"], "sweep": None}
    with pytest.raises(InputError, match="n_updates: every student of a comparison has the same"):
        make_cells(grid(variants={"row": row}), blocks)


def test_every_variant_is_trained_with_each_length(blocks):
    variants = {
        "pu": {"rule": "nnpu", "criterion": "quantile"},
        "random": {"rule": "random", "budget": "pu"},
        "original": {"method": "original"},
    }
    params = grid(seeds=[0], variants=variants, n_updates=[8, 16])
    found = [(str(cell), cell.blocks.distillation.n_updates) for cell in make_cells(params, blocks)]
    # The lengths of the same labeled images follow each other, because they share their scores.
    assert [(name.removesuffix(", seed 0"), n_updates) for name, n_updates in found] == [
        ("pu, robust_kd, 2 per class", 8),
        ("random, robust_kd, 2 per class", 8),
        ("original, kd", 8),
        ("pu, robust_kd, 2 per class", 16),
        ("random, robust_kd, 2 per class", 16),
        ("original, kd", 16),
        ("pu, robust_kd, 4 per class", 8),
        ("random, robust_kd, 4 per class", 8),
        ("pu, robust_kd, 4 per class", 16),
        ("random, robust_kd, 4 per class", 16),
    ]


def test_a_cell_of_a_listed_length_is_that_of_a_run_of_this_length(blocks):
    listed = make_cells(grid(n_updates=[8, 16]), blocks)
    by_hand = []
    for n_updates in (8, 16):
        distillation = blocks.distillation.model_copy(update={"n_updates": n_updates})
        by_hand += make_cells(grid(), replace(blocks, distillation=distillation))
    # Otherwise finished cells would be computed again, also those that a budget refers to.
    expected = sorted(str(cell.identity()) for cell in by_hand)
    assert sorted(str(cell.identity()) for cell in listed) == expected


def test_variants_join_those_of_a_set_and_override_them_key_by_key(blocks):
    of_set = {
        "a": {"rule": "random", "budget": "few", "distillation": {"temperature": 2}},
        "b": {"rule": "nnpu", "budget": "many", "criterion": "budget"},
        "c": {"rule": "random", "budget": "b"},
    }
    params = grid(
        variant_sets={"some": of_set, "other": {"x": {"rule": "all"}}},
        variant_set="some",
        budgets={"few": 3, "many": 9},
        variants={"b": None, "a": {"distillation": {"keep": "best"}}, "c": {"budget": "many"}},
    )
    assert list(params.variants) == ["a", "b", "c"]
    # The number and not its name decides: cells that have the number already are these cells.
    by_hand = grid(
        variants={
            "a": {
                "rule": "random",
                "budget": 3,
                "distillation": {"temperature": 2, "keep": "best"},
            },
            "c": {"rule": "random", "budget": 9},
        }
    )
    found = [cell.identity() for cell in make_cells(params, blocks)]
    assert found == [cell.identity() for cell in make_cells(by_hand, blocks)]
    # What has been checked once is read again in tests and forms.
    assert type(params).model_validate(params.model_dump()) == params


def test_a_budget_without_a_number_is_named():
    with pytest.raises(ValueError, match=r"budget 'few' .* nor a key of comparison.budgets"):
        grid(variants={"a": {"rule": "random", "budget": "few"}}, budgets={"many": 9})
