from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images import ingestion
from pu_kd_pipeline.images.decoding import Decoder
from pu_kd_pipeline.images.ingestion import write_store
from pu_kd_pipeline.images.plan import IngestionPlan
from pu_kd_pipeline.images.store import ImageStore
from pu_kd_pipeline.params.data_ingestion import ImageSource, ImageStoreParams

KINDS = pytest.mark.parametrize("kind", ["packed", "encoded"])


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (3, 8, 8), dtype=np.uint8)


def png(number: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels_of(number).transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet_of(file: Path, numbers: list[int], **replaced: bytes) -> Path:
    """Write images that are told by their number; `i3=b"..."` puts other bytes in the place of image 3."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"i{number}" for number in numbers]
    images = [
        replaced.get(image_id, png(number)) for image_id, number in zip(ids, numbers, strict=True)
    ]
    pq.write_table(
        pa.table({"id": ids, "image": images, "label": [n % 3 for n in numbers]}),
        file,
        row_group_size=5,
    )
    return file


def plan_of(*paths: Path, source: dict[str, Any] | None = None, **store: Any) -> IngestionPlan:
    known = {
        "kind": "packed",
        "packed_max_size_px": 64,
        "disk_budget_gb": 1.0,
        "shard_size": 10,
        "n_workers": 2,
    }
    known |= {"max_image_pixels": 10_000, "max_quarantined_share": 0.5}
    sources = [
        {"type": "parquet", "path": str(path), "labels": "classes", **(source or {})}
        for path in paths
    ]
    return IngestionPlan(
        name="pool",
        sources=tuple(ImageSource.model_validate(each) for each in sources),
        size_px=8,
        channels=3,
        class_names=("cat", "dog", "owl"),
        store=ImageStoreParams.model_validate(known | store),
        seed=0,
    )


@pytest.fixture
def n_decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a function that says how many images were decoded since it was last asked."""
    decoded: list[None] = []
    original = Decoder.decode

    def counted(self: Decoder, raw: Any) -> Any:
        decoded.append(None)
        return original(self, raw)

    monkeypatch.setattr(Decoder, "decode", counted)

    def ask() -> int:
        n = len(decoded)
        decoded.clear()
        return n

    return ask


def contents(store: ImageStore) -> dict[str, bytes]:
    images = store.read(np.arange(len(store)))
    return {
        image_id: image.tobytes() for image_id, image in zip(store.index["id"], images, strict=True)
    }


def expected(numbers: Any) -> dict[str, bytes]:
    return {f"i{number}": pixels_of(number).tobytes() for number in numbers}


# --- reading


@KINDS
def test_any_rows_are_read_in_any_order(tmp_path: Path, kind: str) -> None:
    store = write_store(
        plan_of(parquet_of(tmp_path / "a.parquet", list(range(25))), kind=kind), tmp_path / "store"
    )
    assert (len(store), store.kind, store.n_channels, store.size_px) == (25, kind, 3, 8)
    assert [(shard.n, shard.start) for shard in store.shards] == [(10, 0), (10, 10), (5, 20)]
    rows = np.array([24, 0, 3, 3, 10, 9])
    np.testing.assert_array_equal(store.read(rows), np.stack([pixels_of(int(row)) for row in rows]))
    np.testing.assert_array_equal(
        store.read(np.array([12, 11])), np.stack([pixels_of(12), pixels_of(11)])
    )
    assert store.read(np.array([], dtype=np.int64)).shape == (0, 3, 8, 8)
    with pytest.raises(IndexError, match=r"0\.\.24, got -1\.\.25"):
        store.read(np.array([-1, 25]))


@KINDS
def test_a_shard_is_read_whole_or_in_batches(tmp_path: Path, kind: str) -> None:
    store = write_store(
        plan_of(parquet_of(tmp_path / "a.parquet", list(range(15))), kind=kind), tmp_path / "store"
    )
    whole = np.stack([pixels_of(number) for number in range(10)])
    np.testing.assert_array_equal(store.read_shard(store.shards[0]), whole)
    batches = list(store.iter_batches(store.shards[0], batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), whole)


def test_a_packed_shard_is_a_memory_map_of_a_plain_npy_file(tmp_path: Path) -> None:
    store = write_store(plan_of(parquet_of(tmp_path / "a.parquet", [1, 2])), tmp_path / "store")
    mapped = store.read_shard(store.shards[0])
    assert isinstance(mapped.base, np.memmap)
    assert not mapped.flags.writeable
    plain = np.load(tmp_path / "store" / f"{store.shards[0].name}.npy")
    np.testing.assert_array_equal(plain, np.stack([pixels_of(1), pixels_of(2)]))


def test_the_index_names_every_row(tmp_path: Path) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", list(range(12))), source={"name": "mine"})
    index = write_store(plan, tmp_path / "store").index
    assert index.columns.tolist() == ["id", "source", "label", "relevant", "sha256", "shard", "row"]
    assert index["id"].tolist() == [f"mine/i{number}" for number in range(12)]
    assert (index["source"] == "mine").all()
    assert index["label"].tolist() == [number % 3 for number in range(12)]
    assert index["relevant"].all()
    assert index["row"].tolist() == [*range(10), 0, 1]
    assert (index["label"].dtype, index["relevant"].dtype) == ("Int32", "boolean")
    hidden = write_store(
        plan_of(tmp_path / "a.parquet", source={"labels": "ignore"}), tmp_path / "hidden"
    ).index
    assert hidden[["label", "relevant"]].isna().all(axis=None)


def test_ids_of_a_shard_are_those_of_the_index(tmp_path: Path) -> None:
    store = write_store(
        plan_of(parquet_of(tmp_path / "a.parquet", list(range(12)))), tmp_path / "store"
    )
    assert len(store.shards) > 1
    for shard in store.shards:
        assert (
            store.ids_of(shard).to_pylist()
            == store.index["id"].iloc[shard.start : shard.start + shard.n].tolist()
        )


@KINDS
def test_a_store_travels_to_other_processes(tmp_path: Path, kind: str) -> None:
    store = write_store(
        plan_of(parquet_of(tmp_path / "a.parquet", list(range(12))), kind=kind), tmp_path / "store"
    )
    images = store.read(np.arange(12))
    pickled = pickle.dumps(store)
    assert len(pickled) < 2_000
    np.testing.assert_array_equal(pickle.loads(pickled).read(np.arange(12)), images)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for read in pool.map(store.read, [np.arange(12)] * 4):
            np.testing.assert_array_equal(read, images)


def test_both_kinds_hold_the_same_images(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(range(12)))
    packed, encoded = (
        write_store(plan_of(file, kind=kind), tmp_path / kind) for kind in ("packed", "encoded")
    )
    assert contents(packed) == contents(encoded)
    assert packed.index["sha256"].tolist() == encoded.index["sha256"].tolist()


@pytest.mark.parametrize(
    ("packed_max_size_px", "disk_budget_gb", "kind"),
    [(8, 1e-9, "packed"), (4, 1.0, "packed"), (4, 1e-9, "encoded")],
)
def test_auto_packs_small_images_and_small_stores(
    tmp_path: Path, packed_max_size_px: int, disk_budget_gb: float, kind: str
) -> None:
    file = parquet_of(tmp_path / "a.parquet", [1, 2])
    plan = plan_of(
        file, kind="auto", packed_max_size_px=packed_max_size_px, disk_budget_gb=disk_budget_gb
    )
    assert write_store(plan, tmp_path / "store").kind == kind


def test_no_source_makes_an_empty_store(tmp_path: Path) -> None:
    store = write_store(plan_of(), tmp_path / "store")
    assert len(store) == len(store.index) == len(store.quarantine) == 0
    assert store.read(np.array([], dtype=np.int64)).shape == (0, 3, 8, 8)
    assert store.index.columns.tolist() == [
        "id",
        "source",
        "label",
        "relevant",
        "sha256",
        "shard",
        "row",
    ]


# --- what costs nothing


@KINDS
def test_a_second_run_decodes_nothing(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int]
) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(range(25)), i7=b"broken", i9=png(3))
    first = write_store(plan_of(file, kind=kind), tmp_path / "store")
    assert n_decoded() == 25
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("0*")}
    again = write_store(plan_of(file, kind=kind), tmp_path / "store")
    assert n_decoded() == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("0*")} == files
    assert again.fingerprint == first.fingerprint
    pd.testing.assert_frame_equal(again.quarantine, first.quarantine)


@KINDS
def test_a_pool_that_grows_costs_only_its_new_images(
    tmp_path: Path, kind: str, n_decoded: Callable[[], int]
) -> None:
    pool = tmp_path / "pool"
    parquet_of(pool / "b.parquet", list(range(25)))
    before = write_store(plan_of(pool, kind=kind), tmp_path / "store")
    n_decoded()
    parquet_of(pool / "a.parquet", [100, 101, 102], i102=png(3))  # it sorts before the first file
    after = write_store(plan_of(pool, kind=kind), tmp_path / "store")
    assert n_decoded() == 3
    assert after.quarantine["status"].tolist() == ["duplicate of i3"]
    assert after.shards[:3] == before.shards
    assert contents(after) == expected([*range(25), 100, 101])
    assert after.fingerprint != before.fingerprint


def test_a_folder_that_grows_costs_only_its_new_images(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        (images / f"i{number}.png").write_bytes(png(number))
    plan = plan_of(images, source={"type": "folder", "labels": "ignore"})
    write_store(plan, tmp_path / "store")
    (images / "i12.png").write_bytes(png(12))
    n_decoded()
    assert len(write_store(plan, tmp_path / "store")) == 13
    assert n_decoded() == 1


def test_a_changed_image_costs_its_shard(tmp_path: Path, n_decoded: Callable[[], int]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        (images / f"i{number:02d}.png").write_bytes(png(number))
    plan = plan_of(images, source={"type": "folder", "labels": "ignore"})
    before = write_store(plan, tmp_path / "store")
    (images / "i03.png").write_bytes(png(99))
    n_decoded()
    after = write_store(plan, tmp_path / "store")
    assert n_decoded() == 10
    assert contents(after)["i03.png"] == pixels_of(99).tobytes()
    assert len(after) == 20
    gone = {shard.name for shard in before.shards} - {shard.name for shard in after.shards}
    assert len(gone) == 1
    assert not list((tmp_path / "store").glob(f"{gone.pop()}*"))


def test_removed_images_leave_the_store_and_free_their_duplicates(tmp_path: Path) -> None:
    kept, removed = tmp_path / "pool" / "b.parquet", tmp_path / "pool" / "a.parquet"
    parquet_of(removed, [1, 2])
    parquet_of(kept, [11, 12], i12=png(1))
    store = write_store(plan_of(tmp_path / "pool"), tmp_path / "store")
    assert store.quarantine.values.tolist() == [["i12", "pool", "duplicate of i1"]]
    removed.unlink()
    store = write_store(plan_of(tmp_path / "pool"), tmp_path / "store")
    assert contents(store) == {"i11": pixels_of(11).tobytes(), "i12": pixels_of(1).tobytes()}
    assert store.quarantine.empty


@pytest.mark.parametrize("change", [{"kind": "encoded"}, {"max_image_pixels": 9_999}])
def test_another_specification_makes_everything_anew(
    tmp_path: Path, change: dict[str, Any], n_decoded: Callable[[], int]
) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(range(12)))
    write_store(plan_of(file), tmp_path / "store")
    n_decoded()
    store = write_store(plan_of(file, **change), tmp_path / "store")
    assert n_decoded() == 12
    assert contents(store) == expected(range(12))
    assert len(list((tmp_path / "store").glob("*.index.parquet"))) == len(store.shards)


def test_other_labels_change_the_fingerprint(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", [0, 1, 2])
    store = write_store(plan_of(file), tmp_path / "store")
    mapped = write_store(
        plan_of(file, source={"label_map": {"0": 1, "1": 2, "2": 0}}), tmp_path / "store"
    )
    assert mapped.index["label"].tolist() == [1, 2, 0]
    assert mapped.fingerprint != store.fingerprint


def test_an_interrupted_run_keeps_its_finished_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_decoded: Callable[[], int]
) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", list(range(25))))
    original = ingestion._finish_shard

    def killed_at_the_third(folder: Path, number: int, *rest: Any) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return original(folder, number, *rest)

    monkeypatch.setattr(ingestion, "_finish_shard", killed_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_store(plan, tmp_path / "store")
    assert not list((tmp_path / "store").glob(".*"))
    with pytest.raises(InputError, match="there is no image store at"):
        ImageStore.open(tmp_path / "store")
    monkeypatch.setattr(ingestion, "_finish_shard", original)
    n_decoded()
    store = write_store(plan, tmp_path / "store")
    assert n_decoded() == 5
    assert store.fingerprint == write_store(plan, tmp_path / "elsewhere").fingerprint


def test_a_reader_of_the_old_state_goes_on_reading_while_the_store_changes(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(range(12)))
    before = write_store(plan_of(file), tmp_path / "store")
    before.read(np.arange(12))
    write_store(plan_of(parquet_of(file, list(range(50, 60)))), tmp_path / "store")
    np.testing.assert_array_equal(
        before.read(np.arange(12)), np.stack([pixels_of(n) for n in range(12)])
    )


@KINDS
def test_a_damaged_shard_is_refused_and_made_anew(tmp_path: Path, kind: str) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", list(range(25))), kind=kind)
    store = write_store(plan, tmp_path / "store")
    whole = contents(store)
    pixels = next((tmp_path / "store").glob(f"{store.shards[1].name}.*[ywo]"))
    with open(pixels, "r+b") as file:
        file.truncate(pixels.stat().st_size // 2)
    with pytest.raises(
        InputError, match=r"is damaged .*: delete it and run `kedro run --pipeline=data_ingestion`"
    ):
        ImageStore.open(tmp_path / "store").read(np.array([12]))
    assert contents(write_store(plan, tmp_path / "store")) == whole


# --- quarantine


@KINDS
def test_unusable_images_are_set_aside_with_their_reason(tmp_path: Path, kind: str) -> None:
    large = BytesIO()
    Image.new("L", (200, 200)).save(large, "PNG")
    broken = {
        "i1": b"",
        "i3": b"text",
        "i5": png(5)[:-30],
        "i7": large.getvalue(),
        "i9": png(2),
        "i21": png(4),
    }
    file = parquet_of(tmp_path / "a.parquet", list(range(25)), **broken)
    store = write_store(plan_of(file, kind=kind), tmp_path / "store")
    assert dict(zip(store.quarantine["id"], store.quarantine["status"], strict=True)) == {
        "i1": "empty",
        "i3": "unreadable",
        "i5": "truncated",
        "i7": "too many pixels",
        "i9": "duplicate of i2",
        "i21": "duplicate of i4",  # of another shard
    }
    assert store.quarantine_counts["duplicate"] == 2
    assert contents(store) == expected(n for n in range(25) if f"i{n}" not in broken)


def test_too_many_unusable_images_stop_the_run_and_leave_the_store_as_it_was(
    tmp_path: Path,
) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(range(25)))
    before = write_store(plan_of(file), tmp_path / "store")
    whole, files = contents(before), set(os.listdir(tmp_path / "store"))
    parquet_of(
        file, list(range(30, 60)), **{f"i{number}": b"text" for number in range(45, 57)}, i57=b""
    )
    message = (
        r"data_ingestion\.pool: 13 of 30 images cannot be used \(unreadable 12, empty 1; such as 'i45': unreadable\), "
        r"more than the share 0\.4 .*Fix the images, or raise the limit; nothing was written"
    )
    with pytest.raises(InputError, match=message):
        write_store(plan_of(file, max_quarantined_share=0.4), tmp_path / "store")
    assert set(os.listdir(tmp_path / "store")) == files
    assert contents(ImageStore.open(tmp_path / "store")) == whole
    assert len(write_store(plan_of(file, max_quarantined_share=0.5), tmp_path / "store")) == 17


def test_a_hopeless_pool_is_given_up_before_its_end(
    tmp_path: Path, n_decoded: Callable[[], int]
) -> None:
    file = parquet_of(
        tmp_path / "a.parquet", list(range(40)), **{f"i{number}": b"text" for number in range(10)}
    )
    with pytest.raises(InputError, match="10 of 40 images cannot be used"):
        write_store(plan_of(file, max_quarantined_share=0.2), tmp_path / "store")
    assert n_decoded() == 10


def test_an_image_that_could_not_be_opened_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        (images / f"i{number}").with_suffix(".png").write_bytes(png(number))
    plan = plan_of(images, source={"type": "folder", "labels": "ignore"})
    original = Path.read_bytes

    def flaky(self: Path) -> bytes:
        if self.name == "i2.png":
            raise OSError("the network is away")
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", flaky)
        assert write_store(plan, tmp_path / "store").quarantine_counts == {"could not be opened": 1}
    assert len(write_store(plan, tmp_path / "store")) == 4


# --- sources together


def test_mixed_sources_need_names_where_their_ids_meet(tmp_path: Path) -> None:
    first, second = (
        parquet_of(tmp_path / "a.parquet", [1, 2]),
        parquet_of(tmp_path / "b.parquet", [2, 3]),
    )
    with pytest.raises(
        InputError, match=r"1 ids occur more than once, such as 'i2'\. Give each source a `name`"
    ):
        write_store(plan_of(first, second), tmp_path / "store")
    plan = plan_of(first, second)
    named = tuple(
        source.model_copy(update={"name": name})
        for source, name in zip(plan.sources, "ab", strict=True)
    )
    store = write_store(IngestionPlan(**{**vars(plan), "sources": named}), tmp_path / "store")
    assert store.index["id"].tolist() == ["a/i1", "a/i2", "b/i3"]
    assert store.quarantine["status"].tolist() == ["duplicate of a/i2"]


def test_shares_of_one_source_never_overlap(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", list(range(40)))
    stores = [
        write_store(plan_of(file, source={"share": share, "name": name}), tmp_path / name)
        for name, share in {"labeled": (0.0, 0.3), "pool": (0.3, 1.0)}.items()
    ]
    numbers = [
        set(store.index["id"].str.removeprefix("labeled/").str.removeprefix("pool/"))
        for store in stores
    ]
    assert not numbers[0] & numbers[1]
    assert len(numbers[0] | numbers[1]) == 40


def test_so_many_of_each_class_are_drawn_by_the_seed(tmp_path: Path) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", list(range(30))), source={"per_class": 2})
    store = write_store(plan, tmp_path / "store")
    assert store.index["label"].value_counts().to_dict() == {0: 2, 1: 2, 2: 2}
    other = write_store(IngestionPlan(**{**vars(plan), "seed": 1}), tmp_path / "other")
    assert set(other.index["id"]) != set(store.index["id"])


def test_a_class_without_an_image_is_named(tmp_path: Path) -> None:
    plan = plan_of(parquet_of(tmp_path / "a.parquet", [0, 2, 3]), source={"per_class": 2})
    with pytest.raises(InputError, match=r"there are none of class 1 \(dog\)"):
        write_store(plan, tmp_path / "store")


# --- start-up


def test_importing_the_stores_needs_neither_pandas_nor_pyarrow_nor_torch() -> None:
    code = "import sys, pu_kd_pipeline.images.store; print(*{'pandas', 'pyarrow', 'torch', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# --- what must not be opened


def tampered(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = json.loads((folder / "store.json").read_text())
    change(about)
    (folder / "store.json").write_text(json.dumps(about))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_a_shard_name_that_leads_out_of_the_store_is_refused(tmp_path: Path, name: str) -> None:
    write_store(plan_of(parquet_of(tmp_path / "a.parquet", [1])), tmp_path / "store")
    tampered(tmp_path / "store", lambda about: about["shards"][0].update(name=name))
    with pytest.raises(InputError, match="which leads out of the store"):
        ImageStore.open(tmp_path / "store")


def test_a_pickle_in_the_place_of_pixels_is_refused(tmp_path: Path) -> None:
    store = write_store(plan_of(parquet_of(tmp_path / "a.parquet", [1])), tmp_path / "store")
    np.save(
        tmp_path / "store" / f"{store.shards[0].name}.npy", np.array([{"a": 1}]), allow_pickle=True
    )
    with pytest.raises(InputError, match="is damaged"):
        ImageStore.open(tmp_path / "store").read(np.array([0]))


def test_what_is_not_a_store_is_refused_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        InputError,
        match=r"there is no image store at .*: run `kedro run --pipeline=data_ingestion`",
    ):
        ImageStore.open(tmp_path)
    store = write_store(plan_of(parquet_of(tmp_path / "a.parquet", [1])), tmp_path / "store")
    (tmp_path / "store" / f"{store.shards[0].name}.npy").unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing"):
        ImageStore.open(tmp_path / "store")
    tampered(tmp_path / "store", lambda about: about["specification"].update(format=0))
    with pytest.raises(InputError, match="written by another version of this program"):
        ImageStore.open(tmp_path / "store")
    (tmp_path / "store" / "store.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        ImageStore.open(tmp_path / "store")


# --- real files


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("PU_KD_DATA")
    if not folder:
        pytest.skip(
            "PU_KD_DATA is not set: point it to the folder with mnist_test.parquet and the other real files"
        )
    return Path(folder)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "channels", "size_px"),
    [("mnist_test", 1, 28), ("mnist_test", 1, 32), ("cifar10_test", 3, 32)],
)
def test_real_files_keep_their_pixels_and_labels(
    tmp_path: Path, real_data: Path, name: str, channels: int, size_px: int
) -> None:
    rows = next(pq.ParquetFile(real_data / f"{name}.parquet").iter_batches(500)).to_pandas()
    plan = plan_of(
        real_data / f"{name}.parquet", source={"limit": 400, "share": (0.0, 0.2)}, shard_size=150
    )
    plan = IngestionPlan(
        **{
            **vars(plan),
            "channels": channels,
            "size_px": size_px,
            "class_names": tuple("0123456789"),
        }
    )
    store = write_store(plan, tmp_path / "store")
    assert len(store) == 400
    shutil.rmtree(tmp_path / "store")
    index = (
        write_store(plan, tmp_path / "store").index.reset_index(names="place").merge(rows, on="id")
    )
    assert (index["label_x"] == index["label_y"]).all()
    assert len(index) > 5
    for place, image in zip(index["place"], index["image"], strict=True):
        resized = Image.open(BytesIO(image)).resize((size_px, size_px), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized).reshape(size_px, size_px, channels).transpose(2, 0, 1)
        np.testing.assert_array_equal(store.read(np.array([place]))[0], pixels)


def test_a_remote_source_that_fails_is_told_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise PermissionError("access denied")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.isdir", fail)
    plan = plan_of("memory://secret", source={"type": "folder", "labels": "ignore"})
    with pytest.raises(
        InputError,
        match=r"memory://secret cannot be read \(PermissionError: access denied\): check the",
    ):
        write_store(plan, tmp_path)
