"""Models on disk: what is saved comes back, and weights that do not fit are refused with what is wrong."""

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
        "architecture": "digits_cnn", "architecture_options": {"width": 4}, "weights": None, "classes": 3,
        "input": INPUT, "taps": None, **changes,
    }  # fmt: skip
    return TeacherParams.model_validate(block)


@pytest.fixture
def model():
    card = ModelCard(
        architecture="digits_cnn", architecture_options={"width": 4}, classes=("a", "b", "c"),
        input=InputSpec.model_validate(INPUT), taps=("block1",),
    )  # fmt: skip
    return Model(build_network("digits_cnn", 3, 1, {"width": 4}).eval(), card)


def test_a_saved_model_comes_back_as_it_was(model, tmp_path):
    save_model(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.card == model.card
    assert again.fingerprint() == model.fingerprint()
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.network(images), model.network(images))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "card.json",
        "weights.safetensors",
    ]


def test_saving_again_replaces_the_model(model, tmp_path):
    save_model(model, tmp_path / "m")
    with torch.no_grad():
        model.network.fc.bias.add_(1)
    save_model(model, tmp_path / "m")
    assert torch.equal(load_model(tmp_path / "m").network.fc.bias, model.network.fc.bias)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("backbone", ["frozen", "full"])
def test_a_saved_pu_classifier_comes_back_as_it_was(model, tmp_path, backbone):
    card = PUClassifierCard(
        backbone=backbone, features="descriptor", descriptor_size=4, attention_reduction=2, class_prior=0.3,
        teacher=model.card, teacher_fingerprint="x",
    )  # fmt: skip
    classifier = PUClassifier(build_pu_module(card).eval(), card)
    save_model(classifier, tmp_path / "c")
    again = load_pu_classifier(tmp_path / "c")
    inputs = torch.rand(2, 1, 8, 8) if backbone == "full" else torch.rand(2, 4)
    assert again.card == card
    assert torch.equal(again.module(inputs), classifier.module(inputs))


def test_weights_are_read_from_a_folder_safetensors_and_plain_state_dicts(model, tmp_path):
    save_model(model, tmp_path / "m")
    state = model.network.state_dict()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        tmp_path / "w.pt",
    )
    for weights in (tmp_path / "m", tmp_path / "m" / "weights.safetensors", tmp_path / "w.pt"):
        teacher = new_teacher(_teacher(weights=str(weights)))
        assert torch.equal(teacher.network.fc.weight, model.network.fc.weight)
        assert teacher.card.origin["weights"].endswith((".safetensors", ".pt"))


def test_a_card_beside_the_weights_says_what_the_parameters_leave_out(model, tmp_path):
    save_model(model, tmp_path / "m")
    teacher = _teacher(
        weights=str(tmp_path / "m"),
        architecture=None,
        architecture_options={},
        classes=None,
        input=None,
    )
    assert input_contract(teacher) == (model.card.input, ("a", "b", "c"))
    assert new_teacher(teacher).card.taps == ("block1",)


def test_weights_without_a_card_need_the_parameters(model, tmp_path):
    torch.save(model.network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        InputError, match=r"teacher: classes, input not given, and there is no card\.json"
    ):
        new_teacher(_teacher(weights=str(tmp_path / "w.pt"), classes=None, input=None))


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


def test_files_that_are_no_weights_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"not a tensor file")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_state_dict(tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="holds no state dict .* but list"):
        read_state_dict(tmp_path / "list.pt")
    with pytest.raises(InputError, match="there is no weights file"):
        read_state_dict(tmp_path / "none.pt")


def test_a_folder_without_a_good_card_is_no_model(model, tmp_path):
    with pytest.raises(InputError, match=r"not a model folder: it has no card\.json"):
        load_model(tmp_path)
    save_model(model, tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    (tmp_path / "m" / "card.json").write_text(json.dumps({**card, "surprise": 1}))
    with pytest.raises(InputError, match="is not the card of a Model"):
        load_model(tmp_path / "m")


def test_taps_that_are_not_layers_name_the_parameter():
    with pytest.raises(
        InputError,
        match=r"teacher\.taps: not a layer of the network: 'blok1'.*did you mean 'block1'",
    ):
        new_teacher(_teacher(taps=["blok1"]))


def test_a_student_has_the_teachers_classes_and_input(model):
    student = new_student(model, "digits_cnn", {"width": 2}, {"rule": "nnpu"})
    assert (student.card.classes, student.card.input) == (model.card.classes, model.card.input)
    assert student.network(torch.rand(1, 1, 8, 8)).shape == (1, 3)
    assert student.card.origin == {"rule": "nnpu"}


def test_a_factory_that_a_card_names_is_run_only_if_the_parameters_name_it_too(tmp_path, model):
    save_model(model, tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    proof = tmp_path / "ran"
    card |= {"architecture": "os:system", "architecture_options": {"command": f"touch {proof}"}}
    (tmp_path / "m" / "card.json").write_text(json.dumps(card))
    block = _teacher(
        architecture=None,
        architecture_options={},
        weights=str(tmp_path / "m"),
        classes=None,
        input=None,
    )
    with pytest.raises(
        InputError,
        match=r"names a factory of its own, 'os:system'.* set teacher.architecture to it",
    ):
        new_teacher(block)
    assert not proof.exists()


def test_a_student_that_cannot_be_trained_is_refused_before_it_is(model):
    card = model.card.model_copy(
        update={"input": InputSpec(size_px=64, channels=3, mean=(0,) * 3, std=(1,) * 3)}
    )
    with pytest.raises(InputError, match="in training mode the network returns GoogLeNetOutputs"):
        new_student(Model(model.network, card), "googlenet", {"init_weights": False}, {})
