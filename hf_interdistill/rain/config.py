"""Settings of the search: `RainConfig`.

Relations: `presets.py` holds its presets, `strategies.py` what each strategy reads, `deviations.py` where this
implementation departs from the released code.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from typing import Any

from ..utils.fields import accept_renamed, new_names, refuse_unknown
from .presets import PRESETS, preset_fields
from .strategies import STRATEGIES, is_read, readers

JUDGE_VOTES = ("hard", "probability")

# Old names of fields; they will be removed in the version after this one.
_RENAMED = {"read_ahead": "num_speculative", "prompts_in_flight": "max_batch_size"}


@accept_renamed(_RENAMED)
@dataclass(frozen=True)
class RainConfig:
    """Settings of the search.

    Source: arXiv 2309.07124 and the authors' code; the defaults are those of the harmlessness experiment.

    Args:
        edge_lengths: tokens per edge by depth from the prompt; the last one applies to all deeper edges.
        candidates: token sets per expansion: one greedy and the others sampled; the likeliest for one-token edges.
        sample_top_k: number of likeliest tokens that sampled token sets draw from.
        expansion_temperature: temperature of candidates (not of rollouts).
        max_children: maximum number of children; a node with this many is not widened.
        exploration: `c` of eq. 1. An unvisited child has the lowest value. A child of prior `p` is therefore first
            visited after about `(0.5 / (c p))^2` visits of its parent, or `(0.9 / (c p))^2` with a good sibling. If
            `c` is too small for the budget, only the likeliest token sets are judged; `judge_calls` is then far below
            `iterations`.
        root_uniform: share of the uniform distribution in the priors of the root's children.
        min_visits: a child is committed before the budget is spent if it has more true visits than this, and a value
            above `value_threshold`.
        value_threshold: the value that such a child must exceed.
        iterations: visit budget of a root, including visits from before it became the root.
        extra_iterations: new visits that are allowed at least after each commit.
        leaves_per_step: leaves that are selected before any of them has its value. Their rollouts, expansions and
            scores share forward passes and scorer calls. 1 is the published search; with more, a selection knows
            less, and a good child is committed up to a step later. Budgets are kept exactly.
        virtual_loss: visits with value -1 that a leaf counts on its path while it waits for its value; it sends the
            next selection of the step elsewhere. It has no effect with one leaf per step.
        similarity_model: name or path of a text encoder for sibling credit and widening; `None` disables both.
        similarity_threshold: minimum cosine similarity of siblings that share a value.
        similarity_weight: weight of a shared value, multiplied by the cosine.
        widening_variance: a node is widened if the norm of its children's variance is below this times the tokens per
            edge, and the value of its best child is below `widening_value`.
        widening_value: the value of the best child from which on a node is not widened.
        rollout_stops: characters that end a rollout; if empty, a rollout runs to the end of the text.
        rollout_max_tokens: maximum length of a rollout; `None`: as long as the generation may get.
        turn_markers: strings that start a new turn, and so end the generation.
        judge: name of a judge prompt of this package (`harmlessness`, `harmlessness_short`, `truthfulness`,
            `sentiment`), or a YAML file.
        judge_vote: `hard` (one vote per order) or `probability` (of the positive label).
        judge_orders: 1 asks with the positive option first, 2 also with the options swapped; `None`: as the judge
            prompt says.
        judge_calibration: whether the judge's log-odds for content-free answers to the same prompt are subtracted
            (see `SelfEvaluationScorer`). It removes what the order of the options adds, so that one order is enough.
        num_speculative: speculative rollouts and expansions per prompt in a forward pass: those that the search will
            probably need next (no draft model is involved); 0 disables it. A larger number needs fewer passes and
            more tokens; the search is the same. `None`: the prompts of a batch share 48, with at least 16 each; on a
            CPU, where tokens cost more than passes, they share 16, with at least 3 each. Models without a tree cache
            do not speculate. Scorers with `supports_speculation` (of the built-in ones, `"self"`) score such rollouts
            too.
        cuda_graphs: whether forward passes, including those of the judge `"self"`, are replayed as CUDA graphs. This
            saves the launch time of kernels, which dominates the passes of a small model. `None`: wherever possible
            (one CUDA device; no quantized weights, forward hooks, autocast or compiled code), with a log message
            where it is not. True: an error where it is not possible. Results are the same up to rounding. Graphs use
            extra memory. Space for the keys and values of 2,048 tokens is also reserved at the start for each of the
            first four prompts.
        max_batch_size: prompts searched at the same time; the others wait.
        strategy: how the engine searches: `rain` (the tree search that all of the above is about), `best_of_n`,
            `beam`, `args` or `rad`. The others than `rain` read few of the settings, and refuse the rest; each has
            the preset of its name, which says which (see `strategies.py`).
        reward_weight: weight of the score (-1 to 1) beside the log probability of a token, of `args` and `rad`.
            `None`: that of the preset.
        beams: texts that `beam` keeps; it draws chunks of `edge_lengths` tokens. `None`: that of the preset.
        seed: the same seed gives the same output; `None` draws a seed from torch's generator (so `set_seed` applies).

    Raises:
        UnknownFieldError: a misspelled field. ValueError: a value out of range.
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
    leaves_per_step: int = 1
    virtual_loss: float = 1.0
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
    judge_orders: int | None = None
    judge_calibration: bool = False
    num_speculative: int | None = None
    cuda_graphs: bool | None = None
    max_batch_size: int = 16
    strategy: str = "rain"
    reward_weight: float | None = None
    beams: int | None = None
    seed: int | None = None

    def __new__(cls, *args, **kwargs):
        refuse_unknown(cls.__name__, kwargs, (*(field.name for field in fields(cls)), *_RENAMED))
        return super().__new__(cls)

    def __post_init__(self):
        _check("edge_lengths", self.edge_lengths, _is_list(self.edge_lengths), "a list of positive whole numbers")
        _check("turn_markers", self.turn_markers, _is_list(self.turn_markers), "a list of strings")
        object.__setattr__(self, "edge_lengths", tuple(self.edge_lengths))
        object.__setattr__(self, "turn_markers", _as_tuple("turn_markers", self.turn_markers))
        _check("turn_markers", self.turn_markers, all(map(_is_text, self.turn_markers)), "strings that are not empty")
        judge, encoder = self.judge, self.similarity_model
        _check("judge", judge, _is_text(judge), "the name of a judge prompt or a YAML file")
        _check("similarity_model", encoder, encoder is None or _is_text(encoder), "None, a name or a path")
        for name in ("candidates", "sample_top_k", "max_children", "iterations", "leaves_per_step", "max_batch_size"):
            _check(name, getattr(self, name), _is_count(getattr(self, name), 1), "a whole number, at least 1")
        for name in ("min_visits", "extra_iterations"):
            _check(name, getattr(self, name), _is_count(getattr(self, name), 0), "a whole number, at least 0")
        ahead = self.num_speculative
        _check("num_speculative", ahead, ahead is None or _is_count(ahead, 0), "None or a whole number, at least 0")
        graphs = self.cuda_graphs
        _check("cuda_graphs", graphs, graphs is None or isinstance(graphs, bool), "None, true or false")
        for name in ("exploration", "similarity_weight", "widening_variance"):
            _check(name, getattr(self, name), _is_within(getattr(self, name), 0), "0 or a positive number")
        for name in ("value_threshold", "widening_value", "similarity_threshold"):
            _check(name, getattr(self, name), _is_within(getattr(self, name), -1, 1), "between -1 and 1")
        lengths = self.edge_lengths
        _check("edge_lengths", lengths, bool(lengths) and all(_is_count(n, 1) for n in lengths), "positive numbers")
        _check("root_uniform", self.root_uniform, _is_within(self.root_uniform, 0, 1), "between 0 and 1")
        for name in ("expansion_temperature", "virtual_loss"):
            value = getattr(self, name)
            _check(name, value, value != 0 and _is_within(value, 0), "a positive number")
        longest = self.rollout_max_tokens
        _check("rollout_max_tokens", longest, longest is None or _is_count(longest, 1), "None or at least 1")
        _check("rollout_stops", self.rollout_stops, isinstance(self.rollout_stops, str), "a string of characters")
        _check("judge_vote", self.judge_vote, self.judge_vote in JUDGE_VOTES, f"one of {', '.join(JUDGE_VOTES)}")
        orders, calibrates = self.judge_orders, self.judge_calibration
        _check("judge_orders", orders, orders is None or orders in (1, 2), "None, 1 or 2")
        _check("judge_calibration", calibrates, isinstance(calibrates, bool), "true or false")
        _check("seed", self.seed, self.seed is None or _is_count(self.seed, 0), "None or a whole number, at least 0")
        weight, beams = self.reward_weight, self.beams
        _check("reward_weight", weight, weight is None or _is_within(weight, 0), "None, 0 or a positive number")
        _check("beams", beams, beams is None or _is_count(beams, 1), "None or a whole number, at least 1")
        _check("strategy", self.strategy, self.strategy in list(STRATEGIES), f"one of {', '.join(STRATEGIES)}")
        self._refuse_unread()

    def _refuse_unread(self) -> None:
        """Raise `ValueError` for a setting that the strategy does not read."""
        for each in fields(self):
            if getattr(self, each.name) != each.default and not is_read(self.strategy, each.name):
                raise ValueError(
                    f"`{each.name}` is {getattr(self, each.name)!r}, but the strategy {self.strategy!r} does not read "
                    f"it ({', '.join(readers(each.name))} {'does' if len(readers(each.name)) == 1 else 'do'}). Leave "
                    f"it out (it is {each.default!r} then), or change `strategy`."
                )

    @classmethod
    def preset(cls, name: str, **changes) -> RainConfig:
        """Published settings: `harmless` (HH), `adversarial` (GCG attacks) or `truthful` (TruthfulQA); or `fast`.

        `fast` is ours, not published. It differs from `harmless` by longer edges and more exploration, several leaves
        per step, fewer iterations and candidates, bounded rollouts, no encoder, and a short judge prompt in one
        calibrated order.

        `best_of_n`, `beam`, `args` and `rad` are the strategies of these names. `args` has the constants that its
        paper uses for HH-RLHF. `rad` ranks 20 tokens as its authors do, with a weight that would be 30 for scores of
        0 to 1. The other two are ours.

        Args:
            name: the preset.
            **changes: fields with other values than there. Another `strategy` takes what it reads of the preset, and
                the rest from the preset of its name.
        """
        return cls(**{**preset_fields(name, changes.get("strategy")), **new_names(cls.__name__, changes, _RENAMED)})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RainConfig:
        """A config from plain values, as in YAML.

        `preset` names the preset to start from, as in `preset`. Without it, another `strategy` than `rain` starts from
        the preset of its name.
        """
        values = dict(values)
        preset = values.pop("preset", None)
        if preset is None and values.get("strategy", "rain") != "rain" and values["strategy"] in list(STRATEGIES):
            preset = values["strategy"]
        return cls(**values) if preset is None else cls.preset(preset, **values)

    @classmethod
    def resolve(cls, config: RainConfig | str | dict[str, Any] | None, strategy: str | None = None) -> RainConfig:
        """A config, the name of a preset, a dict of fields (`from_dict`), or `None` for the defaults.

        Args:
            config: one of these. strategy: the strategy that is asked for beside it, if one is.

        Raises:
            ValueError: the config has another strategy than the one that is asked for.
        """
        if strategy is not None:
            if config is None or isinstance(config, str):
                config = {"preset": config}
            if isinstance(config, dict):
                config = {"strategy": strategy, **config}
            resolved = cls.resolve(config)
            if resolved.strategy != strategy:
                raise ValueError(
                    f"`strategy` is {strategy!r}, but the config's is {resolved.strategy!r}. Give a config of "
                    f"{strategy!r} (`RainConfig(strategy={strategy!r}, ...)`), or leave one of them out."
                )
            return resolved
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
        """Plain values, as accepted by `from_dict`."""
        return asdict(self)

    def replace(self, **changes) -> RainConfig:
        """A copy with other values."""
        changes = new_names(type(self).__name__, changes, _RENAMED)
        refuse_unknown(type(self).__name__, changes, (field.name for field in fields(self)))
        return replace(self, **changes)

    @property
    def samples_token_sets(self) -> bool:
        """Whether token sets of several tokens are sampled, not only single tokens ranked."""
        if self.strategy in ("args", "rad"):
            return False
        return self.strategy == "best_of_n" or max(self.edge_lengths) > 1

    def edge_length(self, depth: int) -> int:
        """Tokens per edge at this depth."""
        return self.edge_lengths[min(depth, len(self.edge_lengths) - 1)]


def _as_tuple(name: str, value) -> tuple[str, ...]:
    if isinstance(value, str):
        raise ValueError(f"`{name}` is the string {value!r}, but must be a list of strings. Write [{value!r}].")
    return tuple(value)


def _is_text(value) -> bool:
    return isinstance(value, str | os.PathLike) and bool(os.fspath(value))


def _is_list(value) -> bool:
    return isinstance(value, Iterable)


def _is_within(value, least: float, most: float = sys.float_info.max) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and least <= float(value) <= most


def _is_count(value, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _check(name: str, value, holds: bool, rule: str) -> None:
    if not holds:
        raise ValueError(f"`{name}` is {value!r}, but must be {rule}.")


def field_meaning(name: str) -> str:
    """The first sentence of what `RainConfig` says of a field."""
    text = inspect.getdoc(RainConfig) or ""
    found = re.search(rf"^    {name}: (.*?)(?=^    \w+: |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    words = " ".join(found[1].split()).lstrip(". ") if found else name
    return re.split(r"(?<!eq)[.;:] ", words)[0].rstrip(" .")
