"""Fixtures of training: scenes, and the students that several tests look at."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from pu_kd_pipeline.models.model import Model
from tests.training.scene import VARIANTS, Scene, make_scene


@pytest.fixture(scope="session")
def scene_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    # A teacher takes a second to train, so that each is trained once for all tests.
    known: dict[str, Scene] = {}

    def get(name: str) -> Scene:
        if name not in known:
            known[name] = make_scene(name, tmp_path_factory.mktemp(name))
        return known[name]

    return get


@pytest.fixture
def digits(scene_of: Callable[[str], Scene]) -> Scene:
    return scene_of("digits")


@pytest.fixture(scope="session")
def trained(
    scene_of: Callable[[str], Scene],
) -> Callable[[str, str], tuple[Scene, Model, pd.DataFrame]]:
    """Return a function: networks and variant -> scene, student, history."""
    known: dict[tuple[str, str], tuple[Scene, Model, pd.DataFrame]] = {}

    def get(networks: str, variant: str) -> tuple[Scene, Model, pd.DataFrame]:
        if (networks, variant) not in known:
            scene = scene_of(networks)
            student, history = scene.distill(**VARIANTS[variant])
            known[networks, variant] = (scene, student, history)
        return known[networks, variant]

    return get
