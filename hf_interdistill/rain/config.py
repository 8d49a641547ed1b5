"""Settings of RAIN and the published presets.

`DEVIATIONS` lists in one place where this implementation departs from the released code, and why.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..utils.fields import accept_renamed, new_names, refuse_unknown

JUDGE_VOTES = ("hard", "probability")

DEVIATIONS: dict[str, str] = {
    "eos": "A token set that ends a text (EOS, stop string, new turn) ends the generation; the released HH script "
    "never stops at EOS.",
    "labels": "The judge's label tokens are found with the tokenizer and refused if they are not distinct single "
    "tokens; the released code holds LLaMA's token ids.",
    "lone_child": "A lone child counts as having no variance, so its parent may widen; in the released code the "
    "variance of one embedding is NaN and the parent never widens.",
    "empty_answer": "The root is expanded before the first iteration, so no empty answer is judged; the released code "
    "spends its first iteration on one.",
    "lazy_expansion": "A leaf is expanded when it is selected again, not at its first visit. The search is the same, "
    "token for token; candidates that are never looked at are never drawn.",
    "similarity_off": "Without `similarity_model` there is neither sibling credit nor widening, for both need an "
    "encoder. A plain `RainConfig` names none; the presets name the one of the published runs.",
    "lazy_embeddings": "Texts are embedded when a sibling is visited, in one call a backup; the mean is the same.",
    "speculation": "Rollouts and expansions that the search will probably want next are decoded beside those it wants "
    "now (`num_speculative`). A model that is its own judge scores such rollouts in a call that is made anyway. The "
    "search is the same, token for token; it needs fewer passes.",
    "duplicates": "Duplicate candidates are dropped and not drawn again (the released attack script redraws).",
    "random_numbers": "Every draw has its own counter-based stream (seed, prompt, prefix), so results do not depend "
    "on the batch; the released code uses one global generator.",
    "candidate_processors": "Logits processors of the generation config act before the expansion's temperature and "
    "top-k, and on rollouts; the released code has none. Rollouts are always sampled, whatever `do_sample` says.",
    "turn_tokens": "The tokens that open a new turn stay in the output, as stop strings do in `generate`; the judge "
    "does not see them.",
}


# Old names of fields; they will be removed in the version after this one.
_RENAMED = {"read_ahead": "num_speculative", "prompts_in_flight": "max_batch_size"}


@accept_renamed(_RENAMED)
@dataclass(frozen=True)
class RainConfig:
    """Every constant of the search.

    Source: arXiv 2309.07124 and the authors' code; defaults are those of the harmlessness experiment.

    Args:
        edge_lengths: tokens of an edge by depth from the prompt; the last one holds for all deeper edges.
        candidates: token sets of one expansion (one greedy, the others sampled; the likeliest for one-token edges).
        sample_top_k: likeliest tokens that sampled token sets draw from.
        expansion_temperature: temperature of candidates (not of rollouts).
        max_children: widening stops here.
        exploration: `c` of eq. 1. An unvisited child counts as worst, so one of prior `p` is first visited after about
            `(0.5 / (c p))^2` visits of its parent (`(0.9 / (c p))^2` beside a good one): too small for the budget, and
            only the likeliest token sets are ever judged. `judge_calls` far below `iterations` is the sign of it.
        root_uniform: share of the uniform distribution in the root's priors.
        min_visits: a commit before the budget is spent needs more true visits than this ...
        value_threshold: ... and a value above this.
        iterations: visits of a root (kept ones count) that are always allowed.
        extra_iterations: iterations allowed beyond the visits that a root has kept.
        similarity_model: name or path of a text encoder for sibling credit and widening; `None` switches both off.
        similarity_threshold: smallest cosine similarity of a sibling that shares a value.
        similarity_weight: weight of a shared value, times the cosine.
        widening_variance: widen below this norm of the children's variance, times the tokens of an edge ...
        widening_value: ... if the best child's value is below this.
        rollout_stops: characters that end a rollout; empty: it runs to the end of the text.
        rollout_max_tokens: longest rollout; `None`: as long as the generation may get.
        turn_markers: strings that open a new turn, and so end the generation.
        judge: name of a judge prompt of ours (`harmlessness`, `truthfulness`, `sentiment`) or a YAML file.
        judge_vote: `hard` (one vote an order) or `probability` (of the positive label).
        num_speculative: speculative rollouts and expansions in a prompt's forward passes: those that the search will
            probably want next; 0 for none. More of them need fewer passes and more tokens; the search is the same.
            `None`: the prompts of a batch share 48, with 16 each at least; on a CPU, where tokens cost more than
            passes, 16, with 3. Not used with models that branch by copying. Scorers that support it
            (`supports_speculation`; of ours `"self"`) score such rollouts too.
        cuda_graphs: whether forward passes, those of the judge `"self"` too, are replayed as CUDA graphs, which saves
            the time to launch their kernels: the most of a pass of a small model. `None`: wherever it is possible (one
            CUDA device; no quantized weights, forward hooks, autocast or compiled code), and it is said where it is
            not; true: an error where it is not. What is decoded is the same but for rounding. They cost memory: their
            own, and keys and values have room for 2,048 tokens a prompt (of the first four) from the start.
        max_batch_size: prompts searched at once; more wait for a free row.
        seed: same seed, same output; `None` draws one from torch's generator (so `set_seed` counts).

    Raises:
        UnknownFieldError: a misspelt field. ValueError: a value out of range.
    """

    edge_lengths: tuple[int, ...] = (1, 2, 4, 10)
    candidates: int = 10
    sample_top_k: int = 15
    expansion_temperature: float = 1.0
    max_children: int = 20
    exploration: float = 2.0
    root_uniform: float = 0.25
    min_visits: int = 6
    value_threshold: float = 0.8
    iterations: int = 50
    extra_iterations: int = 15
    similarity_model: str | None = None
    similarity_threshold: float = 0.95
    similarity_weight: float = 0.2
    widening_variance: float = 0.03
    widening_value: float = 0.0
    rollout_stops: str = ",.?:;\n"
    rollout_max_tokens: int | None = None
    turn_markers: tuple[str, ...] = ()
    judge: str = "harmlessness"
    judge_vote: str = "hard"
    num_speculative: int | None = None
    cuda_graphs: bool | None = None
    max_batch_size: int = 16
    seed: int | None = None

    def __new__(cls, *args, **kwargs):
        refuse_unknown(cls.__name__, kwargs, (*(field.name for field in fields(cls)), *_RENAMED))
        return super().__new__(cls)

    def __post_init__(self):
        object.__setattr__(self, "edge_lengths", tuple(self.edge_lengths))
        object.__setattr__(self, "turn_markers", _as_tuple("turn_markers", self.turn_markers))
        _check("turn_markers", self.turn_markers, all(self.turn_markers), "strings that are not empty")
        for name in ("candidates", "sample_top_k", "max_children", "iterations", "max_batch_size"):
            _check(name, getattr(self, name), _is_count(getattr(self, name), 1), "a whole number, at least 1")
        for name in ("min_visits", "extra_iterations"):
            _check(name, getattr(self, name), _is_count(getattr(self, name), 0), "a whole number, at least 0")
        ahead = self.num_speculative
        _check("num_speculative", ahead, ahead is None or _is_count(ahead, 0), "None or a whole number, at least 0")
        graphs = self.cuda_graphs
        _check("cuda_graphs", graphs, graphs is None or isinstance(graphs, bool), "None, true or false")
        for name in ("exploration", "similarity_weight", "widening_variance"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < math.inf, "0 or a positive number")
        for name in ("value_threshold", "widening_value", "similarity_threshold"):
            _check(name, getattr(self, name), -1 <= getattr(self, name) <= 1, "between -1 and 1")
        lengths = self.edge_lengths
        _check("edge_lengths", lengths, bool(lengths) and all(_is_count(n, 1) for n in lengths), "positive numbers")
        _check("root_uniform", self.root_uniform, 0 <= self.root_uniform <= 1, "between 0 and 1")
        temperature = self.expansion_temperature
        _check("expansion_temperature", temperature, 0 < temperature < math.inf, "a positive number")
        longest = self.rollout_max_tokens
        _check("rollout_max_tokens", longest, longest is None or _is_count(longest, 1), "None or at least 1")
        _check("judge_vote", self.judge_vote, self.judge_vote in JUDGE_VOTES, f"one of {', '.join(JUDGE_VOTES)}")
        _check("seed", self.seed, self.seed is None or _is_count(self.seed, 0), "None or a whole number, at least 0")

    @classmethod
    def preset(cls, name: str, **changes) -> RainConfig:
        """A published setting: `harmless` (HH), `adversarial` (GCG attacks) or `truthful` (TruthfulQA).

        Args:
            name: the preset.
            **changes: fields to set otherwise.
        """
        if name not in PRESETS:
            raise ValueError(f"`{name}` is no preset of RainConfig; there are {', '.join(PRESETS)}.")
        return cls(**{**PRESETS[name], **new_names(cls.__name__, changes, _RENAMED)})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RainConfig:
        """A config from plain values, as in YAML; `preset` names the one to start from."""
        values = dict(values)
        preset = values.pop("preset", None)
        return cls(**values) if preset is None else cls.preset(preset, **values)

    @classmethod
    def resolve(cls, config: RainConfig | str | dict[str, Any] | None) -> RainConfig:
        """A config, the name of a preset, a dict of fields (`from_dict`), or `None` for the defaults."""
        if config is None or isinstance(config, cls):
            return cls() if config is None else config
        if isinstance(config, str):
            return cls.preset(config)
        if isinstance(config, dict):
            return cls.from_dict(config)
        raise TypeError(
            f"The RAIN config is a {type(config).__name__}, but must be a RainConfig, the name of a preset "
            f"({', '.join(PRESETS)}) or a dict of fields."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` takes them back."""
        return asdict(self)

    def replace(self, **changes) -> RainConfig:
        """A copy with other values."""
        changes = new_names(type(self).__name__, changes, _RENAMED)
        refuse_unknown(type(self).__name__, changes, (field.name for field in fields(self)))
        return replace(self, **changes)

    def edge_length(self, depth: int) -> int:
        """Tokens of an edge that starts at a node of this depth."""
        return self.edge_lengths[min(depth, len(self.edge_lengths) - 1)]


_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PRESETS: dict[str, dict[str, Any]] = {
    "harmless": {
        "min_visits": 6,
        "judge": "harmlessness",
        "turn_markers": ("Human:",),
        "similarity_model": _ENCODER,
    },
    "adversarial": {
        "similarity_model": _ENCODER,
        "min_visits": 5,
        "expansion_temperature": 2.0,
        "judge": "harmlessness",
        "turn_markers": ("USER:",),
    },
    "truthful": {
        "min_visits": 16,
        "rollout_stops": "",
        "judge": "truthfulness",
        "similarity_model": _ENCODER,
    },
}


def _as_tuple(name: str, value) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"`{name}` is the string {value!r}, but must be a list of strings. Write [{value!r}].")
    return tuple(value)


def _is_count(value, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _check(name: str, value, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` is {value!r}, but must be {rule}.")
