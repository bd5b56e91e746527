"""Networks with their cards, in memory and on disk."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.models.cards import CARD, WEIGHTS, ModelCard, PUClassifierCard, read_card
from pu_kd_pipeline.models.weights import load_weights
from pu_kd_pipeline.storage.atomic import replacing_folder

if TYPE_CHECKING:
    from torch import nn

    from pu_kd_pipeline.learning.features import FeatureExtractor
    from pu_kd_pipeline.learning.pu_classifier import FullPUClassifier, PUHead


@dataclass(frozen=True)
class Model:
    """A classifier: `network` maps normalized (N, C, H, W) float32 images to (N, K) logits, in eval mode."""

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
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in network.state_dict().items()
    }
    with replacing_folder(folder) as temporary:
        save_file(state, temporary / WEIGHTS)
        (temporary / CARD).write_text(model.card.model_dump_json(indent=2) + "\n")


def load_model(folder: Path | str) -> Model:
    """Return the classifier of a model folder, on the CPU and in eval mode.

    Raises:
        InputError: the folder holds no model, or the weights do not fit the card.
    """
    folder = Path(folder)
    card = read_card(folder, ModelCard)
    network = build_network_of_card(card)
    load_weights(network, folder / WEIGHTS)
    return Model(network.eval(), card)


def load_pu_classifier(folder: Path | str) -> PUClassifier:
    """Return the PU classifier of a model folder, on the CPU and in eval mode.

    Raises:
        InputError: the folder holds no PU classifier, or the weights do not fit the card.
    """
    folder = Path(folder)
    card = read_card(folder, PUClassifierCard)
    module = build_pu_module(card)
    load_weights(module, folder / WEIGHTS)
    return PUClassifier(module.eval(), card)


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
    return FullPUClassifier(
        Model(build_network_of_card(card.teacher), card.teacher).extractor(), head
    )


def build_network_of_card(card: ModelCard, *, is_trained_here: bool = False) -> nn.Module:
    from pu_kd_pipeline.learning.networks.build import build_network
    from pu_kd_pipeline.learning.networks.checks import check_network, check_training

    try:
        network = build_network(
            card.architecture, len(card.classes), card.input.channels, card.architecture_options
        )
        check_network(network, len(card.classes), card.input.channels, card.input.size_px)
        if is_trained_here:
            check_training(network, len(card.classes), card.input.channels, card.input.size_px)
    except (
        Exception
    ) as exc:  # memory that is not there, too, where a card or a parameter asks for a giant
        raise InputError(
            (str(exc) or type(exc).__name__).partition("\nException raised from")[0]
        ) from exc
    return network
