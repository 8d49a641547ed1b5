"""The reward model of a command: loaded here, or on a server."""

from __future__ import annotations

from typing import Any

from ..scoring.opening import open_scorer
from ..scoring.remote import RemoteRewardScorer
from ..scoring.reward_apis import refuse_unused_of_reward_server
from ..scoring.text_scorer import TextScorer
from ..utils.devices import find_device
from ..utils.fields import refuse_unused

_HERE = "a model that is loaded here"


def refuse_unused_of_scorers(args: Any) -> None:
    """Raise `ValueError` for arguments on loading a model that is served, or on a server where there is none."""
    is_served = args.reward_server is not None
    here = dict.fromkeys(("device", "revision", "dtype", "attn_implementation"), (not is_served, _HERE))
    refuse_unused(args, {**here, "server_timeout": (is_served, "`reward_server`")})
    refuse_unused_of_reward_server(args)


def load_scorer(args: Any, model: str, server: Any, tokenizer: str | None) -> TextScorer:
    """The scorer of a model.

    Args:
        args: `batch_size`, `max_length`, `reward_api`, `server_timeout`, and how to load a model.
        model: name or folder (of an ensemble too), or the name that it is served by.
        server: addresses of its servers, if it has any; see `as_urls`.
        tokenizer: of a served model; by default `model`.
    """
    sizes = {"batch_size": args.batch_size, "max_length": args.max_length}
    if server is not None:
        return RemoteRewardScorer.for_job(
            server, api=args.reward_api, model=model, tokenizer=tokenizer, timeout=args.server_timeout, **sizes
        )
    scorer = open_scorer(
        model, **sizes, revision=args.revision, dtype=args.dtype, attn_implementation=args.attn_implementation
    )
    return scorer.to(find_device(args.device))
