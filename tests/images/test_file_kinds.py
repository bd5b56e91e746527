"""Which files are taken for images."""

from __future__ import annotations

from io import BytesIO

import pytest
from PIL import Image

from pu_kd_pipeline.images.file_kinds import (
    EXTENSIONS,
    N_FIRST_BYTES,
    has_image_name,
    has_no_extension,
    is_image_content,
    readable_formats,
)


@pytest.mark.parametrize("kind", sorted(readable_formats()))
def test_every_format_is_recognized_by_its_first_bytes(kind: str) -> None:
    buffer = BytesIO()
    Image.new("RGB", (9, 7), (200, 100, 50)).save(buffer, kind)
    content = buffer.getvalue()
    # A bitmap without its file header begins with nothing but a size.
    assert is_image_content(content[:N_FIRST_BYTES]) == (kind != "DIB")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"BMW is a manufacturer of cars and motorcycles",
        b"P1 is the plan that we agreed upon",
        b"P7\nWIDTH 3\n",
        b"II. The second part",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"GIF is a format",
        b"# GNU Makefile\nall:\n",
    ],
)
def test_other_files_are_no_images(content: bytes) -> None:
    assert not is_image_content(content)


@pytest.mark.parametrize(
    "content", [b"P5\n# by a camera\n8 8\n255\n", b"P6 8 8 255\n", b"P4\n8 1\n"]
)
def test_portable_files_may_begin_with_a_comment(content: bytes) -> None:
    assert is_image_content(content)


def test_names_are_read_in_any_case() -> None:
    for extension in EXTENSIONS:
        assert has_image_name(f"a.b{extension}")
        assert has_image_name(f"IMG_1{extension.upper()}")
    assert not has_image_name("a.png.txt")
    assert not has_image_name("png")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("scan", True),
        ("scan.000017", True),
        ("folder.d/scan", True),
        ("scan.txt", False),
        ("scan.v2", False),
        ("archive.tar.gz", False),
    ],
)
def test_numbers_are_no_extensions(name: str, expected: bool) -> None:
    assert has_no_extension(name) == expected
