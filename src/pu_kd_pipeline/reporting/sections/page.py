"""All sections of a run's report, built from what the run saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline.images.pictures import SMALL_PX
from pu_kd_pipeline.reporting.sections.album import LABELED, POOL, TEST, Album, Strip
from pu_kd_pipeline.reporting.sections.classes import (
    SortableTable,
    accuracy_table,
    balance_table,
)
from pu_kd_pipeline.reporting.sections.confusion import Confusion, confusion_of
from pu_kd_pipeline.reporting.sections.curves import CurveGroup, pu_curves, student_curves
from pu_kd_pipeline.reporting.sections.cut import Cut, cut_of
from pu_kd_pipeline.reporting.sections.gallery import (
    Gallery,
    counts_by_class,
    ranking,
    selected_by_class,
)
from pu_kd_pipeline.reporting.sections.origin import Origin, origin_of
from pu_kd_pipeline.reporting.sections.pool import Pool
from pu_kd_pipeline.reporting.sections.prior import Prior, prior_of
from pu_kd_pipeline.reporting.sections.quarantine import Refused, quarantine_of
from pu_kd_pipeline.reporting.summary import MODEL_TITLES

if TYPE_CHECKING:
    from pu_kd_pipeline.models.model import Model
    from pu_kd_pipeline.reporting.figures import RunResults


@dataclass
class Pictures:
    """The pictures of a page; each has its content once, where it is shown first."""

    sources: Sequence[str]
    _used: set[int] = field(default_factory=set)

    def first_use(self, number: int) -> str | None:
        """Return the content of a picture, and None if the page has it already."""
        if number in self._used:
            return None
        self._used.add(number)
        return self.sources[number]


@dataclass
class Sections:
    """What the template shows; a section of which a run knows nothing is None or empty."""

    origin: Origin
    pictures: Pictures = field(default_factory=lambda: Pictures([]))
    facts: list[list[tuple[str, str]]] = field(default_factory=list)
    """Of each picture: names and texts."""
    has_truth: bool = False
    gallery: Gallery | None = None
    ranking: list[Strip] = field(default_factory=list)
    cut: Cut | None = None
    balance: SortableTable | None = None
    weights_note: str | None = None
    prior: Prior | None = None
    accuracy: SortableTable | None = None
    confusion: Confusion | None = None
    curves: list[CurveGroup] = field(default_factory=list)
    refused: list[Refused] | None = None
    replaced: frozenset[str] = frozenset()
    """Names of figures that sections show in another form."""

    def data(self) -> dict[str, Any]:
        """Return what the script of the page reads."""
        cut = None
        if self.cut is not None:
            cut = asdict(self.cut)
            del cut["bins"]
        return {"facts": self.facts, "cut": cut, "small_px": SMALL_PX}


def sections_of(
    results: RunResults, student: Model, parameters: Mapping[str, Any], pipeline: str = "full"
) -> Sections:
    """Return the sections of a run of the pipeline `full`; only images that are shown are read.

    Args:
        results: what the run saved.
        student: the saved student.
        parameters: blocks of parameters by name.
        pipeline: name of the pipeline.
    """
    names = results.class_names
    manifest = results.manifest
    album = Album()
    pool = Pool.of(
        results.pool_scores, manifest, results.pool_images, names, results.excluded.all_pool
    )
    stores = {
        POOL: results.pool_images,
        LABELED: results.labeled_images,
        TEST: results.test_images,
    }
    origin = origin_of(results.certificate, parameters, pipeline, manifest, student)
    sections = Sections(origin, has_truth=pool.has_truth)
    sections.gallery = selected_by_class(pool, manifest, results.labeled_images, album)
    rule = manifest.attrs.get("rule")
    sections.ranking = ranking(pool, rule, results.contact_sheet_images, album)
    sections.cut = cut_of(pool)
    counts = counts_by_class(pool, manifest, results.labeled_images)
    weights = results.class_weights if results.reads_class_weights else None
    sections.balance = balance_table(counts, names, weights, is_uneven=pool.is_uneven)
    if weights is None:
        sections.weights_note = "The objective of this student reads no class weights."
    sections.prior = prior_of(results.class_prior, results.metrics)
    sections.accuracy = accuracy_table(results.metrics, names)
    sections.confusion = confusion_of(results.test_predictions, names, album)
    of_students = student_curves(
        {
            MODEL_TITLES["random_student"]: ("random", results.random_distillation_history),
            MODEL_TITLES["student"]: ("student", results.distillation_history),
        }
    )
    groups = [of_students, pu_curves(results.pu_history)]
    sections.curves = [group for group in groups if group is not None]
    sections.refused = quarantine_of({f"{name} images": store for name, store in stores.items()})
    sections.pictures = Pictures(album.pictures(stores))
    # After the images were found, which adds their sources.
    sections.facts = album.facts()
    sections.replaced = frozenset(
        {
            "score_histogram",
            "contact_sheet",
            "per_class_accuracy_plot",
            "distillation_curves",
            "pu_curves",
            "class_weights_plot",
        }
    )
    return sections
