"""The order of images that a ranking cannot tell apart."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pu_kd_pipeline.learning.selection import Selection

REPORTED_SHARE = 0.01
"""Share of the kept images from which on ties at the cut are worth a warning."""

logger = logging.getLogger(__name__)


def tie_breaks(ids: pd.Series, seed: int) -> NDArray[np.uint64]:
    """Return (n,) a number for each image that depends on its id and the seed alone.

    Images with equal scores are ordered by it. Where they lie in the pool does not matter, so the
    same images are kept if sources or files come in another order.
    """
    # The key of pandas' hash has 16 bytes.
    key = hashlib.blake2b(str(seed).encode(), digest_size=8).hexdigest()
    texts = ids.astype(str).to_numpy(dtype=object)
    # Not by categories, which would sort the ids: they are all different.
    hashes = pd.util.hash_array(texts, hash_key=key, categorize=False)
    return hashes.astype(np.uint64)


def report_ties(selection: Selection, rule: str) -> None:
    """Log a warning if many of the kept images were chosen by the seed among equal scores."""
    n_kept = len(selection.rows)
    n_tied = selection.n_tied_at_cut
    if n_tied <= REPORTED_SHARE * n_kept:
        return
    logger.warning(
        "subset_materialization: rule %r cuts among %s images with the same score (%s are kept in "
        "all): subset_materialization.seed decides which of them are kept. Set another budget, or "
        "compare seeds",
        rule,
        f"{n_tied:,}",
        f"{n_kept:,}",
    )
