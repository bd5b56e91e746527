"""The embedded demo: real handwritten digits, and a pool that hides some of them among letters and photo patches.

Everything comes from installed packages: the 1,797 digits of 8x8 pixels and two photos from scikit-learn, the fonts
from matplotlib. The digits were made from 32x32 bitmaps by counting the ink in blocks of 4x4 (values 0..16). The
letters are made by that very procedure, with as much ink as a digit drawn at random, and the patches are stretched and
quantized to the same 17 levels: content tells the populations apart, rendering does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image, ImageFont

SIZE_PX = 8
LABELED_PER_CLASS = 10
POOL_DIGITS = 700
TEST_DIGITS = 500
POOL_LETTERS = 700
POOL_PATCHES = 2100

_BLOCK = 4  # bitmap pixels along a side that make one pixel of the image
_LEVELS = _BLOCK * _BLOCK  # most ink that one pixel can hold
_BITMAP = SIZE_PX * _BLOCK
# Left out: letters that are digits in some hand or font (O 0, I l 1, Z 2, S 5, b G 6, B 8, g q 9, ...).
LETTERS = "ACEFHKLMNPRTUVWXYacdefhkmnprtuvwxy"
_FONTS = (
    *(f"DejaVuSans{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
    *("cmr10", "cmss10", "cmtt10", "cmti10", "cmb10"),
)
_FONT_PX = 44
_CANVAS_PX = 88
_MAX_ROTATION = 12.0  # degrees either way
_MAX_SHEAR = 0.25
_STRETCH = (
    0.65,
    1.15,
)  # width over height, times the letter's own: hands write narrower than fonts
_HEIGHT = (26, 32)  # of the bitmap's 32 rows; digits fill nearly all
_MAX_WIDTH = 28
_MAX_SHIFT = 1.5  # bitmap pixels
_PEN_BLUR = (1.0, 1.8)  # bitmap pixels; the pen rounds corners and closes gaps
_PATCH_SIDES = (12, 16, 24, 32, 48, 64, 96, 128)  # of the photos' 640 x 427 pixels
_MIN_PATCH_RANGE = 24  # of 255 gray levels; less is only noise once it is stretched
_PHOTOS = ("china", "flower")


@dataclass(frozen=True)
class DemoPart:
    """One part of the demo, in a shuffled order.

    Attributes:
        images: (N, 8, 8) uint8, the 17 levels of ink spread over 0..255.
        ids: N names such as `digits/0012`, `letters/0003`, `patches/0007`; a digit keeps its name in every split.
        labels: (N,) int64, the digit, or -1 for an image that is none.
        label_names: N names: the digit, `letter A`, `patch of china`.
    """

    images: np.ndarray
    ids: tuple[str, ...]
    labels: np.ndarray
    label_names: tuple[str, ...]


def demo_part(part: str, seed: int) -> DemoPart:
    """Return the part `labeled`, `pool`, `test` or `teacher_training` of the split drawn by `seed`.

    The four parts share no digit. The pool holds 700 digits, 700 letters and 2,100 photo patches: its class
    prior is 0.2.

    Raises:
        KeyError: there is no such part.
    """
    return _demo(seed)[part]


@cache
def _demo(seed: int) -> dict[str, DemoPart]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    rank_in_class = np.empty(len(order), dtype=np.int64)
    for label in np.unique(labels):
        rank_in_class[labels[order] == label] = np.arange((labels == label).sum())
    is_labeled = rank_in_class < LABELED_PER_CLASS
    rest = order[~is_labeled]
    splits = {
        "labeled": order[is_labeled],
        "pool": rest[:POOL_DIGITS],
        "test": rest[POOL_DIGITS : POOL_DIGITS + TEST_DIGITS],
        "teacher_training": rest[POOL_DIGITS + TEST_DIGITS :],
    }
    parts = {
        name: DemoPart(
            _to_gray(images[rows]),
            tuple(f"digits/{row:04d}" for row in rows),
            labels[rows],
            tuple(str(label) for label in labels[rows]),
        )
        for name, rows in splits.items()
    }
    letters = _distinct("letters", _letters(rng, images), POOL_LETTERS, known=images)
    patches = _distinct("patches", _patches(rng), POOL_PATCHES, known=images)
    parts["pool"] = _shuffled([parts["pool"], letters, patches], rng)
    return parts


def _to_gray(ink: np.ndarray) -> np.ndarray:
    """Spread 0.._LEVELS over 0..255."""
    return np.round(ink.astype(np.float64) * (255 / _LEVELS)).astype(np.uint8)


def _distinct(
    name: str, drawn: Iterator[tuple[np.ndarray, str]], n: int, known: np.ndarray
) -> DemoPart:
    """Return the first `n` images of a stream that equal neither each other nor a known one."""
    seen = {image.tobytes() for image in known}
    images: list[np.ndarray] = []
    label_names: list[str] = []
    while len(images) < n:
        image, label_name = next(drawn)
        if image.tobytes() not in seen:
            seen.add(image.tobytes())
            images.append(image)
            label_names.append(label_name)
    ids = tuple(f"{name}/{number:04d}" for number in range(n))
    return DemoPart(
        _to_gray(np.stack(images)), ids, np.full(n, -1, dtype=np.int64), tuple(label_names)
    )


def _shuffled(parts: list[DemoPart], rng: np.random.Generator) -> DemoPart:
    order = rng.permutation(sum(len(part.ids) for part in parts))
    ids = [image_id for part in parts for image_id in part.ids]
    label_names = [label_name for part in parts for label_name in part.label_names]
    return DemoPart(
        np.concatenate([part.images for part in parts])[order],
        tuple(ids[row] for row in order),
        np.concatenate([part.labels for part in parts])[order],
        tuple(label_names[row] for row in order),
    )


def _letters(rng: np.random.Generator, digits: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Yield letters as (8, 8) uint8 ink counts, each with as much ink as some digit."""
    open_font = _fonts()
    ink_shares = digits.mean(axis=(1, 2)) / _LEVELS
    while True:
        letter = LETTERS[rng.integers(len(LETTERS))]
        soft = _drawn(letter, open_font(int(rng.integers(len(_FONTS)))), rng)
        # The pen's width is whatever gives the ink of a digit: the threshold is a quantile of the blurred letter.
        threshold = max(np.quantile(soft, 1 - rng.choice(ink_shares)), 1)
        blocks = (soft >= threshold).reshape(SIZE_PX, _BLOCK, SIZE_PX, _BLOCK)
        yield blocks.sum(axis=(1, 3)).astype(np.uint8), f"letter {letter}"


def _fonts() -> Callable[[int], ImageFont.FreeTypeFont]:
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

    @cache
    def open_font(number: int) -> ImageFont.FreeTypeFont:
        # the basic layout: complex shaping is an optional part of Pillow and must not change the demo
        return ImageFont.truetype(
            folder / f"{_FONTS[number]}.ttf", _FONT_PX, layout_engine=ImageFont.Layout.BASIC
        )

    return open_font


def _drawn(letter: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> np.ndarray:
    """Return one letter, rotated, sheared, scaled, shifted and blurred, as (32, 32) uint8 gray levels."""
    from PIL import Image, ImageDraw, ImageFilter

    canvas = Image.new("L", (_CANVAS_PX, _CANVAS_PX))
    ImageDraw.Draw(canvas).text(
        (_CANVAS_PX / 2, _CANVAS_PX / 2), letter, fill=255, font=font, anchor="mm"
    )
    shear = rng.uniform(-_MAX_SHEAR, _MAX_SHEAR)
    canvas = canvas.transform(
        canvas.size,
        Image.Transform.AFFINE,
        (1, shear, -shear * _CANVAS_PX / 2, 0, 1, 0),
        Image.Resampling.BILINEAR,
    ).rotate(rng.uniform(-_MAX_ROTATION, _MAX_ROTATION), Image.Resampling.BILINEAR)
    glyph = canvas.crop(canvas.getbbox())
    height = int(rng.integers(_HEIGHT[0], _HEIGHT[1] + 1))
    width = round(height * glyph.width / glyph.height * rng.uniform(*_STRETCH))
    glyph = glyph.resize((min(max(width, _BLOCK), _MAX_WIDTH), height), Image.Resampling.BOX)
    left, top = ((_BITMAP - side) / 2 + rng.uniform(-_MAX_SHIFT, _MAX_SHIFT) for side in glyph.size)
    bitmap = Image.new("L", (_BITMAP, _BITMAP))
    bitmap.paste(glyph, (round(left), round(top)))
    return np.asarray(bitmap.filter(ImageFilter.GaussianBlur(rng.uniform(*_PEN_BLUR))))


def _patches(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, str]]:
    """Yield square patches of the photos as (8, 8) uint8 in 0..16, stretched to the whole range like the digits."""
    photos = _photos()
    while True:
        number = int(rng.integers(len(photos)))
        photo, side = photos[number], int(rng.choice(_PATCH_SIDES))
        left, top = (
            int(rng.integers(photo.width - side + 1)),
            int(rng.integers(photo.height - side + 1)),
        )
        patch = _reduced(photo, (left, top, left + side, top + side))
        spread = np.ptp(patch)
        if spread >= _MIN_PATCH_RANGE:
            yield (
                np.round((patch - patch.min()) * (_LEVELS / spread)).astype(np.uint8),
                f"patch of {_PHOTOS[number]}",
            )


def _photos() -> list[Image.Image]:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(photo).convert("L") for photo in load_sample_images().images]


def _reduced(photo: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(
        photo.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX, box=box), dtype=np.float64
    )
