"""Whether an exported student answers as the student does, on all test images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export.sessions import Logits
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.progress import count_images

_N_NAMED = 5  # ids in a report or message
_N_ALONE = 4  # images that are also computed one by one


@dataclass(frozen=True)
class Difference:
    """How the logits of two networks for the same images differ.

    Attributes:
        largest: largest absolute difference of a logit.
        n: images.
        changed: rows with another class.
        margins: for these, by how much the class leads in the student's logits.
    """

    largest: float
    n: int
    changed: np.ndarray
    margins: np.ndarray

    def facts(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return the difference as JSON can hold it; `ids` are those of the images."""
        n_agreed = self.n - len(self.changed)
        return {
            "max_difference": self.largest,
            "n": self.n,
            "n_agreed": n_agreed,
            "agreement": n_agreed / self.n,
            "changed": [str(ids[row]) for row in self.changed[:_N_NAMED]],
            "largest_changed_margin": float(self.margins.max(initial=0.0)),
        }


def difference(logits: np.ndarray, student: np.ndarray) -> Difference:
    """Return how (N, K) logits differ from those of the student."""
    classes = student.argmax(axis=1)
    others = logits.argmax(axis=1)
    changed = np.flatnonzero(classes != others)
    margins = student[changed, classes[changed]] - student[changed, others[changed]]
    # Minus infinity, which excludes a class, equals itself.
    with np.errstate(invalid="ignore"):
        distances = np.abs(logits.astype(np.float64) - student)
    distances[logits == student] = 0
    return Difference(float(distances.max()), len(student), changed, margins)


def check_logits(student: np.ndarray, ids: Sequence[str]) -> None:
    """Check that a student gives numbers; minus infinity excludes a class, but not all classes.

    Raises:
        InputError: a logit is NaN or plus infinity, or an image has no finite one.
    """
    is_excluded = np.isneginf(student)
    is_number = np.isfinite(student)
    is_sound = (is_number | is_excluded).all(axis=1) & is_number.any(axis=1)
    if not is_sound.all():
        broken = np.flatnonzero(~is_sound)
        raise InputError(
            f"export: student_model computes logits that are no numbers for {len(broken):,} of "
            f"{len(student):,} test images, such as {ids[broken[0]]!r}: distill it again"
        )


def largest_logit(student: np.ndarray) -> float:
    """Return the largest finite absolute logit."""
    return float(np.abs(student[np.isfinite(student)]).max())


def largest_allowed(student: np.ndarray, tolerance: float) -> float:
    """Return the largest difference of a logit that counts as rounding in float32."""
    return tolerance * largest_logit(student)


def is_comparable(logits: np.ndarray, student: np.ndarray) -> bool:
    """Return whether logits are finite where those of the student are, and excluded elsewhere."""
    is_number = np.isfinite(student)
    excluded = ~is_number
    return bool(
        np.isfinite(logits[is_number]).all() and (logits[excluded] == student[excluded]).all()
    )


def check_parity(file: str, found: Difference, allowed: float, ids: Sequence[str]) -> None:
    """Check that a file of float32 gives the student's logits, and with them its classes.

    Two sums of the same numbers in another order differ in their last bits, and where two classes
    are that close, either of them may come first. While no logit differs by more than `allowed`, a
    class can only change where it led by at most twice of that. Such a tie is reported and is no
    error; any other change of a class comes with a larger difference, which is one.

    Raises:
        InputError: a logit differs by more than `allowed`, or is no number.
    """
    if found.largest <= allowed:
        return
    example = ""
    if len(found.changed):
        example = f", such as {ids[found.changed[0]]!r}"
    raise InputError(
        f"export: {file} does not compute what student_model does: logits differ by up to "
        f"{found.largest:.3g}, {allowed:.3g} is allowed, and {len(found.changed):,} of "
        f"{found.n:,} test images get another class{example}. Set export.opset to another version "
        "(18 to 23), or leave the format out of export.formats. Where a difference of this size "
        "does no harm, raise export.tolerance"
    )


def logits_of(compute: Logits, store: ImageStore, batch_size: int, name: str) -> np.ndarray:
    """Return the (N, K) logits of all images of a store, N > 0."""
    found = []
    with count_images(name, len(store)) as count:
        for start in range(0, len(store), batch_size):
            rows = np.arange(start, min(start + batch_size, len(store)))
            images = store.read(rows)
            logits = compute(np.ascontiguousarray(images.transpose(0, 2, 3, 1)))
            found.append(logits)
            count(len(rows))
    return np.concatenate(found)


def check_alone(
    compute: Logits, store: ImageStore, logits: np.ndarray, allowed: float, name: str
) -> None:
    """Check that images get the same logits alone as among others, as single requests need it.

    Args:
        compute: the exported network.
        store: all images.
        logits: (N, K) of these, computed in batches.
        allowed: largest difference of a logit.
        name: of the file.

    Raises:
        InputError: an image gets other logits, beyond rounding.
    """
    for row in np.unique(np.linspace(0, len(store) - 1, _N_ALONE).astype(int)):
        image = store.read(np.array([row])).transpose(0, 2, 3, 1)
        alone = compute(np.ascontiguousarray(image))
        found = difference(alone, logits[row : row + 1])
        if not found.largest <= allowed:  # also for NaN
            raise InputError(
                f"export: {name} gives an image other logits alone than among others: the network "
                "mixes the images of a batch, and cannot be exported"
            )
