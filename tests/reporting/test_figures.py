"""The records of the report's figures."""

from __future__ import annotations

import pytest

from pu_kd_pipeline.reporting.figures import REPORT_FIGURES, ReportFigure
from pu_kd_pipeline.reporting.training_figures import plot_pu_history


@pytest.mark.parametrize("caption", ["", " "])
def test_a_figure_without_a_caption_is_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="figure 'new_plot' has no caption"):
        ReportFigure(
            name="new_plot",
            caption=caption,
            draw=lambda run: plot_pu_history(run.pu_history),
        )


def test_figures_have_different_names() -> None:
    # A second figure of one name would overwrite the first in the outputs of the node.
    names = [figure.name for figure in REPORT_FIGURES]
    assert len(set(names)) == len(names)
