"""verl's custom reward function: asks `interdistill serve`. It needs nothing but Python.

    reward.custom_reward_function.path=recipes/serving/verl_reward.py

verl hands over the answer alone, so the prompt must be in the rows (`extra_info.prompt`): `verl_prompts.py` writes it.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

_BUSY = (429, 502, 503, 504)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    url: str | None = None,
    tries: int = 8,
    timeout: float = 120.0,
    **others: Any,
) -> float:
    """The reward of one answer.

    Args:
        data_source, ground_truth: verl's; not used.
        solution_str: the answer, decoded without special tokens.
        extra_info: of the row, with `prompt`: text or messages.
        url: of the server, by default that of `REWARD_URL`; its token, if it has one, is that of `INTERDISTILL_TOKEN`.
        tries: how often a busy server is asked; the wait between them doubles.
        timeout: seconds until a request is given up.
        others: what verl adds.

    Raises:
        KeyError: a row without its prompt. ValueError: a row that the server refuses. ConnectionError: no answer.
    """
    if not extra_info or "prompt" not in extra_info:
        raise KeyError("The row has no `extra_info.prompt`. Write the prompts with recipes/serving/verl_prompts.py.")
    url = url or os.environ.get("REWARD_URL", "http://127.0.0.1:8000")
    prompt = extra_info["prompt"]
    prompt = prompt if isinstance(prompt, str) else [dict(message) for message in prompt]
    body = json.dumps({"prompts": [prompt], "completions": [solution_str]}).encode()
    headers = {"Content-Type": "application/json"}
    if "INTERDISTILL_TOKEN" in os.environ:
        headers["Authorization"] = f"Bearer {os.environ['INTERDISTILL_TOKEN']}"
    request = urllib.request.Request(f"{url.rstrip('/')}/score", body, headers)
    for number in range(tries):
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return float(json.load(response)["rewards"][0])
        except urllib.error.HTTPError as error:
            said = f"{url} answered with status {error.code}: {error.read().decode(errors='replace')[:300]}"
            if error.code not in _BUSY:
                raise ValueError(said) from None
        except OSError as error:
            said = f"{url} gave no answer ({error})"
        if number + 1 < tries:
            time.sleep(min(0.5 * 2**number, 30.0))
    raise ConnectionError(f"{said}, after {tries} tries. Is `interdistill serve` running there?")
