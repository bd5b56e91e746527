"""Networks with their cards, in memory and on disk."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.cards import CARD, WEIGHTS, ModelCard, PUClassifierCard, read_card
from pu_kd_pipeline.models.weights import load_weights, save_weights, tensor_bytes
from pu_kd_pipeline.params.teacher import OutputSpec
from pu_kd_pipeline.storage.atomic import replacing_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pu_kd_pipeline.learning.features import FeatureExtractor
    from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A classifier with its card.

    `network`, in eval mode, maps normalized (N, C, H, W) float32 images to (N, K) logits.
    """

    network: nn.Module
    card: ModelCard

    @property
    def n_classes(self) -> int:
        """K."""
        return len(self.card.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one input image."""
        spec = self.card.input
        return (spec.channels, spec.size_px, spec.size_px)

    def extractor(self, device: Any = "cpu") -> FeatureExtractor:
        """Return the network with its taps, on a device and in eval mode.

        Raises:
            InputError: a tap is not a layer whose output can be pooled, or the list of taps is
                empty.
        """
        from pu_kd_pipeline.learning.features import FeatureExtractor

        if self.card.taps is not None and not self.card.taps:
            raise InputError(
                "no layer is named: name one, or take the network's defaults with null"
            )
        try:
            taps = FeatureExtractor(self.network.to(device), self.card.taps, self.image_shape)
        except ValueError as exc:
            raise InputError(str(exc)) from exc
        extractor: FeatureExtractor = taps.eval()
        return extractor

    def fingerprint(self) -> str:
        """Return a hash of the weights and the card."""
        return _fingerprint(self.network, self.card)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle card and weights: networks may hold functions that cannot be pickled."""
        return _model_of, (self.card, _cpu_state(self.network))


@dataclass(frozen=True)
class PUClassifier:
    """A trained PU classifier with its card.

    `module` is a head that reads cached features, or head and backbone in one.
    """

    module: PUHead | FullPUClassifier
    card: PUClassifierCard

    def fingerprint(self) -> str:
        """Return a hash of the weights and the card."""
        return _fingerprint(self.module, self.card)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle card and weights: networks may hold functions that cannot be pickled."""
        return _classifier_of, (self.card, _cpu_state(self.module))


def _model_of(card: ModelCard, state: dict[str, Tensor]) -> Model:
    # Of this process: where a factory has other code, the fingerprint is another one.
    card = card.with_current_code()
    network = build_from_card(card)
    network.load_state_dict(state)
    return Model(network.eval(), card)


def _classifier_of(card: PUClassifierCard, state: dict[str, Tensor]) -> PUClassifier:
    card = card.model_copy(update={"teacher": card.teacher.with_current_code()})
    module = build_pu_module(card)
    module.load_state_dict(state)
    return PUClassifier(module.eval(), card)


def _fingerprint(network: nn.Module, card: BaseModel) -> str:
    digest = hashlib.sha256(card.model_dump_json().encode())
    # Sorted: the hash must not depend on the order in which a network registers its layers.
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def save_model(model: Model | PUClassifier, folder: Path) -> None:
    """Write a model folder, completely or not at all."""
    network = model.network if isinstance(model, Model) else model.module
    state = _cpu_state(network)
    with replacing_folder(folder) as temporary:
        save_weights(state, temporary / WEIGHTS)
        card = model.card.model_dump_json(indent=2)
        (temporary / CARD).write_text(card + "\n")


def _cpu_state(network: nn.Module) -> dict[str, Tensor]:
    state = {}
    for name, tensor in network.state_dict().items():
        # Cloned: safetensors refuses tensors that share memory, as tied weights do.
        state[name] = tensor.detach().cpu().contiguous().clone()
    return state


def load_model(folder: Path | str) -> Model:
    """Return the classifier of a model folder, on the CPU and in eval mode.

    Raises:
        InputError: the folder does not hold a model, or the weights do not fit the card.
    """
    folder = Path(folder)
    card = _with_current_code(read_card(folder, ModelCard), folder)
    network = build_from_card(card)
    load_weights(network, folder / WEIGHTS)
    return Model(network.eval(), card)


def load_pu_classifier(folder: Path | str) -> PUClassifier:
    """Return the PU classifier of a model folder, on the CPU and in eval mode.

    Raises:
        InputError: the folder does not hold a PU classifier, or the weights do not fit the card.
    """
    folder = Path(folder)
    card = read_card(folder, PUClassifierCard)
    teacher = _with_current_code(card.teacher, folder)
    card = card.model_copy(update={"teacher": teacher})
    module = build_pu_module(card)
    load_weights(module, folder / WEIGHTS)
    return PUClassifier(module.eval(), card)


def _with_current_code(card: ModelCard, folder: Path) -> ModelCard:
    """Return the card as it is with the factory's code of now, which makes the network.

    So its fingerprint, and with it the names of features, tell of a changed forward pass.
    """
    current = card.with_current_code()
    if card.factory_code not in (None, current.factory_code):
        logger.warning(
            "%s: the code of %s has changed since this model was saved, and may compute something "
            "else from the same weights",
            folder,
            card.architecture,
        )
    return current


def build_pu_module(card: PUClassifierCard) -> PUHead | FullPUClassifier:
    """Return the untrained module that a PU classifier's card describes."""
    from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, make_head

    try:
        head = make_head(card.descriptor_size, card.features, card.attention_reduction)
    except Exception as exc:
        raise InputError(
            f"there is no PU classifier as its card describes ({exc}): train it again"
        ) from exc
    if card.backbone == "frozen":
        return head
    backbone = Model(build_from_card(card.teacher), card.teacher)
    return FullPUClassifier(backbone.extractor(), head)


def build_from_card(card: ModelCard, *, is_trained_here: bool = False) -> nn.Module:
    """Return the freshly initialized network that a card describes; it returns logits.

    Args:
        card: the description.
        is_trained_here: check that the network can also be trained, and not only used.

    Raises:
        InputError: the network cannot be built, or does not do what a classifier must.
    """
    from pu_kd_pipeline.learning.networks.build import build_network
    from pu_kd_pipeline.learning.networks.checks import check_network, check_training
    from pu_kd_pipeline.learning.networks.outputs import check_output_kind, convert_output

    n_classes = len(card.classes)
    channels = card.input.channels
    size_px = card.input.size_px
    output = card.output or OutputSpec()
    try:
        network = build_network(card.architecture, n_classes, channels, card.architecture_options)
        check_output_kind(network, output.key, output.kind, channels, size_px)
        if card.output is not None:
            convert_output(network, output.key, output.kind)
        check_network(network, n_classes, channels, size_px)
        if is_trained_here:
            check_training(network, n_classes, channels, size_px)
    # Of any kind: a card or a parameter may also ask for more memory than there is.
    except Exception as exc:
        message = str(exc) or type(exc).__name__
        # Torch appends the C++ stack of its own errors.
        reason, _, _ = message.partition("\nException raised from")
        raise InputError(reason) from exc
    return network
