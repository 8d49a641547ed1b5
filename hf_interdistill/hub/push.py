"""Uploads a reward model to the Hub, in one commit, with errors that say what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import TypeVar

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from .. import __version__
from ..utils.privacy import redact
from .files import HubFile

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

ATTEMPTS, WAIT_SECONDS = 3, 2.0
_TRANSIENT = (408, 409, 429, 500, 502, 503, 504)
# Left by an earlier push, these would be loaded instead of (or into) what comes now; pickles should not be there.
_SUPERSEDED = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "adapter_config.json", "chat_template.jinja"),
    *("special_tokens_map.json", "added_tokens.json", "maps.png"),
    *("additional_chat_templates/*.jinja", "reward_attributes.json"),
    *("pytorch_model*.bin", "adapter_model.bin", "training_args.bin"),
)
_ADVICE = {
    401: "The Hub refused the token. Make one with write access (https://huggingface.co/settings/tokens), then "
    "`hf auth login` or set HF_TOKEN.",
    403: "The token has no write access there. Choose a namespace of your own, or a token with write access.",
    404: "There is no such repository or revision that this token can see. Check the name, and the token's rights.",
}


class HubPushError(OSError):
    """The Hub did not accept the model; the message says why and what to do."""


def push_files(
    files: Sequence[HubFile],
    repo_id: str,
    *,
    token: str | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload reward model",
    superseded: Sequence[str] = _SUPERSEDED,
) -> CommitInfo:
    """Upload files in one commit, so that a repository never has half a model; create it if it does not exist.

    What the Hub already has is not sent again, so an upload that failed, or whose process was killed, resumes when it
    is run again. Files of an earlier push that this one does not have are deleted, where they are `superseded`.

    Args:
        files: see `stage_model`.
        repo_id: repository, with or without the namespace (then that of the token).
        token: access token; by default that of `HF_TOKEN` or `hf auth login`.
        private: make the repository private.
        revision: branch to commit to, made from `main` if it is not there.
        commit_message: first line of the commit.
        superseded: patterns of paths; by default weights, tokenizer files and heads of attributes.

    Raises:
        HubPushError: no token, a refused one, no right to write; a public repository where a private one was asked
            for; an upload that failed several times; no connection. The message has no token.
    """
    repo_id = prepare_repository(repo_id, token=token, private=private)
    api = _api(token)

    def commit() -> CommitInfo:
        if revision not in (None, "main") and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        # Made again in each attempt: the operations remember what the Hub had when they were made.
        operations: list = [CommitOperationAdd(file.path_in_repo, file.source) for file in files]
        operations += [CommitOperationDelete(path) for path in _superseded(api, repo_id, revision, files, superseded)]
        return api.create_commit(repo_id, operations, commit_message=commit_message, revision=revision)

    return _with_retries(commit, repo_id, token)


def prepare_repository(repo_id: str, *, token: str | None, private: bool) -> str:
    """Make a repository if it is not there; returns its full name.

    Raises:
        HubPushError: see `push_files`.
    """
    if not (token or get_token()):
        raise HubPushError(
            f"Pushing to {repo_id} needs an access token, and there is none. Make one with write access "
            "(https://huggingface.co/settings/tokens), then `hf auth login` or set HF_TOKEN."
        )
    api = _api(token)

    def create() -> str:
        name = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise HubPushError(
                f"{name} was to be private, but it exists and is public: the model would be open to all. Make it "
                "private in its settings, choose another name, or push without `--private`."
            )
        return name

    return _with_retries(create, repo_id, token)


def _api(token: str | None) -> HfApi:
    return HfApi(token=token, library_name="hf_interdistill", library_version=__version__)


def _superseded(
    api: HfApi, repo_id: str, revision: str | None, files: Sequence[HubFile], patterns: Sequence[str]
) -> list[str]:
    present, staged = api.list_repo_files(repo_id, revision=revision), {file.path_in_repo for file in files}
    paths = [
        path
        for path in present
        if path not in staged
        and any(fnmatch(path, pattern) and path.count("/") == pattern.count("/") for pattern in patterns)
    ]
    if paths:
        logger.warning(f"Deleting what an earlier push left in {repo_id}: {', '.join(paths)}.")
    return paths


def _with_retries(action: Callable[[], Result], repo_id: str, token: str | None) -> Result:
    """Call the Hub; transient errors are retried (the client itself retries uploads of weights)."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (HTTPError, OfflineModeIsEnabled, RuntimeError) as error:
            status = _status(error)
            is_transient = not isinstance(error, OfflineModeIsEnabled | RuntimeError) and status in (None, *_TRANSIENT)
            if not is_transient or attempt == ATTEMPTS:
                raise HubPushError(redact(_error_message(error, status, repo_id), token or get_token())) from None
            logger.warning(f"The Hub gave no valid answer ({_reason(status)}); attempt {attempt + 1} follows.")
            time.sleep(WAIT_SECONDS * attempt)
    raise AssertionError("unreachable")


def _status(error: BaseException | None) -> int | None:
    """HTTP status of an error or of what caused it, `None` if there was no answer."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code
        error = error.__cause__
    return None


def _reason(status: int | None) -> str:
    return "the connection broke" if status is None else f"status {status}"


def _error_message(error: BaseException, status: int | None, repo_id: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return f"Pushing to {repo_id} needs the Hub, but HF_HUB_OFFLINE is set. Unset it."
    said = getattr(error, "server_message", None) or (f"{error}: {error.__cause__}" if error.__cause__ else str(error))
    if status in _ADVICE:
        return f"Pushing to {repo_id} failed (status {status}). {_ADVICE[status]} The Hub said: {said}"
    if status is None or status in _TRANSIENT:
        return (
            f"The upload to {repo_id} failed ({_reason(status)}). Run the same command again: what "
            f"has arrived is not sent again. The last error was: {said}"
        )
    return f"Pushing to {repo_id} failed (status {status}). The Hub said: {said}"
