"""A pool of 240 numbered images, the features of a teacher, and an audit of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pu_kd_pipeline.features.extraction import feature_shards
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.learning.networks.build import build_network
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.pool_audit import PoolAuditParams
from pu_kd_pipeline.pool_audit.answers import KIND, VERSION
from pu_kd_pipeline.pool_audit.drawing import draw_audit
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.features.made_files import CARD, COMPUTE
from tests.images.numbered_images import numbered_store

NUMBERS = range(240)


def params_of(**changes: Any) -> PoolAuditParams:
    given = {"seed": 0, "n_images": 40, "answers": None, "write_labeled": False}
    return PoolAuditParams.model_validate({**given, **changes})


def teacher_of(seed: int = 0) -> Model:
    with seeded(seed):
        network = build_network("digits_cnn", 3, 3, {"width": 2})
    return Model(network.eval(), CARD)


@dataclass(frozen=True)
class Pool:
    images: ImageStore
    teacher: Model
    features: ShardedTable

    @staticmethod
    def of(folder: Path, numbers: range, teacher: Model) -> Pool:
        folder.mkdir()
        images = numbered_store(folder, numbers, shard_size=100)
        makers = feature_shards(images, teacher, COMPUTE)
        return Pool(images, teacher, ShardedTable.write(folder / "features", makers))

    def audit(self, **changes: Any) -> pd.DataFrame:
        return draw_audit(self.features, self.images, self.teacher, params_of(**changes))


def is_related(identifier: str) -> bool:
    """Return the made truth about an image of the pool, a quarter of which is related."""
    return int(identifier.removeprefix("i")) % 4 == 0


def true_answer(identifier: str) -> str:
    return "yes" if is_related(identifier) else "no"


def answers_to(audit: pd.DataFrame, answer: Callable[[str], str] | None = None) -> dict[str, Any]:
    """Return what the page would save, by default by the truth."""
    given = answer or true_answer
    answers = []
    for identifier, number in zip(audit["id"], audit["teacher_class"], strict=True):
        answers.append({"id": identifier, "answer": given(identifier), "class": int(number)})
    fingerprints = {key: audit.attrs[key] for key in ("pool", "teacher", "draw")}
    return {"kind": KIND, "version": VERSION, "fingerprints": fingerprints, "answers": answers}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.of(tmp_path_factory.mktemp("audited") / "pool", NUMBERS, teacher_of())
