"""How an iteration of RAIN grows with the prompts in lock-step and with the candidates of an expansion.

`python recipes/benchmarks/rain_growth.py [--prompts 1 2 4 ...] [--candidates 2 5 10 ...] [--iterations 12]`

Model, prompt, judge prompt and constants are those of `rain_decoding.py`. Costs are an iteration's, for each prompt.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
from figures import columns, keep, row, save_plot
from hardware import describe_hardware
from rain_costs import Clock, Costs
from rain_decoding import Bench, advance, argument_parser, done, prepare
from rain_setup import questions
from rich.console import Console

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURES = {"seconds": "seconds", "passes": "forward passes", "tokens": "tokens read"}
UNITS = {"seconds": "s", "passes": "passes", "tokens": "tokens"}


def cost(bench: Bench, iterations: int, prompts: int, candidates: int) -> Costs:
    """Of so many iterations of each prompt."""
    engine = bench.engine([bench.prompt(each) for each in questions(prompts)], candidates=candidates)
    clock = Clock(bench.meter, bench.encoder, engine.totals)
    for _ in range(iterations):
        clock(lambda: advance(engine), prompts)
    clock.costs.iterations = done(engine)
    return clock.costs


def draw(grown: dict[str, dict[int, Costs]], title: str, path: Path) -> None:
    """A row of panels for each thing that grows: seconds, passes and tokens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure, panels = plt.subplots(len(grown), len(FIGURES), figsize=(12, 3.4 * len(grown)), layout="constrained")
    for line, (what, costs) in zip(panels, grown.items(), strict=True):
        for axes, (name, label) in zip(line, FIGURES.items(), strict=True):
            heights = [each.per_iteration(name) for each in costs.values()]
            axes.plot(list(costs), heights, "o-", color="#0b6e4f")
            axes.set_xscale("log", base=2)
            axes.set_xticks(list(costs), [str(count) for count in costs])
            axes.set(xlabel=what, ylabel=f"{label} an iteration and prompt", ylim=(0, 1.08 * max(heights)))
            axes.grid(alpha=0.25)
    figure.suptitle(title, fontsize=9)
    save_plot(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argument_parser(__doc__, plot="rain_growth.png")
    parser.add_argument("--prompts", type=int, nargs="+", default=(1, 2, 4, 8, 16, 32), help="in lock-step")
    parser.add_argument("--candidates", type=int, nargs="+", default=(2, 5, 10, 20, 40), help="of one prompt")
    parser.add_argument("--iterations", type=int, default=12)
    arguments = parser.parse_args()
    bench, console = prepare(arguments), Console(markup=False, emoji=False)
    settings = {
        "prompts in lock-step": [(count, 10) for count in sorted({1, *arguments.prompts})],
        "candidates of an expansion": [(1, count) for count in sorted({10, *arguments.candidates})],
    }
    cost(bench, 2, 1, 10)  # warms up
    grown, results = {}, []
    for what, pairs in settings.items():
        console.print(f"measuring {what} ...")
        place = int(what.startswith("candidates"))
        grown[what] = {pair[place]: cost(bench, arguments.iterations, *pair) for pair in pairs}
        base = grown[what][10 if place else 1]
        table = columns(f"RAIN, {what}", (what, *FIGURES.values()))
        for count, costs in grown[what].items():
            setting = f"{bench.setting}, {arguments.iterations} iterations, {count} {what}"
            table.add_row(str(count), *(f"{costs.per_iteration(name):.3g}" for name in FIGURES))
            results += [
                row(f"rain_growth_{name}", setting, costs.per_iteration(name), base.per_iteration(name), unit)
                for name, unit in UNITS.items()
            ]
        console.print(table)
    keep(results, arguments.output)
    draw(grown, f"{bench.setting}; {describe_hardware()}", arguments.plot)
    console.print(f"Kept in {arguments.output} and {arguments.plot}.")


if __name__ == "__main__":
    main()
