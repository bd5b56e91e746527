"""Write stand-ins for a user's files: a trained teacher and images. Needs no download.

`python docs/examples/make_stand_ins.py data/01_raw/mine` writes

    teacher.pt                 state dict of `my_networks:small_cnn`, trained here with plain torch
    labeled/<class>/*.png      10 images of each of ten classes
    test/<class>/*.png         50 images of each class
    pool/part-*.parquet        2,100 images without labels: 700 digits among 1,400 patches of photos

The images are scikit-learn's digits, enlarged to 32x32. Nothing is imported from the pipeline: all
it needs is files.
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
# Of the teacher's training images, pixels in [0, 1].
MEAN = 0.31
STD = 0.35
SIZE_PX = 32

N_LABELED = 10
N_TEST = 50
N_POOL_DIGITS = 700
N_POOL_PATCHES = 1400
PATCH_PX = 64


def main(folder: Path) -> None:
    """Write everything into `folder`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    digits = load_digits()
    images = _enlarged_digits(digits.images)

    # No image is used twice: labeled and test images first, then the pool and the teacher.
    order = rng.permutation(len(images))
    left_over = []
    for label, name in enumerate(CLASSES):
        rows = order[digits.target[order] == label]
        n_used = N_LABELED + N_TEST
        _save_folder(folder / "labeled" / name, images, rows[:N_LABELED])
        _save_folder(folder / "test" / name, images, rows[N_LABELED:n_used])
        left_over.append(rows[n_used:])
    rest = rng.permutation(np.concatenate(left_over))

    pool = [images[row] for row in rest[:N_POOL_DIGITS]]
    pool += _photo_patches(N_POOL_PATCHES, rng)
    shuffled = [pool[position] for position in rng.permutation(len(pool))]
    _save_parquet(folder / "pool", shuffled)
    _train_teacher(folder / "teacher.pt", images, digits.target, rest[N_POOL_DIGITS:])


# --- images ---------------------------------------------------------------------------------------


def _enlarged_digits(digits: np.ndarray) -> list[Image.Image]:
    images = []
    for digit in digits:
        # scikit-learn's pixels are 0 to 16.
        pixels = (digit * 15.9375).astype(np.uint8)
        images.append(Image.fromarray(pixels).resize((SIZE_PX, SIZE_PX)))
    return images


def _photo_patches(n: int, rng: np.random.Generator) -> list[Image.Image]:
    """Return small patches of two photos."""
    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    patches = []
    for number in range(n):
        photo = photos[number % 2]
        left = rng.integers(photo.width - PATCH_PX)
        top = rng.integers(photo.height - PATCH_PX)
        patch = photo.crop((left, top, left + PATCH_PX, top + PATCH_PX))
        patches.append(patch.resize((SIZE_PX, SIZE_PX)))
    return patches


def _save_folder(folder: Path, images: list[Image.Image], rows: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        images[row].save(folder / f"{row:04d}.png")


def _save_parquet(folder: Path, images: list[Image.Image], n_files: int = 3) -> None:
    """Write the images as PNG bytes, spread over several files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_files):
        ids = []
        contents = []
        for row, image in enumerate(images[number::n_files]):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            ids.append(f"pool/{number}/{row}")
            contents.append(buffer.getvalue())
        table = pa.table({"id": ids, "image": contents})
        pq.write_table(table, folder / f"part-{number}.parquet")


# --- teacher --------------------------------------------------------------------------------------


def _train_teacher(
    file: Path, images: list[Image.Image], targets: np.ndarray, rows: np.ndarray
) -> None:
    """Train the network on the images at `rows`, and save its state dict."""
    # (N, 1, H, W) in [0, 1].
    pixels = np.stack([np.asarray(images[row], dtype=np.float32)[None] / 255 for row in rows])
    print(f"teacher's training images: mean {pixels.mean():.3f}, std {pixels.std():.3f}")
    inputs = torch.from_numpy((pixels - MEAN) / STD)
    labels = torch.from_numpy(targets[rows])
    network = small_cnn(len(CLASSES)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(12):
        for batch in torch.randperm(len(inputs)).split(32):
            logits = network(inputs[batch])
            loss = torch.nn.functional.cross_entropy(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(network.state_dict(), file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
