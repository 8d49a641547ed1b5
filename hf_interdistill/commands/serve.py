"""`interdistill serve`: the rewards of a model over HTTP."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ..scoring.opening import open_scorer, require_reward_model
from ..utils.devices import find_device
from ..utils.dtypes import check_dtype
from ..utils.fields import require_above_zero, require_positive
from ..utils.privacy import public_name
from ..utils.servers import INTERDISTILL_KEY, is_loopback
from ..utils.sources import require_file


@dataclass
class ServeArguments:
    """What to serve, and where. A token that clients must send is read from `token_file` or `INTERDISTILL_TOKEN`.

    Args:
        model: reward model, adapter or ensemble, folder or Hub name.
        host: address to listen at; by default this machine alone can reach it.
        port: port to listen at; 0 for any that is free.
        token_file: file with the token, which clients send as `Authorization: Bearer TOKEN`.
        allow_no_token: let other machines in without a token.
        served_model_name: name of the model in requests and answers; by default `model`.
        batch_size: completions per forward pass.
        max_batch_tokens: tokens per forward pass, with padding.
        max_length: longest text in tokens, at most `max_batch_tokens`; a longer one is an error.
        max_queue: texts that may wait; a request beyond is refused (503).
        max_wait_ms: how long the first text waits for others, in milliseconds.
        timeout: seconds until a request times out (504).
        max_body_mb: largest request in MiB.
        device: where to run (`cpu`, `cuda`, ...); by default a GPU if there is one.
        revision, dtype, attn_implementation: how to load the model.
    """

    model: str = field(metadata={"help": "Reward model, adapter or ensemble: folder or Hub name."})
    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen at; default: this machine alone."})
    port: int = field(default=8000, metadata={"help": "Port to listen at; 0 for any that is free."})
    token_file: str | None = field(
        default=None, metadata={"help": f"File with the token that clients must send; default: ${INTERDISTILL_KEY}."}
    )
    allow_no_token: bool = field(default=False, metadata={"help": "Let other machines in without a token."})
    served_model_name: str | None = field(default=None, metadata={"help": "Name of the model; default: `model`."})
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    max_batch_tokens: int = field(default=16384, metadata={"help": "Tokens per forward pass, with padding."})
    max_length: int | None = field(default=None, metadata={"help": "Longest text in tokens."})
    max_queue: int = field(default=4096, metadata={"help": "Texts that may wait; more are refused (503)."})
    max_wait_ms: float = field(default=5.0, metadata={"help": "Milliseconds that a first text waits for others."})
    timeout: float = field(default=120.0, metadata={"help": "Seconds until a request is given up (504)."})
    max_body_mb: float = field(default=8.0, metadata={"help": "Largest request in MiB."})
    device: str | None = field(default=None, metadata={"help": "Where to run; default: a GPU if there is one."})
    revision: str | None = field(default=None, metadata={"help": "Revision of the model."})
    dtype: str = field(default="float32", metadata={"help": "Data type to load the model in."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention implementation."})


ARGUMENTS = (ServeArguments,)


def run(args: ServeArguments) -> None:
    """Load the model and serve it until SIGINT or SIGTERM."""
    try:
        from ..serving.app import Limits, RewardApp
        from ..serving.running import bind, url_of
        from ..serving.running import run as run_server
    except ModuleNotFoundError as error:
        raise ImportError(
            f"`interdistill serve` needs {error.name}. Install the extra, in a clone of this package: "
            "pip install -e '.[serve]'."
        ) from None
    for name in ("batch_size", "max_batch_tokens", "max_queue"):
        require_positive(name, getattr(args, name))
    for name in ("timeout", "max_body_mb"):
        require_above_zero(name, getattr(args, name))
    require_positive("max_length", args.max_length, is_optional=True)
    if args.max_wait_ms < 0 or not 0 <= args.port < 2**16:
        raise ValueError(
            f"`max_wait_ms` is {args.max_wait_ms} and `port` {args.port}, but a time is 0 or more, and a port 0 to "
            "65535. Correct them."
        )
    if args.max_length is not None and args.max_length > args.max_batch_tokens:
        raise ValueError(
            f"`max_length` is {args.max_length}, but a forward pass takes `max_batch_tokens` {args.max_batch_tokens}. "
            "Raise `max_batch_tokens`, or lower `max_length`."
        )
    token = _read_token(args)
    if token is None and not is_loopback(args.host) and not args.allow_no_token:
        raise ValueError(
            f"`host` is {args.host!r}, which other machines can reach, and no token is set. Set `token_file` or "
            f"{INTERDISTILL_KEY}, or `allow_no_token: true` in a network that you trust."
        )
    check_dtype("dtype", args.dtype)
    require_reward_model(args.model, revision=args.revision)
    device = find_device(args.device)
    with bind(args.host, args.port) as bound:
        scorer = open_scorer(
            args.model,
            batch_size=args.batch_size,
            max_length=args.max_length,
            revision=args.revision,
            dtype=args.dtype,
            attn_implementation=args.attn_implementation,
        ).to(device)
        limits = Limits(
            max_batch_tokens=args.max_batch_tokens,
            max_queue=args.max_queue,
            max_wait=args.max_wait_ms / 1000,
            timeout=args.timeout,
            max_body=int(args.max_body_mb * 2**20),
        )
        app = RewardApp(scorer, args.served_model_name or args.model, token=token, limits=limits)
        print(f"Serving {public_name(args.model)} at {url_of(bound)} (Ctrl-C stops).", flush=True)
        run_server(app, bound)
    print("Stopped.")


def _read_token(args: ServeArguments) -> str | None:
    if args.token_file is not None:
        token = require_file("token_file", args.token_file).read_text(encoding="utf-8").strip()
        source = args.token_file
    else:
        token, source = os.environ.get(INTERDISTILL_KEY, "").strip(), INTERDISTILL_KEY
        if INTERDISTILL_KEY not in os.environ:
            return None
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise ValueError(
            f"The token in {source} has {len(token)} characters, but must be one word of ASCII. Write another, for "
            "example that of `python -c 'import secrets; print(secrets.token_urlsafe())'`."
        )
    return token
