"""What the nodes of a run took: time, memory and pace, for each stage and on a page."""

from __future__ import annotations

import html
import math
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pu_kd_pipeline.progress import duration_text
from pu_kd_pipeline.tracking.memory import BYTES_PER_MB, PeakMemory

PAGE_WIDTH = 860
LABEL_WIDTH = 330
BAR_HEIGHT = 15
ROW_HEIGHT = 21
COLORS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#9c6b4e", "#38b2b8", "#97bbf5")
MIN_BAR_WIDTH = 1.5


@dataclass
class NodeTime:
    """One node that ran.

    Attributes:
        node: its name.
        stage: its namespace, or its name without one.
        start_s: when it started to load its inputs, on the monotonic clock.
        end_s: when it had saved its outputs.
        peak_memory_mb: of this process while the node ran, MiB; None where it is not known.
        gpu_memory_mb: the most that torch had allocated on one GPU; None without one.
        paces: unit, such as "images" -> (number, seconds).
    """

    node: str
    stage: str
    start_s: float
    end_s: float
    peak_memory_mb: float | None = None
    gpu_memory_mb: float | None = None
    paces: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end_s - self.start_s


class StageTimes:
    """Measures the nodes of a run that come one after the other, also if they load in threads."""

    def __init__(self) -> None:
        self.nodes: list[NodeTime] = []
        self._current: NodeTime | None = None
        self._memory = PeakMemory()
        # With `--async`, several threads load the inputs of a node.
        self._lock = threading.Lock()

    def start(self, node: str, namespace: str | None) -> None:
        """Note that a node runs; calls for the same node, one after the other, are one."""
        with self._lock:
            if self._current is not None and self._current.node == node:
                return
            now = time.monotonic()
            self._current = NodeTime(node, namespace or node, now, now)
            self.nodes.append(self._current)
            self._memory.reset()
            _reset_gpu_peaks()

    def touch(self) -> None:
        """Note that the current node has just done something, such as saving an output."""
        with self._lock:
            current = self._current
            if current is None:
                return
            current.end_s = time.monotonic()
            current.peak_memory_mb = self._memory.megabytes()
            current.gpu_memory_mb = _gpu_peak_mb()

    def finish(self) -> None:
        """Note that no node will run."""
        self._current = None
        self._memory.stop()

    def add_pace(self, unit: str, number: float, seconds: float) -> None:
        """Add how many units a loop of the current node did in how many seconds."""
        if self._current is not None:
            n_before, s_before = self._current.paces.get(unit, (0.0, 0.0))
            self._current.paces[unit] = (n_before + number, s_before + seconds)

    def metrics(self) -> dict[str, float]:
        """Return `stages/<stage>/seconds`, `peak_memory_mb` and the like, of the stages that ran.

        Seconds add up over the nodes of a stage, and of memory the largest counts.
        """
        found: dict[str, float] = {}
        for stage, nodes in _by_stage(self.nodes).items():
            prefix = f"stages/{stage}/"
            found[f"{prefix}seconds"] = math.fsum(node.seconds for node in nodes)
            for name in ("peak_memory_mb", "gpu_memory_mb"):
                values = [getattr(node, name) for node in nodes]
                known = [value for value in values if value is not None]
                if known:
                    found[f"{prefix}{name}"] = max(known)
            for unit, pace in _paces(nodes).items():
                found[f"{prefix}{unit}_per_second"] = pace
        return found

    def page(self, skipped: Iterable[str]) -> str:
        """Return a page with a bar for each node: one HTML file that needs nothing else.

        Args:
            skipped: names of nodes that were up to date.
        """
        return _page(self.nodes, list(skipped))


def _by_stage(nodes: Iterable[NodeTime]) -> dict[str, list[NodeTime]]:
    stages: dict[str, list[NodeTime]] = {}
    for node in nodes:
        stages.setdefault(node.stage, []).append(node)
    return stages


def _paces(nodes: Iterable[NodeTime]) -> dict[str, float]:
    totals: dict[str, tuple[float, float]] = {}
    for node in nodes:
        for unit, (number, seconds) in node.paces.items():
            n_before, s_before = totals.get(unit, (0.0, 0.0))
            totals[unit] = (n_before + number, s_before + seconds)
    return {unit: number / seconds for unit, (number, seconds) in totals.items() if seconds > 0}


# --- memory of a GPU ------------------------------------------------------------------------------


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")
    # Asking must not start CUDA, which takes memory.
    return torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()


def _reset_gpu_peaks() -> None:
    """Forget the peaks of all GPUs; a node measures its own after this."""
    if not _has_gpu():
        return
    cuda = sys.modules["torch"].cuda
    for device in range(cuda.device_count()):
        cuda.reset_peak_memory_stats(device)


def _gpu_peak_mb() -> float | None:
    if not _has_gpu():
        return None
    # A node may use another device than the current one.
    cuda = sys.modules["torch"].cuda
    peaks = [cuda.max_memory_allocated(device) for device in range(cuda.device_count())]
    return float(max(peaks, default=0) / BYTES_PER_MB)


# --- the page -------------------------------------------------------------------------------------

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Timeline</title><style>
body { font: 14px system-ui, sans-serif; margin: 24px; color: #1b1b1b; background: #fff; }
svg text { font: 12px system-ui, sans-serif; fill: #1b1b1b; }
svg .quiet { fill: #666; } table { border-collapse: collapse; margin-top: 16px; }
th, td { text-align: right; padding: 2px 14px 2px 0; } th:first-child, td:first-child
{ text-align: left; } th { color: #666; font-weight: normal; }
</style></head><body>
"""


def _page(nodes: list[NodeTime], skipped: list[str]) -> str:
    parts = [_HEAD]
    total_s = 0.0
    if nodes:
        total_s = max(node.end_s for node in nodes) - nodes[0].start_s
    ran = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
    parts.append(f"<p><b>{ran} in {duration_text(total_s)}</b>, {len(skipped)} up to date.</p>")
    parts.extend(_bars(nodes, total_s))
    parts.extend(_table(nodes))
    if skipped:
        names = ", ".join(html.escape(name) for name in skipped)
        parts.append(f"<p>Up to date: {names}.</p>")
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _bars(nodes: list[NodeTime], total_s: float) -> Iterator[str]:
    colors = _colors(nodes)
    height = ROW_HEIGHT * len(nodes) + ROW_HEIGHT
    yield (
        f'<svg role="img" aria-label="Timeline" width="{PAGE_WIDTH + 90}" height="{height}" '
        f'viewBox="0 0 {PAGE_WIDTH + 90} {height}">'
    )
    # A run may take no measurable time.
    scale = (PAGE_WIDTH - LABEL_WIDTH) / max(total_s, 1e-9)
    for row, node in enumerate(nodes):
        x = LABEL_WIDTH + scale * (node.start_s - nodes[0].start_s)
        width = max(scale * node.seconds, MIN_BAR_WIDTH)
        y = ROW_HEIGHT * row
        text_y = y + BAR_HEIGHT - 3
        yield f'<text x="0" y="{text_y}">{html.escape(node.node)}</text>'
        yield (
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" '
            f'fill="{colors[node.stage]}"/>'
        )
        yield (
            f'<text class="quiet" x="{x + width + 5:.1f}" y="{text_y}">'
            f"{duration_text(node.seconds)}</text>"
        )
    yield "</svg>"


def _table(nodes: list[NodeTime]) -> Iterator[str]:
    colors = _colors(nodes)
    yield "<table><tr><th>stage</th><th>time</th><th>peak memory</th><th>pace</th></tr>"
    for stage, members in _by_stage(nodes).items():
        seconds = math.fsum(node.seconds for node in members)
        peaks = [node.peak_memory_mb for node in members if node.peak_memory_mb is not None]
        peak = f"{max(peaks):,.0f} MiB" if peaks else "–"
        paces = [f"{pace:,.0f} {unit} per second" for unit, pace in _paces(members).items()]
        mark = f'<span style="color:{colors[stage]}">&#9632;</span>'
        cells = [f"{mark} {html.escape(stage)}", duration_text(seconds), peak, ", ".join(paces)]
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _colors(nodes: Iterable[NodeTime]) -> Mapping[str, str]:
    stages = list(_by_stage(nodes))
    return {stage: COLORS[index % len(COLORS)] for index, stage in enumerate(stages)}
