"""Pictures as SVG files: the same data gives the same bytes, and a failed picture fails no stage."""

import io
import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from smollm.state.files import write_atomically
from smollm.tracking import announce
from smollm.tracking.console import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, plot: Callable[["Axes"], object]) -> None:
    """Write a figure whose axes `plot` fills; if that fails, a picture of the error message.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        svg = _svg(plot)
    except Exception as error:
        say(announce.picture_failed(path.name, error))
        text = escape(f"{type(error).__name__}: {error}")
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="800" height="40"><text y="25">{text}</text></svg>\n'
    write_atomically(path, svg)


def _svg(plot: Callable[["Axes"], object]) -> str:
    os.environ.pop("MPLBACKEND", None)  # a notebook's backend may keep matplotlib from being imported
    import matplotlib  # slow to import, and used once
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's style
        matplotlib.rcParams["svg.hashsalt"] = "smollm"
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
