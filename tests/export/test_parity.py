"""When an exported student counts as the student: differences, ties, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.export.parity import check_parity, difference, largest_allowed

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
