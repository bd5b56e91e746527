"""The objectives `attention` and `pu_critic`: taps, labels and the critic."""

from __future__ import annotations

import itertools
import logging

import numpy as np
import pytest

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import predict_logits
from pu_kd_pipeline.learning.critic import CriticTraining
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.factory import new_teacher
from pu_kd_pipeline.models.model import Model, load_model, save_model
from pu_kd_pipeline.params.teacher import TeacherParams
from tests.training.objectives.trained_modules import record_created
from tests.training.scene import (
    ATTENTION,
    COMPUTE,
    CRITIC,
    ChannelsLast,
    Scene,
    Tokens,
    are_equal,
    convolutions,
    linear,
    own_network,
    store_of,
)

BOTH = pytest.mark.parametrize("objective", ["attention", "pu_critic"])


# --- taps ---


def test_the_last_taps_are_matched(digits, monkeypatch):
    created = record_created("FeatureAdapter", monkeypatch)
    for n_taps in (1, 2, 3):
        attention = ATTENTION | {"n_taps": n_taps}
        digits.distill(objective="pu_critic", attention=attention, n_updates=1)

    # Teacher and student channels of each tap; the last one comes last.
    first = (8, 4)
    second = (16, 8)
    third = (16, 8)
    shapes = []
    for adapter, _ in created:
        of_layers = [tuple(layer.weight.shape) for layer in adapter.layers]
        shapes.append(of_layers)

    assert shapes == [[third], [second, third], [first, second, third]]


def test_more_taps_than_a_network_has_are_refused(digits):
    attention = ATTENTION | {"n_taps": 4}
    message = r"attention.n_taps is 4, and digits_cnn has 3 taps: lower it"
    with pytest.raises(InputError, match=message):
        digits.distill(objective="attention", attention=attention)


@BOTH
def test_networks_with_different_numbers_of_taps_are_matched_at_their_last_ones(digits, objective):
    message = rf"'{objective}': attention.n_taps is 3, and \S+convolutions has 1 taps: lower it"
    student = own_network(convolutions)

    with pytest.raises(InputError, match=message):
        digits.distill(objective=objective, **student)

    attention = ATTENTION | {"n_taps": 1}
    _, history = digits.distill(objective=objective, attention=attention, n_updates=2, **student)

    assert (history["attention_loss"] > 0).all()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ChannelsLast, r"distillation.objective 'attention': the tap 'norm' gives \(1, 8, 8, 6\)"),
        (Tokens, r"distillation.objective 'attention': the tap 'norm' gives \(1, 64, 6\)"),
        (linear, "distillation.objective 'attention': the network has no feature maps"),
    ],
)
def test_attention_is_refused_where_there_are_no_maps_to_compare(digits, student, message):
    attention = ATTENTION | {"n_taps": 1}
    with pytest.raises(InputError, match=message):
        digits.distill(
            objective="attention", attention=attention, n_updates=1, **own_network(student)
        )


# --- labels ---


@pytest.fixture(scope="module")
def untrained(scene_of) -> Scene:
    """A scene whose teacher was not trained: only labels can teach its student."""
    scene = scene_of("digits")
    card = scene.teacher.card
    params = TeacherParams(
        architecture=card.architecture,
        architecture_options=card.architecture_options,
        weights=None,
        classes=card.classes,
        input=card.input,
        taps=None,
    )
    with seeded(5):
        teacher = new_teacher(params)
    return Scene(teacher, scene.labeled, scene.pool, scene.student)


def label_accuracy(scene: Scene, student: Model) -> float:
    """Return the share of the labeled images that the student classifies right."""
    labels = scene.labeled.index["label"].to_numpy(dtype=np.int64)
    logits = predict_logits(student, scene.labeled, COMPUTE)
    classes = logits.argmax(dim=1).numpy()
    is_right = classes == labels
    return float(is_right.mean())


@BOTH
def test_a_student_learns_labels_that_its_teacher_does_not_know(untrained, objective):
    manifest = untrained.manifest.query("origin == 'labeled'")
    attention = ATTENTION | {"weight": 0.0, "label_weight": 0.9}
    student, history = untrained.distill(manifest, objective=objective, attention=attention)

    losses = history["label_loss"]
    assert losses.is_monotonic_decreasing
    assert losses.iloc[-1] < 0.3
    assert label_accuracy(untrained, student) > 0.9

    without_labels, history = untrained.distill(manifest, objective=objective)

    assert "label_loss" not in history
    assert label_accuracy(untrained, without_labels) < 0.5


@BOTH
def test_a_label_weight_needs_a_label_for_every_image(digits, tmp_path, objective):
    attention = ATTENTION | {"label_weight": 0.1}
    with pytest.raises(InputError) as caught:
        digits.distill(objective=objective, attention=attention)
    assert str(caught.value) == (
        "distillation.attention.label_weight is 0.1, and 140 of the training images have no label: "
        "set it to 0 where pool images are among them"
    )

    labeled = store_of(tmp_path / "labeled", (range(20), "classes"), (range(20, 23), "ignore"))
    manifest = labeled.index[["id"]].assign(origin="labeled")
    scene = Scene(digits.teacher, labeled, digits.pool, digits.student)

    with pytest.raises(InputError, match="3 of the training images have no label"):
        scene.distill(manifest, objective=objective, attention=attention)
    # An objective that does not read the block ignores its weight.
    digits.distill(objective="kd", attention=attention, n_updates=1)


# --- the critic ---


def test_only_the_history_of_pu_critic_describes_the_critic(trained):
    _, _, history = trained("digits", "pu_critic")
    _, _, without = trained("digits", "attention")
    columns = {
        "critic_loss",
        "critic_accuracy",
        "critic_auc",
        "clamped_share",
        "student_critic_loss",
    }

    assert columns < set(history.columns)
    assert not columns & set(without.columns)

    shares = history[["critic_auc", "critic_accuracy", "clamped_share"]]

    assert shares.stack().between(0, 1).all()
    losses = history[["critic_loss", "student_critic_loss"]]
    assert (losses > 0).all(axis=None)


def test_the_weight_of_the_critic_rises_from_zero(digits):
    critic = CRITIC | {"weight": 0.8, "ramp_updates": 5}
    _, history = digits.distill(objective="pu_critic", critic=critic, n_updates=8, record_every=1)

    attention = ATTENTION["weight"] * history["attention_loss"]
    # What the other two terms leave of the loss is the critic's term.
    weighted = history["loss"] - history["kl_loss"] - attention
    weights = weighted / history["student_critic_loss"]

    # In five equal steps to 0.8, and then constant.
    expected = [0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.8]

    np.testing.assert_allclose(weights, expected, atol=1e-4)


def test_the_class_prior_moves_from_its_first_to_its_last_value(digits, monkeypatch):
    priors = []
    step = CriticTraining.step

    def recording(training, teacher, student, class_prior):
        priors.append(class_prior)
        return step(training, teacher, student, class_prior)

    monkeypatch.setattr(CriticTraining, "step", recording)
    critic = CRITIC | {"class_prior": [0.2, 0.7]}
    digits.distill(objective="pu_critic", critic=critic, n_updates=10)

    # The last value belongs to the end of training, one step after the last one that is taken.
    expected = np.linspace(0.2, 0.7, 11)[:10]

    np.testing.assert_allclose(priors, expected)


def test_the_modes_of_the_critic_differ(digits):
    students = {}
    clamped_share = {}
    for mode in ("clamp", "ascent", "gan"):
        # A high prior makes the negative risk fall below zero, where clamp and ascent differ.
        critic = CRITIC | {"mode": mode, "class_prior": [0.9, 0.9]}
        students[mode], history = digits.distill(objective="pu_critic", critic=critic, n_updates=15)
        clamped_share[mode] = history["clamped_share"].max()

    for one, other in itertools.combinations(students.values(), 2):
        assert not are_equal(one, other)
    assert clamped_share["clamp"] > 0
    assert clamped_share["ascent"] > 0
    assert clamped_share["gan"] == 0  # its risk is never negative


@pytest.mark.parametrize(
    ("critic", "sentence"),
    [
        (
            {"mode": "clamp", "class_prior": [0.9, 0.95]},
            "the class prior is higher than the share of them that passes",
        ),
        ({"learning_rate": 1e-6, "weight": 1.0}, "the critic cannot keep up"),
        ({"lipschitz": 1.0}, "the critic always wins"),
        ({"class_prior": [0.9, 0.95], "weight": 1.0}, None),
    ],
)
def test_a_critic_that_collapsed_is_reported(digits, caplog, tmp_path, critic, sentence):
    student, history = digits.distill(objective="pu_critic", critic=CRITIC | critic, record_every=5)
    warnings = []
    for record in caplog.records:
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
    save_model(student, tmp_path / "student")
    reported = load_model(tmp_path / "student").card.origin["critic_collapse"]

    if sentence is None:
        assert 0.55 < history["critic_auc"].iloc[-2:].mean() < 0.99
        assert reported is None
        assert warnings == []
    else:
        assert sentence in reported
        assert warnings == [f"distillation: {reported}"]
