"""`RemoteRewardScorer`: rewards from a reward model on a server, where a `RewardScorer` fits."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from ..utils.async_calls import run
from ..utils.fields import require_positive
from ..utils.served_models import (
    OWNER,
    PROBE,
    ServedModel,
    check_vocabulary,
    find_served_model,
    warn_of_unknown_weights,
)
from ..utils.server_pool import ModelServers, as_urls
from ..utils.servers import BadAnswerError, ModelServer, RequestRefusedError, ServerError
from ..utils.sources import load_tokenizer, loading
from .model_digests import digest_of_loaded_tokenizer
from .reward_apis import APIS, Rewards, RowFormatter, check_api
from .text_scorer import TextScorer

_JOB_IN_FLIGHT = 32  # requests of a job at the same time, for each server
_ALIKE = 0.05  # by which rewards of one text may differ between servers, as a share of the larger of 1 and the reward


class RemoteRewardScorer(TextScorer):
    """Scores `(prompt, completion)` pairs on a server: `scorer(prompts, completions) -> list[float]`.

    It is also a TRL reward function (`reward_funcs=[RemoteRewardScorer(url)]`) and a scorer of RAIN (`scorer=scorer`).
    Nothing of the model is loaded here.

    Args:
        url: of the server, such as `http://127.0.0.1:8000`; or of several with the same model, as a list. A request
            goes to the server with the fewest; one that fails is left out, with a warning.
        api: `interdistill` for `interdistill serve`, which formats the texts; `classify` for vLLM's `/classify`, to
            which token ids are sent. The vLLM server: `vllm serve MODEL --runner pooling --convert classify
            --pooler-config '{"use_activation": false}'`.
        tokenizer: only with `classify`, where it is needed: the reward model's, or its folder or Hub name.
        token: sent as `Authorization: Bearer`; by default that of the environment, `INTERDISTILL_TOKEN` with
            `interdistill` and `VLLM_API_KEY` with `classify`.
        model: the name that the model is served by; by default that of the only one.
        batch_size: rows per request.
        max_in_flight: requests at the same time, for each server.
        timeout, retries, backoff: see `ModelServer`.
        max_length: only with `classify`; see `TextScorer`. Otherwise the server's own limit holds, there too.

    Attributes:
        last_token_counts: tokens of each completion of the last call.
        last_forward_passes: requests of the last call.

    Raises:
        ValueError: settings that do not go together; another kind of server, model or vocabulary (found by `check`, at
            the first call at the latest); rows that the server refuses; an answer that is not one number per row;
            lists of different lengths.
        TypeError: a text or a mapping in place of a list of rows.
        PermissionError: the token is missing or wrong.
        ConnectionError: no answer after all tries, or a failure of the server; of several servers, of all.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        api: str = "interdistill",
        tokenizer: Any = None,
        token: str | None = None,
        model: str | None = None,
        batch_size: int = 64,
        max_in_flight: int = 4,
        timeout: float = 300.0,
        retries: int = 5,
        backoff: float = 0.5,
        max_length: int | None = None,
    ):
        check_api("api", api)
        if (tokenizer is None) == (api == "classify"):
            raise ValueError(
                f"`api` is {api!r} and `tokenizer` is {'missing' if tokenizer is None else 'given'}. With `classify` "
                "texts are formatted here, so give the reward model's tokenizer; otherwise leave it out."
            )
        if api == "interdistill" and max_length is not None:
            raise ValueError(
                f"`max_length` is {max_length}, but with `api={api!r}` the server makes the tokens, and its own "
                "`--max_length` holds. Leave it out."
            )
        self.servers = ModelServers(
            url, api_key=token, timeout=timeout, retries=retries, backoff=backoff, key_variable=APIS[api].key_variable
        )
        if isinstance(tokenizer, str):
            with loading(tokenizer, "tokenizer"):
                tokenizer = load_tokenizer(tokenizer)
        super().__init__(tokenizer, batch_size, max_length, None if api == "classify" else RowFormatter())
        require_positive("max_in_flight", max_in_flight)
        self.api, self.model, self.max_in_flight = api, model, max_in_flight
        # TRL reads the name of a reward function to label its logs.
        self.__name__ = (model or urlsplit(as_urls(url)[0]).netloc).rstrip("/").rpartition("/")[2]
        self._served: ServedModel | None = None  # once it is checked

    @classmethod
    def for_job(
        cls,
        url: str | Sequence[str],
        *,
        api: str,
        model: str,
        tokenizer: str | None,
        batch_size: int,
        timeout: float,
        max_length: int | None = None,
    ) -> RemoteRewardScorer:
        """The scorer of a command's options, checked; `tokenizer` is by default that of the model's name."""
        scorer = cls(
            url,
            api=api,
            model=model,
            tokenizer=tokenizer or (model if api == "classify" else None),
            batch_size=batch_size,
            max_in_flight=_JOB_IN_FLIGHT,
            timeout=timeout,
            max_length=max_length,
        )
        scorer.check()
        return scorer

    def check(self) -> None:
        """Compare the server with this scorer: its kind, the model's name and, with `classify`, the vocabulary. Once,
        and again where servers were left out, which may be back. Of several servers, those that cannot be used or have
        another model than the first are left out.

        Raises:
            ValueError: they do not match. ServerError: the server cannot be reached, or refuses the token.
        """
        self._checked()

    @property
    def served_name(self) -> str:
        """The name that the model is served by; the server is asked once (see `check`)."""
        return self._checked().name

    def told(self) -> dict[str, Any]:
        """What rewards depend on, for the settings of a job; one warning of a server that does not tell its weights.

        Raises:
            ValueError, ServerError: see `check`.
        """
        served = self._checked()
        if served.digest is None:
            warn_of_unknown_weights(served.name, self.servers.names)
        formatting = {} if self.api != "classify" else {"tokenizer": digest_of_loaded_tokenizer(self.tokenizer)}
        return {"api": self.api, "root": served.root, "digest": served.digest, **formatting}

    def _checked(self) -> ServedModel:
        if self._served is None or self.servers.is_due:
            self._served = run(self._check())
        return self._served

    async def _check(self) -> ServedModel:
        async with self.servers.connected():
            return (await self.servers.examine(self._examine, _difference))[0][0]

    async def _examine(self, server: ModelServer) -> tuple[ServedModel, float]:
        """What a server says of the model and, where there are several, its reward of a test text; else 0."""
        served = await find_served_model(server, self.model)
        if self.api == "classify":
            await check_vocabulary(server, served.name, self.tokenizer)
        elif served.owner != OWNER:
            raise ValueError(
                f"`api` is {self.api!r}, but {server.url} is a server of {served.owner or 'another kind'}. "
                "Give the address of `interdistill serve`, or set `api` to 'classify' (`reward_api: classify` in "
                "jobs) with the model's tokenizer, for vLLM."
            )
        if len(self.servers.all) == 1:
            return served, 0.0
        rewards, _ = await self._ask(server, [self.encode(None, PROBE, {})], served.name)
        return served, rewards[0]

    def score_ids(self, rows: Sequence[Any], *, is_progress_shown: bool = False) -> list[float]:
        """Rewards of rows as `encode` makes them: with `classify` token ids, otherwise what the server is sent.

        Raises:
            ValueError, ServerError: see the class.
        """
        served = self._checked()
        if self.api == "classify":
            rows = [self._up_to_scored(row) for row in rows]
            longest = max(map(len, rows), default=0)
            if served.max_length is not None and longest > served.max_length:
                number = next(number for number, row in enumerate(rows) if len(row) > served.max_length)
                raise ValueError(
                    f"Row {number}: A text has {len(rows[number])} tokens, more than the server's limit "
                    f"(`--max-model-len`) of "
                    f"{served.max_length}. Raise it, or leave such texts out."
                )
        starts = range(0, len(rows), self.batch_size)
        with tqdm(total=len(rows), desc="Scoring", disable=not is_progress_shown) as progress:
            answers = run(self._ask_all(rows, starts, served.name, progress))
        self.last_token_counts = [count for _, counts in answers for count in counts]
        self.last_forward_passes = len(starts)
        return [reward for rewards, _ in answers for reward in rewards]

    def _up_to_scored(self, row: Sequence[int]) -> list[int]:
        """Tokens up to the one that is scored: transformers takes the last that is not padding, a server the last."""
        ids = list(row)
        while len(ids) > 1 and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        return ids

    async def _ask_all(self, rows: Sequence[Any], starts: Sequence[int], name: str, progress: tqdm) -> list[Rewards]:
        """Rewards and token counts of each request."""
        answered: list[float | None] = [None] * len(rows)
        places = asyncio.Semaphore(self.max_in_flight * max(1, len(self.servers.left)))

        async def ask(start: int) -> Rewards:
            chunk = rows[start : start + self.batch_size]
            async with places:
                try:
                    found = await self.servers.call(lambda server: self._ask(server, chunk, name))
                except RequestRefusedError as error:
                    raise _with_row_of_call(error, start) from error
            progress.update(len(chunk))
            answered[start : start + len(chunk)] = found[0]
            return found

        try:
            async with self.servers.connected():
                return await asyncio.gather(*map(ask, starts))
        except ServerError as error:
            error.rewards = answered
            raise

    async def _ask(self, server: ModelServer, rows: Sequence[Any], name: str) -> Rewards:
        api = APIS[self.api]
        answer = await server.post(api.path, api.body(rows, name))
        try:
            rewards, counts = api.read(answer, rows)
        except ValueError as error:
            raise BadAnswerError(f"The server {server.url} gave no rewards: {error}") from error
        if not all(isinstance(reward, int | float) and math.isfinite(reward) for reward in rewards):
            raise ValueError(
                f"The server {server.url} answered {len(rows)} rows with {answer!s:.200}, but must give a finite "
                "number for each. Is the model broken, or does it need another dtype?"
            )
        return [float(reward) for reward in rewards], counts


def _with_row_of_call(error: RequestRefusedError, start: int) -> RequestRefusedError:
    """A refusal of a request whose first row is row `start` of a call, with the number that a row has there."""
    found = re.match(r"Row (\d+): ", error.reason)
    if found is None:
        message = f"A request of the rows from {start} on failed: {error}" if start else str(error)
    else:
        message = f"Row {start + int(found[1])}: {str(error).replace(found[0], '', 1)}"
    return type(error)(message, error.status, error.reason)


def _difference(wanted: tuple[ServedModel, float], found: tuple[ServedModel, float], url: str) -> str | None:
    """What a server does otherwise than the one at `url`, or `None`."""
    if found[0] != wanted[0]:
        return f"serves {found[0]}, and {url} {wanted[0]}"
    if abs(found[1] - wanted[1]) > _ALIKE * max(1.0, abs(wanted[1])):
        return f"gives a test text the reward {found[1]:g}, and {url} {wanted[1]:g}"
    return None
