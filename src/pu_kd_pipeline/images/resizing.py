"""From images of any shape to squares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

# Filters of Pillow, in lower case; those that `params.teacher.InputSpec` accepts
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


def resized_size(
    width: int, height: int, size_px: int, shorter_side_px: int | None
) -> tuple[int, int]:
    """Return width and height of an image after the resize, and before the center crop.

    The longer side is rounded down, as torchvision does.
    """
    if shorter_side_px is None:
        return size_px, size_px
    if width <= height:
        return shorter_side_px, int(shorter_side_px * height / width)
    return int(shorter_side_px * width / height), shorter_side_px


def to_square(
    image: Image.Image, size_px: int, shorter_side_px: int | None, interpolation: str
) -> Image.Image:
    """Return an image of size_px x size_px.

    The pixels equal those of torchvision's `Resize` on an image of Pillow: to (size_px, size_px)
    without a crop, else to `shorter_side_px`, followed by `CenterCrop(size_px)`.

    Args:
        image: an image whose mode can be interpolated, such as `L` or `RGB`.
        size_px: height and width of the result.
        shorter_side_px: of the resized image, at least `size_px`; None: straight to the square.
        interpolation: one of `INTERPOLATIONS`.
    """
    from PIL import Image

    size = resized_size(image.width, image.height, size_px, shorter_side_px)
    if image.size != size:
        image = image.resize(size, Image.Resampling[interpolation.upper()])
    if size == (size_px, size_px):
        return image
    # Python rounds halves to even, and so does torchvision.
    left = round((image.width - size_px) / 2)
    top = round((image.height - size_px) / 2)
    return image.crop((left, top, left + size_px, top + size_px))
