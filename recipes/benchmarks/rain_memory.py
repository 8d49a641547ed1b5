"""How the memory of a search grows with its tree."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from figures import save_plot
from hardware import peak_resident_mib

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.engine.engine import Prompt
from hf_interdistill.rain.engine.stopping import StopConditions

matplotlib.use("Agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Sample:
    """A tree at one moment.

    Args:
        iterations: so far. nodes: token sets in the tree.
        tokens: of the prompt and of all token sets. held: tokens whose keys and values are held.
        held_mib, pool_mib: memory of these, and of the tensors that have room for more (they grow by doubling).
        copies_mib: what a copy of its own prefix for every expanded or visited node would take (computed).
        peak_mib: peak memory of the process beyond what it was when the prompt had been read (on a GPU: allocated).
    """

    iterations: int
    nodes: int
    tokens: int
    held: int
    held_mib: float
    pool_mib: float
    copies_mib: float
    peak_mib: float


def grow(model, tokenizer, prompt: str, iterations: int, samples: int = 20) -> list[Sample]:
    """Grow one tree without a commit, with a function for a judge, and look at it `samples` times."""
    config = RainConfig(seed=0, iterations=10 * iterations, min_visits=10 * iterations, num_speculative=0)
    engine = RainDecoder(tokenizer, config, lambda texts: [0.0] * len(texts)).build_engine(model)
    ids = tuple(tokenizer(prompt)["input_ids"])
    limit = model.config.max_position_embeddings - len(ids)
    engine.start([Prompt(ids, prompt, StopConditions(limit, frozenset([model.config.eos_token_id])))], 0)
    if model.device.type == "cuda":
        gc.collect()  # searches before this one
        torch.cuda.reset_peak_memory_stats()
    engine.step()  # reads the prompt
    before, taken = _peak(model), []
    for number in range(2, iterations + 1):
        engine.step()
        if number % max(1, iterations // samples) == 0:
            taken.append(_look(engine, len(ids), _peak(model) - before))
    return taken


def _peak(model) -> float:
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib()


def _look(engine, prompt: int, peak: float) -> Sample:
    request, cache = engine.requests[0], engine.cache
    nodes = list(request.search.tree.origin.subtree())
    layers = cache.cache.layers
    slots = len(layers[0].keys)
    per_token = (
        sum((layer.keys.numel() + layer.values.numel()) * layer.keys.element_size() for layer in layers) / slots
    )
    copies = sum(node.output.handle.length for node in request.state.nodes.values() if node.output)
    mib = per_token / 2**20
    return Sample(
        iterations=request.search.iterations,
        nodes=len(nodes) - 1,
        tokens=prompt + sum(len(node.tokens) for node in nodes),
        held=cache.num_tokens,
        held_mib=cache.num_tokens * mib,
        pool_mib=slots * mib,
        copies_mib=copies * mib,
        peak_mib=peak,
    )


def draw(samples: list[Sample], path: Path, setting: str) -> None:
    """Plot memory against tokens in the tree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = [sample.tokens for sample in samples]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot(tokens, [sample.held_mib for sample in samples], "o-", color="#0b6e4f", label="tokens held")
    left.plot(tokens, [sample.pool_mib for sample in samples], color="#0b6e4f", alpha=0.5, label="tensors (doubling)")
    left.plot(tokens, [sample.peak_mib for sample in samples], "s--", color="#555555", label="peak memory, added")
    left.set(title="Keys and values of one tree", xlabel="tokens in the tree", ylabel="MiB", ylim=0)
    right.plot(tokens, [sample.held_mib for sample in samples], "o-", color="#0b6e4f", label="each token held once")
    right.plot(
        tokens, [sample.copies_mib for sample in samples], "^-", color="#c2452d", label="a prefix a node, computed"
    )
    right.set(title="Against copies of the prefix", xlabel="tokens in the tree", ylabel="MiB", yscale="log")
    for axes in (left, right):
        axes.legend(frameon=False)
        axes.grid(alpha=0.25)
    figure.suptitle(setting, fontsize=9)
    save_plot(figure, path)
    plt.close(figure)
