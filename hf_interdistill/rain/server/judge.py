"""Self-evaluation on a server: the served model answers the judge's question, by one request for each order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import torch

from ...utils.async_calls import run
from ...utils.servers import RequestRefusedError, is_of_one_request
from ..scorers.base import Costs, Exchange, Scorer, ScorerError
from ..scorers.judge_prompt import JudgePrompt, label_tokens
from ..scorers.judge_texts import CONTENT_FREE, JudgeTexts, label_values, mean_log_odds
from .client import CompletionsClient

_LIKELIEST = 5  # log probabilities that are asked for; the labels are mostly among them
_BASELINES_KEPT = 1024  # prompts


class ServedJudge(Scorer):
    """Scores texts with a served language model as the judge. The values are those of `SelfEvaluationScorer`.

    A request allows the two labels alone. The server answers with the likelier one, and with the log probabilities of
    the likeliest tokens. If the other label is not among these, a further request allows that one alone. Hard votes
    without calibration do not need it.

    Args:
        client: the model, checked. tokenizer: its own.
        prompt, vote, calibrate: as in `SelfEvaluationScorer`.

    Attributes:
        baselines: log-odds of content-free answers by prompt, `(orders,)`.
    """

    def __init__(self, client: CompletionsClient, tokenizer, prompt: JudgePrompt, vote: str, calibrate: bool):
        self.client, self.prompt, self.vote, self.calibrate = client, prompt, vote, calibrate
        self._texts = JudgeTexts(prompt, tokenizer)
        self._labels = label_tokens(prompt, tokenizer)
        self.baselines: dict[str, torch.Tensor] = {}
        self._costs = Costs([])

    def constant_advice(self, value: float) -> str | None:
        """See `Scorer.constant_advice`."""
        if self.vote == "hard" and value == 1:
            return None
        return 'Set `judge_vote="probability"` in the RainConfig, or use another judge prompt or a reward model.'

    def costs(self, count: int) -> Costs:
        """See `Scorer.costs`; after `score` alone."""
        return self._costs

    def score(self, exchanges: Sequence[Exchange]) -> list[float]:
        """See `Scorer.score`: for callers that are not asynchronous."""
        values, self._costs = run(self._score_apart(exchanges))
        return values

    async def _score_apart(self, exchanges: Sequence[Exchange]) -> tuple[list[float], Costs]:
        async with self.client.servers.connected():
            return await self.score_async(exchanges, self.client)

    async def score_async(self, exchanges: Sequence[Exchange], client: CompletionsClient) -> tuple[list[float], Costs]:
        """Values of exchanges, and what they cost; requests run at the same time.

        Args:
            exchanges: what to judge. client: the judge's, maybe on the server of one prompt.

        Raises:
            ScorerError: a text is longer than the judge's context. ServerError: the server failed.
        """
        count = len(exchanges)
        prompts = {repr(each.prompt): each.prompt for each in exchanges} if self.calibrate else {}
        used = {key: self.baselines[key] for key in prompts if key in self.baselines}
        new = [key for key in prompts if key not in used]
        asked = [*exchanges, *(Exchange(prompts[key], answer) for key in new for answer in CONTENT_FREE)]
        token_ids = self._texts.encode([self._texts.render(each) for each in asked])
        self._check_length(token_ids)
        costs: list[Counter] = [Counter() for _ in asked]
        logits = torch.tensor(
            await asyncio.gather(
                *(
                    asyncio.gather(*(self._ask(client, ids, own) for ids in orders))
                    for orders, own in zip(token_ids, costs, strict=True)
                )
            ),
            dtype=torch.float64,
        )
        if self.calibrate:
            used |= dict(zip(new, mean_log_odds(logits[count:]), strict=True))
            others = [each for each in self.baselines.items() if each[0] not in used]
            self.baselines = {**dict(others[-_BASELINES_KEPT:]), **used}
            logits[:count, :, 0] -= torch.stack([used[repr(each.prompt)] for each in exchanges])
        tokens = [each["forward_tokens"] for each in costs]
        passes = sum(each["forward_passes"] for each in costs)
        return label_values(logits[:count], self.vote), Costs(tokens[:count], passes, sum(tokens[count:]))

    def _check_length(self, token_ids: Sequence[Sequence[list[int]]]) -> None:
        longest, limit = max(len(ids) for orders in token_ids for ids in orders), self.client.max_length
        if limit is not None and longest >= limit:
            raise ScorerError(
                f"The judge would read {longest} tokens, but the server's `--max-model-len` is {limit}. Use a judge "
                "prompt with shorter examples, raise the limit, or use another scorer."
            )

    async def _ask(self, client: CompletionsClient, ids: list[int], costs: Counter) -> tuple[float, float]:
        """Log probabilities of the two labels, up to a constant."""
        likelier, scores = await self._allow(client, ids, list(self._labels), costs)
        missing = next((label for label in self._labels if label not in scores), None)
        if missing is not None and self.vote == "hard" and not self.calibrate:
            scores[missing] = scores[likelier] - 1.0  # whatever is below
        elif missing is not None:
            scores |= (await self._allow(client, ids, [missing], costs))[1]
        return scores[self._labels[0]], scores[self._labels[1]]

    async def _allow(
        self, client: CompletionsClient, ids: list[int], labels: list[int], costs: Counter
    ) -> tuple[int, dict[int, float]]:
        """The likeliest of some labels, and log probabilities by token."""
        try:
            answer = await client.complete(
                ids, max_tokens=1, logprobs=_LIKELIEST, temperature=0.0, allowed_token_ids=labels
            )
        except RequestRefusedError as error:
            if not is_of_one_request(error):
                raise
            raise ScorerError(f"The judge's request was refused: {error}") from error
        costs.update(answer.costs)
        (completion,) = answer.completions
        return completion.tokens[0], dict(completion.scores[0])
