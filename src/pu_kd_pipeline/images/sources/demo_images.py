"""The embedded demo: handwritten digits, and a pool that mixes some with letters and photo patches.

Everything comes from installed packages: the 1,797 digits of 8x8 pixels and two photos from
scikit-learn, the fonts from matplotlib. The digits were made from 32x32 bitmaps by counting the ink
in blocks of 4x4 (values 0..16). The letters are made in the same way, with as much ink as a digit
drawn at random, and the patches are stretched and quantized to the same 17 levels: the populations
differ in content, not in rendering.
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

_BLOCK = 4  # side of the square of bitmap pixels that makes one pixel of the image
_LEVELS = _BLOCK * _BLOCK  # most ink that one pixel can hold
_BITMAP = SIZE_PX * _BLOCK
# Without letters that look like digits in some hand or font (O 0, I l 1, Z 2, S 5, b G 6, B 8).
LETTERS = "ACEFHKLMNPRTUVWXYacdefhkmnprtuvwxy"
# Fonts are drawn by their position in this tuple, so their order is part of the demo.
_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmss10", "cmtt10", "cmti10", "cmb10"),
)
_FONT_PX = 44
_CANVAS_PX = 88
_MAX_ROTATION_DEGREES = 12.0  # to either side
_MAX_SHEAR = 0.25
# Factor on the aspect ratio of a letter: handwriting is narrower than fonts.
_STRETCH = (0.65, 1.15)
_HEIGHT = (26, 32)  # of the bitmap's 32 rows; digits fill nearly all
_MAX_WIDTH = 28
_MAX_SHIFT = 1.5  # bitmap pixels
_PEN_BLUR = (1.0, 1.8)  # bitmap pixels; a pen rounds corners and closes gaps
_PATCH_SIDES = (12, 16, 24, 32, 48, 64, 96, 128)  # pixels of the photos, which have 640 x 427
_MIN_PATCH_RANGE = 24  # of 255 gray levels; less is only noise once it is stretched
_PHOTOS = ("china", "flower")


@dataclass(frozen=True)
class DemoPart:
    """One part of the demo, in a shuffled order.

    Attributes:
        images: (N, 8, 8) uint8, the 17 levels of ink spread over 0..255.
        ids: N names such as `digits/0012`, `letters/0003`, `patches/0007`; the name of a digit is
            the same in every split.
        labels: (N,) int64, the digit, or -1 for an image of something else.
        label_names: N names: the digit, `letter A`, `patch of china`.
    """

    images: np.ndarray
    ids: tuple[str, ...]
    labels: np.ndarray
    label_names: tuple[str, ...]


def demo_part(part: str, seed: int) -> DemoPart:
    """Return the part `labeled`, `pool`, `test` or `teacher_training` of the split drawn by `seed`.

    The four parts share no digit. The pool holds 700 digits, 700 letters and 2,100 photo patches:
    its class prior is 0.2. conf/base keeps 250 of these digits (`label_ranks`).

    Raises:
        KeyError: no such part exists.
    """
    return _demo(seed)[part]


@cache
def _demo(seed: int) -> dict[str, DemoPart]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))

    # The first digits of each class in the shuffled order are the labeled ones.
    shuffled_labels = labels[order]
    rank_in_class = np.empty(len(order), dtype=np.int64)
    for label in np.unique(labels):
        is_of_class = shuffled_labels == label
        rank_in_class[is_of_class] = np.arange(is_of_class.sum())
    is_labeled = rank_in_class < LABELED_PER_CLASS

    rest = order[~is_labeled]
    test_end = POOL_DIGITS + TEST_DIGITS
    splits = {
        "labeled": order[is_labeled],
        "pool": rest[:POOL_DIGITS],
        "test": rest[POOL_DIGITS:test_end],
        "teacher_training": rest[test_end:],
    }
    parts = {}
    for name, rows in splits.items():
        parts[name] = _digits(images, labels, rows)

    # An image that equals a digit would be a negative with the pixels of a positive.
    drawn_letters = _letters(rng, images)
    letters = _distinct("letters", drawn_letters, POOL_LETTERS, known=images)
    drawn_patches = _patches(rng)
    patches = _distinct("patches", drawn_patches, POOL_PATCHES, known=images)
    parts["pool"] = _shuffled([parts["pool"], letters, patches], rng)
    return parts


def _digits(images: np.ndarray, labels: np.ndarray, rows: np.ndarray) -> DemoPart:
    """Return the digits in these rows of scikit-learn's data set."""
    ids = []
    label_names = []
    for row in rows:
        ids.append(f"digits/{row:04d}")
        label_names.append(str(labels[row]))

    return DemoPart(
        images=_to_gray(images[rows]),
        ids=tuple(ids),
        labels=labels[rows],
        label_names=tuple(label_names),
    )


def _to_gray(ink: np.ndarray) -> np.ndarray:
    """Spread 0.._LEVELS over 0..255."""
    gray_per_level = 255 / _LEVELS
    gray = ink.astype(np.float64) * gray_per_level
    rounded = np.round(gray)
    return rounded.astype(np.uint8)


def _distinct(
    name: str, drawn: Iterator[tuple[np.ndarray, str]], n: int, known: np.ndarray
) -> DemoPart:
    """Return the first `n` images of a stream that differ from each other and from known ones.

    Args:
        name: prefix of their ids.
        drawn: yields (8, 8) uint8 ink counts, each with a label name.
        n: how many images to return.
        known: (M, 8, 8) uint8 ink counts.
    """
    seen = {image.tobytes() for image in known}
    images: list[np.ndarray] = []
    ids: list[str] = []
    label_names: list[str] = []
    while len(images) < n:
        image, label_name = next(drawn)
        content = image.tobytes()
        if content in seen:
            continue
        seen.add(content)
        number = len(images)
        ids.append(f"{name}/{number:04d}")
        images.append(image)
        label_names.append(label_name)

    ink = np.stack(images)
    return DemoPart(
        images=_to_gray(ink),
        ids=tuple(ids),
        labels=np.full(n, -1, dtype=np.int64),
        label_names=tuple(label_names),
    )


def _shuffled(parts: list[DemoPart], rng: np.random.Generator) -> DemoPart:
    images = np.concatenate([part.images for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    ids: list[str] = []
    label_names: list[str] = []
    for part in parts:
        ids.extend(part.ids)
        label_names.extend(part.label_names)

    order = rng.permutation(len(ids))
    shuffled_ids = []
    shuffled_names = []
    for row in order:
        shuffled_ids.append(ids[row])
        shuffled_names.append(label_names[row])

    return DemoPart(
        images=images[order],
        ids=tuple(shuffled_ids),
        labels=labels[order],
        label_names=tuple(shuffled_names),
    )


def _letters(rng: np.random.Generator, digits: np.ndarray) -> Iterator[tuple[np.ndarray, str]]:
    """Yield letters as (8, 8) uint8 ink counts, each with as much ink as some digit."""
    open_font = _fonts()
    mean_ink = digits.mean(axis=(1, 2))
    ink_shares = mean_ink / _LEVELS
    while True:
        # The order of all draws, here and below, fixes the demo of a seed.
        letter_number = rng.integers(len(LETTERS))
        letter = LETTERS[letter_number]
        font_number = int(rng.integers(len(_FONTS)))
        font = open_font(font_number)
        blurred = _drawn(letter, font, rng)

        # The pen is as wide as it takes to use the ink of a digit: the threshold is the quantile of
        # the blurred letter that leaves this share of its pixels.
        ink_share = rng.choice(ink_shares)
        threshold = np.quantile(blurred, 1 - ink_share)
        is_ink = blurred >= max(threshold, 1)
        blocks = is_ink.reshape(SIZE_PX, _BLOCK, SIZE_PX, _BLOCK)
        ink = blocks.sum(axis=(1, 3))
        yield ink.astype(np.uint8), f"letter {letter}"


def _fonts() -> Callable[[int], ImageFont.FreeTypeFont]:
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

    @cache
    def open_font(number: int) -> ImageFont.FreeTypeFont:
        file = folder / f"{_FONTS[number]}.ttf"
        # Complex shaping is an optional part of Pillow, which must not change the demo.
        return ImageFont.truetype(file, _FONT_PX, layout_engine=ImageFont.Layout.BASIC)

    return open_font


def _drawn(letter: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> np.ndarray:
    """Return one letter as (32, 32) uint8 gray levels.

    It is sheared, rotated, scaled, shifted and blurred at random.
    """
    from PIL import Image, ImageFilter

    glyph = _tilted(letter, font, rng)

    smallest, largest = _HEIGHT
    height = int(rng.integers(smallest, largest + 1))
    stretch = rng.uniform(*_STRETCH)
    width = round(height * glyph.width / glyph.height * stretch)
    width = max(width, _BLOCK)
    width = min(width, _MAX_WIDTH)
    glyph = glyph.resize((width, height), Image.Resampling.BOX)

    # In the middle of the bitmap, but for the shift
    shift_x = rng.uniform(-_MAX_SHIFT, _MAX_SHIFT)
    shift_y = rng.uniform(-_MAX_SHIFT, _MAX_SHIFT)
    margin_x = (_BITMAP - width) / 2
    margin_y = (_BITMAP - height) / 2
    left = round(margin_x + shift_x)
    top = round(margin_y + shift_y)
    bitmap = Image.new("L", (_BITMAP, _BITMAP))
    bitmap.paste(glyph, (left, top))

    radius = rng.uniform(*_PEN_BLUR)
    pen = ImageFilter.GaussianBlur(radius)
    blurred = bitmap.filter(pen)
    return np.asarray(blurred)


def _tilted(letter: str, font: ImageFont.FreeTypeFont, rng: np.random.Generator) -> Image.Image:
    """Return a letter sheared and rotated at random, cropped to its ink."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (_CANVAS_PX, _CANVAS_PX))
    center = (_CANVAS_PX / 2, _CANVAS_PX / 2)
    draw = ImageDraw.Draw(canvas)
    draw.text(center, letter, fill=255, font=font, anchor="mm")

    shear = rng.uniform(-_MAX_SHEAR, _MAX_SHEAR)
    # x' = x + shear * (y - center), which leaves the middle of the letter in place
    affine = (1, shear, -shear * _CANVAS_PX / 2, 0, 1, 0)
    bilinear = Image.Resampling.BILINEAR
    sheared = canvas.transform(canvas.size, Image.Transform.AFFINE, affine, bilinear)

    angle = rng.uniform(-_MAX_ROTATION_DEGREES, _MAX_ROTATION_DEGREES)
    tilted = sheared.rotate(angle, bilinear)
    ink_box = tilted.getbbox()
    return tilted.crop(ink_box)


def _patches(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, str]]:
    """Yield square patches of the photos as (8, 8) uint8 in 0..16, with the range of the digits."""
    photos = _photos()
    while True:
        number = int(rng.integers(len(photos)))
        photo = photos[number]

        side = int(rng.choice(_PATCH_SIDES))
        n_lefts = photo.width - side + 1
        n_tops = photo.height - side + 1
        left = int(rng.integers(n_lefts))
        top = int(rng.integers(n_tops))
        box = (left, top, left + side, top + side)
        patch = _reduced(photo, box)

        # A patch of the sky, say, is left out: its noise would become the picture.
        spread = np.ptp(patch)
        if spread < _MIN_PATCH_RANGE:
            continue
        scale = _LEVELS / spread
        stretched = (patch - patch.min()) * scale
        ink = np.round(stretched).astype(np.uint8)
        yield ink, f"patch of {_PHOTOS[number]}"


def _photos() -> list[Image.Image]:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    return [Image.fromarray(photo).convert("L") for photo in photos]


def _reduced(photo: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray:
    from PIL import Image

    small = photo.resize((SIZE_PX, SIZE_PX), Image.Resampling.BOX, box=box)
    return np.asarray(small, dtype=np.float64)
