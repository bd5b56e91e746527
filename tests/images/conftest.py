"""Fixtures of the tests of image stores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pu_kd_pipeline.images.decoding import Decoder


@pytest.fixture
def n_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that returns how many images were decoded since it was last called."""
    n = 0
    original = Decoder.decode

    def counted(self: Decoder, raw: Any) -> Any:
        nonlocal n
        n += 1
        return original(self, raw)

    def count() -> int:
        nonlocal n
        n_since_last_call = n
        n = 0
        return n_since_last_call

    monkeypatch.setattr(Decoder, "decode", counted)
    return count
