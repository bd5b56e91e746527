"""Students by every objective: what they learn, from which images and labels, what learns beside them, what is refused.

Images are bars in noise whose place is their class, so that teachers of a few channels learn them within seconds.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.batches import ImageRows, normalization, predict_logits
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.critic import CriticTraining
from pu_kd_pipeline.learning.loop import make_optimizer, seeded
from pu_kd_pipeline.learning.losses.distillation import OBJECTIVES, kl_divergence
from pu_kd_pipeline.models.factory import new_student, new_teacher
from pu_kd_pipeline.models.model import Model, load_model, save_model
from pu_kd_pipeline.params.compute import AugmentationParams, ComputeParams, OptimizerParams
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.distillation import DistillationParams
from pu_kd_pipeline.params.teacher import TeacherParams, TeacherTrainingParams
from pu_kd_pipeline.training import distillation
from pu_kd_pipeline.training.batches import Batch, augmented_batches
from pu_kd_pipeline.training.distillation import distill, distill_from_pool, distill_original
from pu_kd_pipeline.training.objectives import feature_matching, latent, noisy
from pu_kd_pipeline.training.objectives.base import Objective, ObjectiveContext
from pu_kd_pipeline.training.objectives.factory import make_objective
from pu_kd_pipeline.training.teacher import train_classifier

N_CLASSES = 5
COMPUTE = ComputeParams(
    device="cpu", precision="float32", n_threads=1, resident_limit_gb=1.0, inference_batch_size=64
)
OPTIMIZER = OptimizerParams(
    algorithm="adam", learning_rate=0.005, momentum=0.9, weight_decay=0.0, schedule="constant"
)
PLAIN = AugmentationParams(padding_px=0, horizontal_flip=False)


# --- what is distilled ------------------------------------------------------------------------------------------------


def png(number: int) -> bytes:
    """Return an image that is told by its number: noise, and a bar at the place of its class."""
    pixels = np.random.default_rng(number).integers(0, 120, (8, 8), dtype=np.uint8)
    row = number % N_CLASSES
    pixels[row : row + 3] += 100
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def store_of(folder: Path, *parts: tuple[range, str], size_px: int = 8) -> ImageStore:
    """Return a store of the images of some numbers; what their labels are said to be stands beside them."""
    sources = []
    folder.mkdir(parents=True)
    for place, (numbers, labels) in enumerate(parts):
        file = folder / f"{place}.parquet"
        columns = {
            "id": [f"i{number}" for number in numbers],
            "image": [png(number) for number in numbers],
            "label": [number % N_CLASSES for number in numbers],
        }
        pq.write_table(pa.table(columns), file)
        sources.append(
            ImageSource.model_validate({"type": "parquet", "path": str(file), "labels": labels})
        )
    store = ImageStoreParams(
        kind="packed", packed_max_size_px=64, disk_budget_gb=1.0, shard_size=64, max_image_pixels=10_000,
        max_quarantined_share=0.0, n_workers=1,
    )  # fmt: skip
    names = tuple(str(index) for index in range(N_CLASSES))
    return write_store(
        IngestionPlan("images", tuple(sources), size_px, 1, names, store, 0), folder / "store"
    )


@dataclass(frozen=True)
class Scene:
    """A teacher that knows its classes, its labeled images, a pool, and which network is to follow it."""

    teacher: Model
    labeled: ImageStore
    pool: ImageStore
    student: dict[str, Any]

    @property
    def manifest(self) -> pd.DataFrame:
        """All images, in no order, and with an index that repeats."""
        parts = [
            store.index[["id"]].assign(origin=origin)
            for origin, store in (("pool", self.pool), ("labeled", self.labeled))
        ]
        return pd.concat(parts).sample(frac=1, random_state=0)

    def fresh(self) -> Model:
        """Return the student as it is before its first update."""
        with seeded(0):
            return new_student(
                self.teacher,
                self.student["student_architecture"],
                self.student["student_options"],
                {},
            )

    def params(self, **changes: Any) -> DistillationParams:
        return params_with(**{**self.student, **changes})

    def distill(
        self, manifest: pd.DataFrame | None = None, **changes: Any
    ) -> tuple[Model, pd.DataFrame]:
        weights = pd.DataFrame(np.random.default_rng(0).uniform(0.5, 1.5, (3, N_CLASSES)))
        images = self.manifest if manifest is None else manifest
        return distill(
            images,
            self.labeled,
            self.pool,
            self.teacher,
            weights,
            self.params(**changes),
            name="student",
        )

    def follows(self, student: Model) -> tuple[float, float]:
        """Return the share of the pool on which the student agrees with the teacher, and its divergence from it."""
        mine, theirs = (
            predict_logits(model, self.pool, COMPUTE) for model in (student, self.teacher)
        )
        agreement = (mine.argmax(dim=1) == theirs.argmax(dim=1)).float().mean()
        return agreement.item(), kl_divergence(theirs, mine).mean().item()


NOISE_MATRIX = {
    "diagonal": 0.9,
    "learns_diagonal": False,
    "learning_rate": 0.01,
    "pseudo_label_weight": 1.0,
}
LATENT = {"logits_weight": 1.0, "penultimate_weight": 1.0, "kl_weight": 0.0, "shared_head": False}
ATTENTION = {"n_taps": 3, "weight": 10.0, "label_weight": 0.0}  # 1000 is for maps of 32x32 images
CRITIC = {
    "mode": "ascent", "class_prior": [0.3, 0.6], "weight": 0.1, "ramp_updates": 10, "lipschitz": 20.0,
    "learning_rate": 2e-4,
}  # fmt: skip


def params_with(**changes: Any) -> DistillationParams:
    given = {
        "seed": 0, "student_architecture": "digits_cnn", "student_options": {"width": 4}, "objective": "kd",
        "noise_matrix": NOISE_MATRIX, "latent": LATENT, "attention": ATTENTION, "critic": CRITIC, "temperature": 2.0,
        "n_updates": 40, "record_every": 10, "batch_size": 32, "held_out_share": 0.1, "teacher_cache": "exact",
        "cached_views": 4, "keep": "last", "optimizer": OPTIMIZER, "augmentation": PLAIN, "compute": COMPUTE,
    }  # fmt: skip
    return DistillationParams.model_validate(given | changes)


NETWORKS: dict[str, tuple[int, tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]] = {
    "digits": (8, ("digits_cnn", {"width": 8}), ("digits_cnn", {"width": 4})),
    "lenet": (32, ("lenet5", {}), ("lenet5_half", {})),
    "resnet": (
        8,
        ("cifar_resnet", {"depth": 8, "width": 8}),
        ("cifar_resnet", {"depth": 8, "width": 4}),
    ),
}


@pytest.fixture(scope="module")
def scene_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Scene]:
    known: dict[str, Scene] = {}

    def make(name: str) -> Scene:
        if name not in known:
            size_px, (architecture, options), (student, student_options) = NETWORKS[name]
            folder = tmp_path_factory.mktemp(name)
            labeled = store_of(folder / "labeled", (range(60), "classes"), size_px=size_px)
            pool = store_of(folder / "pool", (range(100, 240), "truth"), size_px=size_px)
            teacher_params = TeacherParams.model_validate(
                {
                    "architecture": architecture, "architecture_options": options, "weights": None, "taps": None,
                    "classes": N_CLASSES, "input": {"size_px": size_px, "channels": 1, "mean": [0.4], "std": [0.25]},
                }
            )  # fmt: skip
            training = TeacherTrainingParams(
                seed=1, n_updates=40, record_every=40, batch_size=32, optimizer=OPTIMIZER, augmentation=PLAIN,
                compute=COMPUTE,
            )  # fmt: skip
            teacher, _ = train_classifier(teacher_params, labeled, training)
            known[name] = Scene(
                teacher,
                labeled,
                pool,
                {"student_architecture": student, "student_options": student_options},
            )
        return known[name]

    return make


@pytest.fixture
def digits(scene_of: Callable[[str], Scene]) -> Scene:
    return scene_of("digits")


def state_of(model: Model) -> dict[str, Tensor]:
    return dict(model.network.state_dict())


def are_equal(one: Model, other: Model) -> bool:
    """Return whether two students have the same weights, to the last bit."""
    states = state_of(one), state_of(other)
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


# --- every objective --------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "kd": {"objective": "kd"},
    "robust_kd": {"objective": "robust_kd"},
    "noisy_kd": {"objective": "noisy_kd"},
    "latent": {"objective": "latent"},
    "shared head": {
        "objective": "latent", "latent": LATENT | {"kl_weight": 0.5, "shared_head": True}, "keep": "best",
    },
    "attention": {"objective": "attention"},
    "pu_critic": {"objective": "pu_critic"},
}  # fmt: skip
TRAINED = [("digits", variant) for variant in VARIANTS]
TRAINED += [("lenet", variant) for variant in ("latent", "shared head", "pu_critic")]
TRAINED += [("resnet", variant) for variant in ("noisy_kd", "shared head", "attention")]
EVERY_VARIANT = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def trained(
    scene_of: Callable[[str], Scene],
) -> Callable[[str, str], tuple[Scene, Model, pd.DataFrame]]:
    known: dict[tuple[str, str], tuple[Scene, Model, pd.DataFrame]] = {}

    def get(networks: str, variant: str) -> tuple[Scene, Model, pd.DataFrame]:
        if (networks, variant) not in known:
            scene = scene_of(networks)
            known[networks, variant] = (scene, *scene.distill(**VARIANTS[variant]))
        return known[networks, variant]

    return get


@pytest.mark.parametrize(("networks", "variant"), TRAINED)
def test_a_student_comes_nearer_to_its_teacher(trained, networks, variant):
    scene, student, history = trained(networks, variant)
    (agreement, divergence), (first, first_divergence) = (
        scene.follows(each) for each in (student, scene.fresh())
    )
    assert agreement > max(0.8, first + 0.4)
    assert divergence < first_divergence
    assert history["update"].tolist() == [10, 20, 30, 40]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.parametrize(("networks", "variant"), TRAINED)
def test_a_student_is_a_network_of_its_architecture_and_nothing_else(
    trained, networks, variant, tmp_path
):
    scene, student, _ = trained(networks, variant)
    plain = scene.fresh()
    assert {name: value.shape for name, value in state_of(student).items()} == {
        name: value.shape for name, value in state_of(plain).items()
    }
    assert list(state_of(student)) == list(state_of(plain))
    assert [type(module) for module in student.network.modules()] == [
        type(each) for each in plain.network.modules()
    ]
    assert all(parameter.requires_grad for parameter in student.network.parameters())
    about_critic = {"critic_collapse"} if variant == "pu_critic" else set()
    assert (
        set(student.card.origin) == {"distilled_by", "rule", "n_updates", "teacher"} | about_critic
    )
    assert student.card.model_copy(update={"origin": {}}) == plain.card
    save_model(student, tmp_path / "student")
    again = load_model(tmp_path / "student")
    assert again.card == student.card
    assert are_equal(again, student)


@pytest.mark.parametrize(("networks", "variant"), TRAINED)
def test_training_leaves_the_teacher_as_it_was_and_no_hook_behind(trained, networks, variant):
    scene, student, _ = trained(networks, variant)
    assert student.card.origin["teacher"] == scene.teacher.fingerprint()
    for module in itertools.chain(student.network.modules(), scene.teacher.network.modules()):
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module.training


@EVERY_VARIANT
def test_two_runs_come_to_the_same_weights(digits, variant):
    few = {**VARIANTS[variant], "n_updates": 6, "record_every": 3}
    (one, history), (other, other_history) = digits.distill(**few), digits.distill(**few)
    assert are_equal(one, other)
    pd.testing.assert_frame_equal(history, other_history)
    assert not are_equal(one, digits.distill(**few, seed=1)[0])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_reads_logits_alone_is_the_plain_loop(digits, objective):
    """To the last bit, though the teacher is asked before the training and not at every step."""
    params = digits.params(objective=objective, n_updates=12, held_out_share=0.0)
    student, history = digits.distill(objective=objective, n_updates=12, held_out_share=0.0)
    ids = {origin: part["id"].tolist() for origin, part in digits.manifest.groupby("origin")}
    stores = {"labeled": digits.labeled, "pool": digits.pool}
    places = {
        name: {image_id: row for row, image_id in enumerate(store.index["id"])}
        for name, store in stores.items()
    }
    parts = [
        (store, np.array([places[name][image_id] for image_id in ids[name]]))
        for name, store in stores.items()
    ]
    vectors = torch.tensor(
        np.random.default_rng(0).uniform(0.5, 1.5, (3, N_CLASSES)), dtype=torch.float32
    )
    expected = digits.fresh()
    network = expected.network.train()
    optimizer = make_optimizer(network, **OPTIMIZER.model_dump(exclude={"schedule"}))
    normalize = normalization(digits.teacher, torch.device("cpu"))
    batches = augmented_batches(
        ImageRows(parts, COMPUTE), normalize, PLAIN, params.batch_size, params.seed
    )
    for batch in itertools.islice(batches, params.n_updates):
        with torch.no_grad():
            teacher_logits = digits.teacher.network(batch.images)
        values = OBJECTIVES[objective](
            network(batch.images), teacher_logits, vectors, params.temperature
        )
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
    assert are_equal(student, expected)
    assert set(values) == set(history.columns) - {
        "update",
        "learning_rate",
        "training_agreement",
        "is_kept",
    }


@EVERY_VARIANT
def test_the_teacher_is_asked_through_the_cache_where_its_logits_are_enough(digits, variant):
    asked: list[int] = []
    params = {**VARIANTS[variant], "n_updates": 8, "held_out_share": 0.1}
    count = digits.teacher.network.fc.register_forward_hook(
        lambda _layer, inputs, _output: asked.append(len(inputs[0]))
    )
    with count:
        digits.distill(**params)
    n_training, n_held_out = 180, 20
    in_batches = sum(n for n in asked if n == 32)
    assert (
        sum(n for n in asked if n not in (1, 32)) == n_held_out
    )  # one alone is an image of zeros, to find out shapes
    if variant in ("kd", "robust_kd", "noisy_kd"):
        assert in_batches == -(-n_training // 32) * 32
    else:
        assert in_batches == 8 * 32


def test_the_best_student_with_a_shared_head_is_the_one_of_its_record(digits, monkeypatch):
    """Its weights are remembered and brought back before the head is folded, and folding changes no logit."""
    fold, images = (
        latent.fold_shared_head,
        torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    folded = []

    def compared(student: nn.Module) -> None:
        with torch.no_grad():
            before = student.eval()(images)
            fold(student)
            torch.testing.assert_close(student.eval()(images), before, rtol=1e-4, atol=1e-4)
        folded.append(student)

    monkeypatch.setattr(latent, "fold_shared_head", compared)
    variant = {**VARIANTS["shared head"], "record_every": 1, "n_updates": 20}
    best, history = digits.distill(**variant)
    [kept] = history["update"][history["is_kept"]]
    assert kept < 20
    assert history["held_out_agreement"].idxmax() == kept - 1
    then, _ = digits.distill(**{**variant, "keep": "last", "n_updates": int(kept)})
    assert are_equal(best, then)
    assert len(folded) == 2


def test_a_student_of_the_teachers_width_ends_with_the_teachers_last_layer(digits):
    student, _ = digits.distill(
        **VARIANTS["shared head"], student_options={"width": 8}, n_updates=3
    )
    for name in ("fc.weight", "fc.bias"):
        assert torch.equal(state_of(student)[name], state_of(digits.teacher)[name])
    assert not torch.equal(
        state_of(student)["block1.0.weight"], state_of(digits.teacher)["block1.0.weight"]
    )


def test_a_training_that_fails_leaves_no_hook_behind(digits):
    optimizer = OPTIMIZER.model_copy(update={"algorithm": "sgd", "learning_rate": 1e30})
    with pytest.raises(InputError, match="student: the loss is nan .*: lower the learning rate"):
        digits.distill(objective="latent", optimizer=optimizer, n_updates=4)
    assert not any(module._forward_pre_hooks for module in digits.teacher.network.modules())


# --- what learns beside the student -----------------------------------------------------------------------------------


def made_by(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[nn.Module, dict[str, Tensor]]]:
    """Return what the objectives make by that name from now on, with the values its parameters start from."""
    module_of_name = next(
        module for module in (feature_matching, latent, noisy) if hasattr(module, name)
    )
    make: Callable[..., nn.Module] = getattr(module_of_name, name)
    made = []

    def remembering(*args: Any, **options: Any) -> nn.Module:
        module = make(*args, **options)
        made.append(
            (module, {key: value.detach().clone() for key, value in module.named_parameters()})
        )
        return module

    monkeypatch.setattr(module_of_name, name, remembering)
    return made


@pytest.mark.parametrize(
    ("objective", "name", "shapes"),
    [
        ("noisy_kd", "NoiseMatrix", [(N_CLASSES, N_CLASSES)]),
        ("latent", "penultimate_adapter", [(64, 32)]),
        ("pu_critic", "FeatureAdapter", [(8, 4), (8,), (16, 8), (16,), (16, 8), (16,)]),
        ("pu_critic", "FeatureCritic", [(256,), (256, 40), (128,), (128, 256), (1,), (1, 128)]),
    ],
)
def test_what_learns_beside_the_student_learns_and_is_no_part_of_it(
    digits, monkeypatch, objective, name, shapes
):
    made = made_by(name, monkeypatch)
    student, _ = digits.distill(objective=objective)
    [(module, start)] = made
    assert [tuple(value.shape) for value in start.values()] == shapes
    end = dict(module.named_parameters())
    assert all(
        value.isfinite().all() and not torch.equal(value, start[key]) for key, value in end.items()
    )
    of_student = {parameter.data_ptr() for parameter in student.network.parameters()}
    assert not of_student & {parameter.data_ptr() for parameter in end.values()}


def test_the_last_taps_are_matched(digits, monkeypatch):
    made = made_by("FeatureAdapter", monkeypatch)
    for n_taps in (1, 2, 3):
        digits.distill(objective="pu_critic", attention=ATTENTION | {"n_taps": n_taps}, n_updates=1)
    widths = [[tuple(layer.weight.shape) for layer in adapter.layers] for adapter, _ in made]
    assert widths == [[(16, 8)], [(16, 8), (16, 8)], [(8, 4), (16, 8), (16, 8)]]


def test_the_noise_matrix_learns_its_diagonal_if_it_is_to(digits, monkeypatch):
    made = made_by("NoiseMatrix", monkeypatch)
    _, held = digits.distill(objective="noisy_kd")
    _, learned = digits.distill(
        objective="noisy_kd", noise_matrix=NOISE_MATRIX | {"learns_diagonal": True}
    )
    np.testing.assert_allclose(held["diagonal"], 0.9, rtol=1e-6)
    assert learned["diagonal"].diff().dropna().abs().min() > 1e-4
    for matrix, _ in made:
        torch.testing.assert_close(matrix().sum(dim=1), torch.ones(N_CLASSES))


@pytest.mark.parametrize(
    ("objective", "changes", "plain", "is_exact"),
    [
        ("noisy_kd", {"noise_matrix": NOISE_MATRIX | {"pseudo_label_weight": 0.0}}, "kd", True),
        ("pu_critic", {"critic": CRITIC | {"weight": 0.0}}, "attention", True),
        ("attention", {"attention": ATTENTION | {"weight": 0.0}}, "kd", False),
        (
            "latent",
            {"latent": LATENT | {"logits_weight": 0, "penultimate_weight": 0, "kl_weight": 1.0}},
            "kd",
            False,
        ),
    ],
)
def test_a_term_without_weight_is_not_there(digits, objective, changes, plain, is_exact):
    # by SGD: Adam's first steps have one size, and tell the signs of gradients that are but rounding
    few = {
        "n_updates": 8,
        "optimizer": OPTIMIZER.model_copy(update={"algorithm": "sgd", "learning_rate": 0.01}),
    }
    with_term, without = (
        digits.distill(objective=objective, **changes, **few)[0],
        digits.distill(objective=plain, **few)[0],
    )
    assert are_equal(with_term, without) or not is_exact
    torch.testing.assert_close(state_of(with_term), state_of(without), rtol=1e-4, atol=1e-5)
    whole, _ = digits.distill(objective=objective, **few)
    assert not are_equal(with_term, whole)


# --- images, labels and probabilities ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "held_out_share"), [(0, 0.0), (1, 0.3), (2, 0.5)])
@pytest.mark.parametrize("resident_limit_gb", [1.0, 1e-9])
def test_image_label_and_probability_of_a_position_belong_together(
    digits, tmp_path, monkeypatch, order, held_out_share, resident_limit_gb
):
    labeled = store_of(tmp_path / "labeled", (range(30), "classes"), (range(30, 40), "ignore"))
    known = {
        image.tobytes(): (origin, image_id)
        for origin, store in (("labeled", labeled), ("pool", digits.pool))
        for image_id, image in zip(
            store.index["id"], store.read(np.arange(len(store))), strict=True
        )
    }
    assert len(known) == 40 + 140
    manifest = pd.DataFrame(
        list(known.values()), columns=["origin", "id"], index=np.arange(180) % 7
    )
    manifest["sampling_probability"] = np.random.default_rng(order).uniform(size=180)
    manifest = manifest.sample(frac=0.8, random_state=order)
    probability_of = dict(zip(manifest["id"], manifest["sampling_probability"], strict=True))
    seen: dict[str, Any] = {}

    def batches(rows: ImageRows, *args: Any, **options: Any) -> Iterator[Batch]:
        seen.update(rows=rows, probabilities=args[-1])
        return augmented_batches(rows, *args, **options)

    def objective(setting: ObjectiveContext, stack: Any) -> Objective:
        seen.update(labels=setting.labels)
        return make_objective(setting, stack)

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    monkeypatch.setattr(distillation, "make_objective", objective)
    compute = COMPUTE.model_copy(update={"resident_limit_gb": resident_limit_gb})
    params = params_with(held_out_share=held_out_share, seed=order, n_updates=1, compute=compute)
    weights = pd.DataFrame(np.ones((1, N_CLASSES)))
    distill(manifest, labeled, digits.pool, digits.teacher, weights, params, name="student")
    n = len(manifest) - int(held_out_share * len(manifest))
    assert len(seen["rows"]) == len(seen["labels"]) == len(seen["probabilities"]) == n
    assert seen["rows"].is_resident == (resident_limit_gb == 1.0)
    found = [known[image.tobytes()] for image in seen["rows"].batch(torch.arange(n)).numpy()]
    assert len(set(found)) == n
    numbers = [int(image_id.removeprefix("i")) for _, image_id in found]
    assert seen["labels"].dtype == torch.int64
    assert seen["labels"].tolist() == [
        number % N_CLASSES if number < 30 else -1 for number in numbers
    ]
    assert seen["probabilities"].tolist() == [probability_of[image_id] for _, image_id in found]


@pytest.fixture(scope="module")
def untrained(scene_of: Callable[[str], Scene]) -> Scene:
    """A teacher that knows nothing: what its student knows are the labels."""
    scene = scene_of("digits")
    card = scene.teacher.card
    with seeded(5):
        teacher = new_teacher(
            TeacherParams(
                architecture=card.architecture, architecture_options=card.architecture_options, weights=None,
                classes=card.classes, input=card.input, taps=None,
            )
        )  # fmt: skip
    return Scene(teacher, scene.labeled, scene.pool, scene.student)


def labels_learned(scene: Scene, student: Model) -> float:
    """Return the share of the labeled images that the student classifies right."""
    labels = torch.tensor(scene.labeled.index["label"].to_numpy(dtype=np.int64))
    return (
        (predict_logits(student, scene.labeled, COMPUTE).argmax(dim=1) == labels)
        .float()
        .mean()
        .item()
    )


@pytest.mark.parametrize("objective", ["attention", "pu_critic"])
def test_a_student_learns_labels_that_its_teacher_does_not_know(untrained, objective):
    manifest = untrained.manifest.query("origin == 'labeled'")
    labels = {"attention": ATTENTION | {"weight": 0.0, "label_weight": 0.9}}
    student, history = untrained.distill(
        manifest, objective=objective, held_out_share=0.2, **labels
    )
    assert history["label_loss"].is_monotonic_decreasing
    assert history["label_loss"].iloc[-1] < 0.3
    assert labels_learned(untrained, student) > 0.9
    without, history = untrained.distill(manifest, objective=objective)
    assert "label_loss" not in history
    assert labels_learned(untrained, without) < 0.5


@pytest.mark.parametrize("objective", ["attention", "pu_critic"])
def test_labels_are_asked_for_only_where_every_image_has_one(digits, tmp_path, objective):
    attention = ATTENTION | {"label_weight": 0.1}
    with pytest.raises(InputError) as caught:
        digits.distill(objective=objective, attention=attention, held_out_share=0.0)
    assert str(caught.value) == (
        "distillation.attention.label_weight is 0.1, and 140 of the training images have no label: set it to 0 where "
        "pool images are among them"
    )
    labeled = store_of(tmp_path / "labeled", (range(20), "classes"), (range(20, 23), "ignore"))
    manifest = labeled.index[["id"]].assign(origin="labeled")
    scene = Scene(digits.teacher, labeled, digits.pool, digits.student)
    with pytest.raises(InputError, match="3 of the training images have no label"):
        scene.distill(manifest, objective=objective, attention=attention, held_out_share=0.0)
    digits.distill(objective="kd", attention=attention, n_updates=1)  # which does not read it


def test_original_images_have_labels_and_pool_images_have_none_that_anybody_knows(digits):
    params = digits.params(
        objective="attention", attention=ATTENTION | {"label_weight": 0.1}, n_updates=2
    )
    student, history = distill_original(digits.labeled, digits.teacher, params, "original")
    assert "label_loss" in history
    assert student.card.origin["distilled_by"] == "attention"
    with pytest.raises(InputError, match="126 of the training images have no label"):
        distill_from_pool(
            digits.manifest.query("origin == 'pool'"),
            digits.pool,
            digits.teacher,
            params,
            "preferential",
        )


@pytest.mark.parametrize(("padding_px", "resident_limit_gb"), [(0, 1.0), (1, 1e-9)])
def test_images_are_drawn_by_their_probability(digits, padding_px, resident_limit_gb):
    compute = COMPUTE.model_copy(update={"resident_limit_gb": resident_limit_gb})
    rows = ImageRows(
        [(digits.labeled, np.arange(60)), (digits.pool, np.arange(140)[::-1])], compute
    )
    probabilities = np.random.default_rng(3).exponential(size=200)
    probabilities[[0, 7, 60, 198, 199]] = 0.0  # the first and the last among them
    normalize = normalization(digits.teacher, torch.device("cpu"))
    augmentation = AugmentationParams(padding_px=padding_px, horizontal_flip=padding_px > 0)
    batches = augmented_batches(
        rows,
        normalize,
        augmentation,
        batch_size=64,
        seed=0,
        probabilities=torch.tensor(probabilities),
    )
    taken = list(itertools.islice(batches, 250))
    shown = torch.cat([batch.rows for batch in taken])
    counts = np.bincount(shown.numpy(), minlength=200)
    expected = len(shown) * probabilities / probabilities.sum()
    assert len(shown) == 250 * 64
    assert (counts[probabilities == 0.0] == 0).all()
    assert (np.abs(counts - expected) <= 4.5 * np.sqrt(expected)).all()
    if padding_px == 0:
        for batch in taken[:20]:
            assert torch.equal(batch.images, normalize(rows.batch(batch.rows)))


def test_without_probabilities_each_pass_shows_every_image_once(digits):
    rows = ImageRows([(digits.labeled, np.arange(60)), (digits.pool, np.arange(140))], COMPUTE)
    batches = augmented_batches(
        rows, normalization(digits.teacher, torch.device("cpu")), PLAIN, batch_size=50, seed=0
    )
    for _ in range(3):
        shown = torch.cat([batch.rows for batch in itertools.islice(batches, 4)])
        assert sorted(shown.tolist()) == list(range(200))


def test_a_manifest_says_how_often_its_images_are_shown(digits, monkeypatch):
    shown: list[Tensor] = []

    def batches(*args: Any, **options: Any) -> Iterator[Batch]:
        for batch in augmented_batches(*args, **options):
            shown.append(args[0].batch(batch.rows))
            yield batch

    monkeypatch.setattr(distillation, "augmented_batches", batches)
    manifest = digits.manifest
    numbers = manifest["id"].str.removeprefix("i").astype(int).to_numpy()
    weighted = manifest.assign(
        sampling_probability=np.where(numbers % N_CLASSES < 2, numbers % N_CLASSES + 1.0, 0.0)
    )
    few = {"n_updates": 10, "record_every": 5, "held_out_share": 0.3}
    remembered, _ = digits.distill(weighted, **few)
    number_of = {
        image.tobytes(): int(image_id.removeprefix("i"))
        for store in (digits.labeled, digits.pool)
        for image_id, image in zip(
            store.index["id"], store.read(np.arange(len(store))), strict=True
        )
    }
    classes = [number_of[image.tobytes()] % N_CLASSES for batch in shown for image in batch.numpy()]
    assert set(classes) == {0, 1}
    assert np.mean(classes) == pytest.approx(2 / 3, abs=0.1)
    asked, _ = digits.distill(weighted, teacher_cache="off", **few)
    assert are_equal(remembered, asked)
    evenly, _ = digits.distill(manifest, **few)
    assert not are_equal(remembered, evenly)
    with pytest.raises(InputError, match="some images have no sampling_probability"):
        digits.distill(
            weighted.assign(
                sampling_probability=weighted["sampling_probability"].where(numbers > 9)
            ),
            **few,
        )


# --- the critic -------------------------------------------------------------------------------------------------------


def test_the_history_tells_of_the_critic(trained):
    _, _, history = trained("digits", "pu_critic")
    told = {"critic_loss", "critic_accuracy", "critic_auc", "clamped_share", "student_critic_loss"}
    assert told < set(history.columns)
    assert not told & set(trained("digits", "attention")[2].columns)
    assert history[["critic_auc", "critic_accuracy", "clamped_share"]].stack().between(0, 1).all()
    assert (history[["critic_loss", "student_critic_loss"]] > 0).all(axis=None)


def test_the_weight_of_the_critic_rises_from_nothing(digits):
    critic = CRITIC | {"weight": 0.8, "ramp_updates": 5}
    _, history = digits.distill(objective="pu_critic", critic=critic, n_updates=8, record_every=1)
    without = history["loss"] - history["kl_loss"] - ATTENTION["weight"] * history["attention_loss"]
    weights = without / history["student_critic_loss"]
    np.testing.assert_allclose(weights, [0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.8, 0.8], atol=1e-4)


def test_the_class_prior_goes_from_its_first_to_its_last_value(digits, monkeypatch):
    priors, step = [], CriticTraining.step
    monkeypatch.setattr(
        CriticTraining, "step", lambda self, *args: priors.append(args[2]) or step(self, *args)
    )
    digits.distill(objective="pu_critic", critic=CRITIC | {"class_prior": [0.2, 0.7]}, n_updates=10)
    np.testing.assert_allclose(priors, np.linspace(0.2, 0.7, 11)[:10])


def test_the_modes_of_the_critic_differ(digits):
    """Both PU modes where the negative risk falls below zero; the GAN knows no such thing."""
    students, clamped = {}, {}
    for mode in ("clamp", "ascent", "gan"):
        critic = CRITIC | {"mode": mode, "class_prior": [0.9, 0.9]}
        students[mode], history = digits.distill(objective="pu_critic", critic=critic, n_updates=15)
        clamped[mode] = history["clamped_share"].max()
    assert not any(are_equal(*pair) for pair in itertools.combinations(students.values(), 2))
    assert min(clamped["clamp"], clamped["ascent"]) > 0
    assert clamped["gan"] == 0


@pytest.mark.parametrize(
    ("critic", "sentence"),
    [
        (
            {"mode": "clamp", "class_prior": [0.9, 0.95]},
            "the class prior is higher than the share of them that passes",
        ),
        ({"learning_rate": 1e-6, "weight": 1.0}, "the critic cannot keep up"),
        ({"lipschitz": 1.0}, "the critic always wins"),
        ({"class_prior": [0.9, 0.95], "weight": 1.0}, None),
    ],
)
def test_a_critic_that_was_of_no_use_is_told_of(digits, caplog, tmp_path, critic, sentence):
    student, history = digits.distill(objective="pu_critic", critic=CRITIC | critic, record_every=5)
    messages = [
        record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING
    ]
    save_model(student, tmp_path / "student")
    told = load_model(tmp_path / "student").card.origin["critic_collapse"]
    if sentence is None:
        assert 0.55 < history["critic_auc"].iloc[-2:].mean() < 0.99
        assert told is None
        assert messages == []
    else:
        assert sentence in told
        assert messages == [f"distillation: {told}"]


# --- what is refused --------------------------------------------------------------------------------------------------


def convolutions(n_classes: int, in_channels: int) -> nn.Module:
    """Return a network without a linear layer."""
    return nn.Sequential(
        nn.Conv2d(in_channels, n_classes, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


class ChannelsLast(nn.Module):
    """A network whose one map has its channels last, as Swin and ConvNeXt keep them."""

    default_taps = ("norm",)

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.Conv2d(in_channels, 6, 1),
            nn.LayerNorm(6),
            nn.Linear(6, n_classes),
        )

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images).permute(0, 2, 3, 1))
        logits: Tensor = self.fc(features.mean(dim=(1, 2)))
        return logits


class Tokens(ChannelsLast):
    """A network whose one tap gives tokens, as those of transformers do."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.conv(images).flatten(2).transpose(1, 2))
        logits: Tensor = self.fc(features.mean(dim=1))
        return logits


def linear(n_classes: int, in_channels: int) -> nn.Module:
    """Return a network without a map to tap."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * in_channels, n_classes))


def own(factory: Callable[..., nn.Module]) -> dict[str, Any]:
    return {"student_architecture": f"{__name__}:{factory.__name__}", "student_options": {}}


@pytest.mark.parametrize("shared_head", [False, True])
def test_a_student_without_a_last_linear_layer_has_no_penultimate_features(digits, shared_head):
    with pytest.raises(
        InputError,
        match=r"distillation.objective 'latent': Sequential has no linear layer that gives 5",
    ):
        digits.distill(
            objective="latent", latent=LATENT | {"shared_head": shared_head}, **own(convolutions)
        )
    student, _ = digits.distill(objective="noisy_kd", n_updates=1, **own(convolutions))
    assert list(state_of(student)) == ["0.weight", "0.bias"]


def test_more_taps_than_a_network_has_are_refused(digits):
    with pytest.raises(
        InputError, match=r"attention.n_taps is 4, and digits_cnn has 3 taps: lower it"
    ):
        digits.distill(objective="attention", attention=ATTENTION | {"n_taps": 4})


@pytest.mark.parametrize("objective", ["attention", "pu_critic"])
def test_networks_with_other_numbers_of_taps_are_matched_at_the_last_ones_alone(digits, objective):
    message = rf"distillation.objective '{objective}': attention.n_taps is 3, and \S+convolutions has 1 taps: lower it"
    with pytest.raises(InputError, match=message):
        digits.distill(objective=objective, **own(convolutions))
    _, history = digits.distill(
        objective=objective, attention=ATTENTION | {"n_taps": 1}, n_updates=2, **own(convolutions)
    )
    assert (history["attention_loss"] > 0).all()


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ChannelsLast, r"distillation.objective 'attention': the tap 'norm' gives \(1, 8, 8, 6\)"),
        (Tokens, r"distillation.objective 'attention': the tap 'norm' gives \(1, 64, 6\)"),
        (linear, "distillation.objective 'attention': the network has no feature maps"),
    ],
)
def test_attention_is_refused_where_there_are_no_maps_to_compare(digits, student, message):
    with pytest.raises(InputError, match=message):
        digits.distill(
            objective="attention", attention=ATTENTION | {"n_taps": 1}, n_updates=1, **own(student)
        )


def test_a_diagonal_that_is_no_better_than_chance_is_refused(digits):
    with pytest.raises(
        InputError,
        match=r"distillation.objective 'noisy_kd': initial_diagonal must lie between 1/5",
    ):
        digits.distill(objective="noisy_kd", noise_matrix=NOISE_MATRIX | {"diagonal": 0.2})


@pytest.mark.parametrize(
    ("objective", "missing", "sentence"),
    [
        ("noisy_kd", ["noise_matrix"], "objective 'noisy_kd' needs noise_matrix beside it"),
        ("latent", ["latent"], "objective 'latent' needs latent beside it"),
        ("attention", ["attention"], "objective 'attention' needs attention beside it"),
        ("pu_critic", ["critic"], "objective 'pu_critic' needs critic beside it"),
        (
            "pu_critic",
            ["attention", "critic"],
            "objective 'pu_critic' needs attention and critic beside it",
        ),
    ],
)
def test_an_objective_needs_its_blocks_and_no_others(objective, missing, sentence):
    with pytest.raises(ValidationError, match=sentence):
        params_with(objective=objective, **dict.fromkeys(missing))
    params_with(objective="kd", **dict.fromkeys(missing))
