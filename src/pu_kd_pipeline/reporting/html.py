"""The report of a run: one HTML page that needs nothing else, and the sentences in it.

The page has its style and its figures inside, runs no script and asks the network for nothing. What the figures show is
`figures`'s business, the tables are those of `summary`; here is how the page reads. Equal inputs give an equal page.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline import __version__
from pu_kd_pipeline.learning.class_prior.methods import method_title
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.reporting.style import percent, points
from pu_kd_pipeline.reporting.summary import model_rows, selection_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.jinja"
FIGURE_DPI = 150
CONFIDENCE_95 = 1.96  # standard errors on either side
NOT_OF_THE_METHOD = ("data",)  # parameters that say where files are, not what was computed

CAPTIONS = {
    "score_histogram": "What the PU classifier says of every pool image, more like the positives to the right. "
    "The truth, where the pool knows it, is used here and never for the selection.",
    "contact_sheet": "The best should belong, the worst should not, and the borderline shows what the cut costs.",
    "per_class_accuracy_plot": "Test accuracy class by class: the further the student lies from its teacher, the more "
    "it lost there.",
    "distillation_curves": "Each student is watched on its own images, so the curves show how it settles; only the "
    "test images compare the two.",
    "pu_curves": "The negative part falls below zero when the classifier starts to overfit; ascent steps push it back.",
    "class_weights_plot": "Classes that the selection brings in small numbers weigh more, within the stated clip.",
}
"""Figures by catalog name, in the order of the page."""


def render_report(
    title: str,
    metrics: Mapping[str, Any],
    ingestion_report: Mapping[str, Any],
    class_prior: Mapping[str, Any],
    selection_facts: Mapping[str, Any],
    figures: Mapping[str, Figure],
    parameters: Mapping[str, Any],
) -> str:
    """Return the page.

    Args:
        title: of the page.
        metrics: as `evaluation` writes them; without `random_student` the page says that selection was not compared.
        ingestion_report: facts on each image store, `quarantined` counts by reason among them.
        class_prior: as `pu_training` writes it.
        selection_facts: the manifest's attrs.
        figures: by catalog name, see `CAPTIONS`.
        parameters: all parameters of the run, nested.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    )
    own = {key: value for key, value in parameters.items() if key not in NOT_OF_THE_METHOD}
    return template.render(
        title=title,
        findings=findings(metrics),
        tiles=_tiles(metrics),
        models=model_rows(metrics),
        selection=[*selection_rows(metrics), *_selection_details(class_prior, selection_facts)],
        figures=[_embedded(name, figures[name]) for name in CAPTIONS if name in figures],
        stores=_store_rows(ingestion_report),
        duplicates=_duplicates(ingestion_report, selection_facts),
        parameters=[(key, "–" if value is None else str(value)) for key, value in flatten(own)],
        fingerprints=selection_facts.get("fingerprints") or {},
        version=__version__,
    )


def findings(metrics: Mapping[str, Any]) -> list[str]:
    """Return what the run found, in three sentences or so: the student, what selection was worth, how sure that is."""
    student, teacher = metrics["student"], metrics["teacher"]
    loss = 100 * (student["accuracy"] - teacher["accuracy"])
    stands = f"{_size(loss)} {'below' if loss < 0 else 'above'}" if round(loss, 1) else "as many as"
    sentence = (
        f"The student gets {percent(student['accuracy'])} of the test images right, {stands} its teacher "
        f"({percent(teacher['accuracy'])}), with {_ratio(teacher['parameters'], student['parameters'])} parameters."
    )
    if student.get("agreement") is not None:
        sentence += f" It gives the teacher's answer on {percent(student['agreement'])} of them."
    return [sentence, _worth_of_selection(metrics), *_certainty(metrics)]


def _worth_of_selection(metrics: Mapping[str, Any]) -> str:
    gain = metrics.get("selection", {}).get("gain")
    if gain is None or not metrics.get("random_student"):
        return "No student was distilled from random images in this run: it cannot say what the selection was worth."
    control = (
        f"a student distilled in the same way from as many random pool images reaches "
        f"{percent(metrics['random_student']['accuracy'])}."
    )
    if round(100 * gain, 1) == 0:
        return f"Selection was worth nothing here: {control}"
    if gain < 0:
        return f"Selection cost {_size(100 * gain)} here: {control}"
    return f"Selection was worth {_size(100 * gain)}: {control}"


def _certainty(metrics: Mapping[str, Any]) -> list[str]:
    """Return how far chance alone moves the gain: the 95 % interval of a difference of two independent shares."""
    n_test, gain = metrics.get("n_test"), metrics.get("selection", {}).get("gain")
    if not n_test or gain is None or not metrics.get("random_student"):
        return []
    shares = [metrics[name]["accuracy"] for name in ("student", "random_student")]
    chance = 100 * CONFIDENCE_95 * math.sqrt(sum(share * (1 - share) for share in shares) / n_test)
    scatter = f"drawing {n_test:,} test images moves such a difference by up to ±{chance:.1f} points (95 %)"
    verdict = f"That is {'more' if abs(100 * gain) > chance else 'no more'} than chance explains: {scatter}."
    if round(100 * gain, 1) == 0:
        verdict = f"Mind that {scatter}."
    return [f"{verdict} It is also one run: repeat it with other seeds before relying on it."]


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the few numbers at the head of the page: name, value, and the role whose color it bears."""
    student, teacher = metrics["student"], metrics["teacher"]
    tiles = [
        {"name": "student accuracy", "value": percent(student["accuracy"]), "role": "student"},
        {"name": "teacher accuracy", "value": percent(teacher["accuracy"]), "role": "teacher"},
    ]
    gain = metrics.get("selection", {}).get("gain")
    if gain is not None and metrics.get("random_student"):
        tiles.append({"name": "selection gain", "value": points(100 * gain), "role": "random"})
    smaller = f"{teacher['size_bytes'] / student['size_bytes']:.1f} ×"
    return [*tiles, {"name": "smaller weights", "value": smaller, "role": "teacher"}]


def _selection_details(class_prior: Mapping[str, Any], facts: Mapping[str, Any]) -> list[list[str]]:
    method, level = class_prior.get("method"), class_prior.get("level")
    how = method_title(str(method)) if method not in (None, "given") else "given, not estimated"
    if level is not None:
        how += f", {percent(level, 0)} interval"
    if class_prior.get("n_positive") is not None and method != "given":
        how += f", from {class_prior['n_positive']:,} positives and {class_prior['n_unlabeled']:,} unlabeled"
    rows = [["class prior by", how]]
    if class_prior.get("note"):
        rows.append(["mind", str(class_prior["note"])])
    if facts.get("threshold") is not None:
        rows.append(["threshold", f"{facts['threshold']:.4g}".replace("-", "−")])
    if facts.get("estimated_precision") is not None:
        rows.append(
            ["precision, estimated without the truth", percent(facts["estimated_precision"])]
        )
    if facts.get("n_labeled") is not None:
        rows.append(["labeled images kept", f"{facts['n_labeled']:,}"])
    return rows


def _store_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and one row an image store: how many images, from where, of what form, and what was refused."""
    rows = [["", "images", "sources", "form", "refused"]]
    for name, facts in report.items():
        if isinstance(facts, Mapping) and "n_images" in facts:
            reasons = _counted(facts.get("quarantined") or {})
            form = f"{facts['size_px']} × {facts['size_px']} px, {'gray' if facts['channels'] == 1 else 'color'}"
            refused = f"{facts.get('n_quarantined', 0):,}" + (f" ({reasons})" if reasons else "")
            images = f"{facts['n_images']:,}"
            rows.append(
                [
                    name.replace("_", " "),
                    images,
                    _counted(facts.get("n_per_source") or {}),
                    form,
                    refused,
                ]
            )
    return rows


def _duplicates(report: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return what is known about images that are in two stores, above all about copies of test images."""
    found = report.get("duplicates")
    if not found:
        return []
    texts: list[str] = []
    of_test: set[str] = set()
    for names, counts in found.items():
        store, _, other = names.partition(" and ")
        if any(counts.values()):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in counts.items() if count)
            texts.append(
                f"Copies of {_named(other)} images among the {_named(store)} images: {kinds}."
            )
            if other == "test":
                of_test.add(store)
    if not of_test:
        return [*texts, "No image is a copy of a test image."]
    if of_test & {"pool", "labeled"}:
        is_clean = facts.get("exclude_test_duplicates") is True
        texts.append(
            "No student learned from these copies of test images: they were left out of what was selected."
            if is_clean
            else "The students may have learned from copies of test images: do not trust their accuracy."
        )
    if "teacher_training" in of_test:
        texts.append(
            "The teacher may have learned from copies of test images: its own accuracy is somewhat too good."
        )
    return texts


def _named(store: str) -> str:
    return "teacher's training" if store == "teacher_training" else store


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _size(difference_points: float) -> str:
    return f"{abs(difference_points):.1f} points"


def _ratio(larger: float, smaller: float) -> str:
    ratio = larger / smaller
    if 0.95 <= ratio <= 1.05:
        return "as many"
    return f"{ratio:.1f} times fewer" if ratio > 1 else f"{1 / ratio:.1f} times more"


def _embedded(name: str, figure: Figure) -> dict[str, str]:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI, metadata={"Software": None})
    texts = [text.get_text() for text in figure.texts]
    return {
        "name": name,
        "kind": "photos" if name == "contact_sheet" else "chart",
        "alt": ". ".join(
            [
                figure.get_suptitle(),
                *(text for text in texts if text and text != figure.get_suptitle()),
            ]
        ),
        "caption": CAPTIONS[name],
        "png": base64.b64encode(buffer.getvalue()).decode(),
    }
