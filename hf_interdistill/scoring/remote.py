"""`RemoteRewardScorer`: the rewards of a server, with the calls of `RewardScorer`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ..utils.fields import require_above_zero, require_positive
from ..utils.sources import load_tokenizer
from .checks import as_list, check_same_length
from .formatting import RewardFormatter, Text, normal_text
from .normal_form import normal_value
from .serving import TextReader, read_answer, request_body, serving_text

APIS = ("interdistill", "classify")
_COLUMNS = ("tools", "chat_template_kwargs")
_BUSY = (429, 502, 503, 504)  # another try may succeed
_LONGEST_WAIT = 30.0  # seconds between two tries


class RemoteRewardScorer:
    """Scores `(prompt, completion)` pairs on a server: `scorer(prompts, completions) -> list[float]`.

    It is a TRL reward function (`reward_funcs=[RemoteRewardScorer(url)]`). Nothing of the model is loaded here.

    Args:
        url: of the server, such as `http://127.0.0.1:8000`.
        api: `interdistill` for `interdistill serve`, which formats the texts; `classify` for vLLM's `/classify`, to
            which token ids are sent.
        tokenizer: only with `classify`, where it is needed: the reward model's, or its folder or Hub name.
        token: sent as `Authorization: Bearer`.
        model: name of the model, where the server checks it.
        batch_size: rows per request.
        max_in_flight: requests at the same time.
        timeout: seconds to wait for an answer.
        retries: further tries where the server is busy, stops or cannot be reached; the time between them doubles.

    Raises:
        ValueError: rows that the server refuses, or an answer that is not one number per row; lists of different
            lengths.
        TypeError: a text or a mapping in place of a list of rows.
        PermissionError: the token is missing or wrong.
        ConnectionError: no answer after all tries, or a failure of the server.
    """

    def __init__(
        self,
        url: str,
        *,
        api: str = "interdistill",
        tokenizer: Any = None,
        token: str | None = None,
        model: str | None = None,
        batch_size: int = 64,
        max_in_flight: int = 4,
        timeout: float = 300.0,
        retries: int = 5,
    ):
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise ValueError(f"`url` is {url!r}, but must be that of a server, such as 'http://127.0.0.1:8000'.")
        if api not in APIS:
            raise ValueError(f"`api` is {api!r}, but must be one of {', '.join(APIS)}.")
        if (tokenizer is None) == (api == "classify"):
            raise ValueError(
                f"`api` is {api!r} and `tokenizer` is {'missing' if tokenizer is None else 'given'}. With `classify` "
                "texts are formatted here, so give the reward model's tokenizer; otherwise leave it out."
            )
        require_positive("batch_size", batch_size)
        require_positive("max_in_flight", max_in_flight)
        require_above_zero("timeout", timeout)
        if retries < 0:
            raise ValueError(f"`retries` is {retries}, but must be 0 or more.")
        self.url, self.api, self.model = url.rstrip("/"), api, model
        self.batch_size, self.max_in_flight, self.timeout = batch_size, max_in_flight, timeout
        self._reader = None if tokenizer is None else _reader(tokenizer)
        # TRL reads the name of a reward function to label its logs.
        self.__name__ = (model or urlsplit(url).netloc).rstrip("/").rpartition("/")[2]
        self._session = requests.Session()
        self._session.trust_env = urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost")  # proxies, netrc
        retry = Retry(
            total=retries,
            status_forcelist=_BUSY,
            allowed_methods=["POST"],  # scoring again changes nothing
            backoff_factor=0.5,
            backoff_max=_LONGEST_WAIT,
            backoff_jitter=0.5,
            raise_on_status=False,
        )
        adapter = HTTPAdapter(max_retries=retry, pool_maxsize=max_in_flight)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def __call__(self, prompts: Iterable[Text | None], completions: Iterable[Text], **kwargs) -> list[float]:
        """Rewards of completions, in their order; arguments as of `RewardScorer`.

        Args:
            prompts: text or messages for each completion; `None` where the completion contains the whole exchange.
            completions: text or messages.
            **kwargs: `tools` and `chat_template_kwargs`, one entry per completion; other columns are ignored.
        """
        prompts, completions = as_list("prompts", prompts), as_list("completions", completions)
        check_same_length({"prompts": prompts, "completions": completions})
        columns = {name: as_list(name, kwargs[name]) for name in _COLUMNS if kwargs.get(name) is not None}
        for name, values in columns.items():
            check_same_length({"completions": completions, f"`{name}`": values})
        rows = [
            {"prompt": normal_text(prompt), "completion": normal_text(completion)}
            | {name: normal_value(values[number]) for name, values in columns.items()}
            for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        chunks = [(start, rows[start : start + self.batch_size]) for start in range(0, len(rows), self.batch_size)]
        if len(chunks) < 2:
            return [reward for chunk in chunks for reward in self._ask(*chunk)]
        with ThreadPoolExecutor(self.max_in_flight) as pool:
            return [reward for rewards in pool.map(lambda chunk: self._ask(*chunk), chunks) for reward in rewards]

    def _ask(self, start: int, rows: Sequence[dict[str, Any]]) -> list[float]:
        rewards: Any
        if self._reader is not None:
            texts = [serving_text(self._reader, row, "completion") for row in rows]
            answer = self._post("classify", request_body(texts, "classify", "tokens", self.model), start)
            rewards = read_answer(answer, "classify", len(rows))
        else:
            names = {"prompt": "prompts", "completion": "completions"} | {name: name for name in _COLUMNS}
            body: dict[str, Any] = {names[name]: [row[name] for row in rows] for name in rows[0]}
            answer = self._post("score", body if self.model is None else {**body, "model": self.model}, start)
            rewards = answer.get("rewards")
        if (
            not isinstance(rewards, list)
            or len(rewards) != len(rows)
            or not all(isinstance(reward, int | float) and math.isfinite(reward) for reward in rewards)
        ):
            raise ValueError(
                f"{self.url} answered {len(rows)} rows with {answer!s:.200}, but must give a finite number for each. "
                "Is it the server that `api` names?"
            )
        return [float(reward) for reward in rewards]

    def _post(self, endpoint: str, body: dict[str, Any], start: int) -> dict[str, Any]:
        url = f"{self.url}/{endpoint}"
        try:
            content = json.dumps(body, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"The rows cannot be sent as JSON: {error}. Give plain texts, lists and dicts.") from None
        try:
            response = self._session.post(
                url, data=content, headers={"Content-Type": "application/json"}, timeout=self.timeout
            )
        except requests.RequestException as error:
            raise ConnectionError(
                f"{url} gave no answer ({type(error).__name__}: {error!s:.200}). Is the server running there, and is "
                f"`timeout={self.timeout:g}` enough?"
            ) from error
        if response.status_code != 200:
            _raise(response, url, start)
        try:
            answer = response.json()
        except ValueError:
            answer = response.text
        if not isinstance(answer, dict):
            raise ValueError(f"{url} answered {answer!s:.200}, which is no JSON object. Is it a server of rewards?")
        return answer


def _reader(tokenizer: Any) -> TextReader:
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    return TextReader(tokenizer, RewardFormatter(tokenizer))


def _raise(response: requests.Response, url: str, start: int) -> None:
    try:
        detail = response.json()["error"]
        detail = detail["message"] if isinstance(detail, dict) else detail
    except (ValueError, KeyError, TypeError):
        detail = f"{response.text:.300}"
    status = response.status_code
    where = "" if start == 0 else f" (of the rows from {start} on)"
    message = f"{url} answered with status {status}{where}: {detail}"
    if status in (401, 403):
        raise PermissionError(message)
    if status in _BUSY or status >= 500:
        raise ConnectionError(message)
    raise ValueError(message)
