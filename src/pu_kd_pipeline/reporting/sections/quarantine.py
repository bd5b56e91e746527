"""The images that could not be used: how many for which reason, and some of them by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pu_kd_pipeline.images.store import ImageStore

N_EXAMPLES = 5


@dataclass(frozen=True)
class Refused:
    """Images of one store that were refused for one reason."""

    store: str
    reason: str
    n: int
    examples: list[str]
    """Ids, at most `N_EXAMPLES`, with their sources."""


def quarantine_of(stores: Mapping[str, ImageStore]) -> list[Refused]:
    """Return the refused images of the stores, by store and reason.

    Args:
        stores: image stores by name.
    """
    found = []
    for name, store in stores.items():
        table = store.quarantine
        for reason, rows in table.groupby("status", sort=True):
            head = rows.head(N_EXAMPLES)
            examples = [
                f"{identifier} ({source})"
                for identifier, source in zip(head["id"], head["source"], strict=True)
            ]
            found.append(Refused(name, str(reason), len(rows), examples))
    return found
