"""The HTML page that reports a run.

The page needs no other file and no network: style, script and pictures are embedded, and its policy
lets a browser run that script alone. Equal inputs and equal versions give an equal page.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Collection, Mapping
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from pu_kd_pipeline import __version__
from pu_kd_pipeline.images.pictures import SMALL_PX
from pu_kd_pipeline.images.resizing import input_text
from pu_kd_pipeline.learning.class_prior.methods import method_title
from pu_kd_pipeline.masking import masked_option, visible, without_credentials
from pu_kd_pipeline.params.flatten import flatten
from pu_kd_pipeline.params.pu_training import AUDIT
from pu_kd_pipeline.reporting.figures import REPORT_FIGURES, ReportFigure
from pu_kd_pipeline.reporting.findings import doubts_of, findings_of
from pu_kd_pipeline.reporting.gains import gain_of, gain_text, gain_title
from pu_kd_pipeline.reporting.sampling_rows import draw_rows, reason_rows
from pu_kd_pipeline.reporting.sections.origin import ENVIRONMENT
from pu_kd_pipeline.reporting.sections.page import Pictures, Sections
from pu_kd_pipeline.reporting.style import UNKNOWN, percent, points
from pu_kd_pipeline.reporting.summary import model_rows, selection_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_DPI = 150
_STUDENT_STORES = ("pool", "labeled")


def render_report(
    title: str,
    metrics: Mapping[str, Any],
    ingestion_report: Mapping[str, Any],
    class_prior: Mapping[str, Any],
    selection_facts: Mapping[str, Any],
    figures: Mapping[str, Figure],
    parameters: Mapping[str, Any],
    sections: Sections | None = None,
    student_stores: Collection[str] = _STUDENT_STORES,
) -> str:
    """Return the page as HTML.

    Args:
        title: heading of the page.
        metrics: result of the stage `evaluation`; without `random_student` the page reports no
            gain of the selection.
        ingestion_report: facts on each image store, with `quarantined` counts by reason.
        class_prior: result of the stage `pu_training`.
        selection_facts: attrs of the manifest.
        figures: figures by catalog name; those of `REPORT_FIGURES` are shown, in its order.
        parameters: blocks of parameters that the run used, by name.
        sections: what the page shows of images, classes and trainings; figures that these replace
            are not embedded. Without them the page has figures and tables alone.
        student_stores: names of the stores that students learned from.
    """
    shown = figures
    if sections is not None:
        shown = {name: plot for name, plot in figures.items() if name not in sections.replaced}
    selection = selection_rows(metrics) + _selection_details(class_prior, selection_facts)
    selection += draw_rows(metrics) + reason_rows(metrics)
    return render_page(
        "report.html.jinja",
        title=title,
        findings=findings_of(metrics),
        doubts=doubts_of(metrics) + (sections.origin.notes if sections else []),
        tiles=_tiles(metrics),
        models=model_rows(metrics),
        selection=selection,
        figures=_embedded_figures(shown),
        leads=_leads(figures),
        contents=_contents(sections),
        sections=_with_markup(sections),
        environment=ENVIRONMENT,
        **script_values(sections),
        stores=_store_rows(ingestion_report),
        duplicates=_duplicates(ingestion_report, selection_facts, student_stores),
        parameters=_parameter_rows(parameters),
        fingerprints=selection_facts.get("fingerprints") or {},
        version=__version__,
    )


def script_values(sections: Sections | None) -> dict[str, Any]:
    """Return the script of the page, the hash that its policy allows, and the data that it reads.

    Args:
        sections: see `render_report`.
    """
    script = _template("report.js")
    digest = hashlib.sha256(script.encode()).digest()
    data: dict[str, Any] = {"facts": [], "cut": None, "small_px": SMALL_PX}
    if sections is not None:
        data = sections.data()
    return {
        "script": script,
        "script_hash": base64.b64encode(digest).decode(),
        "data": _visible_tree(data),
    }


def _visible_tree(value: Any) -> Any:
    """Return nested values with the texts that the page may show, see `_visible_text`."""
    if isinstance(value, dict):
        return {key: _visible_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_visible_tree(inner) for inner in value]
    return _visible_text(value)


def _with_markup(sections: Sections | None) -> Sections | None:
    """Return the sections with pictures that need no escapes: base64 has no sign of HTML."""
    if sections is None:
        return None
    from markupsafe import Markup

    sources = [Markup(source) for source in sections.pictures.sources]
    return replace(sections, pictures=Pictures(sources))


def _contents(sections: Sections | None) -> list[tuple[str, str]]:
    """Return anchor and name of the sections that the page has, in its order."""
    named: list[tuple[str, str, Any]] = [
        ("models", "models", True),
        ("again", "make it again", True),
    ]
    if sections is not None:
        named = [
            ("selected", "selected images", sections.gallery),
            ("cut", "threshold", sections.cut or sections.ranking),
            ("balance", "class balance", sections.balance),
            ("prior", "class prior", sections.prior),
            ("models", "models", True),
            ("per-class", "accuracy by class", sections.accuracy),
            ("confusion", "confusions", sections.confusion),
            ("curves", "curves", sections.curves),
            ("images", "images", True),
            ("again", "make it again", True),
        ]
    return [(anchor, text) for anchor, text, has_section in named if has_section]


def _leads(figures: Mapping[str, Figure]) -> dict[str, str]:
    """Return finding and evidence of each figure in sentences, by name."""
    leads = {}
    for name, figure in figures.items():
        sentences = [text[:1].upper() + text[1:] for text in _texts(figure) if text]
        # Titles are wrapped for the figure, and not for the page.
        leads[name] = " ".join(" ".join(text.split()) + "." for text in sentences)
    return leads


def render_page(template: str, **values: Any) -> str:
    """Return a page as HTML.

    Args:
        template: name of a file in this package.
        values: what it shows.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    # Autoescape: titles, class names and source names come from users' files.
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible_text,
    )
    return environment.get_template(template).render(**values)


def _template(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _visible_text(value: Any) -> Any:
    """Return what the page shows of a value: no credentials, and no sign that hides others."""
    # Markup is a text that the template has made.
    if type(value) is str:
        return visible(without_credentials(value))
    return value


def _tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the numbers at the top of the page: name, value, and the role that colors them."""
    student = metrics["student"]
    teacher = metrics["teacher"]
    tiles = [
        {"name": "student accuracy", "value": percent(student["accuracy"]), "role": "student"},
        {"name": "teacher accuracy", "value": percent(teacher["accuracy"]), "role": "teacher"},
    ]
    gain = gain_of(metrics)
    title = gain_title(metrics)
    if title is not None and gain is not None:
        tile = {"name": title, "value": points(100 * gain), "role": "random"}
        _, _, interval = (gain_text(metrics) or "").partition(" (")
        tile["detail"] = interval.removesuffix(")")
        tiles.append(tile)
    elif title is not None and gain_text(metrics) is not None:
        # The first sentences of the page give the reason.
        tiles.append({"name": title, "value": "none", "role": "random"})
    size_ratio = teacher["size_bytes"] / student["size_bytes"]
    tiles.append({"name": "smaller weights", "value": f"{size_ratio:.1f} ×", "role": "teacher"})
    return tiles


# --- rows of the tables ---


def _selection_details(class_prior: Mapping[str, Any], facts: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of name and value on the selection that only the page shows."""
    rows = []
    # A student of the pool alone needs none.
    if class_prior:
        rows.append(["class prior by", _prior_source(class_prior)])
    if class_prior.get("note"):
        rows.append(["note", str(class_prior["note"])])
    # A rule without a cut, such as `random`, has no threshold.
    if facts.get("threshold") is not None:
        threshold = f"{facts['threshold']:.4g}".replace("-", "−")
        rows.append(["threshold", threshold])
    if facts.get("estimated_precision") is not None:
        precision = percent(facts["estimated_precision"])
        rows.append(["precision, estimated without the truth", precision])
    if facts.get("n_labeled") is not None:
        rows.append(["labeled images kept", f"{facts['n_labeled']:,}"])
    return rows


def _prior_source(class_prior: Mapping[str, Any]) -> str:
    """Return how the class prior was estimated: method, level of the interval, sample sizes."""
    method = class_prior.get("method")
    text = "given, not estimated"
    if method == AUDIT:
        text = "an audit of the pool"
    elif method not in (None, "given"):
        text = method_title(str(method))
    level = class_prior.get("level")
    if level is not None:
        text += f", {percent(level, 0)} interval"
    n_positive = class_prior.get("n_positive")
    if n_positive is not None and method not in ("given", AUDIT):
        n_unlabeled = class_prior["n_unlabeled"]
        text += f", from {n_positive:,} positives and {n_unlabeled:,} unlabeled"
    return text


def _store_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return a header and one row per image store: number, sources, form, and refused images."""
    rows = [["", "images", "sources", "form", "refused"]]
    for name, facts in report.items():
        # The report also holds facts that are not about a store, such as duplicates.
        if not isinstance(facts, Mapping) or "n_images" not in facts:
            continue
        refused = f"{facts.get('n_quarantined', 0):,}"
        reasons = facts.get("quarantined")
        if reasons:
            refused += f" ({_counted(reasons)})"
        rows.append(
            [
                name.replace("_", " "),
                f"{facts['n_images']:,}",
                _counted(facts.get("n_per_source") or {}),
                _form(facts),
                refused,
            ]
        )
    return rows


def _form(facts: Mapping[str, Any]) -> str:
    """Return size, colors and resize of the images of a store."""
    # Reports of earlier versions state no resize: there was only one.
    shorter_side_px = facts.get("shorter_side_px")
    interpolation = facts.get("interpolation", "bilinear")
    return input_text(facts["channels"], facts["size_px"], shorter_side_px, interpolation)


def _parameter_rows(parameters: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    # `null` in YAML means "not set", which "None" would not tell a reader without Python.
    for key, value in flatten(parameters):
        text = UNKNOWN
        if value is not None:
            text = str(masked_option(key, value))
        rows.append((key, text))
    return rows


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


# --- duplicates ---


def _duplicates(
    report: Mapping[str, Any], facts: Mapping[str, Any], student_stores: Collection[str]
) -> list[str]:
    """Return sentences on images in two stores, above all on copies of test images."""
    found = report.get("duplicates")
    if not found:
        return []
    sentences: list[str] = []
    stores_with_test_images: set[str] = set()
    for names, counts in found.items():
        # A count is None where near-duplicates were not searched.
        kinds = [f"{count:,} {kind}" for kind, count in counts.items() if count]
        if not kinds:
            continue
        store, _, other = names.partition(" and ")
        where = f"{_store_name(other)} images among the {_store_name(store)} images"
        sentences.append(f"Copies of {where}: {', '.join(kinds)}.")
        if other == "test":
            stores_with_test_images.add(store)
    is_excluded = facts.get("exclude_test_duplicates") is True
    return sentences + _consequences(stores_with_test_images, student_stores, is_excluded)


def _consequences(
    stores_with_test_images: set[str], student_stores: Collection[str], is_excluded: bool
) -> list[str]:
    """Return what copies of test images in these stores mean for the accuracies on the page.

    Args:
        stores_with_test_images: names of the stores that hold copies of test images.
        student_stores: names of the stores that students learned from; the teacher learned from its
            own.
        is_excluded: whether the selection left such copies out.
    """
    if not stores_with_test_images:
        return ["No image is a copy of a test image."]
    sentences = []
    if not stores_with_test_images.isdisjoint(student_stores):
        if is_excluded:
            sentences.append(
                "No student learned from these copies of test images: "
                "they were excluded from the selection."
            )
        else:
            sentences.append(
                "The students may have learned from copies of test images: "
                "their test accuracy is unreliable."
            )
    if "teacher_training" in stores_with_test_images:
        sentences.append(
            "The teacher may have learned from copies of test images: "
            "its test accuracy may be too high."
        )
    return sentences


def _store_name(store: str) -> str:
    return "teacher's training" if store == "teacher_training" else store


# --- figures ---


def _embedded_figures(figures: Mapping[str, Figure]) -> list[dict[str, str]]:
    embedded = []
    for record in REPORT_FIGURES:
        if record.name in figures:
            embedded.append(_embedded(record, figures[record.name]))
    return embedded


def _embedded(record: ReportFigure, figure: Figure) -> dict[str, str]:
    """Return what the template shows of a figure of the report."""
    facts = {"name": record.name, "kind": record.kind, "caption": record.caption}
    return facts | embedded_figure(figure)


def embedded_figure(figure: Figure) -> dict[str, str]:
    """Return the pixels of a figure as base64, and its text for readers who cannot see it."""
    buffer = io.BytesIO()
    # Without matplotlib's version in the file, so that equal figures are equal bytes.
    figure.savefig(buffer, format="png", dpi=FIGURE_DPI, metadata={"Software": None})
    pixels = base64.b64encode(buffer.getvalue()).decode()
    return {"alt": _alternative_text(figure), "png": pixels}


def _alternative_text(figure: Figure) -> str:
    """Return finding and evidence of the figure, for readers who cannot see it."""
    return ". ".join(_texts(figure))


def _texts(figure: Figure) -> list[str]:
    """Return finding and evidence of a figure."""
    title = figure.get_suptitle()
    texts = [title]
    for text in figure.texts:
        content = text.get_text()
        # matplotlib lists the title among the texts.
        if content and content != title:
            texts.append(content)
    return texts
