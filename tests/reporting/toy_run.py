"""A toy run: what the stages before `reporting` would have saved, small and the same every time."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from pu_kd_pipeline.images.duplicates import COLUMNS
from pu_kd_pipeline.params.reporting import ReportingParams
from pu_kd_pipeline.params.subset_materialization import SubsetParams
from pu_kd_pipeline.pipelines.reporting.nodes import report_run
from pu_kd_pipeline.storage.manifest import manifest_digest

PRIOR = {
    "value": 0.2,
    "lower": 0.17,
    "upper": 0.23,
    "level": 0.9,
    "method": "bbe",
    "n_positive": 100,
    "n_unlabeled": 300,
}
INGESTION = {
    "pool_images": {
        "n_images": 300,
        "size_px": 8,
        "channels": 1,
        "shorter_side_px": 9,
        "interpolation": "bicubic",
        "n_per_source": {"demo": 300},
        "n_quarantined": 2,
        "quarantined": {"truncated": 2},
    },
    "duplicates": {
        "pool and test": {"exact": 3, "near": 1},
        "teacher_training and pool": {"exact": 0, "near": None},
    },
}
# Of the blocks of parameters, one has values; the page takes any mapping.
BLOCKS: dict[str, Any] = {
    "data_ingestion": {},
    "teacher": {},
    "teacher_check": {},
    "teacher_training": {},
    "feature_extraction": {},
    "yardstick": {},
    "pu_training": {"epochs": 20, "note": "<b>"},
    "pool_scoring": {},
    "subset_materialization": SubsetParams.model_validate(
        {"seed": 0, "rule": "nnpu", "criterion": "sign", "budget": None, "target_precision": 0.9}
    ),
    "class_weighting": {},
    "distillation": {},
    "random_baseline": {},
    "evaluation": {},
}


class Store:
    """The part of an image store that reporting uses; it counts the rows that were read."""

    def __init__(
        self,
        images: np.ndarray,
        ids: list[str],
        relevant: list[bool | None],
        labels: list[int] | None = None,
    ) -> None:
        self._images = images
        self.fingerprint = ids[0]
        self.n_rows_read = 0
        # A dtype with missing values, as in the table on disk.
        truth = pd.array(relevant, dtype="boolean")
        label = pd.array(labels or [None] * len(ids), dtype="Int32")
        self.index = pd.DataFrame({"id": ids, "relevant": truth, "label": label, "source": "toy"})
        # Two images of the pool could not be read.
        n_refused = 2 if ids[0].startswith("pool/") else 0
        refused = {"id": ["a.jpg", "b.jpg"], "source": "toy", "status": "truncated"}
        self.quarantine = pd.DataFrame(refused).head(n_refused)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, rows: np.ndarray) -> np.ndarray:
        assert rows.dtype == np.int64
        self.n_rows_read += len(rows)
        return self._images[rows]


class Scores:
    """The part of a sharded table that reporting uses."""

    def __init__(self, table: pd.DataFrame) -> None:
        self._table = table

    def to_pandas(self) -> pd.DataFrame:
        return self._table


def scored_pool(
    n: int = 300,
    *,
    rule: str = "nnpu",
    has_truth: bool = True,
    shape: tuple[int, int, int] = (1, 8, 8),
    n_classes: int = 10,
) -> tuple[pd.DataFrame, pd.DataFrame, Any]:
    """Return shuffled scores, the manifest of the rule, and the store; a fifth is relevant."""
    rng = np.random.default_rng(0)
    is_relevant = np.arange(n) % 5 == 0
    ids = [f"pool/{row}" for row in range(n)]
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)

    # The two populations overlap, as those of a real classifier do.
    relevant_score = rng.normal(2, 1.5, n)
    other_score = rng.normal(-3, 1.5, n)
    score = np.where(is_relevant, relevant_score, other_score)
    classes = rng.integers(0, n_classes, n).astype(np.int32)
    confidence = rng.uniform(0.3, 1, n)
    table = pd.DataFrame(
        {
            "id": ids,
            "pu_score": score.astype(np.float32),
            "teacher_class": classes,
            "teacher_confidence": confidence.astype(np.float32),
            "teacher_log_odds": np.log(confidence / (1 - confidence)),
        }
    )
    # Shuffled: figures have to match scores and images by id, not by row.
    scores = table.sample(frac=1, random_state=0, ignore_index=True)
    truth: list[bool | None] = [None] * n
    if has_truth:
        truth = list(is_relevant)
    return scores, manifest_of(scores, rule), Store(images, ids, truth)


def manifest_of(scores: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Return the manifest that the rule would make of the scores, with two labeled images."""
    n_drawn = len(scores) // 5
    threshold = None
    if rule == "nnpu":
        threshold = 0.0
        kept = scores[scores["pu_score"] > threshold]
    elif rule == "confident":
        threshold = 1.4  # a confidence of 0.8
        kept = scores[scores["teacher_log_odds"] >= threshold]
    elif rule == "all":
        kept = scores
    else:
        kept = scores.sample(n_drawn, random_state=1)

    labeled = pd.DataFrame({"id": ["labeled/0", "labeled/1"], "origin": "labeled"})
    of_pool = kept.assign(origin="pool", sampling_probability=1 / len(kept), reason=rule)
    manifest = pd.concat([labeled.assign(reason="labeled"), of_pool], ignore_index=True)
    manifest.attrs = {
        "rule": rule,
        "criterion": "sign",
        "threshold": threshold,
        "fingerprints": {"pool_images": "3fa9"},
    }
    return manifest


def history(n_epochs: int, **columns: Any) -> pd.DataFrame:
    """Return a history with the columns of every training, and these."""
    epoch = np.arange(1.0, n_epochs + 1)
    falling = 1 / epoch
    return pd.DataFrame(
        {
            "epoch": epoch,
            "update": 10 * epoch,
            "loss": falling,
            "risk": falling,
            "positive_risk": falling / 2,
            "negative_risk": falling / 2 - 0.05,
            "ascent_share": 0.25,
            **columns,
        }
    )


def weights(
    n_classes: int, n_clipped: int = 0, names: tuple[str, ...] | None = None
) -> pd.DataFrame:
    """Return class weights in inverse proportion to the mass, the first ones marked as clipped."""
    mass = np.arange(1.0, n_classes + 1)
    weight = n_classes / mass / (1 / mass).sum()
    return pd.DataFrame(
        {
            "class_index": range(n_classes),
            "class_name": names or class_names(n_classes),
            "teacher_mass": mass,
            "raw_weight": weight,
            "weight": weight,
            "is_clipped": np.arange(n_classes) < n_clipped,
        }
    )


def class_names(n_classes: int) -> list[str]:
    return [f"class {index}" for index in range(n_classes)]


def model(accuracy: float, n_classes: int = 10, n_parameters: int = 1000) -> dict[str, Any]:
    """Return the metrics of one model."""
    per_class: list[float | None] = [accuracy] * n_classes
    per_class[-1] = None  # a class without test images
    return {
        "accuracy": accuracy,
        "agreement": 0.97,
        "per_class_accuracy": per_class,
        "parameters": n_parameters,
        "flops": 10 * n_parameters,
        "size_bytes": 4 * n_parameters,
        "latency_ms": 0.5,
    }


def metrics_of(gain: float | None = 0.02, n_classes: int = 10, n_test: int = 400) -> dict[str, Any]:
    """Return the metrics of a run; without a gain there is no random student."""
    metrics: dict[str, Any] = {
        "teacher": model(0.98, n_classes, 6000),
        "student": model(0.95, n_classes),
    }
    if gain is not None:
        metrics["random_student"] = model(0.95 - gain, n_classes)
    metrics["selection"] = {
        "n_selected": 60,
        "n_pool": 300,
        "rule": "nnpu",
        "criterion": "sign",
        "class_prior": 0.2,
        "gain": gain,
    }
    metrics["n_test"] = n_test
    return metrics


def labeled_store() -> Any:
    """Return the labeled images of the manifest, of the classes 0 and 1."""
    images = np.full((2, 1, 8, 8), 200, dtype=np.uint8)
    return Store(images, ["labeled/0", "labeled/1"], [True, True], [0, 1])


def predicted(n: int, n_classes: int) -> tuple[Any, Any]:
    """Return test images and predictions; the student errs on every twentieth image."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (n, 1, 8, 8), dtype=np.uint8)
    ids = [f"test/{row}" for row in range(n)]
    label = np.arange(n) % n_classes
    student = np.where(np.arange(n) % 20 == 3, (label + 1) % n_classes, label)
    predictions = pd.DataFrame({"id": ids, "label": label, "teacher": label, "student": student})
    return Store(images, ids, [None] * n, label.tolist()), predictions


CERTIFICATE = {
    "provenance": {
        "teacher": "7eac",
        "student": "57d7",
        "commit": "5" * 40,
        "commit_has_changes": False,
        "code_of_training": "c0de",
        "seed": 0,
        "python": "3.11.7",
        "libraries": {"torch": "2.13.0"},
    }
}


def certificate_of(manifest: pd.DataFrame, /, **provenance: Any) -> dict[str, Any]:
    """Return the certificate of a student that learned from a manifest, with these changes."""
    facts = CERTIFICATE["provenance"] | {"manifest": manifest_digest(manifest)}
    return {"provenance": facts | provenance}


def saved_student(name: str = "57d7", **training: Any) -> Any:
    """Return the part of a student that the report reads: its hash, and how it was trained."""
    recipe = {"distillation": {"seed": 0, "lr": 0.1, **training}}
    return SimpleNamespace(
        fingerprint=lambda: name, card=SimpleNamespace(origin={"training": recipe})
    )


@functools.cache
def report(
    title: str = "A run",
    gain: float | None = 0.02,
    names: tuple[str, ...] | None = None,
    seed: int = 0,
    student: str = "57d7",
    commit: str | None = "5" * 40,
    **pool: Any,
) -> dict[str, Any]:
    """Return the outputs of the stage; `pool` are the arguments of `scored_pool`.

    Args:
        title: of the page.
        gain: of the selection; None: there is no random student.
        names: of the ten classes.
        seed: of the training, as the parameters have it that the page is written with.
        student: the hash of the saved student, by which the certificate knows it or not.
        commit: of the code of the evaluation.
    """
    blocks = BLOCKS | {"distillation": {"seed": seed}}
    scores, manifest, store = scored_pool(**pool)
    n_random_epochs = 20 if gain is not None else 0
    test_images, predictions = predicted(400, 10)
    return report_run(
        metrics_of(gain),
        INGESTION,
        PRIOR,
        Scores(scores),  # type: ignore[arg-type]
        manifest,
        store,
        labeled_store(),
        test_images,
        predictions,
        certificate_of(manifest, commit=commit),
        saved_student(student),
        pd.DataFrame(columns=COLUMNS),
        pd.DataFrame(columns=["id", "origin"]),
        history(20, held_out_zero_one_risk=0.1),
        weights(10, names=names),
        history(20, yardstick_agreement=0.9),
        history(n_random_epochs, yardstick_agreement=0.8),
        **blocks,
        params=ReportingParams(title=title, contact_sheet_images=4),
    )


def words(figure: Any) -> str:
    """Return all text of a figure."""
    found = [figure.get_suptitle()]
    texts = list(figure.texts)
    for axes in figure.axes:
        found.append(axes.get_xlabel())
        found.append(axes.get_ylabel())
        texts.extend(axes.texts)
    for text in texts:
        found.append(text.get_text())
    return " | ".join(found)
