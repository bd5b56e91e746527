"""Models on disk: what is saved comes back, and weights that do not fit are refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard, PUClassifierCard
from pu_kd_pipeline.models.factory import input_contract, new_student, new_teacher
from pu_kd_pipeline.models.model import (
    Model,
    PUClassifier,
    build_pu_module,
    load_model,
    load_pu_classifier,
    save_model,
)
from pu_kd_pipeline.models.weights import read_state_dict
from pu_kd_pipeline.params.teacher import InputSpec, TeacherParams

INPUT = {"size_px": 8, "channels": 1, "mean": [0.3], "std": [0.4]}


def _teacher(**changes):
    block = {
        "architecture": "digits_cnn",
        "architecture_options": {"width": 4},
        "weights": None,
        "classes": 3,
        "input": INPUT,
        "taps": None,
        **changes,
    }
    return TeacherParams.model_validate(block)


def _teacher_without_parameters(weights):
    """Return parameters that leave everything to the card next to the weights."""
    return _teacher(
        weights=str(weights), architecture=None, architecture_options={}, classes=None, input=None
    )


def _change_card(folder, **changes):
    """Change fields in the card of a saved model."""
    file = folder / "card.json"
    card = json.loads(file.read_text())
    card.update(changes)
    file.write_text(json.dumps(card))


@pytest.fixture
def model():
    card = ModelCard(
        architecture="digits_cnn",
        architecture_options={"width": 4},
        classes=("a", "b", "c"),
        input=InputSpec.model_validate(INPUT),
        taps=("block1",),
    )
    network = build_network("digits_cnn", 3, 1, {"width": 4})
    return Model(network.eval(), card)


def test_a_saved_model_comes_back_as_it_was(model, tmp_path):
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.card == model.card
    assert again.fingerprint() == model.fingerprint()

    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.network(images), model.network(images))
    files = {path.name for path in (tmp_path / "m").iterdir()}
    assert files == {"card.json", "weights.safetensors"}


def test_saving_again_replaces_the_model(model, tmp_path):
    save_model(model, tmp_path / "m")
    with torch.no_grad():
        model.network.fc.bias.add_(1)
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert torch.equal(again.network.fc.bias, model.network.fc.bias)
    # No temporary or previous folder is left behind.
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("backbone", ["frozen", "full"])
def test_a_saved_pu_classifier_comes_back_as_it_was(model, tmp_path, backbone):
    card = PUClassifierCard(
        backbone=backbone,
        features="descriptor",
        descriptor_size=4,
        attention_reduction=2,
        class_prior=0.3,
        teacher=model.card,
        teacher_fingerprint="x",
    )
    classifier = PUClassifier(build_pu_module(card).eval(), card)
    save_model(classifier, tmp_path / "c")
    again = load_pu_classifier(tmp_path / "c")
    # A classifier with its own backbone reads images, a head reads descriptors.
    input_shape = {"frozen": (2, 4), "full": (2, 1, 8, 8)}[backbone]
    inputs = torch.rand(input_shape)
    assert again.card == card
    assert torch.equal(again.module(inputs), classifier.module(inputs))


def test_weights_are_read_from_a_folder_safetensors_and_plain_state_dicts(model, tmp_path):
    folder = tmp_path / "m"
    save_model(model, folder)
    # As data-parallel training saves it.
    state = {f"module.{name}": value for name, value in model.network.state_dict().items()}
    state_dict = tmp_path / "w.pt"
    torch.save({"state_dict": state}, state_dict)
    for weights in (folder, folder / "weights.safetensors", state_dict):
        teacher = new_teacher(_teacher(weights=str(weights)))
        assert torch.equal(teacher.network.fc.weight, model.network.fc.weight)
        assert teacher.card.origin["weights"].endswith((".safetensors", ".pt"))


def test_the_card_next_to_the_weights_completes_the_parameters(model, tmp_path):
    save_model(model, tmp_path / "m")
    teacher = _teacher_without_parameters(tmp_path / "m")
    assert input_contract(teacher) == (model.card.input, ("a", "b", "c"))
    assert new_teacher(teacher).card.taps == ("block1",)


def test_weights_without_a_card_need_the_parameters(model, tmp_path):
    torch.save(model.network.state_dict(), tmp_path / "w.pt")
    teacher = _teacher(weights=str(tmp_path / "w.pt"), classes=None, input=None)
    message = r"teacher: classes, input not given, and there is no card\.json"
    with pytest.raises(InputError, match=message):
        new_teacher(teacher)


class _Bomb:
    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("evil.pt", "wb") as file:
        pickle.dump(_Bomb(), file)
    torch.save(_Bomb(), "evil_zip.pt")
    for name in ("evil.pt", "evil_zip.pt"):
        with pytest.raises(InputError, match="without running code from it, which is refused"):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "bomb-went-off").exists()


def _altered(state, kind):
    state = {name: value.clone() for name, value in state.items()}
    if kind == "missing":
        del state["fc.bias"]
    elif kind == "extra":
        state["head.weight"] = torch.zeros(1)
    elif kind == "shape":
        state["fc.bias"] = torch.zeros(5)
    elif kind == "nan":
        state["fc.bias"][0] = float("nan")
    return state


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"missing: fc\.bias"),
        ("extra", r"not part of it: head\.weight"),
        ("shape", r"of another shape: fc\.bias \(5,\) instead of \(3,\)"),
        ("nan", r"not finite: fc\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_what_is_wrong(model, tmp_path, kind, message):
    save_file(_altered(model.network.state_dict(), kind), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message):
        new_teacher(_teacher(weights=str(tmp_path / "w.safetensors")))


def test_files_that_are_not_weights_are_refused(tmp_path):
    text = tmp_path / "w.safetensors"
    text.write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_state_dict(text)
    numbers = tmp_path / "list.pt"
    torch.save([1, 2, 3], numbers)
    with pytest.raises(InputError, match="holds no state dict .* but list"):
        read_state_dict(numbers)
    with pytest.raises(InputError, match="there is no weights file"):
        read_state_dict(tmp_path / "none.pt")


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a model folder: it has no card\.json"):
        load_model(tmp_path)


def test_a_card_with_an_unknown_field_is_refused(model, tmp_path):
    save_model(model, tmp_path / "m")
    _change_card(tmp_path / "m", surprise=1)
    with pytest.raises(InputError, match="is not the card of a Model"):
        load_model(tmp_path / "m")


def test_taps_that_are_not_layers_name_the_parameter():
    message = r"teacher\.taps: not a layer of the network: 'blok1'.*did you mean 'block1'"
    with pytest.raises(InputError, match=message):
        new_teacher(_teacher(taps=["blok1"]))


def test_a_student_has_the_teachers_classes_and_input(model):
    student = new_student(model, "digits_cnn", {"width": 2}, {"rule": "nnpu"})
    assert student.card.classes == model.card.classes
    assert student.card.input == model.card.input
    logits = student.network(torch.rand(1, 1, 8, 8))
    assert logits.shape == (1, 3)
    assert student.card.origin == {"rule": "nnpu"}


def test_a_factory_that_a_card_names_is_run_only_if_the_parameters_name_it_too(tmp_path, model):
    save_model(model, tmp_path / "m")
    proof = tmp_path / "ran"
    options = {"command": f"touch {proof}"}
    _change_card(tmp_path / "m", architecture="os:system", architecture_options=options)
    message = r"names a factory of its own, 'os:system'.* set teacher.architecture to it"
    with pytest.raises(InputError, match=message):
        new_teacher(_teacher_without_parameters(tmp_path / "m"))
    assert not proof.exists()


def test_a_student_that_cannot_be_trained_is_refused_before_it_is(model):
    in_color = InputSpec(size_px=64, channels=3, mean=(0,) * 3, std=(1,) * 3)
    teacher = Model(model.network, model.card.model_copy(update={"input": in_color}))
    with pytest.raises(InputError, match="in training mode the network returns GoogLeNetOutputs"):
        new_student(teacher, "googlenet", {"init_weights": False}, {})
