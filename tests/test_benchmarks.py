"""The benchmarks measure what they say: equal work on both sides, and numbers that are held against the right goal."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import distillation, scaling
from benchmarks.harness import Measurement, Ratio, markdown, ratio
from PIL import Image

from pu_kd_pipeline.learning.augmentation import n_views
from pu_kd_pipeline.learning.losses.distillation import robust_kd
from pu_kd_pipeline.training.distillation import distill

# --- the frame


def row(**changes: Any) -> Measurement:
    given = {
        "target": "1",
        "what": "a against b",
        "value": 5.0,
        "low": 4.0,
        "high": 6.0,
        "unit": "x",
        "sense": ">=",
    }
    return Measurement(**{**given, "goal": 4.0, **changes})


def count(n: int) -> int:
    return sum(range(n))


def test_four_times_the_work_takes_about_four_times_as_long():
    measured = ratio(lambda: count(800_000), lambda: count(200_000), repeats=5)
    assert 2 < measured.median < 8
    assert measured.low <= measured.median <= measured.high


def test_a_ratio_is_told_for_equal_work():
    assert Ratio(8.0, 6.0, 10.0).over(4) == Ratio(2.0, 1.5, 2.5)


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
def test_a_value_is_judged_by_its_goal(changes, verdict):
    assert row(**changes).verdict == verdict
    assert row(**changes).as_json()["verdict"] == verdict


def test_every_row_is_a_line_of_the_table():
    table = markdown(
        [
            row(note="on one thread"),
            row(value=None, low=None, high=None),
            row(value=1234.5, sense="<="),
        ]
    )
    header, rule, *lines = table.splitlines()
    assert header.count("|") == rule.count("|") == 9
    assert lines == [
        "| 1 | a against b | 5.00 x | 4.00 to 6.00 | ≥ 4 x | met |  | on one thread |",
        "| 1 | a against b | – |  | ≥ 4 x | - |  |  |",
        "| 1 | a against b | 1,234 x | 4.00 to 6.00 | ≤ 4 x | missed |  |  |",
    ]


# --- distillation


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> distillation.Task:
    pair = dataclasses.replace(distillation.LENET, n_images=48, batch_size=16, updates=2)
    return distillation.make_task(pair, None, tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def color_task(tmp_path_factory: pytest.TempPathFactory) -> distillation.Task:
    pair = dataclasses.replace(
        distillation.RESNET, n_images=20, student="cifar_resnet", teacher="cifar_resnet"
    )
    return distillation.make_task(pair, None, tmp_path_factory.mktemp("color_task"))


def test_the_scripts_loop_learns_what_ours_does(task, color_task):
    assert (
        distillation.largest_difference(task, n_updates=6, batch_size=16) < distillation.TOLERANCE
    )
    assert (
        distillation.largest_difference(color_task, n_updates=2, batch_size=4)
        < distillation.TOLERANCE
    )


def test_our_loop_is_that_of_the_stage(task):
    import pandas as pd

    params = task.params(n_updates=5, record_every=1)
    ids = task.store.index["id"]
    manifest = pd.DataFrame({"id": ids, "origin": "pool"})
    vectors = pd.DataFrame(task.vectors.numpy())
    _, history = distill(
        manifest, task.store, task.store, task.teacher, vectors, params, "benchmark"
    )
    assert list(distillation.our_losses(task, params, task.student())) == history["loss"].tolist()


@pytest.mark.parametrize("colors", [False, True])
def test_the_scripts_transforms_make_our_views(task, color_task, colors):
    chosen = color_task if colors else task
    augmentation = chosen.pair.augmentation
    views = n_views(augmentation.padding_px, augmentation.horizontal_flip)
    for view in range(0, views, 7):
        naive, ours = distillation.one_view(chosen, row=view % len(chosen.store), view=view)
        torch.testing.assert_close(naive, ours, atol=1e-5, rtol=0)


def test_both_loops_read_the_same_pixels(task):
    files = sorted(task.files.rglob("*.png"))
    stored = {image.tobytes() for image in task.store.read(np.arange(len(task.store)))}
    assert {np.asarray(Image.open(file)).tobytes() for file in files} == stored
    batch = next(distillation.naive_batches(task))
    assert batch.shape == (16, 1, 32, 32)
    assert batch.dtype == torch.float32


@pytest.mark.parametrize("n_vectors", [1, 10])
@pytest.mark.parametrize("loss", [distillation.naive_robust_loss, distillation.shared_robust_loss])
def test_a_loop_over_weight_vectors_finds_the_same_worst_loss(loss, n_vectors):
    generator = torch.Generator().manual_seed(n_vectors)
    student, teacher = (torch.randn(32, 10, generator=generator) for _ in range(2))
    vectors = torch.rand(n_vectors, 10, generator=generator)
    student.requires_grad_()
    values = [
        loss(student, teacher, vectors, 2.0),
        robust_kd(student, teacher, vectors, 2.0)["loss"],
    ]
    torch.testing.assert_close(values[0], values[1])
    gradients = [torch.autograd.grad(value, student)[0] for value in values]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_what_cannot_be_measured_here_is_said(task, monkeypatch):
    monkeypatch.setattr(distillation, "has_native_bf16", lambda: False)
    quick = dataclasses.replace(task, pair=dataclasses.replace(task.pair, repeats=1, loop_views=2))
    rows = list(distillation._pair_rows(quick, {("views", "float32"): 0.0, ("off", "bf16"): 2.2}))
    assert [measured.verdict for measured in rows] == ["met", "-"]
    assert "images are generated" in rows[0].note
    assert "no bf16" in rows[1].note


# --- scaling


def test_both_stages_run_on_a_generated_pool_and_tell_their_memory(tmp_path):
    scaling.write_models(tmp_path)
    shards = [(scaling.write_shard(tmp_path, number, 40), 40) for number in range(3)]
    store = scaling.link_store(shards[:2], tmp_path, tmp_path / "pool")
    assert len(store) == 80
    assert store.index["id"].is_unique
    for stage in scaling.STAGES:
        seen = scaling.run_stage(stage, tmp_path / "pool", tmp_path)
        assert (seen.stage, seen.n_images) == (stage, 80)
        assert 0 < seen.start_mb <= seen.peak_mb <= seen.peak_resident_mb
    assert len(list((tmp_path / "scores_pool").glob("*.parquet"))) == 2
    assert len(scaling.link_store(shards, tmp_path, tmp_path / "pool")) == 120


def test_the_plot_of_a_series_is_a_png(tmp_path: Path):
    series = [
        dataclasses.asdict(scaling.Seen(stage, n, 200 + n / 1e5, 190.0, 300 + n / 1e4, n / 1e5))
        for stage in scaling.STAGES
        for n in scaling.SIZES
    ]
    scaling.plot(tmp_path / "memory.png", json.loads(json.dumps(series)))
    with Image.open(tmp_path / "memory.png") as image:
        assert image.format == "PNG"
        assert image.width > 600
