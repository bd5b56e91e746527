"""Models on disk: `weights.safetensors` beside a `card.json` that says what they are. Never a pickle.

Foreign weights load from safetensors, or from a state dict that `torch.load(weights_only=True)` accepts.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.infra.atomic_files import replacing_folder
from pu_kd_pipeline.learning.network_limits import is_known_to_work
from pu_kd_pipeline.params import InputSpec, TeacherParams

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pu_kd_pipeline.learning.features import FeatureExtractor
    from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead

WEIGHTS, CARD = "weights.safetensors", "card.json"
_MARK_BYTES = 64  # enough to tell what a file is
Card = TypeVar("Card", bound=BaseModel)


class ModelCard(BaseModel):
    """What a classifier is and expects; everything that is needed to rebuild it around its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    architecture: str
    architecture_options: dict[str, Any] = {}
    classes: tuple[str, ...]
    input: InputSpec
    taps: tuple[str, ...] | None = None
    origin: dict[str, Any] = {}

    @field_validator("classes")
    @classmethod
    def _two_classes_at_least(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise ValueError("a classifier needs two classes or more, of different names")
        return classes


class PUClassifierCard(BaseModel):
    """What a PU classifier reads. With backbone `full`, `teacher` is the card of its own, fine-tuned backbone."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    backbone: Literal["frozen", "full"]
    features: Literal["descriptor", "last_layer", "teacher_outputs", "both"]
    descriptor_size: int = Field(gt=0)
    attention_reduction: int | None = Field(gt=0)
    class_prior: float = Field(ge=0, le=1)
    teacher: ModelCard
    teacher_fingerprint: str


@dataclass(frozen=True)
class Model:
    """A classifier: `network` maps normalised (N, C, H, W) float32 images to (N, K) logits, in eval mode."""

    network: nn.Module
    card: ModelCard

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.card.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input image."""
        return (self.card.input.channels, self.card.input.size_px, self.card.input.size_px)

    def extractor(self, device: Any = "cpu") -> FeatureExtractor:
        """Return the network with its taps, on a device and in eval mode.

        Raises:
            InputError: a tap is not a layer whose output can be pooled, or there is none.
        """
        from pu_kd_pipeline.learning.features import FeatureExtractor

        if self.card.taps is not None and not self.card.taps:
            raise InputError("no layer is named: name one, or take the network's defaults with null")
        try:
            taps = FeatureExtractor(self.network.to(device), self.card.taps, self.image_shape)
        except ValueError as exc:
            raise InputError(str(exc)) from exc
        extractor: FeatureExtractor = taps.eval()
        return extractor

    def fingerprint(self) -> str:
        """Return a hash of the weights and the card."""
        return _fingerprint(self.network, self.card)


@dataclass(frozen=True)
class PUClassifier:
    """A trained PU classifier: `module` is a head on cached features, or head and backbone in one."""

    module: PUHead | FullPUClassifier
    card: PUClassifierCard

    def fingerprint(self) -> str:
        """Return a hash of the weights and the card."""
        return _fingerprint(self.module, self.card)


def _fingerprint(network: nn.Module, card: BaseModel) -> str:
    digest = hashlib.sha256(card.model_dump_json().encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(model: Model | PUClassifier, folder: Path) -> None:
    """Write a model folder; it appears whole or not at all."""
    from safetensors.torch import save_file

    network = model.network if isinstance(model, Model) else model.module
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    with replacing_folder(folder) as temporary:
        save_file(state, temporary / WEIGHTS)
        (temporary / CARD).write_text(model.card.model_dump_json(indent=2) + "\n")


def load_model(folder: Path | str) -> Model:
    """Return the classifier of a model folder, on the CPU and in eval mode.

    Raises:
        InputError: the folder holds no model, or the weights do not fit the card.
    """
    folder = Path(folder)
    card = _read_card(folder, ModelCard)
    network = _build(card)
    load_weights(network, folder / WEIGHTS)
    return Model(network.eval(), card)


def load_pu_classifier(folder: Path | str) -> PUClassifier:
    """Return the PU classifier of a model folder, on the CPU and in eval mode.

    Raises:
        InputError: the folder holds no PU classifier, or the weights do not fit the card.
    """
    folder = Path(folder)
    card = _read_card(folder, PUClassifierCard)
    module = build_pu_module(card)
    load_weights(module, folder / WEIGHTS)
    return PUClassifier(module.eval(), card)


def build_pu_module(card: PUClassifierCard) -> PUHead | FullPUClassifier:
    """Return the untrained module that a PU classifier's card describes."""
    from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, make_head

    try:
        head = make_head(card.descriptor_size, card.features, card.attention_reduction)
    except Exception as exc:
        raise InputError(f"there is no PU classifier as its card describes ({exc}): train it again") from exc
    if card.backbone == "frozen":
        return head
    return FullPUClassifier(Model(_build(card.teacher), card.teacher).extractor(), head)


def _read_card(folder: Path, kind: type[Card]) -> Card:
    path = folder / CARD
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise InputError(f"{folder} is not a model folder: it has no {CARD}") from exc
    except (ValidationError, UnicodeDecodeError, OSError) as exc:
        raise InputError(f"{path} is not the card of a {kind.__name__.removesuffix('Card')}: {exc}") from exc


def _build(card: ModelCard, *, is_trained_here: bool = False) -> nn.Module:
    from pu_kd_pipeline.learning.networks import build_network, check_network, check_training

    try:
        network = build_network(card.architecture, len(card.classes), card.input.channels, card.architecture_options)
        check_network(network, len(card.classes), card.input.channels, card.input.size_px)
        if is_trained_here:
            check_training(network, len(card.classes), card.input.channels, card.input.size_px)
    except Exception as exc:  # memory that is not there, too, where a card or a parameter asks for a giant
        raise InputError((str(exc) or type(exc).__name__).partition("\nException raised from")[0]) from exc
    return network


def is_sure_to_build(card: ModelCard) -> bool:
    """Return whether the card's network, without weights, is known to build; torch is not imported for it."""
    spec = card.input
    return card.taps is None and is_known_to_work(
        card.architecture, len(card.classes), spec.channels, spec.size_px, card.architecture_options
    )


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state dict into a network, refusing anything that does not fit exactly.

    Raises:
        InputError: the file is missing, is not a state dict, or has missing, extra, mis-shaped or non-finite tensors.
    """
    state = read_state_dict(path)
    expected = network.state_dict()
    faults = _weight_faults(state, expected)
    if faults:
        raise InputError(
            f"{path}: the weights do not fit the architecture: {'; '.join(faults)}. "
            "Check `architecture`, `architecture_options`, `classes` and `input.channels`"
        )
    network.load_state_dict(state)


def _weight_faults(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    def some(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

    missing = sorted(expected.keys() - state.keys())
    extra = sorted(state.keys() - expected.keys())
    shared = sorted(expected.keys() & state.keys())
    odd = [name for name in shared if not _is_plain(state[name], expected[name])]
    mis_shaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in shared
        if name not in odd and state[name].shape != expected[name].shape
    ]
    # only of equal shape: a tensor of a few bytes may claim any size, and a look at every value would make it real
    comparable = [name for name in shared if name not in odd and state[name].shape == expected[name].shape]
    not_finite = [name for name in comparable if not bool(state[name].to(expected[name].dtype).isfinite().all())]
    faults = (
        ("missing", missing),
        ("not part of it", extra),
        ("of another kind (sparse, quantized, complex, whole numbers or without values)", odd),
        ("of another shape", mis_shaped),
        ("not finite", not_finite),
    )
    return [f"{what}: {some(names)}" for what, names in faults if names]


def _is_plain(tensor: Tensor, expected: Tensor) -> bool:
    """Return whether a tensor has values that can be copied into another one without losing some."""
    import torch

    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.is_complex() == expected.is_complex()
        and tensor.is_floating_point() >= expected.is_floating_point()
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file or of a PyTorch file that holds nothing but tensors.

    A dict with a `state_dict` or `model` entry is opened, and the `module.` prefix of data-parallel training removed.

    Raises:
        InputError: the file is missing or unreadable, unpacks to more than its size, or is a pickle that would run
            code.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    _refuse_what_is_no_weights(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, MemoryError) as exc:
            raise InputError(f"{path} is not a readable safetensors file: {exc}") from exc
    try:
        _refuse_zip_bomb(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as exc:
        raise InputError(
            f"{path} cannot be read without running code from it, which is refused. If you trust it, convert it: "
            'safetensors.torch.save_file(model.state_dict(), "weights.safetensors")'
        ) from exc
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise InputError(f"{path} holds no state dict (names with tensors), but {type(content).__name__}")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}


def _refuse_what_is_no_weights(path: Path) -> None:
    """Raise an InputError for a file that plainly is something else: nothing, or the page that a server sent instead.

    Such a file would be called a damaged or dangerous one by what reads weights, and that misleads.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(_MARK_BYTES)
    except OSError as exc:
        raise InputError(f"{path} cannot be opened ({exc}): check that it may be read") from exc
    mend = "download the weights again, and look at what the address answers"
    if not start:
        raise InputError(f"{path} is empty: {mend}")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path} holds a web page in the place of weights: {mend}")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a pointer of Git LFS and not the weights: fetch them with `git lfs pull`")


def _refuse_zip_bomb(path: Path) -> None:
    """Raise an InputError for an archive whose parts are packed or overlap: torch writes them as they are.

    What such an archive unpacks to has no bound, and torch's reader sets none.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if is_packed or sum(part.file_size for part in parts) > path.stat().st_size:
        raise InputError(
            f"{path} is a packed archive, which torch never writes and which could unpack to any size: save the "
            "weights again with torch.save or safetensors"
        )


def _weights_path(teacher: TeacherParams) -> Path | None:
    if teacher.weights is None:
        return None
    try:
        path = Path(teacher.weights).expanduser()
        return path / WEIGHTS if path.is_dir() else path
    except (OSError, RuntimeError, ValueError) as exc:  # no such user, a name that is too long, …
        raise InputError(f"teacher.weights: {teacher.weights!r} is no path ({exc})") from exc


def teacher_card(teacher: TeacherParams) -> ModelCard:
    """Return the teacher's card: the parameters, completed by the card beside its weights where there is one.

    Raises:
        InputError: the weights are missing, neither parameters nor card say what the teacher is, or the card alone
            asks for code to be run.
    """
    weights = _weights_path(teacher)
    if weights is not None and not weights.is_file():
        raise InputError(f"teacher.weights: there is no file {weights} (edit parameters_teacher.yml)")
    beside = weights is not None and (weights.parent / CARD).is_file()
    known: dict[str, Any] = (
        json.loads(_read_card(weights.parent, ModelCard).model_dump_json()) if weights and beside else {}
    )
    if teacher.architecture is None and ":" in (factory := known.get("architecture", "")):
        raise InputError(
            f"teacher: the {CARD} beside {weights} names a factory of its own, {factory!r}. What comes with weights is "
            "not run: if you trust that code, set teacher.architecture to it (parameters_teacher.yml)"
        )
    given = teacher.model_dump(mode="json", exclude={"weights"}, exclude_none=True)
    if isinstance(teacher.classes, int):
        given["classes"] = [str(index) for index in range(teacher.classes)]
    if not given["architecture_options"] and known:
        del given["architecture_options"]
    merged = {**known, **given, "origin": {"weights": str(weights)} if weights else {"trained": "teacher_training"}}
    missing = [name for name in ("architecture", "classes", "input") if name not in merged]
    if missing:
        raise InputError(
            f"teacher: {', '.join(missing)} not given, and there is no {CARD} beside {weights}: set them in "
            "parameters_teacher.yml"
        )
    return ModelCard.model_validate(merged)


def input_contract(teacher: TeacherParams) -> tuple[InputSpec, tuple[str, ...]]:
    """Return what images the teacher expects and the names of its classes."""
    card = teacher_card(teacher)
    return card.input, card.classes


def new_teacher(teacher: TeacherParams) -> Model:
    """Return the teacher of the parameters: with its weights where they are given, else freshly initialised.

    Raises:
        InputError: the architecture, its taps or its weights cannot be used.
    """
    card = teacher_card(teacher)
    model = Model(_build(card, is_trained_here=teacher.weights is None), card)
    try:
        taps = model.extractor().taps
    except ValueError as exc:
        raise InputError(f"teacher.taps: {exc}") from exc
    weights = _weights_path(teacher)
    if weights is not None:
        load_weights(model.network, weights)
    return Model(model.network.eval(), card.model_copy(update={"taps": taps}))


def new_student(teacher: Model, architecture: str, options: Mapping[str, Any], origin: Mapping[str, Any]) -> Model:
    """Return a freshly initialised student with the teacher's classes and input.

    Raises:
        InputError: the architecture cannot be used.
    """
    return untrained(student_card(teacher.card, architecture, options, origin))


def student_card(
    teacher: ModelCard, architecture: str, options: Mapping[str, Any], origin: Mapping[str, Any]
) -> ModelCard:
    """Return the card of a student with the teacher's classes and input."""
    return teacher.model_copy(
        update={
            "architecture": architecture,
            "architecture_options": dict(options),
            "taps": None,
            "origin": dict(origin),
        }
    )


def untrained(card: ModelCard) -> Model:
    """Return the freshly initialised classifier of a card.

    Raises:
        InputError: the architecture cannot be used.
    """
    return Model(_build(card, is_trained_here=True), card)
