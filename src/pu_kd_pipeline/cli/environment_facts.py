"""What a new environment's images and teacher are like, as far as a quick look shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Decoder, Unusable
from pu_kd_pipeline.images.ingestion import read_images
from pu_kd_pipeline.images.listing import Reader, list_images
from pu_kd_pipeline.images.plan import IngestionPlan, plan_store
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams, ImageSource
from pu_kd_pipeline.params.teacher import TeacherParams

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage

PARTS = ("labeled", "pool", "test")
_MAX_SAMPLE = 200  # images of each part that are decoded
_BATCH = 32


@dataclass
class PartFacts:
    """The images of one store.

    Attributes:
        n_images: those that the sources select and that can be opened.
        n_listed: all that the sources have.
        n_per_class: images of each class of the teacher, by its number.
        n_other: images that are of none.
        faults: reason -> images that cannot be used, of all that can be listed.
        n_sampled: images that were decoded.
        unusable: reason -> images of the sample that cannot be decoded.
        sizes: (width, height) of the images of the sample.
        formats: format -> images of the sample.
        passed_over: reason -> files that are no images of the sources.
    """

    n_images: int
    n_listed: int
    n_per_class: Counter[int]
    n_other: int
    faults: Counter[str]
    n_sampled: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class FoundLabels:
    """The classes that the labels of images suggest.

    Attributes:
        classes: their names in order, or their number.
        order: how they are ordered, for the user.
    """

    classes: list[str] | int
    order: str


@dataclass(frozen=True)
class TeacherFacts:
    """How many of some labeled images the teacher classifies as they are labeled."""

    n_correct: int
    n_images: int


def labels_of(sources: Sequence[dict[str, Any]]) -> FoundLabels | None:
    """Return the labels of sources in the order of a teacher that was trained on such files.

    Names next to numbers that count them from 0 are in the order of the numbers, others are sorted.

    Raises:
        InputError: a source cannot be listed.
    """
    listings = []
    for block in sources:
        source = ImageSource.model_validate({**block, "labels": "ignore"})
        listing = open_source(source, seed=0).listing()
        listings.append(listing[["label", "label_name"]])
    labels = pd.concat(listings).drop_duplicates()
    labels["label_name"] = labels["label_name"].where(labels["label_name"].str.strip() != "")
    numbers = sorted(labels["label"].dropna().unique().tolist())
    names = sorted(labels["label_name"].dropna().unique().tolist())
    if names:
        numbered = labels.dropna().drop_duplicates().sort_values("label")
        in_order = numbered["label_name"].tolist()
        is_count = numbered["label"].tolist() == list(range(len(names)))
        if is_count and sorted(in_order) == names:
            return FoundLabels(in_order, "in the order of their numbers")
        return FoundLabels(names, "in sorted order, as torchvision's ImageFolder counts them")
    if numbers and numbers[0] >= 0:
        return FoundLabels(numbers[-1] + 1, "which have no names, only numbers")
    return None


def why_no_truth(
    block: dict[str, Any], ingestion: DataIngestionParams, teacher: TeacherParams
) -> str:
    """Return why the labels of a pool cannot tell which images are relevant; empty if they can."""
    source = ImageSource.model_validate({**block, "labels": "truth"})
    plan = plan_store("pool", (source,), ingestion, teacher)
    try:
        table, _ = list_images(plan)
    except InputError as exc:
        return str(exc)
    if not (table["relevant"].fillna(False)).any():
        return "no image has a label that is a class of the teacher"
    return ""


def look_at_images(
    part: str, ingestion: DataIngestionParams, teacher: TeacherParams, model: Model
) -> tuple[PartFacts, TeacherFacts | None]:
    """Return what the images of a part are like, and how well the teacher knows them.

    A sample is decoded. The second value is None for a pool, and without labels.

    Raises:
        InputError: a source cannot be used.
    """
    plan = plan_store(part, getattr(ingestion, part), ingestion, teacher)
    table, readers = list_images(plan)
    facts = _counted(table, readers)
    usable = table[table["fault"].isna()]
    sample = _sample(usable)
    pixels = _decode(sample, readers, plan, facts)
    known = None
    if part == "labeled":
        known = _accuracy(model, sample, pixels)
    return facts, known


def _counted(table: pd.DataFrame, readers: Sequence[Reader]) -> PartFacts:
    is_faulty = table["fault"].notna()
    usable = table[~is_faulty]
    labels = usable["label"].dropna().astype(int)
    passed_over: Counter[str] = Counter()
    for reader in readers:
        passed_over.update(reader.report.passed_over)
    return PartFacts(
        n_images=len(usable),
        n_listed=sum(len(reader.listing) for reader in readers),
        n_per_class=Counter(labels.tolist()),
        n_other=int(usable["label"].isna().sum()),
        faults=Counter(table.loc[is_faulty, "fault"]),
        passed_over=passed_over,
    )


def _sample(usable: pd.DataFrame) -> pd.DataFrame:
    """Return rows that are spread over a part, in order: sources often are sorted by class."""
    n_sampled = min(_MAX_SAMPLE, len(usable))
    positions = np.linspace(0, len(usable) - 1, n_sampled).round().astype(int)
    return usable.iloc[positions]


def _decode(
    sample: pd.DataFrame, readers: list[Reader], plan: IngestionPlan, facts: PartFacts
) -> list[np.ndarray | Unusable]:
    decoder = Decoder(plan.channels, plan.size_px, plan.store.max_image_pixels)
    raws = read_images(sample, readers)
    found = []
    for raw, pixels in decoder.decode_all(raws, plan.store.n_workers):
        found.append(pixels)
        if isinstance(pixels, Unusable):
            facts.unusable[str(pixels.reason)] += 1
        else:
            image_format, size = _format_and_size(raw)
            facts.formats[image_format] += 1
            facts.sizes.append(size)
    facts.n_sampled = len(found)
    return found


def _format_and_size(raw: RawImage | Unusable) -> tuple[str, tuple[int, int]]:
    """Return the format, and width and height, of an image that can be decoded."""
    from PIL import Image

    if isinstance(raw, bytes):
        with Image.open(BytesIO(raw)) as image:
            return str(image.format), image.size
    if isinstance(raw, np.ndarray):
        return "array", (raw.shape[1], raw.shape[0])
    assert isinstance(raw, Image.Image)
    return str(raw.format or "array"), raw.size


def _accuracy(
    model: Model, sample: pd.DataFrame, pixels: Sequence[np.ndarray | Unusable]
) -> TeacherFacts | None:
    import torch

    from pu_kd_pipeline.images.batches import normalization

    images = []
    labels = []
    for label, decoded in zip(sample["label"], pixels, strict=True):
        if not isinstance(decoded, Unusable) and pd.notna(label):
            images.append(decoded)
            labels.append(int(label))
    if not images:
        return None
    normalize = normalization(model, torch.device("cpu"))
    n_correct = 0
    for start in range(0, len(images), _BATCH):
        batch = torch.from_numpy(np.stack(images[start : start + _BATCH]))
        with torch.inference_mode():
            predicted = model.network(normalize(batch)).argmax(dim=1)
        expected = torch.tensor(labels[start : start + _BATCH])
        n_correct += int((predicted == expected).sum())
    return TeacherFacts(n_correct, len(images))
