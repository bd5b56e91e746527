"""The stage `reporting`: what figures and page say, for any number of classes, with and without the truth."""

from __future__ import annotations

import base64
import functools
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any, get_type_hints

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.pipelines.reporting.nodes import report_run
from pu_kd_pipeline.pipelines.reporting.pipeline import create_pipeline
from pu_kd_pipeline.reporting.class_figures import plot_class_weights, plot_per_class_accuracy
from pu_kd_pipeline.reporting.contact_sheet import SMALL_IMAGE_PX, plot_contact_sheet
from pu_kd_pipeline.reporting.figures import REPORT_FIGURES, ReportFigure
from pu_kd_pipeline.reporting.findings import findings
from pu_kd_pipeline.reporting.selection_figures import plot_score_histogram
from pu_kd_pipeline.reporting.style import MAX_NAMED_CLASSES
from pu_kd_pipeline.reporting.summary import model_rows, selection_rows
from pu_kd_pipeline.reporting.training_figures import plot_distillation_history, plot_pu_history


class Store:
    """The part of an image store that reporting uses; it remembers which rows were read."""

    def __init__(self, images: np.ndarray, ids: list[str], relevant: list[bool | None]) -> None:
        self._images, self.rows_read = images, 0
        self.index = pd.DataFrame({"id": ids, "relevant": pd.array(relevant, dtype="boolean")})

    def read(self, rows: np.ndarray) -> np.ndarray:
        assert rows.dtype == np.int64
        self.rows_read += len(rows)
        return self._images[rows]


class Scores:
    """The part of a sharded table that reporting uses."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def to_pandas(self) -> pd.DataFrame:
        return self._table


def scored_pool(
    n: int = 300,
    *,
    rule: str = "nnpu",
    truth: bool = True,
    shape: tuple[int, int, int] = (1, 8, 8),
    n_classes: int = 10,
) -> tuple[pd.DataFrame, pd.DataFrame, Store]:
    """Return scores (shuffled), the manifest of a rule, and the pool's store; a fifth of the pool is relevant."""
    rng = np.random.default_rng(0)
    relevant = np.arange(n) % 5 == 0
    ids = [f"pool/{row}" for row in range(n)]
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    scores = pd.DataFrame(
        {
            "id": ids,
            "pu_score": np.where(relevant, rng.normal(2, 1.5, n), rng.normal(-3, 1.5, n)).astype(
                np.float32
            ),
            "teacher_class": rng.integers(0, n_classes, n).astype(np.int32),
            "teacher_confidence": rng.uniform(0.3, 1, n).astype(np.float32),
        }
    ).sample(frac=1, random_state=0, ignore_index=True)
    kept, threshold = {
        "nnpu": (scores[scores["pu_score"] > 0], 0.0),
        "confident": (scores[scores["teacher_confidence"] >= 0.8], 0.8),
        "random": (scores.sample(n // 5, random_state=1), None),
        "disagreement": (scores.sample(n // 5, random_state=2), None),
        "all": (scores, None),
    }[rule]
    labeled = pd.DataFrame({"id": ["labeled/0", "labeled/1"], "origin": "labeled"})
    manifest = pd.concat([labeled, kept.assign(origin="pool")], ignore_index=True)
    manifest.attrs = {
        "rule": rule,
        "criterion": "sign",
        "threshold": threshold,
        "fingerprints": {"pool_images": "3fa9"},
    }
    return scores, manifest, Store(images, ids, list(relevant) if truth else [None] * n)


def history(n: int, **columns: Any) -> pd.DataFrame:
    course = 1 / np.arange(1, n + 1)
    pu = {
        "risk": course,
        "positive_risk": course / 2,
        "negative_risk": course / 2 - 0.05,
        "ascent_share": 0.25,
    }
    return pd.DataFrame(
        {
            "epoch": np.arange(1.0, n + 1),
            "update": 10 * np.arange(1.0, n + 1),
            "loss": course,
            **pu,
            **columns,
        }
    )


def weights(n_classes: int, n_clipped: int = 0) -> pd.DataFrame:
    mass = np.arange(1.0, n_classes + 1)
    raw = n_classes / mass / (1 / mass).sum()
    clipped = np.arange(n_classes) < n_clipped
    names = [f"class {index}" for index in range(n_classes)]
    columns = {
        "class_name": names,
        "teacher_mass": mass,
        "raw_weight": raw,
        "weight": raw,
        "is_clipped": clipped,
    }
    return pd.DataFrame({"class_index": range(n_classes), **columns})


def model(accuracy: float, n_classes: int = 10, parameters: int = 1000) -> dict[str, Any]:
    per_class: list[float | None] = [accuracy] * n_classes
    per_class[-1] = None  # a class without test images
    cost = {
        "parameters": parameters,
        "flops": 10 * parameters,
        "size_bytes": 4 * parameters,
        "latency_ms": 0.5,
    }
    return {"accuracy": accuracy, "agreement": 0.97, "per_class_accuracy": per_class, **cost}


def metrics_of(gain: float | None = 0.02, n_classes: int = 10, n_test: int = 400) -> dict[str, Any]:
    models = {"teacher": model(0.98, n_classes, 6000), "student": model(0.95, n_classes)}
    if gain is not None:
        models["random_student"] = model(0.95 - gain, n_classes)
    selection = {
        "n_selected": 60,
        "n_pool": 300,
        "rule": "nnpu",
        "criterion": "sign",
        "class_prior": 0.2,
        "gain": gain,
    }
    return {**models, "selection": selection, "n_test": n_test}


PRIOR = {
    "value": 0.2,
    "lower": 0.17,
    "upper": 0.23,
    "level": 0.9,
    "method": "bbe",
    "n_positive": 100,
    "n_unlabeled": 300,
}
STORE = {
    "n_images": 300,
    "size_px": 8,
    "channels": 1,
    "n_per_source": {"demo": 300},
    "n_quarantined": 2,
}
INGESTION = {
    "pool_images": {**STORE, "quarantined": {"truncated": 2}},
    "duplicates": {
        "pool and test": {"exact": 3, "near": 1},
        "teacher_training and pool": {"exact": 0, "near": None},
    },
}


@functools.cache
def report(title: str = "A run", gain: float | None = 0.02, **pool: Any) -> dict[str, Any]:
    scores, manifest, store = scored_pool(**pool)
    return report_run(
        metrics_of(gain),
        INGESTION,
        PRIOR,
        Scores(scores),  # type: ignore[arg-type]
        manifest,
        store,  # type: ignore[arg-type]
        history(20, held_out_zero_one_risk=0.1),
        weights(10),
        history(20, held_out_agreement=0.9),
        history(20 if gain is not None else 0, held_out_agreement=0.8),
        {"seed": 0, "data": "/elsewhere", "pu_training": {"epochs": 20, "note": "<b>"}},
        ReportingParams(title=title, contact_sheet_images=4),
    )


def words(figure: Any) -> str:
    """Return everything written in a figure."""
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())]
    return " | ".join([figure.get_suptitle(), *labels, *(text.get_text() for text in texts)])


def stairs(figure: Any) -> list[Any]:
    from matplotlib.patches import StepPatch

    return [patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch)]


# --- score histogram --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("truth", [True, False])
def test_the_histogram_counts_every_image_once_and_cuts_between_bins(truth: bool) -> None:
    scores, manifest, store = scored_pool(truth=truth)
    figure = plot_score_histogram(scores, manifest, store, PRIOR)  # type: ignore[arg-type]
    filled = [patch.get_data() for patch in stairs(figure) if patch.get_fill()]
    assert sum(data.values.sum() for data in filled) == len(scores)
    assert np.abs(filled[0].edges).min() < 1e-9  # the threshold of the sign criterion is 0
    assert len(filled) == (2 if truth else 1)


def test_the_histogram_states_precision_and_recall_where_the_truth_is_known() -> None:
    scores, manifest, store = scored_pool()
    is_selected = scores["pu_score"] > 0
    is_relevant = scores["id"].str.removeprefix("pool/").astype(int) % 5 == 0
    n_hits = (is_selected & is_relevant).sum()
    expected = f"precision {100 * n_hits / is_selected.sum():.1f} %, recall {100 * n_hits / is_relevant.sum():.1f} %"
    said = words(plot_score_histogram(scores, manifest, store, PRIOR))  # type: ignore[arg-type]
    assert expected in said
    assert f"{is_selected.sum()} of 300 pool images selected" in said
    assert "20.0 % (17.0–23.0 %)" in said
    unknown = scored_pool(truth=False)
    assert "precision" not in words(plot_score_histogram(*unknown, PRIOR))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["random", "confident", "all"])
def test_a_rule_that_does_not_cut_the_pu_score_shows_what_it_selected_instead_of_a_cut(
    rule: str,
) -> None:
    scores, manifest, store = scored_pool(rule=rule)
    figure = plot_score_histogram(scores, manifest, store, PRIOR)  # type: ignore[arg-type]
    assert "passes" not in words(figure)
    assert stairs(figure)[-1].get_label() == f"selected ({(manifest['origin'] == 'pool').sum()})"


def test_a_million_scores_need_no_more_ink_than_a_few() -> None:
    counts = []
    for n in (300, 1_000_000):
        score = np.random.default_rng(0).normal(size=n)
        scores = pd.DataFrame({"id": np.arange(n), "pu_score": score})
        manifest = pd.DataFrame({"id": [1], "origin": "pool"})
        manifest.attrs = {"rule": "nnpu", "criterion": "budget", "threshold": score[1]}
        store = Store(np.zeros((1, 1, 1, 1)), ["0"], [None])
        figure = plot_score_histogram(scores, manifest, store, PRIOR)  # type: ignore[arg-type]
        counts.append(
            (
                len(figure.axes[0].patches) + len(figure.axes[0].lines),
                len(stairs(figure)[0].get_data().values),
            )
        )
    assert counts[0][0] == counts[1][0]
    assert counts[1][1] < 100


def test_scores_that_are_not_numbers_are_refused() -> None:
    scores, manifest, store = scored_pool()
    with pytest.raises(ValueError, match="no finite pu_score"):
        plot_score_histogram(scores.assign(pu_score=np.nan), manifest, store, PRIOR)  # type: ignore[arg-type]


# --- histories --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_epochs", [1, 3, 200])
def test_risk_curves_leave_out_a_held_out_risk_that_was_not_measured(n_epochs: int) -> None:
    measured = plot_pu_history(history(n_epochs, held_out_zero_one_risk=0.125))
    assert "held-out 0-1 risk 0.125 at the end" in words(measured)
    assert "25.0 % of all steps were ascent steps" in words(measured)
    for missing in (history(n_epochs), history(n_epochs, held_out_zero_one_risk=np.nan)):
        figure = plot_pu_history(missing)
        assert len(figure.axes) == len(measured.axes) - 1
        assert "0-1 risk" not in words(figure)
        figure.canvas.draw()


def test_distillation_curves_name_both_students_and_fall_back_to_training_agreement() -> None:
    both = plot_distillation_history(
        history(5, held_out_agreement=0.9), history(5, held_out_agreement=0.8)
    )
    assert "agree on 90.0 % of the held-out images" in words(both)
    assert "random student on 80.0 % of its own" in words(both)
    for nobody in (None, history(0)):
        alone = plot_distillation_history(history(5, training_agreement=0.7), nobody)
        assert "agree on 70.0 % of the training images" in words(alone)
        assert "random" not in words(alone)
    assert "agreement was not measured" in words(plot_distillation_history(history(5)))


# --- classes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 10, 40, 41, 1000])
def test_class_figures_stay_readable_for_any_number_of_classes(n_classes: int) -> None:
    names = [f"class {index}" for index in range(n_classes)]
    drawn = (
        plot_class_weights(weights(n_classes, n_clipped=1)),
        plot_per_class_accuracy(metrics_of(n_classes=n_classes), names),
    )
    for figure in drawn:
        assert figure.get_figheight() <= 13
        labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
        is_named = n_classes <= MAX_NAMED_CLASSES
        assert (sorted(labels) == sorted(names)) == is_named


def test_class_weights_mark_what_was_clipped() -> None:
    assert "clipped from" in words(plot_class_weights(weights(10, n_clipped=1)))
    assert "2 of 100 clipped" in words(plot_class_weights(weights(100, n_clipped=2)))
    unseen = weights(10)
    unseen.loc[0, "teacher_mass"] = 0.0
    said = words(plot_class_weights(unseen))
    assert "none clipped" in said
    assert "1 of 10 classes nowhere" in said


@pytest.mark.parametrize("n_classes", [10, 100])
def test_the_class_that_lost_most_is_named_and_classes_without_test_images_are_left_out(
    n_classes: int,
) -> None:
    metrics = metrics_of(gain=None, n_classes=n_classes)
    metrics["student"]["per_class_accuracy"][3] = 0.5
    said = words(plot_per_class_accuracy(metrics, [f"class {index}" for index in range(n_classes)]))
    assert "“class 3”: −48.0 points" in said
    assert "loses 3.0 points to its teacher" in said
    metrics["student"]["accuracy"] = metrics["teacher"]["accuracy"]
    assert "equals its teacher" in words(plot_per_class_accuracy(metrics))


# --- contact sheet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 224, 224), (3, 20, 30)])
def test_the_contact_sheet_shows_the_images_that_it_names_and_reads_no_other(
    shape: tuple[int, int, int],
) -> None:
    scores, manifest, store = scored_pool(n=60, shape=shape)
    figure = plot_contact_sheet(manifest, scores, store, 4)  # type: ignore[arg-type]
    shown = [image.get_array() for image in figure.axes[0].images]
    assert len(shown) == 12
    assert store.rows_read <= 12
    ranked = scores.sort_values("pu_score", ascending=False)
    is_selected = ranked["id"].isin(manifest["id"])
    blocks = [ranked[:4], ranked[is_selected][-2:], ranked[~is_selected][:2], ranked[-4:]]
    for image, identifier in zip(shown, pd.concat(blocks)["id"], strict=True):
        expected = store.read(np.array([int(identifier.removeprefix("pool/"))], dtype=np.int64))[0]
        np.testing.assert_array_equal(np.moveaxis(np.atleast_3d(image), -1, 0), expected)
    is_small = max(shape) <= SMALL_IMAGE_PX
    assert all(
        (image.get_interpolation() == "nearest") == is_small for image in figure.axes[0].images
    )


def test_the_contact_sheet_ranks_by_the_score_of_the_rule_and_knows_rules_without_a_cut() -> None:
    confident = words(plot_contact_sheet(*reordered(rule="confident"), 4, ["cat"] * 10))  # type: ignore[arg-type]
    assert "0.80" in confident
    assert "cat" in confident
    assert "the last that were selected" in confident
    for rule in ("random", "disagreement", "all"):
        said = words(plot_contact_sheet(*reordered(rule=rule), 4))  # type: ignore[arg-type]
        assert "no cut" in said
        assert "left out" not in said
    hidden = words(plot_contact_sheet(*reordered(truth=False), 4))  # type: ignore[arg-type]
    assert "relevant" not in hidden
    assert len(plot_contact_sheet(*reordered(n=5), 20).axes[0].images) == 5 + 5 + 5  # type: ignore[arg-type]


def reordered(**pool: Any) -> tuple[pd.DataFrame, pd.DataFrame, Store]:
    scores, manifest, store = scored_pool(**pool)
    return manifest, scores, store


# --- the page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects the tags of a page and checks that they close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_from_outside() -> None:
    text = report()["report"]
    page = Page(text)
    without_pictures = re.sub(r"base64,[^\"]+", "", text)
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", without_pictures)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == len(REPORT_FIGURES) == 6
    for picture in pictures:
        assert len(picture["alt"] or "") > 30
        assert base64.b64decode(
            (picture["src"] or "").removeprefix("data:image/png;base64,")
        ).startswith(b"\x89PNG")
    assert len(text) < 3_000_000


def test_the_page_tells_selection_data_parameters_and_how_to_make_it_again() -> None:
    text = report(title="<script>alert(1)</script>")["report"]
    assert "<script>" not in text
    for said in (
        "60 of 300",
        "BBE, 90 % interval",
        "truncated 2",
        "Copies of test images among the pool images: 3 exact, 1 near.",
    ):
        assert said in text
    for said in (
        "pu_training.epochs",
        "&lt;b&gt;",
        "kedro run --pipeline=full",
        "3fa9",
        "prefers-color-scheme: dark",
    ):
        assert said in text
    assert "/elsewhere" not in text  # where a run was kept is not what it did


@pytest.mark.parametrize("caption", ["", " "])
def test_a_figure_without_a_caption_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="figure 'new_plot' has no caption"):
        ReportFigure("new_plot", caption, lambda run: plot_pu_history(run.pu_history))


def test_equal_runs_give_an_equal_page() -> None:
    assert report()["report"] == report.__wrapped__()["report"]


def test_a_run_without_random_student_or_truth_has_a_page_all_the_same() -> None:
    text = report(gain=None, truth=False, n=50)["report"]
    assert "it cannot say what the selection was worth" in text
    assert "hidden truth" not in text


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.027, "Selection was worth 2.7 points: a student distilled in the same way"),
        (0.0, "Selection was worth nothing here"),
        (-0.012, "Selection cost 1.2 points here"),
        (None, "cannot say what the selection was worth"),
    ],
)
def test_the_worth_of_selection_is_said_plainly_whatever_its_sign(
    gain: float | None, said: str
) -> None:
    worth = findings(metrics_of(gain))[1]
    assert said in worth
    if gain is not None:
        assert worth.endswith(f"random pool images reaches {100 * (0.95 - gain):.1f} %.")


def test_the_headline_compares_student_and_teacher_and_weighs_the_gain_against_chance() -> None:
    first, _, third = findings(metrics_of(gain=0.02, n_test=100))
    assert (
        "95.0 % of the test images right, 3.0 points below its teacher (98.0 %), with 6.0 times fewer"
        in first
    )
    assert "no more than chance explains" in third
    assert "±6.6 points" in third  # 1.96 * sqrt((.95 * .05 + .93 * .07) / 100)
    assert "is more than chance explains" in findings(metrics_of(gain=0.02, n_test=100_000))[2]
    assert "Mind that drawing 400 test images" in findings(metrics_of(gain=0.0))[2]
    assert len(findings(metrics_of(gain=None))) == 2


# --- the table --------------------------------------------------------------------------------------------------------


def test_a_model_that_the_table_does_not_know_has_a_column_under_its_key() -> None:
    metrics = {"pruned_student": model(0.9), **metrics_of(gain=0.02)}
    header, accuracy, *_ = model_rows(metrics)
    assert header == ["", "teacher", "student", "student of random images", "pruned student"]
    assert accuracy == ["accuracy", "98.0 %", "95.0 %", "93.0 %", "90.0 %"]


def test_only_students_have_an_agreement_with_the_teacher() -> None:
    rows = {row[0]: row[1:] for row in model_rows(metrics_of(gain=None))}
    assert rows["agreement with the teacher"] == ["-", "97.0 %"]


def test_a_quantity_that_no_model_has_is_left_out() -> None:
    titles = [row[0] for row in model_rows({"student": {"accuracy": 0.5}})]
    assert titles == ["", "accuracy"]
    assert selection_rows({"selection": {}}) == []


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_node_returns_every_output_of_the_pipeline() -> None:
    (node,) = create_pipeline().nodes
    assert sorted(report()) == sorted(node.outputs)
    assert node.name == "reporting.report_run"
    assert (
        get_type_hints(report_run)["params"] is ReportingParams
    )  # else Kedro skips the check of the parameters


def test_importing_the_stage_loads_neither_matplotlib_nor_torch_and_drawing_never_pyplot() -> None:
    script = (
        "import sys, pu_kd_pipeline.pipelines.reporting as stage; stage.create_pipeline();"
        "from pu_kd_pipeline.reporting import html;"
        "from pu_kd_pipeline.reporting.class_figures import plot_class_weights;"
        "assert not {'matplotlib', 'torch', 'mlflow', 'jinja2'} & set(sys.modules);"
        "import pandas as pd;"
        "table = pd.DataFrame({'class_name': ['a', 'b'], 'teacher_mass': [1., 2.], 'raw_weight': 1., 'weight': 1., "
        "'is_clipped': False});"
        "plot_class_weights(table).canvas.draw();"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
