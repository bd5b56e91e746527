"""Stand-ins for what a user brings: a trained teacher, labeled images, a pool, test images. Needs no download.

`python docs/examples/make_stand_ins.py data/01_raw/mine` writes

    teacher.pt                 state dict of `my_networks:small_cnn`, trained here with plain torch
    labeled/<class>/*.png      10 images of each of ten classes
    test/<class>/*.png         50 images of each class
    pool/part-*.parquet        2,100 images without labels: 700 digits among 1,400 patches of photos

The images are scikit-learn's digits, enlarged to 32x32. Nothing of the pipeline is imported: files are all it asks for.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from my_networks import small_cnn
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MEAN, STD = 0.31, 0.35  # of the teacher's training images, pixels in [0, 1]
SIZE_PX = 32


def main(folder: Path) -> None:
    """Write everything into `folder`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    digits = load_digits()
    images = [
        Image.fromarray((image * 15.9375).astype(np.uint8)).resize((SIZE_PX, SIZE_PX))
        for image in digits.images
    ]
    order = rng.permutation(len(images))
    per_class = [order[digits.target[order] == label] for label in range(len(CLASSES))]
    for label, rows in enumerate(per_class):
        _save_folder(folder / "labeled" / CLASSES[label], images, rows[:10])
        _save_folder(folder / "test" / CLASSES[label], images, rows[10:60])
    rest = rng.permutation(np.concatenate([rows[60:] for rows in per_class]))
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    pool = [images[row] for row in rest[:700]] + [
        _patch(photos[number % 2], rng) for number in range(1400)
    ]
    _save_parquet(folder / "pool", [pool[position] for position in rng.permutation(len(pool))])
    _train_teacher(folder / "teacher.pt", images, digits.target, rest[700:])


def _save_folder(folder: Path, images: list[Image.Image], rows: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        images[row].save(folder / f"{row:04d}.png")


def _patch(photo: Image.Image, rng: np.random.Generator) -> Image.Image:
    left, top = rng.integers(photo.width - 64), rng.integers(photo.height - 64)
    return photo.crop((left, top, left + 64, top + 64)).resize((SIZE_PX, SIZE_PX))


def _save_parquet(folder: Path, images: list[Image.Image], n_files: int = 3) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        part = images[number::n_files]
        files = [io.BytesIO() for _ in part]
        for image, file in zip(part, files, strict=True):
            image.save(file, "PNG")
        ids = [f"pool/{number}/{row}" for row in range(len(part))]
        table = pa.table({"id": ids, "image": [file.getvalue() for file in files]})
        pq.write_table(table, folder / f"part-{number}.parquet")


def _train_teacher(
    file: Path, images: list[Image.Image], targets: np.ndarray, rows: np.ndarray
) -> None:
    pixels = np.stack([np.asarray(images[row], dtype=np.float32)[None] / 255 for row in rows])
    print(f"teacher's training images: mean {pixels.mean():.3f}, std {pixels.std():.3f}")
    inputs, labels = torch.from_numpy((pixels - MEAN) / STD), torch.from_numpy(targets[rows])
    network = small_cnn(len(CLASSES)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(12):
        for batch in torch.randperm(len(inputs)).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    torch.save(network.state_dict(), file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
