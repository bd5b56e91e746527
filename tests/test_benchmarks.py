"""The benchmarks compare equal work, and hold each number against its goal in the right sense."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from benchmarks import (
    distillation,
    distillation_loops,
    distillation_task,
    exported,
    naive,
    photos,
    retrieval,
    scaling,
    scaling_pool,
)
from benchmarks.harness import Measurement, Ratio, markdown, ratio, share_of_limit
from benchmarks.scaling_stage import STAGES, StageCost, run_stage
from PIL import Image

from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import n_views
from pu_kd_pipeline.learning.losses.distillation import robust_kd
from pu_kd_pipeline.training.distillation import distill
from tests.conftest import require_caltech_packages

# --- the harness


def row(**changes: Any) -> Measurement:
    given: dict[str, Any] = {
        "target": "1",
        "what": "a against b",
        "value": 5.0,
        "low": 4.0,
        "high": 6.0,
        "unit": "x",
        "sense": ">=",
        "goal": 4.0,
    }
    return Measurement(**(given | changes))


def count(n: int) -> int:
    """Take time in proportion to n."""
    return sum(range(n))


def test_four_times_the_work_takes_about_four_times_as_long():
    measured = ratio(lambda: count(800_000), lambda: count(200_000), repeats=5)
    # Wide bounds: a busy machine disturbs short calls.
    assert 2 < measured.median < 8
    assert measured.low <= measured.median <= measured.high


def test_a_ratio_is_scaled_to_equal_work():
    measured = Ratio(median=8.0, low=6.0, high=10.0)
    assert measured.over(4) == Ratio(median=2.0, low=1.5, high=2.5)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "met"),
        ({"value": 4.0}, "met"),
        ({"value": 3.9}, "missed"),
        ({"sense": "<="}, "missed"),
        ({"sense": "<=", "goal": 5.0}, "met"),
        ({"value": None}, "-"),
        ({"goal": None}, "-"),
    ],
)
def test_a_value_is_compared_with_its_goal(changes, verdict):
    measurement = row(**changes)
    assert measurement.verdict == verdict
    assert measurement.as_json()["verdict"] == verdict


def test_every_row_is_a_line_of_the_table():
    rows = [
        row(note="on one thread"),
        row(value=None, low=None, high=None),
        row(value=1234.5, sense="<="),
    ]
    # Ten bars around nine cells.
    header, rule, *lines = markdown(rows).splitlines()

    assert header.count("|") == rule.count("|") == 10
    assert lines == [
        "| 1 | a against b | 5.00 x | 4.00 to 6.00 | ≥ 4 x | met |  |  | on one thread |",
        "| 1 | a against b | – |  | ≥ 4 x | - |  |  |  |",
        "| 1 | a against b | 1,234 x | 4.00 to 6.00 | ≤ 4 x | missed |  |  |  |",
    ]


def test_a_goal_can_be_a_share_of_the_limit():
    gain = Ratio(3.0, 2.5, 3.5, seconds=0.5)
    least = Ratio(4.0, 3.9, 4.1)
    limit = "if the networks were all"
    missed = share_of_limit("3", "a against b", gain, least, 90, limit, "quiet", n_images=100)
    met = share_of_limit("3", "a against b", gain, least, 75, limit)

    assert (missed.verdict, met.verdict) == ("missed", "met")
    *_, line, without_images = markdown([missed, met]).splitlines()
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[5:10] == [
        "≥ 90 % of the limit",
        "missed",
        "75 % of 4.00 x if the networks were all",
        "200",
        "quiet",
    ]
    assert without_images.endswith("if the networks were all |  |  |")


def test_the_throughput_is_that_of_our_side():
    measured = ratio(lambda: count(400_000), lambda: count(200_000), repeats=3)
    assert measured.seconds is not None
    # Scaling to equal work changes the other side.
    assert measured.over(2).seconds == measured.seconds
    assert measured.throughput(50) == 50 / measured.seconds


# --- distillation


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> distillation_task.Task:
    """Gray images, few enough for a second."""
    pair = dataclasses.replace(distillation_task.LENET, n_images=48, batch_size=16, updates=2)
    return distillation_task.make_task(pair, None, tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def color_task(tmp_path_factory: pytest.TempPathFactory) -> distillation_task.Task:
    """Color images, and networks smaller than ResNet-34."""
    pair = dataclasses.replace(
        distillation_task.RESNET, n_images=20, student="cifar_resnet", teacher="cifar_resnet"
    )
    return distillation_task.make_task(pair, None, tmp_path_factory.mktemp("color_task"))


def test_both_loops_have_the_same_losses(task, color_task):
    largest_difference = distillation_loops.largest_difference
    gray = largest_difference(task, n_updates=6, batch_size=16)
    color = largest_difference(color_task, n_updates=2, batch_size=4)

    assert gray < distillation.TOLERANCE
    assert color < distillation.TOLERANCE


def test_our_loop_is_that_of_the_stage(task):
    params = task.params(n_updates=5, record_every=1)
    ids = task.store.index["id"]
    manifest = pd.DataFrame({"id": ids, "origin": "pool"})
    vectors = pd.DataFrame(task.vectors.numpy())
    # All images belong to the pool, and the store stands for that of the labeled ones, too.
    _, history = distill(
        manifest, task.store, task.store, task.teacher, vectors, params, "benchmark"
    )
    losses = list(distillation_loops.our_losses(task, params, task.student()))

    assert losses == history["loss"].tolist()


@pytest.mark.parametrize("task_name", ["task", "color_task"])
def test_the_scripts_transforms_make_our_views(request, task_name):
    chosen = request.getfixturevalue(task_name)
    augmentation = chosen.pair.augmentation
    views = n_views(augmentation.padding_px, augmentation.horizontal_flip)
    # Every seventh view: the crop changes in row and column, and the flip alternates.
    for view in range(0, views, 7):
        row_of_image = view % len(chosen.store)
        naive, ours = distillation_loops.one_view(chosen, row_of_image, view)
        torch.testing.assert_close(naive, ours, atol=1e-5, rtol=0)


def test_both_loops_read_the_same_pixels(task):
    stored = {image.tobytes() for image in task.store.read(np.arange(len(task.store)))}
    in_files = {np.asarray(Image.open(file)).tobytes() for file in task.files.rglob("*.png")}

    assert in_files == stored

    # ImageFolder's own loader would make color images of gray ones.
    batch = next(distillation_loops.naive_batches(task))

    assert batch.shape == (16, 1, 32, 32)
    assert batch.dtype == torch.float32


LOOPS = [distillation_loops.naive_robust_loss, distillation_loops.shared_robust_loss]


@pytest.mark.parametrize("n_vectors", [1, 10])
@pytest.mark.parametrize("loss", LOOPS)
def test_a_loop_over_weight_vectors_finds_the_same_worst_loss(
    loss: Callable[..., torch.Tensor], n_vectors: int
):
    generator = torch.Generator().manual_seed(n_vectors)
    student = torch.randn(32, 10, generator=generator)
    teacher = torch.randn(32, 10, generator=generator)
    vectors = torch.rand(n_vectors, 10, generator=generator)
    student.requires_grad_()
    theirs = loss(student, teacher, vectors, 2.0)
    ours = robust_kd(student, teacher, vectors, 2.0)["loss"]

    torch.testing.assert_close(theirs, ours)

    (their_gradient,) = torch.autograd.grad(theirs, student)
    (our_gradient,) = torch.autograd.grad(ours, student)

    torch.testing.assert_close(their_gradient, our_gradient)


def test_rows_that_cannot_be_measured_here_give_the_reason(task, monkeypatch):
    monkeypatch.setattr(distillation, "has_native_bf16", lambda: False)
    pair = dataclasses.replace(task.pair, repeats=1, loop_views=2)
    quick = dataclasses.replace(task, pair=pair)
    # A goal of 0 is met on any machine.
    monkeypatch.setattr(distillation, "GOALS", {"views": 0.0})
    measured, unmeasured = distillation.pair_rows(quick, ("float32", "bf16"))

    assert measured.verdict == "met"
    assert measured.share is not None
    assert "images are generated" in measured.note
    assert unmeasured.verdict == "-"
    assert "no bf16" in unmeasured.note


# --- photos and exported students


def test_the_least_work_with_photos_is_decoding_and_the_network(tmp_path):
    require_caltech_packages()
    encoded = naive.encoded_images(None, "photos", 8, ("JPEG", 3, 60))
    files = naive.write_folder(tmp_path / "files", encoded)
    row = photos._extraction_row(photos.caltech_teacher(32), encoded, files, tmp_path / "store")

    assert row.share is not None
    assert row.throughput is not None
    for step in ("reading and decoding", "the network", "an update of the student"):
        assert step in row.note


def test_tar_shards_and_a_folder_give_the_same_number_of_photos(tmp_path):
    encoded = naive.encoded_images(None, "photos", 6, ("JPEG", 3, 40))
    files = naive.write_folder(tmp_path / "files", encoded)
    row = photos._tar_row(encoded, files, tmp_path)

    stores = [ImageStore.open(folder) for folder in tmp_path.glob("ingested_*")]
    assert {len(store) for store in stores} == {6}
    assert row.value is not None


def test_torch_and_onnx_runtime_are_compared_on_equal_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr(exported, "N_IMAGES", 24)
    monkeypatch.setattr(exported, "N_CALIBRATION", 8)
    monkeypatch.setattr(exported, "NETWORKS", {"a network": (8, 4)})
    monkeypatch.setattr(exported, "has_native_bf16", lambda: False)
    names = [row.what for row in exported.measure(None, tmp_path)]
    assert names == [
        "a network: ONNX Runtime in float32, against torch in float32",
        "a network: ONNX Runtime in int8, against torch in float32",
    ]
    monkeypatch.setattr(exported, "TOLERANCE", 0.0)
    with pytest.raises(AssertionError, match="differ by"):
        next(exported.measure(None, tmp_path / "again"))


# --- retrieval


def test_the_nearest_of_a_pool_are_found_and_compared_with_two_indices(tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "N_POOL", 4_000)
    monkeypatch.setattr(retrieval, "N_GRAPH", 1_500)
    monkeypatch.setattr(retrieval, "BLOCK", 700)
    rng = np.random.default_rng(0)
    pool = retrieval._drawn(rng.normal(size=(9, 64)), 2_000, rng)
    queries = pool[:5]
    nearest = retrieval.exact_rows(pool, queries)
    # Near to 1, neighbors differ by less than the rounding of float32.
    cosines = np.sort(queries @ pool.T, axis=1)[:, ::-1][:, : retrieval.N_NEAREST]
    found = np.take_along_axis(queries @ pool.T, nearest, axis=1)
    np.testing.assert_allclose(found, cosines, atol=1e-5)

    pytest.importorskip("faiss", reason="the extra bench is not installed")
    pytest.importorskip("usearch", reason="the extra bench is not installed")
    rows = list(retrieval.measure(None, tmp_path))
    assert [row.what.partition(": ")[2].split()[0] for row in rows] == [
        "exact",
        "building",
        "asking",
        "building",
        "asking",
    ]
    recalls = [float(row.note.split()[1]) for row in rows if row.note.startswith("recall")]
    # Lists that are not looked into hold neighbors, too; by chance it would be 3 and 7 %.
    assert min(recalls) > 50
    assert not list((tmp_path / "retrieval").iterdir())


# --- scaling


def test_both_stages_run_on_a_generated_pool_and_report_their_memory(tmp_path):
    scaling_pool.write_models(tmp_path)
    shards = [scaling_pool.write_shard(tmp_path, number, 40) for number in range(3)]
    pool = tmp_path / "pool"
    store = scaling_pool.link_store(shards[:2], tmp_path, pool)

    assert len(store) == 80
    assert store.index["id"].is_unique

    # In order: scoring reads the features that extraction writes.
    for stage in STAGES:
        cost = run_stage(stage, pool, tmp_path)
        assert cost.stage == stage
        assert cost.n_images == 80
        assert 0 < cost.start_mb <= cost.peak_mb <= cost.peak_resident_mb
    scores = list((tmp_path / "scores_pool").glob("*.parquet"))

    assert len(scores) == 2

    grown = scaling_pool.link_store(shards, tmp_path, pool)

    assert len(grown) == 120


def test_the_plot_of_a_series_is_a_png(tmp_path: Path):
    series = []
    for stage in STAGES:
        for n_images in scaling.SIZES:
            cost = StageCost(
                stage,
                n_images,
                peak_mb=200 + n_images / 1e5,
                start_mb=190.0,
                peak_resident_mb=300 + n_images / 1e4,
                cpu_seconds=n_images / 1e5,
            )
            series.append(dataclasses.asdict(cost))
    file = tmp_path / "memory.png"
    # As the command reads it: from JSON.
    scaling.plot(file, json.loads(json.dumps(series)))
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.width > 600
