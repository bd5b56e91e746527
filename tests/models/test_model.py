"""Models on disk: what is saved comes back, and weights that do not fit are refused."""

from __future__ import annotations

import json
import pickle
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import save_file

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.cards import ModelCard, PUClassifierCard
from pu_kd_pipeline.models.factory import (
    input_contract,
    is_known_to_build,
    new_student,
    new_teacher,
    teacher_card,
)
from pu_kd_pipeline.models.model import (
    Model,
    PUClassifier,
    build_pu_module,
    load_model,
    load_pu_classifier,
    save_model,
)
from pu_kd_pipeline.models.weights import read_weights_file, save_weights
from pu_kd_pipeline.params.teacher import InputSpec, OutputSpec, TeacherParams

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
    text = json.dumps(card)
    file.write_text(text)


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


@pytest.fixture
def saved(model, tmp_path):
    """Return the folder that the model was saved to."""
    folder = tmp_path / "m"
    save_model(model, folder)
    return folder


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


def test_saved_weights_are_the_same_bytes_each_time(model, saved, tmp_path):
    first = (saved / "weights.safetensors").read_bytes()
    for number in range(8):
        save_model(model, tmp_path / f"again{number}")
        assert (tmp_path / f"again{number}" / "weights.safetensors").read_bytes() == first


def test_no_damaged_byte_of_weights_is_used(saved):
    file = saved / "weights.safetensors"
    valid = file.read_bytes()
    state = read_weights_file(file)
    # Every byte of the header, and some of the values, which the format itself does not protect.
    header_bytes = 8 + int.from_bytes(valid[:8], "little")
    values = range(header_bytes, len(valid), 11)
    for position in [*range(header_bytes), *values]:
        damaged = bytearray(valid)
        damaged[position] ^= 0x11
        file.write_bytes(damaged)
        with suppress(InputError):
            again = read_weights_file(file)
            assert again.keys() == state.keys()
            assert all(torch.equal(again[name], state[name]) for name in state)


def test_a_flipped_bit_of_a_weight_is_refused(saved):
    file = saved / "weights.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-2] ^= 1
    file.write_bytes(damaged)
    message = r"weights.safetensors is damaged or was edited .*run the stage that wrote it again"
    with pytest.raises(InputError, match=message):
        load_model(saved)


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "sha256": "of something else"}])
def test_weights_of_other_programs_need_no_digest(model, saved, metadata):
    state = read_weights_file(saved / "weights.safetensors")
    save_file(state, saved / "weights.safetensors", metadata)
    assert load_model(saved).fingerprint() == model.fingerprint()


def test_weights_of_all_types_have_a_digest(tmp_path):
    state = {
        "half": torch.ones(2, dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.empty(0, 4),
        "mask": torch.tensor([True, False]),
        "turned": torch.arange(6.0).view(2, 3).T.contiguous(),
    }
    save_weights(state, tmp_path / "w.safetensors")
    again = read_weights_file(tmp_path / "w.safetensors")
    for name, tensor in state.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name], tensor)


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
        params = _teacher(weights=str(weights))
        teacher = new_teacher(params)
        assert torch.equal(teacher.network.fc.weight, expected)
        # The file itself, also where the parameters name its folder.
        origin = teacher.card.origin["weights"]
        assert origin.endswith((".safetensors", ".pt"))


def test_the_card_next_to_the_weights_completes_the_parameters(model, saved):
    params = _teacher_without_parameters(saved)
    image_input, classes = input_contract(params)
    assert image_input == model.card.input
    assert classes == ("a", "b", "c")

    teacher = new_teacher(params)
    assert teacher.card.taps == ("block1",)


def test_weights_without_a_card_need_the_parameters(state_dict_file):
    teacher = _teacher(weights=str(state_dict_file), classes=None, input=None)
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

    params = _teacher(weights=str(weights))
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
        new_teacher(_teacher(weights=str(numbers)))

    missing = tmp_path / "none.pt"
    with pytest.raises(InputError, match="there is no weights file"):
        read_weights_file(missing)


def test_a_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"not a model folder: it has no card\.json"):
        load_model(tmp_path)


def test_a_card_with_an_unknown_field_is_refused(saved):
    # It could mean something that this version does not respect.
    _change_card(saved, surprise=1)
    with pytest.raises(InputError, match="is not the card of a Model"):
        load_model(saved)


def test_taps_that_are_not_layers_name_the_parameter():
    params = _teacher(taps=["blok1"])
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
    _change_card(saved, architecture="os:system", architecture_options=options)

    params = _teacher_without_parameters(saved)
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


# --- what the network returns


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """A module of a user with networks that do not return logits as a tensor."""
    (tmp_path / "networks_of_a_user.py").write_text(NETWORKS_OF_A_USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "networks_of_a_user"
    sys.modules.pop("networks_of_a_user", None)


NETWORKS_OF_A_USER = """
from torch import nn


class Base(nn.Module):
    def __init__(self, n_classes, in_channels):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, 4, 3)
        self.fc = nn.Linear(4, n_classes)

    def logits(self, images):
        return self.fc(self.layer(images).relu().mean((2, 3)))


class Softmax(Base):
    def forward(self, images):
        return self.logits(images).softmax(1)


class Outputs(Base):
    def forward(self, images):
        return {"features": images.mean(), "probs": self.logits(images).softmax(1)}
"""
PROBS = {"key": "probs", "kind": "probabilities"}


def test_a_teacher_that_ends_in_softmax_is_refused_before_anything_runs(networks):
    teacher = _teacher(architecture=f"{networks}:Softmax", architecture_options={})
    message = r"the network returns probabilities .* set teacher\.output\.kind to probabilities"
    with pytest.raises(InputError, match=message):
        new_teacher(teacher)


def test_a_student_that_ends_in_softmax_is_refused(model, networks):
    with pytest.raises(InputError, match="of a student, leave out the last softmax"):
        new_student(model, f"{networks}:Softmax", {}, {})


def test_stated_outputs_are_converted_in_every_copy_of_the_teacher(networks, tmp_path):
    params = _teacher(
        architecture=f"{networks}:Outputs", architecture_options={}, output=PROBS, taps=["layer"]
    )
    teacher = new_teacher(params)
    images = torch.randn(4, 1, 8, 8)
    logits = teacher.network(images)
    expected = teacher.network.logits(images).log_softmax(1)
    torch.testing.assert_close(logits.log_softmax(1), expected)
    _, of_features = teacher.extractor()(images)
    torch.testing.assert_close(of_features, logits)

    save_model(teacher, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.card == teacher.card
    assert again.fingerprint() == teacher.fingerprint()
    assert torch.equal(again.network(images), logits)
    # The weights have the names of the network itself.
    names = set(read_weights_file(tmp_path / "m" / "weights.safetensors"))
    assert names == {"layer.weight", "layer.bias", "fc.weight", "fc.bias"}


def test_the_output_of_a_teacher_is_read_from_its_card_and_not_given_to_students(
    networks, tmp_path
):
    architecture = f"{networks}:Outputs"
    params = _teacher(architecture=architecture, architecture_options={}, output=PROBS)
    save_model(new_teacher(params), tmp_path / "m")
    again = _teacher(
        architecture=architecture, architecture_options={}, weights=str(tmp_path / "m")
    )
    teacher = new_teacher(again)
    assert teacher.card.output == OutputSpec.model_validate(PROBS)

    student = new_student(teacher, "digits_cnn", {"width": 2}, {})
    assert student.card.output is None
    assert student.network(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_a_stated_output_is_checked_even_if_the_network_is_sure_to_build():
    params = _teacher(output={"kind": "probabilities"})
    assert not is_known_to_build(teacher_card(params))
    with pytest.raises(InputError, match="is probabilities, and the network returns logits"):
        new_teacher(params)


def test_cards_without_an_output_stay_as_they_were(model, saved):
    # Features and scores of earlier runs are checked by a hash of the card.
    assert "output" not in json.loads((saved / "card.json").read_text())
    assert "output" not in model.card.model_dump_json()


@pytest.mark.parametrize(
    "output", [{"kind": "sigmoid"}, {"key": True}, {"key": 1.5}, {"keys": "x"}, "logits"]
)
def test_a_malformed_output_is_refused_by_the_parameters(output):
    with pytest.raises(ValueError, match="output"):
        _teacher(output=output)
