"""Relatedness of a pool: what its shards hold and cost, the manifest to draw from, its AUCs and its figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
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
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.features.scoring import check_teacher
from pu_kd_pipeline.images.duplicates import Excluded
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.learning.augmentation import Normalize
from pu_kd_pipeline.learning.loop import fit, make_optimizer, seeded, shuffled_batches
from pu_kd_pipeline.learning.networks.lenet import digits_cnn
from pu_kd_pipeline.learning.relatedness.calibration import NoiseCalibration, one_class_sum
from pu_kd_pipeline.learning.relatedness.indicators import INDICATORS, LOGIT_INDICATORS
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe
from pu_kd_pipeline.learning.relatedness.sampling import sampling_probabilities
from pu_kd_pipeline.models.cards import ModelCard
from pu_kd_pipeline.models.model import Model
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams
from pu_kd_pipeline.params.relatedness import RelatednessParams
from pu_kd_pipeline.params.teacher import InputSpec
from pu_kd_pipeline.reporting.relatedness_figure import MAX_SOURCES, plot_relatedness
from pu_kd_pipeline.selection.relatedness import (
    CALIBRATION,
    indicator_auc,
    indicators_of,
    preferential_manifest,
    relatedness_shards,
)
from pu_kd_pipeline.storage.sharded_table import ShardedTable
from pu_kd_pipeline.storage.table import read_table, write_table

N_TRAINING, N_DIGITS, N_SHUFFLED, N_NOISE = 1200, 300, 200, 100
MEAN, STD = (0.3,), (0.38,)
CLASSES = tuple(str(digit) for digit in range(10))
STORE = {
    "kind": "packed", "packed_max_size_px": 64, "disk_budget_gb": 1.0, "shard_size": 250, "n_workers": 1,
    "max_image_pixels": 10_000, "max_quarantined_share": 0.0,
}  # fmt: skip
COMPUTE = {
    "device": "cpu", "precision": "float32", "n_threads": 1, "resident_limit_gb": 1.0, "inference_batch_size": 64,
}  # fmt: skip


def params_of(**changes: Any) -> RelatednessParams:
    given = {
        "seed": 0,
        "n_noise_images": 500,
        "clip": 10.0,
        "sampling": "preferential",
        "temperature": 0.5,
    }
    return RelatednessParams.model_validate({**given, "floor": 0.1, "compute": COMPUTE, **changes})


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return (N, 1, 8, 8) uint8 images and their classes."""
    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8)[:, None], data.target


def model_of(network: nn.Module) -> Model:
    spec = InputSpec(size_px=8, channels=1, mean=MEAN, std=STD)
    return Model(network.eval(), ModelCard(architecture="digits_cnn", classes=CLASSES, input=spec))


@pytest.fixture(scope="module")
def teacher() -> Model:
    """A network that knows the first digits."""
    images, labels = (torch.from_numpy(part) for part in digits())
    normalize = Normalize(MEAN, STD)
    with seeded(0):
        network = digits_cnn(10, width=8)
    optimizer = make_optimizer(
        network, algorithm="adam", learning_rate=0.01, momentum=0.9, weight_decay=1e-4
    )

    def step(rows: Tensor) -> dict[str, Tensor]:
        return {"loss": functional.cross_entropy(network(normalize(images[rows])), labels[rows])}

    batches = shuffled_batches(N_TRAINING, 64, torch.Generator().manual_seed(0))
    list(fit(step, batches, optimizer, n_updates=150, record_every=150, schedule="cosine"))
    return model_of(network)


def png(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def collections_of(folder: Path) -> dict[str, Path]:
    """Write digits, the same with their pixels in another order, and noise; return source -> Parquet file."""
    images, labels = digits()
    rng = np.random.default_rng(0)
    held_out, later = (
        images[N_TRAINING:][:N_DIGITS],
        images[N_TRAINING + N_DIGITS - N_SHUFFLED :][:N_SHUFFLED],
    )
    shuffled = later.reshape(N_SHUFFLED, 64)[:, rng.permutation(64)].reshape(later.shape)
    parts = {
        "digits": (held_out, labels[N_TRAINING:][:N_DIGITS]),
        "shuffled": (shuffled, np.full(N_SHUFFLED, 10)),
        "noise": (rng.integers(0, 256, (N_NOISE, 1, 8, 8), dtype=np.uint8), np.full(N_NOISE, 10)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, classes) in parts.items():
        columns = {
            "id": [f"{row}" for row in range(len(pixels))],
            "image": [png(each[0]) for each in pixels],
        }
        pq.write_table(pa.table({**columns, "label": classes}), folder / f"{name}.parquet")
    return {name: folder / f"{name}.parquet" for name in parts}


def store_of(
    files: dict[str, Path], folder: Path, labels: str = "truth", size_px: int = 8, **changes: Any
) -> ImageStore:
    sources = [
        {"type": "parquet", "path": str(file), "name": name, "labels": labels}
        for name, file in files.items()
    ]
    plan = IngestionPlan(
        name="pool",
        sources=tuple(ImageSource.model_validate({**source, **changes}) for source in sources),
        size_px=size_px,
        channels=1,
        class_names=CLASSES,
        store=ImageStoreParams.model_validate(STORE),
        seed=0,
    )
    return write_store(plan, folder)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return collections_of(tmp_path_factory.mktemp("collections"))


@pytest.fixture(scope="module")
def pool(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    store = store_of(files, tmp_path_factory.mktemp("pool"))
    assert len(store.shards) == 3
    return store


@pytest.fixture(scope="module")
def table(
    pool: ImageStore, teacher: Model, tmp_path_factory: pytest.TempPathFactory
) -> ShardedTable:
    folder = tmp_path_factory.mktemp("relatedness")
    return ShardedTable.write(folder, relatedness_shards(pool, teacher, params_of()))


@pytest.fixture
def n_images_seen(teacher: Model) -> Iterator[Callable[[], int]]:
    """Return a function that says how many images the teacher has seen since it was last asked."""
    seen: list[int] = []
    hook = teacher.network.register_forward_hook(
        lambda _network, inputs, _output: seen.append(len(inputs[0]))
    )

    def n_seen() -> int:
        n = sum(seen)
        seen.clear()
        return n

    yield n_seen
    hook.remove()


# --- shards -----------------------------------------------------------------------------------------------------------


def test_shards_hold_what_the_teacher_says_of_each_image(
    table: ShardedTable, pool: ImageStore, teacher: Model
) -> None:
    schema = next(table.shards()).schema
    assert schema.names == [
        "id",
        *INDICATORS,
        "one_class_sum",
        "teacher_class",
        "teacher_confidence",
    ]
    assert {schema.field(name).type for name in INDICATORS} == {pa.float32()}
    assert schema.field("one_class_sum").type == pa.float64()
    assert table.arrays("id").tolist() == pool.index["id"].tolist()
    images = Normalize(MEAN, STD)(torch.from_numpy(pool.read(np.arange(len(pool)))))
    expected = RelatednessProbe(teacher.network, (1, 8, 8))(images)
    found = np.stack([table.arrays(name) for name in INDICATORS], axis=1)
    np.testing.assert_allclose(found, expected.numpy(), rtol=2e-3, atol=2e-5)
    with torch.no_grad():
        confidence, classes = teacher.network(images).softmax(dim=1).max(dim=1)
    assert table.arrays("teacher_class").tolist() == classes.tolist()
    np.testing.assert_allclose(table.arrays("teacher_confidence"), confidence.numpy(), rtol=1e-5)


def test_the_sum_follows_from_the_indicators_and_the_stored_calibration(
    table: ShardedTable, teacher: Model
) -> None:
    told = {pq.read_schema(file).metadata[CALIBRATION.encode()] for file in files_of(table)}
    assert len(told) == 1
    facts = json.loads(table.facts[CALIBRATION])
    assert {name: facts[name] for name in ("seed", "n_noise_images", "clip")} == {
        "seed": 0, "n_noise_images": 500, "clip": 10.0,
    }  # fmt: skip
    values = torch.from_numpy(np.stack([table.arrays(name) for name in INDICATORS], axis=1))
    expected = one_class_sum(values, NoiseCalibration.from_dict(facts["noise"]), clip=10.0)
    np.testing.assert_allclose(table.arrays("one_class_sum"), expected.numpy(), rtol=1e-12)
    check_teacher(table, teacher.fingerprint(), "relatedness")


def files_of(table: ShardedTable) -> list[Path]:
    return [table.folder / f"{name}.parquet" for name in table.names]


def test_what_is_there_costs_nothing_and_noise_is_looked_at_once(
    pool: ImageStore, teacher: Model, tmp_path: Path, n_images_seen: Callable[[], int]
) -> None:
    table = ShardedTable.write(tmp_path, relatedness_shards(pool, teacher, params_of()))
    n_for_the_probe = n_images_seen() - 500 - len(pool)
    assert 0 < n_for_the_probe < 10
    before = {file: file.stat().st_mtime_ns for file in files_of(table)}
    ShardedTable.write(
        tmp_path, relatedness_shards(pool, teacher, params_of(temperature=2.0, sampling="uniform"))
    )
    assert n_images_seen() == 0
    lost = files_of(table)[1]
    content = lost.read_bytes()
    lost.unlink()
    again = ShardedTable.write(tmp_path, relatedness_shards(pool, teacher, params_of()))
    assert n_images_seen() == n_for_the_probe + 500 + pool.shards[1].n
    assert lost.read_bytes() == content
    assert {file: file.stat().st_mtime_ns for file in files_of(again) if file != lost} == {
        file: time for file, time in before.items() if file != lost
    }


def test_names_change_with_all_that_changes_the_numbers(pool: ImageStore, teacher: Model) -> None:
    bf16 = {**COMPUTE, "precision": "bf16"}
    changes = [{}, {"seed": 1}, {"n_noise_images": 400}, {"clip": 5.0}, {"compute": bf16}]
    made = [tuple(relatedness_shards(pool, teacher, params_of(**change))) for change in changes]
    with seeded(1):
        made.append(tuple(relatedness_shards(pool, model_of(digits_cnn(10, width=8)), params_of())))
    assert len(set(made)) == len(made)
    assert all(
        [name.rpartition("-")[0] for name in names] == [s.name for s in pool.shards]
        for names in made
    )
    other_device = {**COMPUTE, "device": "auto", "inference_batch_size": None}
    for same in (
        {"temperature": 2.0},
        {"floor": 0.5},
        {"sampling": "uniform"},
        {"compute": other_device},
    ):
        assert tuple(relatedness_shards(pool, teacher, params_of(**same))) == made[0]


def test_a_teacher_without_batchnorm_and_last_linear_layer_has_the_indicators_of_its_logits(
    pool: ImageStore, tmp_path: Path
) -> None:
    with seeded(0):
        network = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    table = ShardedTable.write(tmp_path, relatedness_shards(pool, model_of(network), params_of()))
    assert indicators_of(table) == list(LOGIT_INDICATORS)
    auc = indicator_auc(table, pool)
    assert set(auc["indicator"]) == {*LOGIT_INDICATORS, "one_class_sum"}
    plot_relatedness(
        table, pool, preferential_manifest(table, pool, params_of()), auc
    ).canvas.draw()


def test_pools_and_teachers_that_cannot_be_measured_are_refused(
    pool: ImageStore, teacher: Model, files: dict[str, Path], tmp_path: Path
) -> None:
    empty = store_of({}, tmp_path / "empty")
    with pytest.raises(InputError, match="relatedness: the pool is empty; check the sources"):
        relatedness_shards(empty, teacher, params_of())
    larger = store_of({"noise": files["noise"]}, tmp_path / "larger", size_px=16)
    with pytest.raises(
        InputError,
        match=r"pool images are \(1, 16, 16\), the teacher's \(1, 8, 8\): run `kedro run",
    ):
        relatedness_shards(larger, teacher, params_of())

    class Diverged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(images.flatten(1)) * torch.inf

    with pytest.raises(InputError, match="relatedness: .* not finite: the network diverged"):
        next(iter(relatedness_shards(pool, model_of(Diverged()), params_of()).values()))()


# --- the manifest -----------------------------------------------------------------------------------------------------


def test_the_manifest_holds_every_pool_image_with_its_probability(
    table: ShardedTable, pool: ImageStore, tmp_path: Path
) -> None:
    write_table(preferential_manifest(table, pool, params_of()), tmp_path / "manifest.parquet")
    manifest = read_table(tmp_path / "manifest.parquet")
    assert list(manifest.columns) == [
        "id", "origin", "shard", "row", "pu_score", "teacher_class", "teacher_confidence", "sampling_probability",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(
        manifest[["id", "shard", "row"]], pool.index[["id", "shard", "row"]]
    )
    assert set(manifest["origin"]) == {"pool"}
    assert manifest["pu_score"].isna().all()
    assert manifest["teacher_class"].tolist() == table.arrays("teacher_class").tolist()
    probabilities = manifest["sampling_probability"].to_numpy()
    assert probabilities.dtype == np.float64
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert probabilities.min() >= 0.1 / len(pool)
    sums = torch.tensor(table.arrays("one_class_sum"))
    expected = sampling_probabilities(sums, temperature=0.5, floor=0.1)
    np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-12)
    facts = manifest.attrs
    assert facts["effective_sample_size"] == pytest.approx(1 / (probabilities**2).sum())
    assert facts["fingerprints"] == {
        "pool_images": pool.fingerprint,
        "relatedness": table.fingerprint,
    }
    names = ("rule", "temperature", "floor", "n_labeled", "n_selected", "n_pool")
    assert [facts[name] for name in names] == ["preferential", 0.5, 0.1, 0, len(pool), len(pool)]


def test_digits_are_drawn_more_often_than_their_share_and_evenly_by_the_control(
    table: ShardedTable, pool: ImageStore
) -> None:
    relevant = pool.index["relevant"].to_numpy(dtype=bool)
    preferred = preferential_manifest(table, pool, params_of())
    assert preferred["sampling_probability"][relevant].sum() > 1.5 * relevant.mean()
    uniform = preferential_manifest(table, pool, params_of(sampling="uniform"))
    assert uniform["sampling_probability"].tolist() == pytest.approx(
        [1 / len(pool)] * len(pool), rel=1e-12
    )
    assert uniform.attrs["effective_sample_size"] == pytest.approx(len(pool))
    assert [uniform.attrs[name] for name in ("rule", "temperature", "floor")] == [
        "uniform",
        None,
        None,
    ]
    columns = [name for name in preferred if name != "sampling_probability"]
    pd.testing.assert_frame_equal(preferred[columns], uniform[columns], check_flags=False)


def test_a_pool_that_changed_since_is_refused(
    table: ShardedTable, files: dict[str, Path], tmp_path: Path
) -> None:
    fewer = store_of({name: files[name] for name in ("digits", "noise")}, tmp_path)
    expected = (
        "pool_images changed since they were measured. Run `kedro run --pipeline=relatedness` again"
    )
    with pytest.raises(InputError, match=expected):
        preferential_manifest(table, fewer, params_of())
    with pytest.raises(InputError, match=expected):
        indicator_auc(table, fewer)


# --- AUC --------------------------------------------------------------------------------------------------------------


def test_areas_are_those_of_scikit_learn_over_the_pool_and_by_source(
    table: ShardedTable, pool: ImageStore
) -> None:
    auc = indicator_auc(table, pool)
    index = pool.index
    irrelevant = ~index["relevant"].to_numpy(dtype=bool)
    assert len(auc) == 3 * (len(INDICATORS) + 1)
    assert auc["source"].dropna().unique().tolist() == ["shuffled", "noise"]
    for _, row in auc.iterrows():
        of_scope = np.ones(len(index), dtype=bool)
        if isinstance(row["source"], str):
            of_scope = ~irrelevant | (index["source"] == row["source"]).to_numpy()
        values = table.arrays(row["indicator"])
        assert row["auc"] == pytest.approx(roc_auc_score(irrelevant[of_scope], values[of_scope]))
        assert row["n_relevant"] == N_DIGITS
        assert row["n_irrelevant"] == (irrelevant & of_scope).sum()
    whole = auc[auc["source"].isna()].set_index("indicator")["auc"]
    assert whole["one_class_sum"] > 0.85


def test_without_the_truth_or_with_one_kind_of_image_there_is_no_area(
    table: ShardedTable, teacher: Model, files: dict[str, Path], tmp_path: Path
) -> None:
    alone = {"noise": files["noise"]}
    for name, store in (
        ("hidden", store_of(files, tmp_path / "hidden", labels="ignore")),
        ("noise", store_of(alone, tmp_path / "noise")),
        ("digits", store_of({"digits": files["digits"]}, tmp_path / "digits")),
    ):
        measured = ShardedTable.write(
            tmp_path / f"{name}_table", relatedness_shards(store, teacher, params_of())
        )
        auc = indicator_auc(measured, store)
        assert auc.empty
        write_table(auc, tmp_path / "auc.parquet")
        assert list(read_table(tmp_path / "auc.parquet")) == [
            "source",
            "indicator",
            "auc",
            "n_irrelevant",
            "n_relevant",
        ]
        said = words(
            plot_relatedness(
                measured, store, preferential_manifest(measured, store, params_of()), auc
            )
        )
        expected = {
            "hidden": "is not known",
            "noise": "0.0 % of them are relevant",
            "digits": "100.0 % of them are",
        }
        assert expected[name] in said
        assert "AUC" not in said


# --- the figure -------------------------------------------------------------------------------------------------------


def words(figure: Any) -> str:
    """Return everything written in a figure."""
    figure.canvas.draw()
    texts = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
    labels = [label for axes in figure.axes for label in (axes.get_xlabel(), axes.get_ylabel())]
    titles = [axes.get_title(loc=side) for axes in figure.axes for side in ("left", "right")]
    ticks = [
        label.get_text()
        for axes in figure.axes
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels())
    ]
    return " | ".join(
        [figure.get_suptitle(), *labels, *titles, *ticks, *(text.get_text() for text in texts)]
    )


def test_the_figure_tells_what_is_drawn_and_which_indicator_ranks_best(
    table: ShardedTable, pool: ImageStore
) -> None:
    manifest, auc = preferential_manifest(table, pool, params_of()), indicator_auc(table, pool)
    figure = plot_relatedness(table, pool, manifest, auc)
    said = words(figure)
    relevant = pool.index["relevant"].to_numpy(dtype=bool)
    drawn = manifest["sampling_probability"][relevant].sum()
    assert (
        f"Preferential sampling draws {100 * drawn:.1f} % relevant images from a pool with 50.0 %"
        in said
    )
    whole = auc[auc["source"].isna()].set_index("indicator")["auc"]
    assert (
        f"AUC {whole['one_class_sum']:.3f} by 1C-Sum, {whole.drop('one_class_sum').max():.3f} by the best"
        in said
    )
    assert f"effective sample size {manifest.attrs['effective_sample_size']:.0f} of 600" in said
    for name in (
        "1C-Sum",
        "ang++",
        "dms-aos",
        "last layer",
        "relevant",
        "shuffled",
        "noise",
        "33.3 % of pool",
    ):
        assert name in said, name
    for value in auc["auc"]:
        assert f" {value:.2f} " in said
    assert len(figure.axes) == 1 + 3 + 1
    uniform = words(
        plot_relatedness(
            table, pool, preferential_manifest(table, pool, params_of(sampling="uniform")), auc
        )
    )
    assert "Uniform sampling draws 50.0 % relevant images" in uniform


def test_many_sources_are_shown_by_the_largest_and_add_up(
    table: ShardedTable, pool: ImageStore
) -> None:
    class ManySources:
        index = pool.index.copy()
        shards, fingerprint = pool.shards, pool.fingerprint

        def __len__(self) -> int:
            return len(self.index)

    many: Any = ManySources()
    n_sources = MAX_SOURCES + 2
    relevant = many.index["relevant"].to_numpy(dtype=bool)
    names = np.array(
        [f"a collection with the number {number % n_sources}" for number in range(len(pool))]
    )
    many.index["source"] = np.where(relevant, "digits", names)
    auc = indicator_auc(table, many)
    figure = plot_relatedness(table, many, preferential_manifest(table, many, params_of()), auc)
    said = words(figure)
    assert "2 others" in said
    assert "2 sources not shown" in said
    shares = [axes.get_title(loc="right") for axes in figure.axes if axes.get_title(loc="right")]
    assert len(shares) == 1 + MAX_SOURCES + 1
    for word in ("pool", "draws"):
        of_word = [float(share.split(f" % of {word}")[0].rpartition(" ")[2]) for share in shares]
        assert sum(of_word) == pytest.approx(100, abs=0.5)


def test_excluded_images_are_never_drawn(pool, table):
    ids = pool.index["id"]
    excluded = Excluded(pool=frozenset(ids[::3]))
    manifest = preferential_manifest(table, pool, params_of(), excluded)
    assert manifest["id"].tolist() == [each for each in ids if each not in excluded.pool]
    assert manifest["sampling_probability"].sum() == pytest.approx(1)
    assert (
        manifest.attrs["n_selected"] + manifest.attrs["n_excluded_pool"]
        == manifest.attrs["n_pool"]
        == len(pool)
    )
    whole = (
        preferential_manifest(table, pool, params_of())
        .set_index("id")
        .loc[manifest["id"]]
        .reset_index()
    )
    columns = ["id", "shard", "row", "teacher_class", "teacher_confidence"]
    pd.testing.assert_frame_equal(manifest[columns], whole[columns])
    plot_relatedness(table, pool, manifest, indicator_auc(table, pool)).canvas.draw()
    with pytest.raises(InputError, match="every pool image is a copy of a test image"):
        preferential_manifest(table, pool, params_of(), Excluded(pool=frozenset(ids)))
