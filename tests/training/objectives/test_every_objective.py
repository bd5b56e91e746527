"""Properties of the students of every objective."""

from __future__ import annotations

import itertools
import math

import pandas as pd
import pytest
import torch

from pu_kd_pipeline.learning.networks.strided_pointwise import make_contiguous
from pu_kd_pipeline.models.model import load_model, save_model
from pu_kd_pipeline.training.objectives.factory import OBJECTIVES
from tests.training.objectives.trained_modules import record_created
from tests.training.scene import (
    ATTENTION,
    CRITIC,
    LATENT,
    N_CLASSES,
    NOISE_MATRIX,
    OPTIMIZER,
    VARIANTS,
    are_equal,
    state_of,
)

TRAINED = [("digits", variant) for variant in VARIANTS]
TRAINED += [("lenet", variant) for variant in ("latent", "shared head", "pu_critic")]
TRAINED += [("resnet", variant) for variant in ("noisy_kd", "shared head", "attention")]
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


def test_the_variants_cover_every_objective():
    covered = {variant["objective"] for variant in VARIANTS.values()}
    implemented = set(OBJECTIVES)
    assert covered == implemented


@pytest.mark.parametrize(("networks", "variant"), TRAINED)
def test_training_brings_a_student_closer_to_its_teacher(trained, networks, variant):
    scene, student, history = trained(networks, variant)
    agreement, divergence = scene.agreement_and_divergence(student)
    untrained = scene.fresh()
    first_agreement, first_divergence = scene.agreement_and_divergence(untrained)

    # Chance is 0.2, because there are five classes.
    assert agreement > 0.8
    assert agreement > first_agreement + 0.4
    assert divergence < first_divergence
    assert history["update"].tolist() == [10, 20, 30, 40]

    losses = history["loss"].tolist()

    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("networks", "variant"), TRAINED)
def test_a_student_has_exactly_the_modules_of_its_architecture(
    trained, networks, variant, tmp_path
):
    scene, student, _ = trained(networks, variant)
    plain = scene.fresh()
    state = state_of(student)
    plain_state = state_of(plain)

    assert list(state) == list(plain_state)
    for name, value in state.items():
        assert value.shape == plain_state[name].shape

    # No adapter and no shared head is left in the network, and nothing stays frozen.
    modules = [type(module) for module in student.network.modules()]
    plain_modules = [type(module) for module in plain.network.modules()]

    assert modules == plain_modules
    for parameter in student.network.parameters():
        assert parameter.requires_grad

    entries = {"distilled_by", "rule", "n_updates", "teacher"}
    entries |= {"training", "sampling", "yardstick"}
    if variant == "pu_critic":
        entries.add("critic_collapse")
    if variant == "robust_kd":
        entries.add("class_weights")

    assert set(student.card.origin) == entries
    assert student.card.model_copy(update={"origin": {}}) == plain.card

    # A file holds it like any other student.
    save_model(student, tmp_path / "student")
    loaded = load_model(tmp_path / "student")

    assert loaded.card == student.card
    assert are_equal(loaded, student)


@pytest.mark.parametrize(("networks", "variant"), TRAINED)
def test_training_leaves_the_teacher_unchanged_and_no_hook_behind(trained, networks, variant):
    scene, student, _ = trained(networks, variant)
    assert student.card.origin["teacher"] == scene.teacher.fingerprint()

    student_modules = student.network.modules()
    teacher_modules = scene.teacher.network.modules()

    for module in itertools.chain(student_modules, teacher_modules):
        assert not module._forward_hooks
        # Those of the network itself stay.
        assert set(module._forward_pre_hooks.values()) <= {make_contiguous}
        assert not module.training


@EVERY_VARIANT
def test_two_runs_give_the_same_weights(digits, variant):
    few = {**VARIANTS[variant], "n_updates": 6, "record_every": 3}
    one, history = digits.distill(**few)
    other, other_history = digits.distill(**few)

    assert are_equal(one, other)
    pd.testing.assert_frame_equal(history, other_history)

    # Equal weights would prove nothing if no random number had an effect.
    of_another_seed, _ = digits.distill(**few, seed=1)

    assert not are_equal(one, of_another_seed)


@EVERY_VARIANT
def test_the_teacher_cache_is_used_where_logits_are_enough(digits, variant):
    batch_sizes: list[int] = []

    def count(_layer, inputs, _output) -> None:
        images = inputs[0]
        batch_sizes.append(len(images))

    params = {**VARIANTS[variant], "n_updates": 8}
    with digits.teacher.network.fc.register_forward_hook(count):
        digits.distill(**params)
    n_training = 200
    n_full_batches = batch_sizes.count(32)

    # A batch of one is an image of zeros, which finds out shapes.
    others = [size for size in batch_sizes if size not in (1, 32)]
    # What it answers on the yardstick is known already.
    assert not others
    objective = OBJECTIVES[params["objective"]]
    if objective.reads_teacher_logits_only:
        # Each image once, before the training.
        assert n_full_batches == math.ceil(n_training / 32)
    else:
        # Each batch of the training.
        assert n_full_batches == 8


@pytest.mark.parametrize(
    ("objective", "name", "shapes"),
    [
        ("noisy_kd", "NoiseMatrix", [(N_CLASSES, N_CLASSES)]),
        ("latent", "penultimate_adapter", [(64, 32)]),
        ("pu_critic", "FeatureAdapter", [(8, 4), (8,), (16, 8), (16,), (16, 8), (16,)]),
        ("pu_critic", "FeatureCritic", [(256,), (256, 40), (128,), (128, 256), (1,), (1, 128)]),
    ],
)
def test_modules_of_an_objective_are_trained_and_not_part_of_the_student(
    digits, monkeypatch, objective, name, shapes
):
    created = record_created(name, monkeypatch)
    student, _ = digits.distill(objective=objective)
    [(module, start)] = created

    start_shapes = [tuple(value.shape) for value in start.values()]
    assert start_shapes == shapes

    # By their place in memory: equal values would not prove that they are the same parameters.
    addresses = {parameter.data_ptr() for parameter in student.network.parameters()}
    for key, value in module.named_parameters():
        address = value.data_ptr()
        assert address not in addresses
        assert value.isfinite().all()
        assert not torch.equal(value, start[key])


KL_ONLY = LATENT | {"logits_weight": 0, "penultimate_weight": 0, "kl_weight": 1.0}


@pytest.mark.parametrize(
    ("objective", "changes", "plain", "is_exact"),
    [
        ("noisy_kd", {"noise_matrix": NOISE_MATRIX | {"pseudo_label_weight": 0.0}}, "kd", True),
        ("pu_critic", {"critic": CRITIC | {"weight": 0.0}}, "attention", True),
        ("attention", {"attention": ATTENTION | {"weight": 0.0}}, "kd", False),
        ("latent", {"latent": KL_ONLY}, "kd", False),
    ],
)
def test_a_term_of_weight_zero_has_no_effect(digits, objective, changes, plain, is_exact):
    # SGD: the first steps of Adam have one size, and would amplify rounding in tiny gradients.
    sgd = OPTIMIZER.model_copy(update={"algorithm": "sgd", "learning_rate": 0.01})
    few = {"n_updates": 8, "optimizer": sgd}
    weightless, _ = digits.distill(objective=objective, **changes, **few)
    without_term, _ = digits.distill(objective=plain, **few)

    if is_exact:
        assert are_equal(weightless, without_term)
    state = state_of(weightless)
    expected = state_of(without_term)
    # Not all of them to the last bit: the loss is a sum of other terms, rounded differently.
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)

    weighted, _ = digits.distill(objective=objective, **few)

    assert not are_equal(weightless, weighted)
