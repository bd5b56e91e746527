"""The images that were answered with yes, as labeled images for a next run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pu_kd_pipeline.errors import InputError
from pu_kd_pipeline.images.store import ImageStore, find_rows
from pu_kd_pipeline.storage.digests import json_digest

_N_DIGITS = 8  # of the hash that tells apart ids with equal file names
_NO_FILE_NAME = re.compile(r"[^A-Za-z0-9_-]+")


def audited_images(audit: Mapping[str, Any], pool_images: ImageStore) -> dict[str, np.ndarray]:
    """Return the images answered with yes, (C, H, W) uint8, by "class/file name".

    Args:
        audit: result of `estimation.estimate_audit`.
        pool_images: the pool that was audited.

    Raises:
        InputError: a class has a name that cannot be a folder, or an image is not in the pool.
    """
    positives = audit["positives"]
    ids = np.array([each["id"] for each in positives], dtype=object)
    if not len(ids):
        return {}
    rows = find_rows(pool_images, ids, "pool_audit")
    files = {}
    for positive, pixels in zip(positives, pool_images.read(rows), strict=True):
        name = positive["class"]
        # A folder with such a name would be read as another class, or not at all.
        if not name.strip() or name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f]', name):
            raise InputError(
                f"pool_audit.write_labeled: the class {name!r} cannot be the name of a folder: set "
                "it to false, and list the images of pool_audit.json in a source of type `list`"
            )
        files[f"{name}/{_file_name(positive['id'])}"] = pixels
    return files


def _file_name(identifier: str) -> str:
    readable = _NO_FILE_NAME.sub("_", identifier)[-80:]
    return f"{readable}-{json_digest(identifier)[:_N_DIGITS]}.png"
