"""Cards: what a saved network is, beside its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.params.teacher import InputSpec

WEIGHTS, CARD = "weights.safetensors", "card.json"
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


def read_card(folder: Path, kind: type[Card]) -> Card:
    path = folder / CARD
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise InputError(f"{folder} is not a model folder: it has no {CARD}") from exc
    except (ValidationError, UnicodeDecodeError, OSError) as exc:
        raise InputError(
            f"{path} is not the card of a {kind.__name__.removesuffix('Card')}: {exc}"
        ) from exc
