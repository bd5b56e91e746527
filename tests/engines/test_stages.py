"""The work of the stages does in another process what it does in this one."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from pu_kd_pipeline.engines.tables import ShardMakers
from pu_kd_pipeline.learning.loop import seeded
from pu_kd_pipeline.models.cards import PUClassifierCard
from pu_kd_pipeline.models.model import Model, PUClassifier, build_pu_module
from pu_kd_pipeline.pipelines.feature_extraction import nodes as feature_extraction
from pu_kd_pipeline.pipelines.pool_scoring import nodes as pool_scoring
from pu_kd_pipeline.pipelines.relatedness import nodes as relatedness
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from tests.engines.works import engine_of
from tests.features.made_files import CARD, MadeFiles, small_network


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeFiles:
    return MadeFiles.in_folder(tmp_path_factory.mktemp("made"))


def test_features_of_processes_are_those_of_this_one(made, tmp_path):
    makers = made.feature_makers()
    ShardedTable.write(tmp_path / "local", makers)
    ShardedTable.write(tmp_path / "processes", makers.on(engine_of("processes", n_workers=1)))
    files = sorted(file.name for file in (tmp_path / "local").iterdir())
    assert len(files) == 3  # two shards and their list
    assert files == sorted(file.name for file in (tmp_path / "processes").iterdir())
    for name in files:
        local = (tmp_path / "local" / name).read_bytes()
        assert (tmp_path / "processes" / name).read_bytes() == local


def check_sent(makers: ShardMakers, folder: Path) -> None:
    """Check that the work, sent as to another process, does and promises the same."""
    # Prepared before it is sent, as by a driver that has made a shard itself.
    ShardedTable.write(folder / "own", makers)
    sent = pickle.loads(pickle.dumps(makers.work))
    assert sent.facts() == makers.work.facts()
    for name, argument in makers.arguments.items():
        assert sent(argument).equals(makers[name](), check_metadata=True)


def test_features_and_relatedness_can_be_sent(made, tmp_path):
    check_sent(made.feature_makers(), tmp_path / "features")
    check_sent(made.relatedness_makers(), tmp_path / "relatedness")
    assert sum(made.feature_makers().n_images.values()) == len(made.pool)


def test_scores_can_be_sent(made, tmp_path):
    check_sent(made.score_makers(), tmp_path)
    assert sum(made.score_makers().n_images.values()) == len(made.pool)


def test_a_network_whose_factory_has_other_code_is_another_one(made, monkeypatch):
    monkeypatch.setattr("pu_kd_pipeline.models.cards.factory_digest", lambda _: "that of now")
    old = CARD.model_copy(
        update={
            "architecture": "tests.features.made_files:small_network",
            "architecture_options": {},
            "factory_code": "the code that it was made with",
        }
    )
    with seeded(0):
        teacher = Model(small_network(3).eval(), old)
    sent = pickle.loads(pickle.dumps(teacher))
    # Workers compare the fingerprint, and refuse the work.
    assert sent.card.factory_code == "that of now"
    assert sent.fingerprint() != teacher.fingerprint()
    again = pickle.loads(pickle.dumps(sent))
    assert again.fingerprint() == sent.fingerprint()


STAGES = {
    "features.extraction.feature_shards": (feature_extraction.extract_features, 2),
    "features.scoring.score_shards": (pool_scoring.score_pool, 3),
    "selection.relatedness.relatedness_shards": (relatedness.measure_relatedness, 2),
}


@pytest.mark.parametrize("function", STAGES)
def test_the_engine_of_the_parameters_reaches_the_makers(function, made, monkeypatch):
    node, n_inputs = STAGES[function]
    makers = made.feature_makers()
    monkeypatch.setattr(f"pu_kd_pipeline.{function}", lambda *_: makers)
    engine = engine_of("processes")
    params = SimpleNamespace(compute=None)
    assert node(*[None] * n_inputs, params, engine).engine == engine


def test_a_classifier_with_its_own_backbone_can_be_sent(made):
    card = PUClassifierCard(
        backbone="full",
        features="descriptor",
        descriptor_size=made.teacher.extractor().descriptor_size,
        attention_reduction=None,
        class_prior=0.5,
        teacher=CARD,
        teacher_fingerprint=made.teacher.fingerprint(),
    )
    with seeded(0):
        module = build_pu_module(card)
    classifier = PUClassifier(module.eval(), card)
    sent = pickle.loads(pickle.dumps(classifier))
    assert sent.fingerprint() == classifier.fingerprint()
    assert not sent.module.training
