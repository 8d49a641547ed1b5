"""The two server APIs for rewards: the rows of a request, and the values of its answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..utils.fields import nearest_name, refuse_unused
from ..utils.servers import INTERDISTILL_KEY, VLLM_KEY
from .formatting import RewardFormatter, Text
from .serving import read_answer

Rewards = tuple[list[Any], list[int]]  # values, and how many tokens each text has
_COLUMNS = {
    "prompt": "prompts",
    "completion": "completions",
    "tools": "tools",
    "chat_template_kwargs": "chat_template_kwargs",
}


class ClassifyApi:
    """vLLM's `/classify`, with token ids."""

    key_variable = VLLM_KEY
    path = "/classify"

    def body(self, rows: Sequence[Any], model: str) -> dict[str, Any]:
        return {"model": model, "input": list(rows), "use_activation": False}

    def read(self, answer: Any, rows: Sequence[Any]) -> Rewards:
        """Values of an answer; `ValueError` if there is not one for each row."""
        try:
            return read_answer(answer, "classify", len(rows)), [len(row) for row in rows]
        except TypeError as error:
            raise ValueError(f"{answer!s:.200} holds no rewards ({error}).") from error


class InterdistillApi:
    """`/score` of `interdistill serve`, which formats the texts."""

    key_variable = INTERDISTILL_KEY
    path = "/score"

    def body(self, rows: Sequence[Any], model: str) -> dict[str, Any]:
        used = [key for key in _COLUMNS if any(row[key] is not None for row in rows)]
        return {"model": model, **{_COLUMNS[key]: [row[key] for row in rows] for key in used}}

    def read(self, answer: Any, rows: Sequence[Any]) -> Rewards:
        """Values of an answer; `ValueError` if there is not one for each row."""
        rewards, counts = (answer.get("rewards"), answer.get("tokens")) if isinstance(answer, dict) else (None, None)
        if not isinstance(rewards, list) or len(rewards) != len(rows):
            raise ValueError(f"{len(rows)} rows were sent, and {answer!s:.200} came back, without a reward for each.")
        return rewards, counts if isinstance(counts, list) and len(counts) == len(rows) else [0] * len(rows)


class RowFormatter:
    """Stands for a `RewardFormatter` where the server formats the texts: its rows are what `/score` takes."""

    def check(self, prompt: Text | None, completion: Text) -> None:
        """See `RewardFormatter.check`; the server checks the roles."""
        RewardFormatter(None).check(prompt, completion)

    def spells_control_token(self, messages: Sequence[dict[str, Any]]) -> bool:
        """The server warns of them."""
        return False

    def encode(self, prompt: Text | None, completion: Text, **chat_template_kwargs: Any) -> dict[str, Any]:
        """The row of a text."""
        self.check(prompt, completion)
        tools = chat_template_kwargs.pop("tools", None)
        row = {"prompt": prompt, "completion": completion, "tools": tools}
        return {**row, "chat_template_kwargs": chat_template_kwargs or None}


APIS: dict[str, ClassifyApi | InterdistillApi] = {"interdistill": InterdistillApi(), "classify": ClassifyApi()}


def check_api(name: str, value: Any) -> None:
    """Raise `ValueError` for a setting that names no API."""
    if value not in APIS:
        raise ValueError(
            f"`{name}` is {value!r}, but must be one of {', '.join(APIS)}. Did you mean "
            f"{nearest_name(value, APIS, cutoff=0.0)!r}?"
        )


def tokenizer_of_served(config: Any, model: str | None) -> str | None:
    """The tokenizer that texts for a served reward model are read with here; `None` where the server reads them.

    Args:
        config: `reward_server`, `reward_api`, `reward_tokenizer`. model: the name that it is served by.
    """
    is_read_here = config.reward_server is not None and config.reward_api == "classify"
    return (config.reward_tokenizer or model) if is_read_here else None


def refuse_unused_of_reward_server(settings: Any, *, needs: tuple[bool, str] | None = None) -> None:
    """Check `reward_server`, `reward_api` and `reward_tokenizer` of a job's settings.

    Args:
        needs: in a job that may have no reward model, whether it has one, and what it needs for that.

    Raises:
        ValueError: an unknown API, or a setting that changes nothing.
    """
    check_api("reward_api", settings.reward_api)
    is_served = settings.reward_server is not None
    is_tokenized_here = is_served and settings.reward_api == "classify"
    refuse_unused(
        settings,
        {
            **({} if needs is None else {"reward_server": needs}),
            "reward_api": (is_served, "`reward_server`"),
            "reward_tokenizer": (is_tokenized_here, "`reward_server` and `reward_api: classify`"),
        },
    )
