"""From the pixels of any image file to 8-bit gray or RGB, with black and white where they belong.

Pillow's own conversions clip wide integers at 255 and keep the polarity of the file for some kinds
of TIFF. Values without a known range are refused: it is unknown which of them is white.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

# Messages of an `UnsupportedPixelsError`
FLOATING_POINT = "floating-point pixels"
WIDE_INTEGERS = "integer pixels of 32 bits or more"
SIGNED_INTEGERS = "signed integer pixels"
EMPTY_HIGH_BYTES = "16-bit pixels without a value above 255"
OTHER_PIXELS = "unsupported pixel format"

# Tags of TIFF and their values
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262
_SAMPLE_FORMAT = 339
_WHITE_IS_ZERO = 0
_YCBCR = 6
_SIGNED = 2
_FLOATING_POINT = 3
_WHITE_OF_16_BITS = 2**16 - 1
# Formats of which Pillow reads 16 bits into 32-bit integers, scaled to 0..65535
_SCALED_TO_16_BITS = ("PNG", "PPM")
# Transparent images are mostly dark drawings and logos made for a white page. Dropping the alpha
# channel instead would reveal colors that were never meant to be seen.
_BACKGROUND = (255, 255, 255, 255)


class UnsupportedPixelsError(Exception):
    """Values whose black and white are not known; the message is one of the constants above."""


@dataclass(frozen=True)
class PixelFormat:
    """How a file stores its values, in addition to Pillow's mode.

    Attributes:
        n_bits: per value, 8 where the file does not state it.
        is_signed: whether values may be negative.
        is_inverted: whether white is 0 and Pillow leaves it so.
        highest_of_low_byte: what Pillow makes of 255 where it reduces 16 bits to 8.
    """

    n_bits: int = 8
    is_signed: bool = False
    is_inverted: bool = False
    highest_of_low_byte: int = 0


def pixel_format(image: Image.Image) -> PixelFormat:
    """Return what is known of an opened image; Pillow forgets a part of it when it loads pixels.

    Raises:
        UnsupportedPixelsError: Pillow would read other colors.
    """
    # Of an image in memory, nothing but the mode is known.
    kind = getattr(image, "format", None)
    codecs = [codec for codec, *_ in getattr(image, "tile", ())]
    if kind == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        # Pillow before 13 takes uncompressed luma and chroma for colors and a fourth byte.
        if tags.get(_PHOTOMETRIC) == _YCBCR and image.mode == "RGB" and "raw" in codecs:
            raise UnsupportedPixelsError(OTHER_PIXELS)
        return _tiff_format(tags)
    is_wide = image.mode == "I" and kind in _SCALED_TO_16_BITS
    if is_wide or image.mode.startswith("I;16"):
        return PixelFormat(n_bits=16)
    layouts = [layout for _, _, _, layout in getattr(image, "tile", ())]
    if kind == "PPM" and ("RGB", _WHITE_OF_16_BITS) in layouts:
        # Pillow divides by 257 and rounds.
        return PixelFormat(n_bits=16, highest_of_low_byte=1)
    # PNG keeps the high bytes: "RGB;16B"
    if any(isinstance(layout, str) and ";16" in layout for layout in layouts):
        return PixelFormat(n_bits=16)
    return PixelFormat()


def _tiff_format(tags: Any) -> PixelFormat:
    n_bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    is_signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    # Up to 8 bits, Pillow inverts by itself.
    is_inverted = n_bits > 8 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    return PixelFormat(n_bits, is_signed, is_inverted)


def fault_of_tiff(content: bytes) -> str | None:
    """Return what is wrong with the pixels of a TIFF that Pillow cannot identify.

    Pillow reads no 16-bit floats, for example. None: the file is damaged, or no TIFF at all.
    """
    from PIL import TiffImagePlugin

    if content[:4] not in (b"II*\0", b"MM\0*"):
        return None
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(content[:8])
        file = BytesIO(content)
        file.seek(tags.next)
        tags.load(file)
        n_bits = max(tags[_BITS_PER_SAMPLE])
        kinds = tags.get(_SAMPLE_FORMAT, ())
    except Exception:  # damaged in whatever way
        return None
    if _FLOATING_POINT in kinds:
        return FLOATING_POINT
    if n_bits >= 32:
        return WIDE_INTEGERS
    if _SIGNED in kinds:
        return SIGNED_INTEGERS
    return OTHER_PIXELS


def to_8_bits(image: Image.Image, about: PixelFormat, mode: str) -> Image.Image:
    """Return a loaded image in mode `L` or `RGB`, with transparency on white.

    16-bit values keep their high byte, 12-bit values their highest 8 bits.

    Raises:
        UnsupportedPixelsError: the range of the values is not known, or 16-bit values leave the
            high byte empty, so that they may be 8-bit values in a file of 16 bits.
    """
    _check_range(image, about)
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _high_bytes(image, about)
    elif about.n_bits == 16 and _has_values_up_to(about.highest_of_low_byte, image):
        raise UnsupportedPixelsError(EMPTY_HIGH_BYTES)
    image = _on_white(_common_mode(image))
    if image.mode == mode:
        return image
    return image.convert(mode)


def _check_range(image: Image.Image, about: PixelFormat) -> None:
    """Raise an UnsupportedPixelsError if it is unknown which value is white."""
    if image.mode == "F":
        raise UnsupportedPixelsError(FLOATING_POINT)
    if image.mode == "I" and about.n_bits != 16:
        raise UnsupportedPixelsError(WIDE_INTEGERS)
    if about.is_signed:
        raise UnsupportedPixelsError(SIGNED_INTEGERS)


def _high_bytes(image: Image.Image, about: PixelFormat) -> Image.Image:
    """Return an image of 9 to 16 bits in mode `L`."""
    from PIL import Image

    # In memory, mode "I;16" means 16 bits.
    n_bits = about.n_bits
    if n_bits <= 8:
        n_bits = 16
    values = np.asarray(image)
    white = 2**n_bits - 1
    has_high_bytes = values.max() >= 2**8
    if about.is_inverted:
        values = white - values.clip(0, white)
        has_high_bytes = has_high_bytes and values.max() >= 2**8
    if n_bits == 16 and not has_high_bytes:
        raise UnsupportedPixelsError(EMPTY_HIGH_BYTES)
    high_bytes = values.clip(0, white) >> (n_bits - 8)
    return Image.fromarray(high_bytes.astype(np.uint8))


def _has_values_up_to(limit: int, image: Image.Image) -> bool:
    """Return whether no value of an image is above a limit; constant alpha does not count."""
    for name in image.getbands():
        lowest, highest = cast("tuple[int, int]", image.getchannel(name).getextrema())
        is_constant_alpha = name == "A" and lowest == highest
        if highest > limit and not is_constant_alpha:
            return False
    return True


def _common_mode(image: Image.Image) -> Image.Image:
    """Return the image in a mode that Pillow converts to both `L` and `RGBA`."""
    # Gray with premultiplied alpha, which Pillow converts to "LA" only
    if image.mode == "La":
        return image.convert("LA")
    if image.mode == "LAB":
        return image.convert("RGB")
    return image


def _on_white(image: Image.Image) -> Image.Image:
    """Return the image without transparency."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    background = Image.new("RGBA", image.size, _BACKGROUND)
    return Image.alpha_composite(background, image).convert("RGB")
