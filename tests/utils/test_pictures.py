"""Small pictures: fewer bytes, and each line of a plot keeps its color."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from hf_interdistill.utils.pictures import save_small_png


def test_a_small_png_keeps_the_colors_of_a_plot(tmp_path):
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for number, color in enumerate(colormaps["tab10"].colors):
        axes.plot([0, 1, 2], [number, 9 - number, number / 2], "o-", color=color, label=f"line {number}")
    axes.legend(fontsize=6)
    figure.savefig(tmp_path / "plain.png", dpi=110)
    sizes = [(tmp_path / "plain.png").stat().st_size]
    for colors in (48, 8):
        save_small_png(figure, tmp_path / f"{colors}.png", colors=colors)
        with Image.open(tmp_path / f"{colors}.png") as picture:
            assert picture.mode == "P" and picture.size == (660, 440) and len(picture.getcolors()) <= colors
            drawn = np.array([color for _, color in picture.convert("RGB").getcolors()])
        sizes.append((tmp_path / f"{colors}.png").stat().st_size)
        wanted = 255 * np.array(colormaps["tab10"].colors)
        furthest = np.abs(drawn[None] - wanted[:, None]).max(-1).min(-1).max()
        assert (furthest < 24) == (colors == 48), furthest
    assert sizes[0] > 2 * max(sizes[1:]), sizes
    save_small_png(figure, tmp_path / "larger.png", dpi=220)
    with Image.open(tmp_path / "larger.png") as picture:
        assert picture.size == (1320, 880)
