from __future__ import annotations

from collections.abc import Iterator

import pytest

from pu_kd_pipeline.training.checkpoints import disable_checkpoints


@pytest.fixture(autouse=True)
def _checkpoints_disabled() -> Iterator[None]:
    """Start and end every test without checkpoints, whatever it sets."""
    disable_checkpoints()
    yield
    disable_checkpoints()
