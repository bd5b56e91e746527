"""When an exported student counts as the student: differences, ties, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export.parity import (
    check_alone,
    check_logits,
    check_parity,
    difference,
    is_comparable,
    largest_allowed,
)
from pu_kd_pipeline.reporting.export_page import export_sentences

IDS = [f"image {row}" for row in range(8)]
LOGITS = arrays(np.float32, (8, 3), elements=st.floats(-10, 10, width=32))
NOISE = arrays(np.float32, (8, 3), elements=st.floats(-(2**-7), 2**-7, width=32))


@given(student=LOGITS, noise=NOISE)
def test_a_small_difference_changes_a_class_only_at_a_tie(student, noise):
    found = difference(student + noise, student)
    assert found.largest <= 0.0101
    assert (found.margins <= 2 * found.largest + 1e-6).all()
    assert (found.margins >= 0).all()
    facts = found.facts(IDS)
    assert facts["n_agreed"] == 8 - len(found.changed)
    assert facts["changed"] == [IDS[row] for row in found.changed[:5]]


def test_a_tie_is_reported_and_a_larger_difference_is_refused():
    student = np.array([[5.0, 1.0, 0.0], [2.0, 2.0 - 1e-6, 0.0]], dtype=np.float32)
    exported = student.copy()
    exported[1] = [2.0 - 1e-6, 2.0, 0.0]
    allowed = largest_allowed(student, 1e-4)
    assert allowed == pytest.approx(5e-4)
    tied = difference(exported, student)
    check_parity("student.onnx", tied, allowed, IDS)
    assert tied.facts(IDS)["changed"] == ["image 1"]

    exported[0, 1] = 6.0
    wrong = difference(exported, student)
    with pytest.raises(InputError) as error:
        check_parity("student.onnx", wrong, allowed, IDS)
    message = str(error.value)
    assert "differ by up to 5, 0.0005 is allowed" in message
    assert "2 of 2 test images get another class, such as 'image 0'" in message
    assert "Set export.opset" in message


def test_a_logit_that_is_no_number_is_refused_and_an_excluded_class_is_not():
    student = np.array([[5.0, -np.inf]], dtype=np.float32)
    assert largest_allowed(student, 1e-4) == pytest.approx(5e-4)
    assert difference(student, student).largest == 0
    for value in (np.nan, np.inf, 0.0):
        broken = student.copy()
        broken[0, 1] = value
        with pytest.raises(InputError, match="does not compute what student_model does"):
            check_parity("student.onnx", difference(broken, student), 5e-4, IDS)


def test_a_student_without_numbers_is_refused_and_an_excluded_class_is_not():
    student = np.array([[5.0, -np.inf], [1.0, 2.0]], dtype=np.float32)
    check_logits(student, IDS)
    for row in ([np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]):
        broken = student.copy()
        broken[1] = row
        with pytest.raises(InputError, match=r"for 1 of 2 test images, such as 'image 1'"):
            check_logits(broken, IDS)


def test_int8_has_to_exclude_the_classes_that_the_student_excludes():
    student = np.array([[5.0, -np.inf]], dtype=np.float32)
    assert is_comparable(student + 1, student)
    for row in ([5.0, -9.0], [5.0, np.nan], [np.nan, -np.inf], [-np.inf, -np.inf]):
        assert not is_comparable(np.array([row], dtype=np.float32), student)


def test_a_tie_in_two_files_is_one_tie_in_the_report():
    found = {"n": 500, "n_agreed": 498, "max_difference": 1e-6}
    report = {
        "images": {"n": 500},
        "parity": {
            "files": {"onnx": found, "torch_export": found},
            "n_changed": 2,
            "allowed": 1e-3,
            "tolerance": 1e-4,
            "largest_logit": 10.0,
        },
        "int8": None,
    }
    assert "for all but 2 ties of 500 test images" in export_sentences(report)[0]


class Images:
    """Ten gray images of one pixel, whose value is their row."""

    def __len__(self) -> int:
        return 10

    def read(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.uint8).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("excluded", [-50.0, -np.inf])
def test_a_network_that_mixes_the_images_of_a_batch_is_refused(excluded):
    def compute(pixels: np.ndarray) -> np.ndarray:
        values = pixels.reshape(-1, 1).astype(np.float32)
        return np.concatenate([values, np.full_like(values, excluded)], axis=1)

    def compute_mixed(pixels: np.ndarray) -> np.ndarray:
        logits = compute(pixels)
        logits[:, 0] -= 0.01 * logits[:, 0].mean()
        return logits

    images = Images()
    everything = images.read(np.arange(10))
    check_alone(compute, images, compute(everything), 5e-4, "student.onnx")
    # Of the first image alone, which is 0, the difference is below a thousandth of 50.
    with pytest.raises(InputError, match=r"student\.onnx gives an image other logits alone"):
        check_alone(compute_mixed, images, compute_mixed(everything), 5e-4, "student.onnx")
