"""Models on disk: what is saved comes back, and weights that do not fit are refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.cards import PUClassifierCard
from pu_kd_pipeline.models.factory import input_contract, new_student, new_teacher
from pu_kd_pipeline.models.model import (
    Model,
    PUClassifier,
    build_pu_module,
    load_model,
    load_pu_classifier,
    save_model,
)
from pu_kd_pipeline.models.weights import read_weights_file
from pu_kd_pipeline.params.teacher import InputSpec
from tests.models.examples import change_card, params_of_card, teacher_params


def test_a_saved_model_comes_back_as_it_was(model, saved):
    again = load_model(saved)
    assert again.card == model.card
    assert again.fingerprint() == model.fingerprint()

    images = torch.rand(2, 1, 8, 8)
    expected = model.network(images)
    logits = again.network(images)
    assert torch.equal(logits, expected)


def test_a_model_is_a_card_and_its_weights(saved):
    # No pickle, which could run code on loading.
    files = {path.name for path in saved.iterdir()}
    assert files == {"card.json", "weights.safetensors"}


def test_saving_again_replaces_the_model(model, saved, tmp_path):
    bias = model.network.fc.bias
    with torch.no_grad():
        bias.add_(1)
    save_model(model, saved)

    again = load_model(saved)
    assert torch.equal(again.network.fc.bias, bias)
    # No temporary or previous folder is left behind.
    folders = [path.name for path in tmp_path.iterdir()]
    assert folders == ["m"]


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
    module = build_pu_module(card).eval()
    classifier = PUClassifier(module, card)
    save_model(classifier, tmp_path / "c")
    again = load_pu_classifier(tmp_path / "c")
    assert again.card == card

    # A classifier with its own backbone reads images, a head reads descriptors.
    input_shape = {"frozen": (2, 4), "full": (2, 1, 8, 8)}[backbone]
    inputs = torch.rand(input_shape)
    expected = module(inputs)
    assert torch.equal(again.module(inputs), expected)


def test_a_pu_classifier_without_a_descriptor_reads_the_teachers_outputs_only(model, tmp_path):
    facts = {
        "backbone": "frozen",
        "descriptor_size": 0,
        "attention_reduction": 2,
        "class_prior": 0.3,
        "teacher": model.card,
        "teacher_fingerprint": "x",
    }
    card = PUClassifierCard(features="teacher_outputs", **facts)
    save_model(PUClassifier(build_pu_module(card).eval(), card), tmp_path / "c")
    assert load_pu_classifier(tmp_path / "c").card == card

    # Any other one would read features of no width.
    with pytest.raises(ValueError, match="descriptor_size must be positive"):
        PUClassifierCard(features="descriptor", **facts)


@pytest.fixture
def state_dict_file(model, tmp_path):
    """Return a file with the model's weights, as data-parallel training saves them."""
    state = {}
    for name, value in model.network.state_dict().items():
        state[f"module.{name}"] = value
    file = tmp_path / "w.pt"
    torch.save({"state_dict": state}, file)
    return file


def test_weights_are_read_from_a_folder_safetensors_and_plain_state_dicts(
    model, saved, state_dict_file
):
    expected = model.network.fc.weight
    for weights in (saved, saved / "weights.safetensors", state_dict_file):
        params = teacher_params(weights=str(weights))
        teacher = new_teacher(params)
        assert torch.equal(teacher.network.fc.weight, expected)
        # The file itself, also where the parameters name its folder.
        origin = teacher.card.origin["weights"]
        assert origin.endswith((".safetensors", ".pt"))


def test_the_card_next_to_the_weights_completes_the_parameters(model, saved):
    params = params_of_card(saved)
    image_input, classes = input_contract(params)
    assert image_input == model.card.input
    assert classes == ("a", "b", "c")

    teacher = new_teacher(params)
    assert teacher.card.taps == ("block1",)


def test_weights_without_a_card_need_the_parameters(state_dict_file):
    teacher = teacher_params(weights=str(state_dict_file), classes=None, input=None)
    message = r"teacher: classes, input not given, and there is no card\.json"
    with pytest.raises(InputError, match=message):
        new_teacher(teacher)


class _Bomb:
    """An object whose unpickling creates a file."""

    def __reduce__(self):
        return (open, ("bomb-went-off", "w"))


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    # The bomb writes into the working directory.
    monkeypatch.chdir(tmp_path)
    plain = tmp_path / "evil.pt"
    plain.write_bytes(pickle.dumps(_Bomb()))
    # torch wraps a pickle in a zip file.
    zipped = tmp_path / "evil_zip.pt"
    torch.save(_Bomb(), zipped)

    for file in (plain, zipped):
        with pytest.raises(InputError, match="without running code from it, which is refused"):
            read_weights_file(file)
    proof = tmp_path / "bomb-went-off"
    assert not proof.exists()


@pytest.mark.parametrize("module", ["io", "_io", "posix", "_posixsubprocess", "os"])
def test_a_name_in_a_pickle_is_refused_in_any_version_of_python(tmp_path, module):
    file = tmp_path / "evil.pt"
    # Of protocol 0: a name, its arguments, a call.
    file.write_bytes(f"c{module}\nopen\n(S'x'\ntR.".encode())
    with pytest.raises(InputError, match="without running code from it, which is refused"):
        read_weights_file(file)


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
    # torch itself would load the last one without an error.
    state = _altered(model.network.state_dict(), kind)
    weights = tmp_path / "w.safetensors"
    save_file(state, weights)

    params = teacher_params(weights=str(weights))
    with pytest.raises(InputError, match=message):
        new_teacher(params)


def test_files_that_are_not_weights_are_refused(tmp_path):
    text = tmp_path / "w.safetensors"
    text.write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_weights_file(text)

    numbers = tmp_path / "list.pt"
    torch.save([1, 2, 3], numbers)
    with pytest.raises(InputError, match="holds no state dict .* but list"):
        new_teacher(teacher_params(weights=str(numbers)))

    missing = tmp_path / "none.pt"
    with pytest.raises(InputError, match="there is no weights file"):
        read_weights_file(missing)


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a model folder: it has no card\.json"):
        load_model(tmp_path)


def test_a_card_with_an_unknown_field_is_refused(saved):
    # It could mean something that this version does not respect.
    change_card(saved, surprise=1)
    with pytest.raises(InputError, match="is not the card of a Model"):
        load_model(saved)


def test_taps_that_are_not_layers_name_the_parameter():
    params = teacher_params(taps=["blok1"])
    message = r"teacher\.taps: not a layer of the network: 'blok1'.*did you mean 'block1'"
    with pytest.raises(InputError, match=message):
        new_teacher(params)


def test_a_student_has_the_teachers_classes_and_input(model):
    origin = {"rule": "nnpu"}
    student = new_student(model, "digits_cnn", {"width": 2}, origin)
    card = student.card
    assert card.classes == model.card.classes
    assert card.input == model.card.input
    assert card.origin == origin

    images = torch.rand(1, 1, 8, 8)
    logits = student.network(images)
    assert logits.shape == (1, 3)


def test_a_factory_that_a_card_names_is_run_only_if_the_parameters_name_it_too(saved, tmp_path):
    # Models are downloaded: a card must not be able to run any function with any arguments.
    proof = tmp_path / "ran"
    options = {"command": f"touch {proof}"}
    change_card(saved, architecture="os:system", architecture_options=options)

    params = params_of_card(saved)
    message = r"names a factory of its own, 'os:system'.* set teacher.architecture to it"
    with pytest.raises(InputError, match=message):
        new_teacher(params)
    assert not proof.exists()


def test_a_student_that_cannot_be_trained_is_refused_before_it_is(model):
    in_color = InputSpec(size_px=64, channels=3, mean=(0, 0, 0), std=(1, 1, 1))
    card = model.card.model_copy(update={"input": in_color})
    teacher = Model(model.network, card)

    # GoogLeNet returns logits in evaluation mode, and those of three heads in training mode.
    with pytest.raises(InputError, match="in training mode the network returns GoogLeNetOutputs"):
        new_student(teacher, "googlenet", {"init_weights": False}, {})
