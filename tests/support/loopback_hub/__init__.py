"""A small Hub on this machine's loopback, for the real `huggingface_hub` client.

It speaks what `HfApi.create_repo`, `create_branch`, `create_commit` (plain files, and LFS in one part or several) and
`from_pretrained` speak, checks tokens and rights as the Hub does, and keeps everything in memory:

    with LoopbackHub({"hf_secret": "user"}) as hub:  # tokens and whose they are
        env = hub.environment("hf_secret", cache="somewhere")  # for a process that pushes or pulls
        ...
        hub.files("user/rm")  # path -> bytes

`faults` makes it fail on purpose. Xet, pull requests and repositories other than models are not spoken.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from .routes import Routes


@dataclass
class Fault:
    """Something that goes wrong at requests of a method whose path holds a text.

    Args:
        kind: `status` (answer with `status` and `message`), `drop` (read half of the body, then close the connection),
            `lost_reply` (do it, then close without an answer), `hang` (never answer; sets `LoopbackHub.is_hanging`).
        times: how often.
    """

    method: str
    path: str
    kind: str = "status"
    status: int = 500
    times: int = 1
    message: str = "This failure was asked for."


@dataclass
class Repository:
    """A repository: for each branch its commits, each an oid and files `path -> (is_lfs, content)`."""

    is_private: bool
    branches: dict[str, list[tuple[str, dict[str, tuple[bool, bytes]]]]] = field(default_factory=dict)


class LoopbackHub:
    """The server; see the module.

    Args:
        tokens: user names by token. A user may write to repositories under its own name.
        part_size: LFS objects that are larger are uploaded in parts of this many bytes.
    """

    def __init__(self, tokens: dict[str, str], part_size: int | None = None):
        self.tokens, self.part_size = tokens, part_size
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.parts: dict[str, dict[int, bytes]] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.is_hanging, self.is_closed, self.lock = threading.Event(), threading.Event(), threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Routes,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.is_closed.set()
        self.server.shutdown()
        self.server.server_close()

    def environment(self, token: str | None, cache: str | os.PathLike) -> dict[str, str]:
        """Environment of a process for which this is the Hub; LFS instead of Xet, nothing of the user's own login."""
        own = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
        own |= {"HF_ENDPOINT": self.url, "HF_HOME": str(cache), "HF_TOKEN_PATH": str(os.path.join(cache, "token"))}
        own |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        return own if token is None else {**own, "HF_TOKEN": token}

    def commits(self, repo_id: str, branch: str = "main") -> int:
        """How many commits a branch has, that of its creation among them."""
        return len(self.repositories[repo_id].branches[branch])

    def files(self, repo_id: str, branch: str = "main") -> dict[str, bytes]:
        """Contents by path, as they are now."""
        return {path: content for path, (_, content) in self.repositories[repo_id].branches[branch][-1][1].items()}

    def uploads(self) -> list[str]:
        """Paths of the LFS uploads asked for so far."""
        return [path for method, path in self.requests if method == "PUT"]

    def add_repository(self, repo_id: str, is_private: bool, start) -> None:
        self.repositories[repo_id] = Repository(is_private, {"main": [start]})

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and fault.path in path:
                    fault.times -= 1
                    return fault
        return None
