"""Self-evaluation: a language model answers a multiple-choice question about a text.

The few-shot prompt is read once and its keys and values kept; the texts of a round and both orders of the options form
one token tree, so that everything shared between them is read once too.

Source: arXiv 2309.07124, section 3.2 (few-shot question, options in both orders).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
import yaml

from ..scoring.formatting import is_messages
from .cache import Feed, Handle
from .cache_choice import build_cache
from .config import JUDGE_VOTES, refuse_unknown
from .copying import CopyingCache
from .scorers import Costs, Exchange, Scorer, ScorerError

PROMPTS = Path(__file__).parent / "prompts"
_TOKENS_A_PASS = 4096
_KEPT: WeakKeyDictionary = WeakKeyDictionary()  # model -> {(prompt, tokenizer) -> _Prefix}


@dataclass(frozen=True)
class JudgePrompt:
    """A few-shot prompt that ends where a label comes next.

    Args:
        name: for messages.
        examples: the text that stands before every exchange (read once).
        plain: an exchange whose prompt is text, with `{prompt}` and `{completion}`.
        chat: one whose prompt is messages; `{prompt}` is lines of `Role: content`.
        question: the question, with `{first}` and `{second}` where the options stand.
        positive: the option that is worth 1. negative: the one that is worth -1.
        labels: what the model answers for the first and for the second option.
        orders: 2 asks again with the options swapped; 1 asks once, the positive option first.
    """

    name: str
    examples: str
    plain: str
    question: str
    positive: str = ""
    negative: str = ""
    chat: str = "{prompt}\nAssistant: {completion}"
    labels: tuple[str, str] = ("A", "B")
    orders: int = 2

    def __post_init__(self):
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.orders not in (1, 2):
            raise ValueError(f"`orders` of judge prompt {self.name!r} is {self.orders}, but must be 1 or 2.")
        if len(self.labels) != 2:
            raise ValueError(f"`labels` of judge prompt {self.name!r} are {self.labels}, but there must be two.")
        for name in ("plain", "chat"):
            if "{completion}" not in getattr(self, name):
                raise ValueError(f"`{name}` of judge prompt {self.name!r} lacks `{{completion}}`, the text to judge.")
        if self.orders == 2 and not ("{first}" in self.question and "{second}" in self.question):
            raise ValueError(
                f"The question of judge prompt {self.name!r} lacks `{{first}}` or `{{second}}`, so the options cannot "
                "be swapped. Add them, or set `orders: 1`."
            )

    @classmethod
    def load(cls, source: str | Path | JudgePrompt) -> JudgePrompt:
        """A prompt of ours by name, or a YAML file with the fields above."""
        if isinstance(source, cls):
            return source
        path = PROMPTS / f"{source}.yaml"
        if not path.is_file():
            path = Path(source)
        if not path.is_file():
            names = sorted(each.stem for each in PROMPTS.glob("*.yaml"))
            raise ValueError(
                f"There is no judge prompt `{source}`: it is neither one of {', '.join(names)} nor a YAML file."
            )
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold the fields of a judge prompt, but holds a {type(values).__name__}.")
        refuse_unknown(f"The judge prompt {path}", values, (each.name for each in fields(cls)))
        missing = [name for name in ("examples", "plain", "question") if name not in values]
        if missing:
            raise ValueError(f"The judge prompt {path} lacks {', '.join(missing)}.")
        return cls(**{"name": path.stem, **values})

    def texts(self, exchange: Exchange) -> list[str]:
        """The full text of each order, up to the label."""
        template = self.chat if is_messages(exchange.prompt) else self.plain
        shown = _fill(template, prompt=exchange.prompt_text(), completion=exchange.completion)
        orders = [(self.positive, self.negative), (self.negative, self.positive)][: self.orders]
        return [self.examples + shown + _fill(self.question, first=first, second=second) for first, second in orders]


def _fill(template: str, **values: str) -> str:
    """Replace `{name}` once, so that braces in the values stay as they are."""
    return re.sub(r"\{(" + "|".join(values) + r")\}", lambda match: values[match.group(1)], template)


class SelfEvaluationScorer(Scorer):
    """A language model's own judgment.

    Hard vote: each order votes for the label with the larger logit; the votes are averaged and mapped to -1, 0 or 1.
    Probability: `p(positive label)` of the two labels, averaged over the orders and mapped by `2 p - 1`.

    Args:
        prompt: a name (`harmlessness`, `truthfulness`, `sentiment`), a YAML file, or a `JudgePrompt`.
        vote: `hard` or `probability`.
        model: the judge; the generating model if not given.
        tokenizer: the judge's tokenizer; needed with `model`.

    Raises:
        ValueError: labels that are not distinct single tokens after the question.
    """

    def __init__(self, prompt: str | Path | JudgePrompt = "harmlessness", *, vote="hard", model=None, tokenizer=None):
        if vote not in JUDGE_VOTES:
            raise ValueError(f"`vote` is {vote!r}, but must be one of {', '.join(JUDGE_VOTES)}.")
        if (model is None) != (tokenizer is None):
            raise ValueError("A judge of its own needs both `model` and `tokenizer`; one of them is missing.")
        self.prompt = JudgePrompt.load(prompt)
        self.vote = vote
        self.model = model
        self.tokenizer = tokenizer
        self._costs = Costs([])
        if model is not None:
            self._labels = label_tokens(self.prompt, tokenizer)

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`."""
        if self.model is not None:
            return self
        return SelfEvaluationScorer(self.prompt, vote=self.vote, model=model, tokenizer=tokenizer)

    def costs(self, count: int) -> Costs:
        """See `Scorer.costs`."""
        return self._costs

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See `Scorer.score`."""
        prefix = self._prefix()
        orders = self.prompt.orders
        sequences = [self._context(text) for exchange in exchanges for text in self.prompt.texts(exchange)]
        self._check_length(sequences)
        costs = Costs([0] * len(exchanges), 0, prefix.unpaid_tokens)
        before, prefix.unpaid_tokens = prefix.unpaid_passes, 0
        prefix.unpaid_passes = 0
        prefix.cache.model = self.model
        passes = prefix.cache.forward_passes
        labels = torch.tensor(self._labels)
        logits: list[torch.Tensor] = []
        try:
            for start, stop in _chunks(sequences, len(prefix.ids), orders):
                feeds, ends, owners = plan_reads(sequences[start:stop], prefix)
                reads = prefix.cache.read(feeds)
                logits.extend(reads[end].logits.cpu()[labels] for end in ends)
                for feed, owner in zip(feeds, owners, strict=True):
                    costs.tokens[(start + owner) // orders] += len(feed.tokens)
                prefix.cache.keep_only(0, [prefix.handle] if prefix.handle else [])
        finally:
            costs.forward_passes = before + prefix.cache.forward_passes - passes
            prefix.cache.take_row(0)
            prefix.cache.model = None  # a kept prefix must not keep its model alive
        self._costs = costs
        return self._values(torch.stack(logits).view(len(exchanges), orders, 2))

    def _values(self, logits: torch.Tensor) -> list[float]:
        """Values from label logits `(exchanges, orders, 2)`; in the second order the labels change places."""
        positive = logits.clone()
        if logits.shape[1] == 2:
            positive[:, 1] = logits[:, 1].flip(-1)
        if self.vote == "hard":
            votes = (positive[..., 0] > positive[..., 1]).double()
        else:
            votes = torch.softmax(positive.double(), dim=-1)[..., 0]
        return (2 * votes.mean(dim=-1) - 1).tolist()

    def _context(self, text: str) -> list[int]:
        return self.tokenizer(text + self.prompt.labels[0], verbose=False)["input_ids"][:-1]

    def _check_length(self, sequences) -> None:
        longest = max(map(len, sequences))
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise ScorerError(
                f"The judge would read {longest} tokens, but its context is {limit}. Use a judge prompt with shorter "
                "examples, a judge with a longer context, or another scorer."
            )

    def _prefix(self) -> _Prefix:
        """The judge prompt's keys and values: read once a process, and again when the model's weights change."""
        kept = _KEPT.setdefault(self.model, {})
        key = (self.prompt, id(self.tokenizer))
        print_ = _fingerprint(self.model)
        if key not in kept or kept[key].fingerprint != print_:
            kept[key] = self._read_prefix(print_)
        return kept[key]

    def _read_prefix(self, fingerprint) -> _Prefix:
        # What stays the same whatever follows: a tokenizer may join the last characters with the next ones.
        trials = [self._context(text) for end in ("a", "7 z", "\n") for text in self.prompt.texts(Exchange(end, end))]
        ids = trials[0][: _common(trials)]
        # One row: the texts of a round stand side by side in it.
        cache = build_cache(self.model, 1)
        handle = cache.read([Feed(0, None, ids)])[0].handle if ids else None
        cache.take_row(0)
        return _Prefix(ids, handle, cache, fingerprint, len(ids), cache.forward_passes)


@dataclass(eq=False)
class _Prefix:
    """A judge prompt that has been read, and what that cost until somebody accounts for it."""

    ids: list[int]
    handle: Handle | None
    cache: object
    fingerprint: object
    unpaid_tokens: int
    unpaid_passes: int


def _fingerprint(model) -> tuple:
    """Changes when parameters are updated in place or replaced."""
    parameters = list(model.parameters())
    return sum(each._version for each in parameters), sum(each.data_ptr() for each in parameters)


def label_tokens(prompt: JudgePrompt, tokenizer) -> tuple[int, int]:
    """Token ids of the two labels where they come after the question.

    Raises:
        ValueError: they are not one token each, the same, or unknown to the tokenizer.
    """
    text = prompt.texts(Exchange("a", "a"))[0]
    first, second = (tokenizer(text + label, verbose=False)["input_ids"] for label in prompt.labels)
    is_single = len(first) == len(second) and first[:-1] == second[:-1]
    unknown = tokenizer.unk_token_id
    if not is_single or first[-1] == second[-1] or unknown in (first[-1], second[-1]):
        tokens = [tokenizer.convert_ids_to_tokens(ids[-2:]) for ids in (first, second)]
        raise ValueError(
            f"The judge cannot tell the labels {prompt.labels[0]!r} and {prompt.labels[1]!r} apart: with this "
            f"tokenizer the text ends with {tokens[0]} and {tokens[1]}, but each label must be one known token of its "
            "own after the same text. Choose other `labels` in the judge prompt, or another judge."
        )
    return first[-1], second[-1]


def _common(sequences: Sequence[Sequence[int]], start: int = 0) -> int:
    """Length of the beginning that all sequences share; at least `start`, which they share already."""
    length = start
    shortest = min(map(len, sequences))
    while length < shortest and len({sequence[length] for sequence in sequences}) == 1:
        length += 1
    return length


def _chunks(sequences, prefix: int, orders: int) -> list[tuple[int, int]]:
    """Ranges of sequences, whole exchanges each, of about `_TOKENS_A_PASS` new tokens at most."""
    ranges, start, tokens = [], 0, 0
    for stop in range(orders, len(sequences) + 1, orders):
        new = sum(len(sequence) - prefix for sequence in sequences[stop - orders : stop])
        if tokens + new > _TOKENS_A_PASS and stop - orders > start:
            ranges.append((start, stop - orders))
            start, tokens = stop - orders, 0
        tokens += new
    return [*ranges, (start, len(sequences))]


def plan_reads(sequences: Sequence[Sequence[int]], prefix: _Prefix) -> tuple[list[Feed], list[int], list[int]]:
    """Feeds that read all sequences after a prefix, shared beginnings once.

    Returns:
        The feeds; for each sequence the feed at whose end it ends; for each feed the first sequence that needs it.
    """
    feeds: list[Feed] = []
    owners: list[int] = []
    ends = [-1] * len(sequences)

    def plan(members: list[int], start: int, parent: Handle | int | None) -> None:
        groups: dict[int, list[int]] = {}
        for i in members:
            groups.setdefault(sequences[i][start], []).append(i)
        for group in groups.values():
            stop = _common([sequences[i] for i in group], start)
            feeds.append(Feed(0, parent, sequences[group[0]][start:stop]))
            owners.append(group[0])
            here = len(feeds) - 1
            longer = [i for i in group if len(sequences[i]) > stop]
            for i in group:
                if len(sequences[i]) == stop:
                    ends[i] = here
            plan(longer, stop, here)

    # A sequence that does not begin with the whole prefix (a tokenizer may join across) takes what it shares of it.
    shared: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        length = _common([prefix.ids, sequence[:-1]])
        is_whole = length == len(prefix.ids) or not isinstance(prefix.cache, CopyingCache)
        shared.setdefault(length if is_whole else 0, []).append(i)
    for length, members in shared.items():
        plan(members, length, _shortened(prefix.handle, length))
    return feeds, ends, owners


def _shortened(handle: Handle | None, length: int) -> Handle | None:
    if handle is None or length == 0:
        return None
    if length == handle.length:
        return handle
    return Handle(handle.row, length, handle.slots[:length])
