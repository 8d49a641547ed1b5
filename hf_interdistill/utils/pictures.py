"""Pictures small enough for a repository."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image  # comes with matplotlib


def save_small_png(figure: Figure, path: Path, dpi: int = 110, colors: int = 48) -> None:
    """Write a figure as a PNG with a palette, which takes a quarter of the bytes of full color or less.

    Args:
        colors: of the palette; 48 are enough to distinguish a dozen lines with smooth edges.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    with Image.open(buffer) as picture:
        few = picture.convert("RGB").quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(path, format="PNG", optimize=True)
