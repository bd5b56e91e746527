"""A figure in which text is text: Matplotlib would read what is between two `$` as mathematics."""

from __future__ import annotations

from typing import Any

from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from pu_kd_pipeline.masking import visible


class TextFigure(Figure):
    """Draws the names of classes, sources and variants as they are, whatever is in them."""

    def draw(self, renderer: Any) -> None:
        """Draw the figure; control characters are drawn as their escapes."""
        powers: set[Text] = set()
        for axis in self.findobj(Axis):
            # Their labels are powers of ten, which Matplotlib itself writes as mathematics.
            if isinstance(axis.get_major_formatter(), LogFormatter):
                powers.update(axis.get_ticklabels(which="both"))
        for text in self.findobj(Text):
            if text not in powers:
                text.set_parse_math(False)
                text.set_text(visible(text.get_text()))
        super().draw(renderer)
