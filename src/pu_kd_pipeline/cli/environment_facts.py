"""What a new environment's images are like, as far as a quick look shows."""

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
from pu_kd_pipeline.images.plan import IngestionPlan, choose_specification, plan_store
from pu_kd_pipeline.images.sources.registry import open_source
from pu_kd_pipeline.params.data_ingestion import DataIngestionParams, ImageSource
from pu_kd_pipeline.params.teacher import TeacherParams

if TYPE_CHECKING:
    from pu_kd_pipeline.images.decoding import RawImage

PARTS = ("labeled", "pool", "test")
_MAX_SAMPLE = 200  # images of each part that are decoded


@dataclass
class PartFacts:
    """The images of one store.

    Attributes:
        n_images: those that the sources select and that can be opened.
        n_listed: all that the sources have.
        n_per_class: images of each class of the teacher, by its number.
        n_other: images that are of none.
        faults: reason -> images that cannot be used, of all that can be listed.
        passed_over: reason -> files that are no images of the sources.
        n_sampled: images that were decoded.
        unusable: reason -> images of the sample that cannot be decoded.
        sizes: (width, height) of the images of the sample.
        formats: format -> images of the sample.
    """

    n_images: int
    n_listed: int
    n_per_class: Counter[int]
    n_other: int
    faults: Counter[str]
    passed_over: Counter[str]
    n_sampled: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    formats: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class FoundLabels:
    """The classes that the labels of images suggest.

    Attributes:
        classes: their names in order, or their number.
        order: how they are ordered, for the user.
    """

    classes: list[str] | int
    order: str


# --- labels ---------------------------------------------------------------------------------------


def labels_of(sources: Sequence[dict[str, Any]]) -> FoundLabels | None:
    """Return the labels of sources in the order of a teacher that was trained on such files.

    Names next to numbers that count them from 0 are in the order of the numbers, others are sorted.

    Raises:
        InputError: a source cannot be listed.
    """
    labels = _distinct_labels(sources)
    names = labels["label_name"].dropna().unique().tolist()
    if names:
        counted = _names_in_order_of_numbers(labels)
        if sorted(counted) == sorted(names):
            return FoundLabels(counted, "in the order of their numbers")
        order = "in sorted order, as torchvision's ImageFolder counts them"
        return FoundLabels(sorted(names), order)

    numbers = labels["label"].dropna()
    if len(numbers) and numbers.min() >= 0:
        n_classes = int(numbers.max()) + 1
        return FoundLabels(n_classes, "which have no names, only numbers")
    return None


def _distinct_labels(sources: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return every pair of `label` and `label_name` that images have; blank names are missing."""
    listings = []
    for block in sources:
        # All its images: keys that select some of them by their class need the classes.
        source = ImageSource(type=block["type"], path=block["path"], labels="classes")
        listing = open_source(source, seed=0).listing()
        listings.append(listing[["label", "label_name"]])
    labels = pd.concat(listings).drop_duplicates()
    names = labels["label_name"]
    stripped = names.fillna("").str.strip()
    is_blank = stripped == ""
    return labels.assign(label_name=names.mask(is_blank))


def _names_in_order_of_numbers(labels: pd.DataFrame) -> list[str]:
    """Return the names by their numbers, if these count 0, 1, 2, …; otherwise none."""
    pairs = labels.dropna().drop_duplicates().sort_values("label")
    numbers = pairs["label"].tolist()
    if numbers != list(range(len(pairs))):
        return []
    names: list[str] = pairs["label_name"].tolist()
    return names


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
    is_relevant = table["relevant"].fillna(False)
    if not is_relevant.any():
        return "no image has a label that is a class of the teacher"
    return ""


# --- images ---------------------------------------------------------------------------------------


def look_at_images(part: str, ingestion: DataIngestionParams, teacher: TeacherParams) -> PartFacts:
    """Return what the images of a part are like; a sample of them is decoded as a run does.

    Raises:
        InputError: a source cannot be used.
    """
    plan = plan_store(part, getattr(ingestion, part), ingestion, teacher)
    table, readers = list_images(plan)
    facts = _counted(table, readers)
    usable = table[table["fault"].isna()]
    sample = _sample(usable)
    decoder = _decoder(plan, len(table))
    _decode(sample, readers, decoder, plan.store.n_workers, facts)
    return facts


def _counted(table: pd.DataFrame, readers: Sequence[Reader]) -> PartFacts:
    is_faulty = table["fault"].notna()
    labels = table.loc[~is_faulty, "label"]
    is_of_no_class = labels.isna()
    classes = labels[~is_of_no_class].astype(int)

    n_listed = 0
    passed_over: Counter[str] = Counter()
    for reader in readers:
        n_listed += len(reader.listing)
        passed_over.update(reader.report.passed_over)
    return PartFacts(
        n_images=len(labels),
        n_listed=n_listed,
        n_per_class=Counter(classes.tolist()),
        n_other=int(is_of_no_class.sum()),
        faults=Counter(table.loc[is_faulty, "fault"]),
        passed_over=passed_over,
    )


def _sample(usable: pd.DataFrame) -> pd.DataFrame:
    """Return rows that are spread over a part, in order: sources often are sorted by class."""
    n_usable = len(usable)
    n_sampled = min(_MAX_SAMPLE, n_usable)
    places = np.linspace(0, n_usable - 1, n_sampled)
    positions = places.round().astype(int)
    return usable.iloc[positions]


def _decoder(plan: IngestionPlan, n_images: int) -> Decoder:
    """Return the decoder of a store that a run makes of the plan."""
    # The maker decides which finished shards are kept, and has no effect on pixels.
    specification = choose_specification(plan, n_images, maker="")
    return Decoder.of(specification)


def _decode(
    sample: pd.DataFrame,
    readers: list[Reader],
    decoder: Decoder,
    n_workers: int,
    facts: PartFacts,
) -> None:
    """Decode a sample, and add to the facts what it shows."""
    facts.n_sampled = len(sample)
    raws = read_images(sample, readers)
    for raw, pixels in decoder.decode_all(raws, n_workers):
        if isinstance(pixels, Unusable):
            reason = str(pixels.reason)
            facts.unusable[reason] += 1
            continue
        image_format, size = _format_and_size(raw)
        facts.formats[image_format] += 1
        facts.sizes.append(size)


def _format_and_size(raw: RawImage | Unusable) -> tuple[str, tuple[int, int]]:
    """Return the format, and width and height, of an image that can be decoded."""
    from PIL import Image

    if isinstance(raw, bytes):
        with Image.open(BytesIO(raw)) as image:
            return str(image.format), image.size
    if isinstance(raw, np.ndarray):
        height, width = raw.shape[:2]
        return "array", (width, height)
    assert isinstance(raw, Image.Image)
    return str(raw.format or "array"), raw.size
