"""Self-evaluation: a language model answers a multiple-choice question about a text.

The few-shot prompt is read once and its keys and values kept, and so are those of the prompts in flight. The texts of
a round and both orders of the options form one token tree, so that everything shared between them is read once too.

Source: arXiv 2309.07124, section 3.2 (few-shot question, options in both orders).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from ...scoring.control_tokens import break_up, control_pattern
from ...scoring.formatting import is_messages, message_texts
from ..config import JUDGE_VOTES
from .base import Costs, Exchange, Scorer, ScorerError
from .cached_forward import CachedForward, weights_version
from .judge_prompt import JudgePrompt, label_tokens
from .prefix_cache import common_prefix_length

_KEPT: WeakKeyDictionary = WeakKeyDictionary()  # model -> {(prompt, tokenizer, graphs) -> CachedForward}
_TRIALS = ("a", "7 z", "\n")  # completions with nothing in common, to see what is the same for all


class SelfEvaluationScorer(Scorer):
    """A language model's own judgment.

    Hard vote: each order votes for the label with the larger logit; the votes are averaged and mapped to -1, 0 or 1.
    Probability: `p(positive label)` of the two labels, averaged over the orders and mapped by `2 p - 1`.

    Args:
        prompt: a name (`harmlessness`, `truthfulness`, `sentiment`), a YAML file, or a `JudgePrompt`.
        vote: `hard` or `probability`.
        model: the judge; the generating model if not given.
        tokenizer: the judge's tokenizer; needed with `model`.
        cuda_graphs: whether the judge's passes are replayed as CUDA graphs, see `RainConfig`.

    Raises:
        ValueError: labels that are not distinct single tokens after the question.
    """

    supports_speculation = True

    def __init__(
        self,
        prompt: str | Path | JudgePrompt = "harmlessness",
        *,
        vote="hard",
        model=None,
        tokenizer=None,
        cuda_graphs: bool | None = None,
    ):
        if vote not in JUDGE_VOTES:
            raise ValueError(f"`vote` is {vote!r}, but must be one of {', '.join(JUDGE_VOTES)}.")
        if (model is None) != (tokenizer is None):
            raise ValueError("A judge of its own needs both `model` and `tokenizer`; one of them is missing.")
        self.prompt = JudgePrompt.load(prompt)
        self.vote = vote
        self.cuda_graphs = cuda_graphs
        self.model = model
        self.tokenizer = tokenizer
        self._costs = Costs([])
        self._control = None if tokenizer is None else control_pattern(tokenizer)
        if model is not None:
            self._labels = label_tokens(self.prompt, tokenizer)

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`."""
        if self.model is not None:
            return self
        return SelfEvaluationScorer(
            self.prompt, vote=self.vote, model=model, tokenizer=tokenizer, cuda_graphs=self.cuda_graphs
        )

    def costs(self, count: int) -> Costs:
        """See `Scorer.costs`."""
        return self._costs

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See `Scorer.score`."""
        texts = self._texts()
        contexts = self._contexts([self._shown(exchange) for exchange in exchanges])
        self._check_length(contexts)
        prompts = [exchange.prompt for exchange in exchanges]
        labels = torch.tensor(self._labels)
        with texts.lend(self.model):
            logits, tokens = texts.last_logits(contexts, prompts, self._stem, labels)
        passes, shared = texts.pop_costs()
        self._costs = Costs(tokens, passes, shared)
        return self._values(logits)

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

    def _shown(self, exchange: Exchange) -> list[str]:
        """The texts of each order; a control token that the exchange spells is broken up, so that it is text."""
        pattern = self._control
        if is_messages(exchange.prompt):
            prompt = [
                {**message, "content": break_up(" ".join(message_texts(message)), pattern)}
                for message in exchange.prompt
            ]
        else:
            prompt = break_up(exchange.prompt, pattern)
        return self.prompt.texts(Exchange(prompt, break_up(exchange.completion, pattern)))

    def _contexts(self, shown: Sequence[list[str]]) -> list[list[list[int]]]:
        """Token ids of each text up to the label (with it, for a tokenizer may join it to what comes before)."""
        texts = [text + self.prompt.labels[0] for orders in shown for text in orders]
        ids = iter(self.tokenizer(texts, verbose=False)["input_ids"])
        return [[next(ids)[:-1] for _ in orders] for orders in shown]

    def _stem(self, prompt) -> list[int]:
        """The token ids of a prompt's judgments that are the same whatever the completion."""
        return self._common([self._shown(Exchange(prompt, completion)) for completion in _TRIALS])

    def _common(self, shown: Sequence[list[str]]) -> list[int]:
        """Token ids that all of the texts begin with."""
        contexts = [context for orders in self._contexts(shown) for context in orders]
        return contexts[0][: common_prefix_length(contexts)]

    def _check_length(self, contexts) -> None:
        longest = max(len(context) for orders in contexts for context in orders)
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise ScorerError(
                f"The judge would read {longest} tokens, but its context is {limit}. Use a judge prompt with shorter "
                "examples, a judge with a longer context, or another scorer."
            )

    def _texts(self) -> CachedForward:
        """The judge prompt's keys and values: read once a process, and again when the model's weights change."""
        kept = _KEPT.setdefault(self.model, {})
        key = (self.prompt, id(self.tokenizer), self.cuda_graphs)
        version = weights_version(self.model)
        if key not in kept or kept[key].version != version:
            prefix = self._common([self.prompt.texts(Exchange(end, end)) for end in _TRIALS])
            kept[key] = CachedForward(self.model, prefix, version, self.cuda_graphs)
        return kept[key]
