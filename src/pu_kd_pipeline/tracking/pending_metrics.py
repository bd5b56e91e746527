"""Metrics that wait to be sent to MLflow, each source of them under keys of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pu_kd_pipeline.tracking.keys import is_finite_number, mlflow_key

logger = logging.getLogger(__name__)

MAX_PENDING = 1_000_000

Metric = tuple[str, float, int, int]
"""(key, value, time in milliseconds, step)"""


class PendingMetrics:
    """A queue that any thread may add to; what is added to a full one is dropped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics: deque[Metric] = deque()
        # Key -> what logs it.
        self._sources: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._metrics)

    def add(self, key: str, value: Any, step: int, *, source: str) -> None:
        """Add a metric; what is not a finite number is left out.

        Args:
            key: as MLflow accepts it.
            value: the metric.
            step: of the metric.
            source: what logs it, such as the name of a loop. A second source of the same key gets
                another one, with a warning: MLflow would show the values of both as one curve.
        """
        if not is_finite_number(value):
            return
        with self._lock:
            own_key = self._own_key(key, source)
            now_ms = int(time.time() * 1000)
            if len(self._metrics) < MAX_PENDING:
                self._metrics.append((own_key, float(value), now_ms, step))

    def taken_in_batches(self, size: int) -> Iterator[list[Metric]]:
        """Yield what is in the queue now, oldest first, at most `size` metrics at once.

        A batch is removed when the next one is asked for: if its request fails, it is sent again.
        """
        # Not what is added meanwhile, or a slow server would be asked without a pause.
        n_left = len(self)
        while n_left:
            with self._lock:
                batch = list(islice(self._metrics, min(n_left, size)))
            yield batch
            with self._lock:
                for _ in batch:
                    self._metrics.popleft()
            n_left -= len(batch)

    def _own_key(self, key: str, source: str) -> str:
        owner = self._sources.setdefault(key, source)
        if owner == source:
            return key
        own_key = mlflow_key(f"{source}/{key}")
        if own_key not in self._sources:
            logger.warning(
                "the metric %s of %s is logged to MLflow as %s, because %s has logged another "
                "metric of that name: rename one of them",
                key,
                source,
                own_key,
                owner,
            )
            self._sources[own_key] = source
        return own_key
