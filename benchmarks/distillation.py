"""Target 3, robust distillation: our loop against the loop of a usual script, per image shown.

Both train the same student by the same method. Where both get the same batches, their losses agree,
which is asserted before anything is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.distillation_loops import (
    CPU,
    image_rows,
    largest_difference,
    naive_batches,
    naive_losses,
    naive_robust_loss,
    normalize_of,
    our_losses,
    our_robust_loss,
    shared_robust_loss,
)
from benchmarks.distillation_task import CACHED_VIEWS, CLASSES, LENET, RESNET, Task, make_task
from benchmarks.harness import (
    Measurement,
    Ratio,
    cpu_seconds,
    has_native_bf16,
    ratio,
    repeated,
    share_of_limit,
    speedup,
    unmeasured,
)
from pu_kd_pipeline.devices import autocast
from pu_kd_pipeline.training.teacher_cache import TeacherOutputs

TOLERANCE = 1e-4
"""Largest difference between losses of the same batches."""

GOALS = {"off": 95.0, "views": 90.0}
"""Teacher cache -> share of the limit in percent that our loop should reach."""

Robust = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""Student logits, teacher logits, weight vectors and temperature -> worst weighted loss."""
Works = dict[str, Callable[[], object]]


def measure(images: Path | None, work: Path) -> Iterator[Measurement]:
    """Yield the rows of target 3."""
    lenet = make_task(LENET, images, work / "distillation")
    difference = largest_difference(lenet, n_updates=20, batch_size=LENET.batch_size)
    assert difference < TOLERANCE, f"the losses of both LeNet loops differ by {difference}"
    precisions = ("float32",)
    yield from pair_rows(lenet, precisions)
    # Fewer and smaller updates: ResNet-34 takes seconds for each.
    resnet = make_task(RESNET, images, work / "distillation")
    difference = largest_difference(resnet, n_updates=2, batch_size=8)
    assert difference < TOLERANCE, f"the losses of both ResNet loops differ by {difference}"
    yield from pair_rows(resnet, ("float32", "bf16"))
    yield _min_max_row(10, 5.0, repeats=7)
    yield _min_max_row(100, 60.0, repeats=7)


# --- whole loops ----------------------------------------------------------------------------------


def pair_rows(task: Task, precisions: Sequence[str]) -> Iterator[Measurement]:
    """Yield a row for each precision and teacher cache ("off" or "views")."""
    pair = task.pair
    possible = [each for each in precisions if each != "bf16" or has_native_bf16()]
    loops = _loops(task, tuple(possible))
    seconds = _rounds(loops, pair.repeats)
    for precision in precisions:
        for cache, goal in GOALS.items():
            what = f"robust KD {pair.teacher} → {pair.student}, {precision}, "
            if cache == "off":
                what += "the script's loop against ours"
            else:
                what += "the teacher's outputs of 8 views cached"
            if precision in possible:
                yield _loop_row(task, what, seconds, cache, precision, goal)
            else:
                yield unmeasured("3", what, goal, "this CPU has no bf16 arithmetic of its own")


def _loop_row(
    task: Task,
    what: str,
    seconds: Mapping[str, list[float]],
    cache: str,
    precision: str,
    goal: float,
) -> Measurement:
    pair = task.pair
    theirs = seconds["naive"]
    ours = seconds[f"{cache} {precision}"]
    least = _ratio(theirs, seconds[f"least {cache} {precision}"])
    if cache == "views":
        limit = "if the student were all: no images, loss or optimizer"
        # The run shows each image `shown` times, and the filling computes CACHED_VIEWS of it: the
        # part of the filling that falls on one image shown.
        share = CACHED_VIEWS / pair.shown
        filled = []
        for step, filling in zip(ours, seconds[f"filling {precision}"], strict=True):
            filled.append(step + share * filling)
        gain = _ratio(theirs, filled)
        without_filling = _ratio(theirs, ours)
        note = f"with the cache's filling for {pair.run}; {without_filling.median:.2f} x without it"
    else:
        limit = "if both networks were all: no images, loss or optimizer"
        gain = _ratio(theirs, ours)
        n_shown = pair.updates * pair.batch_size
        ms_per_image = 1e3 * statistics.median(theirs) / n_shown
        note = f"batches of {pair.batch_size}; the script takes {ms_per_image:.2f} ms an image"
    if not task.is_real:
        note += "; images are generated"
    n_images = pair.updates * pair.batch_size
    return share_of_limit("3", what, gain, least, goal, limit, note, n_images)


def _rounds(works: Works, repeats: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each work, called in turn, after one call that is not counted."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            of_call = cpu_seconds(work)
            seconds[name].append(of_call)
    return seconds


def _ratio(first: list[float], second: list[float]) -> Ratio:
    # Round by round: what else the machine did in a round fell on both.
    ratios = [a / b for a, b in zip(first, second, strict=True)]
    return Ratio.of(ratios, second)


def _loops(task: Task, precisions: tuple[str, ...]) -> Works:
    """Return what a round times; each call trains on or caches `updates` batches."""
    batches = naive_batches(task)
    script = naive_losses(task, batches, task.student())
    works: Works = {"naive": repeated(script.__next__, task.pair.updates)}
    for precision in precisions:
        works |= _our_loops(task, precision)
    return works


def _our_loops(task: Task, precision: str) -> Works:
    pair = task.pair
    without_cache = task.params(precision=precision)
    with_cache = task.params(precision=precision, teacher_cache="views")
    fresh = our_losses(task, without_cache, task.student())
    cached = our_losses(task, with_cache, task.student())
    # So many images that their views are as many as the loops show in one call.
    n_shown = pair.updates * pair.batch_size
    n_filled = n_shown // pair.loop_views
    rows = image_rows(task, with_cache, n_filled)
    normalize = normalize_of(task)

    def fill_cache() -> None:
        # The constructor asks the teacher for all views.
        TeacherOutputs(rows, task.teacher.network, normalize, with_cache)

    return {
        **_bare_networks(task, precision),
        f"off {precision}": fresh.__next__,
        f"views {precision}": cached.__next__,
        f"filling {precision}": fill_cache,
    }


def _bare_networks(task: Task, precision: str) -> Works:
    """Return the least work of any loop with these networks: the same passes over one batch."""
    pair = task.pair
    compute = task.params(precision=precision).compute
    student = task.student()
    rows = image_rows(task, task.params())
    raw_images = rows.batch(torch.arange(pair.batch_size))
    normalize = normalize_of(task)
    images = normalize(raw_images)

    def train() -> None:
        for parameter in student.parameters():
            parameter.grad = None
        with autocast(compute, CPU):
            logits = student(images)
        # Any scalar will do: the backward pass costs the same.
        logits.float().square().mean().backward()

    def ask_teacher_and_train() -> None:
        with torch.no_grad(), autocast(compute, CPU):
            task.teacher.network(images)
        train()

    return {
        f"least views {precision}": repeated(train, pair.updates),
        f"least off {precision}": repeated(ask_teacher_and_train, pair.updates),
    }


# --- the loss alone -------------------------------------------------------------------------------


def _min_max_row(n_vectors: int, goal: float, repeats: int) -> Measurement:
    """Return the row of the worst of n weighted losses and its gradient: one product or a loop."""
    generator = torch.Generator().manual_seed(n_vectors)
    student_logits = 4 * torch.randn(128, len(CLASSES), generator=generator)
    teacher_logits = 4 * torch.randn(128, len(CLASSES), generator=generator)
    vectors = torch.rand(n_vectors, len(CLASSES), generator=generator) + 0.5

    def gradient(loss: Robust) -> tuple[Tensor, Tensor]:
        logits = student_logits.clone().requires_grad_()
        value = loss(logits, teacher_logits, vectors, 1.0)
        value.backward()
        assert logits.grad is not None
        return value.detach(), logits.grad

    # Equal results first: otherwise their costs could not be compared.
    expected = gradient(our_robust_loss)
    for loss in (naive_robust_loss, shared_robust_loss):
        for value, other in zip(expected, gradient(loss), strict=True):
            assert torch.allclose(value, other, atol=TOLERANCE)

    # So many calls that every timed one takes milliseconds at least.
    n_ours = 200
    n_loop = max(1, 200 // n_vectors)
    ours = repeated(lambda: gradient(our_robust_loss), n_ours)
    loop = repeated(lambda: gradient(naive_robust_loss), n_loop)
    shared_loop = repeated(lambda: gradient(shared_robust_loss), n_loop)
    share_of_calls = n_loop / n_ours
    gain = ratio(loop, ours, repeats).over(share_of_calls)
    shared_gain = ratio(shared_loop, ours, repeats).over(share_of_calls)
    what = f"worst of {n_vectors} weighted losses and its gradient, batch of 128: "
    what += "a loop against one product"
    note = (
        f"{shared_gain.median:.1f} x a loop that computes the samples' losses once for all vectors"
    )
    return speedup("3", what, gain, goal, note=note)
