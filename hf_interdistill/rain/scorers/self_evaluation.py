"""Self-evaluation: a language model answers a multiple-choice question about a text.

Keys and values of the few-shot prompt and of the prompts being searched are cached between calls. The texts of a call,
in both orders of the options, form one token tree, so the model reads every shared prefix once.

Source: arXiv 2309.07124, section 3.2 (few-shot question, options in both orders).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from ...utils.context_length import context_length
from ..config import JUDGE_VOTES
from .base import Costs, Exchange, Scorer, ScorerError
from .cached_forward import CachedForward
from .judge_prompt import JudgePrompt, label_tokens
from .judge_texts import CONTENT_FREE, JudgeTexts, label_values, mean_log_odds
from .prefix_cache import common_prefix_length
from .weights_state import layout_state, weights_checksum

_LOCK = threading.Lock()
# The one store of prefix caches: model -> {(judge prompt, tokenizer id, cuda_graphs): _Kept}.
_PREFIX_CACHES: WeakKeyDictionary = WeakKeyDictionary()
_PROBES = ("a", "7 z", "\n")  # completions with nothing in common, to find the tokens that do not depend on them
_BASELINES_KEPT = 1024  # prompts


@dataclass
class _Kept:
    """A prefix cache, and the state of the model that it was computed with.

    `baselines` holds log-odds of content-free answers by prompt, `(orders,)`; prompts used last come last.
    """

    cache: CachedForward
    layout: tuple
    checksum: int
    baselines: dict[str, torch.Tensor] = field(default_factory=dict)

    def keep_baselines(self, used: dict[str, torch.Tensor]) -> None:
        """Keep those that a call used and, up to a limit, those of the calls before."""
        with _LOCK:
            others = [(key, value) for key, value in self.baselines.items() if key not in used]
            self.baselines = {**dict(others[-_BASELINES_KEPT:]), **used}


class SelfEvaluationScorer(Scorer):
    """Scores texts with a language model as the judge; by default the generating model judges itself.

    Hard vote: each order votes for the label with the larger logit. The mean of the votes is mapped to -1, 0 or 1.
    Probability: `p(positive label)` of the two labels, averaged over the orders and mapped by `2 p - 1`.

    Source: arXiv 2309.07124, section 3.2.

    Args:
        prompt: a name (`harmlessness`, `harmlessness_short`, `truthfulness`, `sentiment`), a YAML file, or a
            `JudgePrompt`.
        vote: `hard` or `probability`.
        orders: number of orders of the options, 1 or 2; `None`: as the judge prompt says.
        calibrate: whether log-odds of the labels are taken relative to the mean of those for the answers `N/A`,
            `[MASK]` and the empty one to the same prompt, in the same order. Source: contextual calibration (Zhao et
            al., arXiv 2102.09690), with the prompt kept: scores then compare answers, whatever the prompt suggests.
        model: the judge; by default the generating model.
        tokenizer: the judge's tokenizer; required with `model`.
        cuda_graphs: whether the judge's forward passes are replayed as CUDA graphs, see `RainConfig`.

    Raises:
        ValueError: the labels are not distinct single tokens after the question.
    """

    supports_speculation = True

    def __init__(
        self,
        prompt: str | Path | JudgePrompt = "harmlessness",
        *,
        vote="hard",
        orders: int | None = None,
        calibrate: bool = False,
        model=None,
        tokenizer=None,
        cuda_graphs: bool | None = None,
    ):
        if vote not in JUDGE_VOTES:
            raise ValueError(f"`vote` is {vote!r}, but must be one of {', '.join(JUDGE_VOTES)}.")
        if (model is None) != (tokenizer is None):
            raise ValueError("A separate judge needs both `model` and `tokenizer`; one of them is missing.")
        self.prompt = JudgePrompt.load(prompt)
        if orders is not None:
            self.prompt = replace(self.prompt, orders=orders)
        self.vote = vote
        self.calibrate = calibrate
        self.cuda_graphs = cuda_graphs
        self.model = model
        self.tokenizer = tokenizer
        self._costs = Costs([])
        self._is_searching = False
        if model is not None:
            self._texts = JudgeTexts(self.prompt, tokenizer)
            self._labels = label_tokens(self.prompt, tokenizer)

    def bind(self, model, tokenizer) -> Scorer:
        """See `Scorer.bind`. A model on a server provides its own judge (`bind_judge`)."""
        if self.model is not None:
            model, tokenizer = self.model, self.tokenizer
        elif hasattr(model, "bind_judge"):
            return model.bind_judge(self, tokenizer)
        return SelfEvaluationScorer(
            self.prompt,
            vote=self.vote,
            calibrate=self.calibrate,
            model=model,
            tokenizer=tokenizer,
            cuda_graphs=self.cuda_graphs,
        )

    def start_search(self) -> None:
        """See `Scorer.start_search`: weights are read once here, and not at every call."""
        self._prefix_cache()
        self._is_searching = True

    def constant_advice(self, value: float) -> str | None:
        """See `Scorer.constant_advice`. Hard votes for all texts of a harmless prompt are not a fault."""
        if self.vote == "probability":
            return "Use another judge prompt, a larger judge, or a reward model (`rain_scorer=RewardScorer(...)`)."
        if value == 1:
            return None
        return (
            "Its two orders may contradict each other for every text, as those of small models do. Set "
            '`judge_vote="probability"` in the RainConfig, or use a reward model (`rain_scorer=RewardScorer(...)`).'
        )

    def costs(self, count: int) -> Costs:
        """See `Scorer.costs`."""
        return self._costs

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See `Scorer.score`."""
        kept, count = self._kept(), len(exchanges)
        by_key = {repr(each.prompt): each.prompt for each in exchanges} if self.calibrate else {}
        known = kept.baselines  # another thread may put other ones in their place
        new = [key for key in by_key if key not in known]
        exchanges = [*exchanges, *(Exchange(by_key[key], answer) for key in new for answer in CONTENT_FREE)]
        token_ids = self._texts.encode([self._texts.render(exchange) for exchange in exchanges])
        self._check_length(token_ids)
        prompts = [exchange.prompt for exchange in exchanges]
        labels = torch.tensor(self._labels)
        with kept.cache.lend(self.model):
            logits, tokens = kept.cache.last_logits(token_ids, prompts, self._prompt_prefix, labels)
            passes, shared = kept.cache.pop_costs()
        self._costs = Costs(tokens[:count], passes, shared + sum(tokens[count:]))
        if self.calibrate:
            means = mean_log_odds(logits[count:])
            used = {key: known[key] for key in by_key if key in known} | dict(zip(new, means, strict=True))
            kept.keep_baselines(used)
            logits[:count, :, 0] -= torch.stack([used[repr(prompt)] for prompt in prompts[:count]])
        return label_values(logits[:count], self.vote)

    def _prompt_prefix(self, prompt) -> list[int]:
        """Token ids that all judge texts of a prompt start with, whatever the completion."""
        return self._common_prefix([self._texts.render(Exchange(prompt, probe)) for probe in _PROBES])

    def _common_prefix(self, rendered: Sequence[list[str]]) -> list[int]:
        """Token ids that all rendered texts start with."""
        sequences = [ids for orders in self._texts.encode(rendered) for ids in orders]
        return sequences[0][: common_prefix_length(sequences)]

    def _check_length(self, token_ids: Sequence[Sequence[list[int]]]) -> None:
        longest = max(len(ids) for orders in token_ids for ids in orders)
        limit = context_length(self.model)
        if limit is not None and longest > limit:
            raise ScorerError(
                f"The judge would read {longest} tokens, but its context is {limit}. Use a judge prompt with shorter "
                "examples, a judge with a longer context, or another scorer."
            )

    def _prefix_cache(self) -> CachedForward:
        """The model's prefix cache for this judge prompt."""
        return self._kept().cache

    def _kept(self) -> _Kept:
        """What is kept for this model and judge prompt; new if weights or adapters have changed."""
        key = (self.prompt, id(self.tokenizer), self.cuda_graphs)
        layout = layout_state(self.model)
        with _LOCK:
            kept = _PREFIX_CACHES.get(self.model, {}).get(key)
        is_same_layout = kept is not None and kept.layout == layout
        if is_same_layout and self._is_searching:
            return kept
        checksum = weights_checksum(self.model)
        if not is_same_layout or kept.checksum != checksum:
            # Probes of texts and of messages of every role: the prefix is what all of them share.
            prompts = [prompt for probe in _PROBES for prompt in (probe, *_messages(probe))]
            rendered = [self.prompt.texts(Exchange(prompt, "a")) for prompt in prompts]
            kept = _Kept(CachedForward(self.model, self._common_prefix(rendered), self.cuda_graphs), layout, checksum)
            with _LOCK:
                _PREFIX_CACHES.setdefault(self.model, {})[key] = kept
        return kept


def _messages(content: str) -> list[list[dict[str, str]]]:
    return [[{"role": role, "content": content}] for role in ("system", "user", "assistant")]
