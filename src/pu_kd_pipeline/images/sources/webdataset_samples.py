"""The samples in a WebDataset shard: files whose names are equal up to the first dot.

A sample is `a/0001.jpg` with `a/0001.cls` and `a/0001.json`: its key is `a/0001`, and its files are
distinguished by their extension, which is all that follows the first dot of the file name. They
need not be neighbors in the shard.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.decoding import Reason
from pu_kd_pipeline.images.file_kinds import EXTENSIONS
from pu_kd_pipeline.images.sources.files import MAX_FILE_BYTES, is_printable
from pu_kd_pipeline.images.sources.limits import MAX_TEXT_CHARACTERS
from pu_kd_pipeline.images.sources.tar_members import (
    DamagedArchiveError,
    Member,
    followed,
    members,
    open_archive,
)
from pu_kd_pipeline.images.sources.webdataset_fields import MAX_FIELD_BYTES
from pu_kd_pipeline.masking import visible_name, without_credentials

_WITHOUT_IMAGE = "sample without an image"


@dataclass
class Sample:
    """The files of one key.

    Attributes:
        key: name of the files up to the first dot of their file name.
        members: extension -> files in the shard; one of a name, where nothing is wrong.
    """

    key: str
    members: dict[str, list[Member]] = field(default_factory=dict)


@dataclass
class Shard:
    """What a shard holds.

    Attributes:
        path: of the shard, for messages.
        samples: by key, in the order of their first files.
        by_name: all files and links.
        contents: position in the shard -> content, of files that labels are read from.
        passed_over: reason -> number of files that belong to no sample.
        can_seek: whether an image can be read without all that is in front of it.
    """

    path: str
    samples: dict[str, Sample] = field(default_factory=dict)
    by_name: dict[str, Member] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    passed_over: Counter[str] = field(default_factory=Counter)
    can_seek: bool = True

    def where(self, sample: Sample) -> str:
        """Return shard and sample for messages."""
        return f"{self.path}, sample {visible_name(sample.key)!r}"

    def label_content(self, sample: Sample, extension: str) -> bytes | None:
        """Return the content of a file that labels are read from; None where there is none.

        Raises:
            InputError: it is too large, there are several, or it is a link to another kind of file.
        """
        candidates = sample.members.get(extension, [])
        if not candidates:
            return None
        where = self.where(sample)
        contents = set()
        for candidate in candidates:
            member = followed(candidate, self.by_name)
            content = None
            if member is not None:
                content = self.contents.get(member.offset)
            if content is None:
                raise InputError(
                    f"{where}: its {extension} is larger than {MAX_FIELD_BYTES:,} bytes or a link "
                    "to another kind of file: fix the shard, or name another field as "
                    "`label_column` of the source"
                )
            contents.add(content)
        if len(contents) > 1:
            raise InputError(f"{where} has {len(candidates)} different {extension}: fix the shard")
        return contents.pop()


@dataclass(frozen=True)
class SampleImage:
    """The image of a sample: its position in the shard, and why it cannot be used or ""."""

    sample: Sample
    offset: int
    size: int
    fault: str


def read_shard(system: Any, path: str, label_extensions: Collection[str]) -> Shard:
    """Return the samples of a shard; only files that labels are read from are read.

    Args:
        system: file system of fsspec.
        path: of the shard.
        label_extensions: of those files.

    Raises:
        InputError: the shard is cut short, damaged, or no tar archive.
    """
    shard = Shard(without_credentials(path))
    try:
        with open_archive(system, path) as stream:
            shard.can_seek = stream.can_seek
            for member in members(stream):
                extension = _add(shard, member)
                is_file = member.target is None and not member.is_sparse
                if extension in label_extensions and is_file and member.size <= MAX_FIELD_BYTES:
                    shard.contents[member.offset] = stream.content_of(member)
    except DamagedArchiveError as exc:
        cause = without_credentials(str(exc), path)
        raise InputError(
            f"{shard.path} is not a whole tar archive ({cause}; samples up to there: "
            f"{len(shard.samples):,}): copy or download it again, or leave it out"
        ) from exc
    return shard


def _add(shard: Shard, member: Member) -> str | None:
    """Add a file to its sample; returns its extension, or None for one of no sample."""
    shard.by_name[member.name] = member
    folder, slash, file_name = member.name.rpartition("/")
    parts = member.name.split("/")
    if any(part.startswith(".") and part not in (".", "..") for part in parts):
        shard.passed_over["hidden file"] += 1
        return None
    stem, dot, extension = file_name.partition(".")
    if not dot or not extension:
        shard.passed_over["no extension"] += 1
        return None
    key = f"{folder}{slash}{stem}"
    if len(key) > MAX_TEXT_CHARACTERS:
        raise InputError(
            f"{shard.path}: the name of a file has {len(key):,} characters, and "
            f"{MAX_TEXT_CHARACTERS:,} are allowed: write the shard again with shorter names"
        )
    sample = shard.samples.setdefault(key, Sample(key))
    extension = extension.lower()
    sample.members.setdefault(extension, []).append(member)
    return extension


def images_of(shard: Shard, wanted: tuple[str, ...]) -> list[SampleImage]:
    """Return the images of a shard in the order in which they lie in it.

    Args:
        shard: the shard; samples without an image are counted in it.
        wanted: extensions of the image, of which the first one in a sample counts; empty: a sample
            has one image of any kind.

    Raises:
        InputError: a sample has several images, and none is wanted.
    """
    images = []
    for sample in shard.samples.values():
        extension = _image_extension(shard, sample, wanted)
        if extension is None:
            shard.passed_over[_WITHOUT_IMAGE] += 1
            continue
        candidates = sample.members[extension]
        images.append(_image(shard, sample, candidates))
    # Links lie where the file lies that they lead to, so that a shard is read once.
    images.sort(key=lambda image: image.offset)
    return images


def _image_extension(shard: Shard, sample: Sample, wanted: tuple[str, ...]) -> str | None:
    for extension in wanted:
        if extension in sample.members:
            return extension
    if wanted:
        return None
    found = [name for name in sample.members if f".{name}".endswith(EXTENSIONS)]
    if len(found) > 1:
        names = ", ".join(map(visible_name, found[:10]))
        raise InputError(
            f"{shard.where(sample)} has {len(found)} images ({names}): name the one that is meant "
            "as `image_column` of the source. Files whose names are equal up to the first dot are "
            "one sample"
        )
    return found[0] if found else None


def _image(shard: Shard, sample: Sample, candidates: list[Member]) -> SampleImage:
    member = followed(candidates[0], shard.by_name)
    if member is None:
        return SampleImage(sample, 0, 0, Reason.BROKEN_LINK)
    fault = ""
    if len(candidates) > 1:
        fault = Reason.REPEATED
    elif not is_printable(sample.key):
        fault = Reason.NAME
    elif member.is_sparse:
        fault = Reason.UNSUPPORTED
    elif member.size > MAX_FILE_BYTES:
        fault = Reason.TOO_LARGE
    return SampleImage(sample, member.offset, member.size, fault)
