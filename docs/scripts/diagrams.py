"""Draws docs/assets/method.svg and docs/assets/rain_step.svg.

    python docs/scripts/diagrams.py

Each picture has a card of its own behind it, and colors for a dark page, so that it can be read on any page.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"
_STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1d2b33; text-anchor: middle; }
.small { font-size: 13px; fill: #4c5c66; } .bold { font-weight: 600; } .left { text-anchor: start; }
.card { fill: #ffffff; stroke: #d5dde2; } .box { fill: #f2f6f7; stroke: #8aa0ab; } .cell { fill: #0b7a75; }
.accent { fill: #dff2ef; stroke: #0b7a75; } .line { stroke: #5b6f7a; stroke-width: 1.6; fill: none; }
.head { fill: #5b6f7a; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf0; } .small { fill: #a9b8c0; } .card { fill: #1b2429; stroke: #37454d; }
  .box { fill: #263238; stroke: #6f858f; } .accent { fill: #123f3d; stroke: #4db6ac; } .cell { fill: #4db6ac; }
  .line { stroke: #9fb1ba; } .head { fill: #9fb1ba; }
}
"""
_ARROW = (
    '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path class="head" d="M0 0L8 4L0 8z"/></marker>'
)


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    card = f'<rect class="card" x="1" y="1" width="{width - 2}" height="{height - 2}" rx="12"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
    return "\n".join(
        [head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", _ARROW, card, *parts, "</svg>\n"]
    )


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, lines: list[str], kind: str = "box") -> str:
    """A box with its first line in bold and the others below it, smaller."""
    middle = y + height / 2 - 9 * (len(lines) - 1) + 5
    words = [text(x + width / 2, middle + 19 * i, line, "small" if i else "bold") for i, line in enumerate(lines)]
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>' + "".join(words)


def arrow(*points: tuple[float, float]) -> str:
    path = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="line" d="M{path}" marker-end="url(#arrow)"/>'


def grid(x: float, y: float, cell: float, weights: list[str]) -> str:
    """A map: rows of digits, 0 to 9, as cells with that opacity in tenths."""
    frame = (
        f'<rect class="box" x="{x:g}" y="{y:g}" width="{cell * len(weights[0]):g}" height="{cell * len(weights):g}"/>'
    )
    cells = [
        f'<path d="M{x + cell * j:g} {y + cell * i:g}h{cell:g}v{cell:g}h-{cell:g}z" opacity=".{weight}"/>'
        for i, row in enumerate(weights)
        for j, weight in enumerate(row)
        if weight != "0"
    ]
    return f'{frame}<g class="cell">{"".join(cells)}</g>'


def method() -> str:
    teacher_map = ["620120", "263011", "036204", "102620", "021263", "110436"]
    student_map = ["510210", "353020", "126302", "112510", "111352", "101326"]
    return svg(
        860,
        330,
        "Interaction distillation: the student's token-interaction map is aligned to the teacher's",
        [
            box(24, 112, 130, 106, ["one pair", "prompt", "chosen answer", "rejected answer"]),
            arrow((154, 145), (190, 145), (190, 78), (212, 78)),
            arrow((154, 185), (190, 185), (190, 252), (212, 252)),
            box(214, 40, 190, 76, ["teacher", "bidirectional, frozen;", "reads both answers"]),
            box(214, 214, 190, 76, ["reward model", "causal, trained;", "reads each answer alone"]),
            arrow((404, 78), (462, 78)),
            text(433, 66, "attention", "small"),
            arrow((404, 252), (462, 252)),
            text(433, 240, "q, k", "small"),
            grid(466, 28, 16, teacher_map),
            grid(466, 204, 16, student_map),
            text(514, 144, "teacher's map", "small"),
            text(514, 318, "simulated map", "small"),
            arrow((562, 76), (650, 76), (650, 110)),
            arrow((562, 252), (650, 252), (650, 174)),
            box(590, 112, 120, 60, ["KL", "per unit (word)"], "accent"),
            box(742, 112, 96, 60, ["+ reward", "loss of TRL"], "accent"),
            arrow((710, 142), (740, 142)),
            text(790, 196, "one loss", "small"),
        ],
    )


def rain_step() -> str:
    return svg(
        860,
        300,
        "One step of RAIN: select, decode, score, back up, then rewind or commit",
        [
            box(24, 60, 140, 86, ["1 select", "value + bonus,", "from root to leaf"]),
            box(194, 60, 140, 86, ["2 decode", "rollout, and", "candidate sets"]),
            box(364, 60, 140, 86, ["3 score", "self, reward model", "or function"]),
            box(534, 60, 140, 86, ["4 back up", "values up the path,", "credit to siblings"]),
            box(704, 60, 132, 86, ["5 settled?", "visits and value,", "or budget spent"], "accent"),
            *(arrow((x, 103), (x + 28, 103)) for x in (164, 334, 504, 674)),
            arrow((770, 60), (770, 28), (94, 28), (94, 58)),
            text(430, 20, "no: rewind to the root", "small"),
            arrow((770, 146), (770, 202)),
            text(792, 180, "yes", "small"),
            box(664, 204, 172, 66, ["commit", "the most visited child"], "accent"),
            box(194, 204, 310, 66, ["forward passes", "shared by all prompts, on one tree cache"]),
            arrow((264, 146), (264, 202)),
            arrow((434, 146), (434, 202)),
            arrow((664, 237), (594, 237), (594, 286), (12, 286), (12, 110), (22, 110)),
            text(590, 228, "new root", "small"),
        ],
    )


PICTURES = {"method.svg": method, "rain_step.svg": rain_step}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (ASSETS / name).write_text(draw(), encoding="utf-8")
