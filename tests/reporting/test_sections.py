"""The sections of the report: what their functions return where a page cannot show it."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pu_kd_pipeline.provenance import commits
from pu_kd_pipeline.reporting.html import render_report
from pu_kd_pipeline.reporting.sections.album import MAX_BYTES, POOL, Album
from pu_kd_pipeline.reporting.sections.confusion import (
    MAX_CLASSES,
    MAX_EXAMPLES,
    MAX_PAIRS,
    confusion_of,
)
from pu_kd_pipeline.reporting.sections.curves import student_curves
from pu_kd_pipeline.reporting.sections.cut import cut_of
from pu_kd_pipeline.reporting.sections.gallery import (
    MAX_CLASSES as MAX_GALLERY,
)
from pu_kd_pipeline.reporting.sections.gallery import (
    MAX_RANKED,
    N_LABELED,
    N_REJECTED,
    N_SELECTED,
    counts_by_class,
    ranking,
    selected_by_class,
)
from pu_kd_pipeline.reporting.sections.line_chart import Line, line_chart
from pu_kd_pipeline.reporting.sections.origin import origin_of
from pu_kd_pipeline.reporting.sections.pool import Pool, spread
from pu_kd_pipeline.reporting.sections.prior import prior_of
from pu_kd_pipeline.reporting.sections.unlabeled_page import unlabeled_sections
from pu_kd_pipeline.reporting.student_search_page import students_chart
from tests.reporting.toy_pages import student_search
from tests.reporting.toy_run import (
    PRIOR,
    Store,
    certificate_of,
    class_names,
    history,
    labeled_store,
    metrics_of,
    predicted,
    report,
    saved_student,
    scored_pool,
)

# The most images that the sections show.
MAX_IMAGES = MAX_GALLERY * (N_LABELED + N_SELECTED + N_REJECTED) + 3 * MAX_RANKED + MAX_EXAMPLES


def pool_of(
    rule: str = "nnpu", n: int = 300, excluded: tuple[str, ...] = (), n_classes: int = 10
) -> tuple[Pool, pd.DataFrame, Any]:
    scores, manifest, store = scored_pool(n=n, rule=rule, n_classes=n_classes)
    return Pool.of(scores, manifest, store, class_names(n_classes), excluded), manifest, store


# --- images ---


def test_selected_images_are_of_their_class_and_rejected_ones_are_its_nearest() -> None:
    pool, manifest, _ = pool_of()
    gallery = selected_by_class(pool, manifest, labeled_store(), Album())
    for shown in gallery.classes:
        index = class_names(10).index(shown.name)
        is_class = pool.classes == index
        assert shown.n_selected == (is_class & pool.is_selected).sum()
        assert shown.reasons == f"nnpu ({shown.n_selected})"
        strips = {strip.kind: strip for strip in shown.strips}
        nearest = np.sort(pool.scores[is_class & ~pool.is_selected])[::-1][:5]
        texts = [thumb.lines[0].replace("−", "-") for thumb in strips["rejected"].thumbs]
        assert [float(text) for text in texts] == pytest.approx(list(nearest), abs=0.005)
        assert ("labeled" in strips) == (index in (0, 1))


def test_excluded_images_are_no_rejected_neighbors_and_no_counts_of_a_cut() -> None:
    pool, manifest, _ = pool_of()
    left_out = tuple(pool.ids[~pool.is_selected])
    pool, manifest, _ = pool_of(excluded=left_out)
    gallery = selected_by_class(pool, manifest, labeled_store(), Album())
    kinds = {strip.kind for shown in gallery.classes for strip in shown.strips}
    assert "rejected" not in kinds
    cut = cut_of(pool)
    assert cut is not None
    assert cut.n_pool == pool.is_selected.sum()
    # The recall is that of the whole pool, as in the metrics.
    assert cut.n_relevant == 60


def test_of_many_classes_those_with_most_and_fewest_images_are_shown() -> None:
    pool, manifest, _ = pool_of(rule="all", n_classes=40)
    gallery = selected_by_class(pool, manifest, labeled_store(), Album())
    counts = [shown.n_selected for shown in gallery.classes]
    assert len(counts) == MAX_GALLERY
    every = np.sort(np.bincount(pool.classes, minlength=40))[::-1]
    half = MAX_GALLERY // 2
    assert counts == [*every[:half], *every[-half:]]


def test_images_are_spread_over_their_weights() -> None:
    rows = np.arange(100)
    assert spread(rows, np.ones(100), 4).tolist() == [12, 37, 62, 87]
    heavy = np.where(rows < 2, 50.0, 0.01)
    assert spread(rows, heavy, 4).tolist() == [0, 1]
    assert spread(rows[:3], np.ones(3), 4).tolist() == [0, 1, 2]
    # Without known weights, all images count alike.
    assert spread(rows, np.full(100, np.nan), 4).tolist() == [12, 37, 62, 87]


def test_only_shown_images_are_read_and_each_once() -> None:
    pool, manifest, store = pool_of()
    album = Album()
    selected_by_class(pool, manifest, labeled_store(), album)
    ranking(pool, "nnpu", 20, album)
    pictures = album.pictures({"labeled": labeled_store(), POOL: store})
    assert len(pictures) == len(album) < 300
    assert store.n_rows_read == len(album) - 2
    # Their sources are known once they were read.
    assert all(dict(facts)["source"] == "toy" for facts in album.facts())


@pytest.mark.parametrize(
    ("n", "height", "width"), [(40, 300, 400), (MAX_IMAGES, 112, 112), (MAX_IMAGES, 96, 96)]
)
def test_images_are_made_smaller_until_all_fit(n: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    ids = [f"pool/{row}" for row in range(n)]
    album = Album()
    for identifier in ids:
        album.add(POOL, identifier, {})
    # Noise is the worst case: it cannot be compressed.
    pictures = album.pictures({POOL: Store(images, ids, [None] * n)})
    assert len(pictures) == n
    assert sum(map(len, pictures)) <= MAX_BYTES
    assert all(picture.startswith("data:image/jpeg;base64,") for picture in pictures)


def test_an_image_of_no_store_is_an_error() -> None:
    album = Album()
    album.add("test", "test/0", {})
    with pytest.raises(ValueError, match="images of no store: test"):
        album.pictures({})


def test_selected_images_without_a_score_are_counted_and_shown_last() -> None:
    pool, manifest, _ = pool_of(rule="random")
    scores = np.where(pool.is_selected, np.nan, pool.scores)
    unscored = Pool(**{**vars(pool), "scores": scores})
    gallery = selected_by_class(unscored, manifest, None, Album())
    counts = counts_by_class(unscored, manifest, None)["selected"]
    for shown in gallery.classes:
        assert shown.n_selected == counts[class_names(10).index(shown.name)] > 0
        strips = {strip.kind: strip for strip in shown.strips}
        assert strips["selected"].thumbs[0].lines[0] == "no score"
        assert "no score" not in [thumb.lines[0] for thumb in strips["rejected"].thumbs]


def test_the_ranking_shows_no_more_images_than_a_page_can_hold() -> None:
    pool, _, _ = pool_of(n=1000)
    strips = ranking(pool, "nnpu", 200, Album())
    # The borderline images are a strip on either side of the cut.
    assert sum(len(strip.thumbs) for strip in strips) == 3 * MAX_RANKED


# --- numbers ---


@pytest.mark.parametrize("rule", ["nnpu", "confident", "random", "all"])
def test_counts_of_a_cut_are_exact_also_with_ties(rule: str) -> None:
    pool, _, _ = pool_of(rule)
    tied = Pool(**{**vars(pool), "scores": np.round(pool.scores)})
    for each in (pool, tied):
        cut = cut_of(each)
        assert cut is not None
        for threshold, passing in zip(cut.thresholds, cut.passing, strict=True):
            is_passing = each.scores > threshold if cut.is_strict else each.scores >= threshold
            assert passing == is_passing.sum()
    cut = cut_of(pool)
    assert cut is not None
    if rule in ("nnpu", "confident"):
        # The page begins with what the run selected.
        assert cut.passing[cut.start] == pool.is_selected.sum()
        assert cut.thresholds[cut.start] == pool.threshold


@pytest.mark.parametrize("is_strict", [False, True])
def test_the_text_of_a_threshold_has_its_counts_and_no_others(is_strict: bool) -> None:
    # Scores in [0, 1] of which many read the same in two decimals.
    pool, _, _ = pool_of("random", n=2000)
    scores = 1 / (1 + np.exp(-5 - np.abs(pool.scores)))
    near_one = Pool(**{**vars(pool), "scores": scores, "is_strict": is_strict})
    cut = cut_of(near_one)
    assert cut is not None
    assert len(set(cut.texts)) == len(cut.texts) > 100
    for text, passing in zip(cut.texts, cut.passing, strict=True):
        is_passing = scores > float(text) if is_strict else scores >= float(text)
        assert is_passing.sum() == passing
    assert np.median([len(text) for text in cut.texts]) <= 10


def test_equal_scores_have_no_cut() -> None:
    pool, _, _ = pool_of()
    assert cut_of(Pool(**{**vars(pool), "scores": np.zeros(len(pool))})) is None


def test_without_the_whole_truth_a_cut_has_no_precision() -> None:
    pool, _, _ = pool_of()
    relevant = pool.relevant.copy()
    relevant[0] = np.nan
    cut = cut_of(Pool(**{**vars(pool), "relevant": relevant}))
    assert cut is not None
    assert cut.relevant is None


def test_of_many_classes_the_most_frequent_pairs_are_listed() -> None:
    n_classes = MAX_CLASSES + 10
    teacher = np.repeat(np.arange(n_classes), 50)
    student = teacher.copy()
    for index in range(n_classes):
        student[teacher == index] = np.where(np.arange(50) < index, (index + 1) % n_classes, index)
    ids = [f"test/{row}" for row in range(len(teacher))]
    predictions = pd.DataFrame({"id": ids, "teacher": teacher, "student": student})
    confusion = confusion_of(predictions, class_names(n_classes), Album())
    assert confusion is not None
    assert confusion.matrix == []
    assert len(confusion.pairs) == MAX_PAIRS
    assert confusion.n_pairs == n_classes - 1
    assert [pair.n for pair in confusion.pairs] == list(range(29, 9, -1))
    assert confusion.pairs[0].share == "58.0 %"
    assert confusion.n_different == (teacher != student).sum()


def test_every_pair_with_a_button_has_an_example() -> None:
    n_classes = 15
    # Each pair of different classes once or several times.
    teacher, student = np.divmod(np.arange(n_classes**2), n_classes)
    teacher = np.concatenate([teacher, teacher[:100]])
    student = np.concatenate([student, student[:100]])
    ids = [f"test/{row}" for row in range(len(teacher))]
    predictions = pd.DataFrame({"id": ids, "teacher": teacher, "student": student})
    album = Album()
    confusion = confusion_of(predictions, class_names(n_classes), album)
    assert confusion is not None
    assert confusion.n_pairs == n_classes * (n_classes - 1)
    assert len(album) == len(confusion.pairs) == MAX_EXAMPLES
    assert all(len(pair.examples) == 1 for pair in confusion.pairs)
    keys = {cell.key for row in confusion.matrix for cell in row if cell.key}
    assert keys == {pair.key for pair in confusion.pairs}
    assert sum(cell.n for row in confusion.matrix for cell in row) == len(predictions)


def test_ten_thousand_classes_need_no_matrix() -> None:
    n_classes = 10_000
    predictions = pd.DataFrame(
        {"id": ["a", "b", "c"], "teacher": [0, 9_999, 5], "student": [9_999, 0, 5]}
    )
    tracemalloc.start()
    confusion = confusion_of(predictions, range(n_classes), Album())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert confusion is not None
    assert [(pair.teacher, pair.student) for pair in confusion.pairs] == [
        ("0", "9999"),
        ("9999", "0"),
    ]
    assert peak < 10_000_000


def test_both_readings_of_the_class_prior_are_shown_with_the_truth() -> None:
    prior = PRIOR | {"readings": {"trained": 0.2, "outputs": 0.4, "outputs_bbe": 0.5}}
    metrics = metrics_of()
    metrics["selection"]["true_class_prior"] = 0.25
    shown = prior_of(prior, metrics)
    assert shown is not None
    texts = [reading.text for reading in shown.readings]
    assert texts == ["20.0 % (17.0 to 23.0)", "40.0 %", "50.0 %", "25.0 %"]
    assert [reading.kind for reading in shown.readings] == ["used", "other", "other", "truth"]
    assert all(0 <= reading.place <= 1 for reading in shown.readings)
    assert prior_of({}, metrics) is None


# --- curves ---


def test_a_chart_leaves_out_what_is_not_finite_and_keeps_all_within_its_axes() -> None:
    x = np.arange(1000.0)
    y = np.sin(x / 50)
    y[10:20] = np.nan
    chart = line_chart("sine", "updates", [Line("a", "student", x, y)])
    assert chart is not None
    assert "nan" not in chart.paths[0].points
    for point in chart.paths[0].points.split():
        across, down = map(float, point.split(","))
        assert chart.left <= across <= chart.right
        assert chart.top <= down <= chart.bottom
    assert chart.zero is not None
    assert len(chart.paths[0].points.split()) <= 400
    nothing = Line("a", "student", x, np.full(1000, np.nan))
    assert line_chart("nothing", "updates", [nothing]) is None


@pytest.mark.parametrize("value", [0.0, 3.0, -2.5])
def test_a_constant_has_a_chart(value: float) -> None:
    line = Line("a", "student", np.array([1.0]), np.array([value]))
    chart = line_chart("constant", "epoch", [line])
    assert chart is not None
    assert chart.y_ticks
    assert len(chart.paths[0].dots) == 1


@pytest.mark.parametrize("divergence", [0.0, -1e-8])
def test_a_divergence_that_is_not_positive_is_on_the_chart_of_students(divergence: float) -> None:
    found = student_search()
    for trial in found["trials"]:
        if trial["candidate"] == found["winner"]:
            trial["kl"] = divergence
    chart = students_chart(found)
    assert chart is not None
    # A logarithmic axis would have no place for it.
    assert "log scale" not in chart.title
    winner = chart.paths[-1]
    assert len(winner.dots) == 1
    assert chart.top <= winner.dots[0].y <= chart.bottom
    ordinary = students_chart(student_search())
    assert ordinary is not None
    assert "log scale" in ordinary.title


def test_students_without_a_yardstick_are_not_compared_on_it() -> None:
    measured = history(20, yardstick_agreement=0.9, training_agreement=0.8)
    other = history(20, training_agreement=0.7)
    curves = student_curves({"control": ("random", other), "student": ("student", measured)})
    assert curves is not None
    assert "its own training images" in curves.caption
    assert [path.last for path in curves.charts[1].paths] == ["70", "80"]
    assert student_curves({"student": ("student", history(0))}) is None


# --- origin ---


def notes_of(certificate: dict[str, Any], student: Any, **blocks: Any) -> list[str]:
    _, manifest, _ = pool_of()
    return origin_of(certificate, blocks, "full", manifest, student).notes


def test_results_of_different_runs_are_named() -> None:
    _, manifest, _ = pool_of()
    right = certificate_of(manifest)
    assert notes_of(right, saved_student()) == []
    [note] = notes_of(right, saved_student("0123"))
    assert "another student than student_model" in note
    assert "--pipeline=full`" in note
    for other in ("def", None):
        [note] = notes_of(certificate_of(manifest, manifest=other), saved_student())
        assert "did not learn from the manifest" in note
    # Certificates of earlier versions do not state it.
    old = certificate_of(manifest, manifest=None, code_of_training=None)
    assert notes_of(old, saved_student()) == []
    assert notes_of({}, saved_student()) == []


def test_a_run_with_an_audited_prior_needs_the_audit_again() -> None:
    _, manifest, _ = pool_of()
    right = certificate_of(manifest)
    assert notes_of(right, saved_student(), pu_training={"class_prior": 0.5}) == []
    [note] = notes_of(right, saved_student(), pu_training={"class_prior": "audit"})
    assert "the commands below do not audit the pool" in note


def test_parameters_that_the_run_did_not_have_are_named() -> None:
    _, manifest, _ = pool_of()
    right = certificate_of(manifest)
    student = saved_student(student_options={"width": 8}, keep=None)
    same = {"seed": 0, "lr": 0.1, "student_options": {"width": 8}, "keep": None, "new": 3}
    assert notes_of(right, student, distillation=same) == []
    changed = same | {"seed": 1, "keep": "best", "student_options": {"width": 16}}
    [note] = notes_of(
        right, student, distillation=changed, subset_materialization={"rule": "random"}
    )
    for text in (
        "subset_materialization.rule was nnpu and is random",
        "distillation.seed was 0 and is 1",
        "distillation.keep was null and is best",
        "distillation.student_options.width was 8 and is 16",
    ):
        assert text in note
    assert "lr" not in note


def test_the_page_of_a_run_names_stale_parameters_and_students_and_the_runs_own_commit() -> None:
    page = report()["report"]
    assert 'class="doubts">' not in page
    assert f"git checkout {'5' * 40}" in page
    stale = report(seed=1, student="0123", commit=None)["report"]
    assert "distillation.seed was 0 and is 1" in stale
    assert "another student than student_model" in stale
    # The seed is that of the training, and the code is not that of this page.
    assert '<tr><th scope="row">seed of the training</th><td>0</td></tr>' in stale
    assert "its commit is not known" in stale
    assert "git checkout" not in stale


def test_credentials_are_masked() -> None:
    _, manifest, _ = pool_of()
    blocks = {
        "a": {"seed": 3, "options": {"password": "hunter2"}},
        "b": {"inner": [{"seed": 4}], "url": "https://me:hunter3@host/x"},
    }
    student = saved_student()
    origin = origin_of({}, blocks, "full", manifest, student)
    assert "hunter" not in origin.parameters
    assert origin.has_masked
    assert not origin_of({}, {"a": {"seed": 3}}, "full", manifest, student).has_masked


def test_a_commit_is_of_the_repository_that_tracks_the_package(tmp_path, monkeypatch) -> None:
    copied = tmp_path / "package" / "provenance" / "commits.py"
    copied.parent.mkdir(parents=True)
    monkeypatch.setattr(commits, "__file__", str(copied))
    (tmp_path / "package" / "__init__.py").touch()
    assert commits.commit_of_package() is None
    if commits.git_output(tmp_path, "init") is None:
        pytest.skip("there is no git")
    # The repository of something else, in which an environment lies.
    assert commits.commit_of_package() is None
    commits.git_output(tmp_path, "add", ".")
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    commits.git_output(tmp_path, *author, "commit", "--message=first", "--no-gpg-sign")
    found = commits.commit_of_package()
    assert found is not None
    assert len(found.name) == 40
    assert not found.is_changed
    (tmp_path / "elsewhere.txt").touch()
    assert commits.commit_of_package() == found
    # A new module changes the code as an edited one does.
    copied.with_name("new.py").touch()
    changed = commits.commit_of_package()
    assert changed is not None
    assert changed.is_changed


# --- the pool alone ---


def drawn(probability: np.ndarray) -> tuple[pd.DataFrame, Any]:
    """Return a manifest that draws the toy pool by these probabilities, and the pool."""
    scores, _, store = scored_pool(n=len(probability))
    manifest = scores.drop(columns=["pu_score", "teacher_log_odds"]).assign(
        origin="pool", sampling_probability=probability, reason="related"
    )
    manifest.attrs = {"rule": "preferential", "n_labeled": 0}
    return manifest, store


def test_a_page_of_the_pool_alone_shows_what_is_drawn_more_often_than_evenly() -> None:
    weights = np.random.default_rng(0).exponential(size=300)
    manifest, store = drawn(weights / weights.sum())
    test_images, predictions = predicted(400, 10)
    sections = unlabeled_sections(
        metrics_of(),
        manifest,
        store,
        test_images,
        predictions,
        certificate_of(manifest),
        {"student": history(20), "random_student": history(20)},
        class_names(10),
        saved_student(),
        {"unlabeled_distillation": {"seed": 0}, "relatedness": {"sampling": "preferential"}},
    )
    assert sections.gallery is not None
    is_often = weights > weights.mean()
    assert sum(shown.n_selected for shown in sections.gallery.classes) == is_often.sum()
    assert sections.cut is not None
    assert sections.cut.passing[sections.cut.start] == is_often.sum()
    assert sections.cut.thresholds[sections.cut.start] == 1
    page = render_report("Alone", metrics_of(), {}, {}, manifest.attrs, {}, {}, sections)
    assert "kedro run --pipeline=full_unlabeled" in page
    assert sections.origin.notes == []
    # It has no class prior, not a given one.
    assert "class prior by" not in page


def test_even_draws_prefer_no_image() -> None:
    manifest, store = drawn(np.full(300, 1 / 300))
    pool = Pool.of_draws(manifest, store, class_names(10))
    assert not pool.is_uneven
    assert pool.is_selected.all()
    assert cut_of(pool) is None
