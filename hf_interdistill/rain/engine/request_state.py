"""One prompt in flight: its row in the cache, its nodes there, and the decode jobs started for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..kv_cache.copy_cache import CopyCache
from ..kv_cache.forward import CacheHandle, ForwardOutput
from ..kv_cache.tree_cache import TreeCache
from ..search.requests import Expansion
from ..search.tree import Candidate, Node
from .stopping import StopChecker

if TYPE_CHECKING:
    from .scheduler import DecodeJob

JobKey = tuple[tuple[int, ...], Expansion | None]  # generated tokens, and what follows them (`None`: a rollout)


@dataclass
class NodeState:
    """What is known of a node.

    Args:
        parent: the cached text that it follows. pending: its tokens that are not cached yet.
        output: of the forward pass over these tokens, once it was made. is_running: whether a job has asked for it.
    """

    parent: CacheHandle | None
    pending: tuple[int, ...]
    output: ForwardOutput | None = None
    is_running: bool = False

    @property
    def handle(self) -> CacheHandle | None:
        """The longest cached text that this node needs."""
        return self.output.handle if self.output else self.parent


@dataclass
class RequestState:
    """A prompt's state in the engine.

    Args:
        row: its row in the cache. rules: where its texts end. key: its random stream.
        nodes: states of nodes by the tokens from the origin to the node's end; some nodes are not in the tree yet.
        jobs: decode jobs that run or wait to be asked for, by what they decode.
    """

    row: int
    rules: StopChecker
    key: int
    nodes: dict[tuple[int, ...], NodeState] = field(default_factory=dict)
    jobs: dict[JobKey, DecodeJob] = field(default_factory=dict)

    def __post_init__(self):
        self.nodes[()] = NodeState(None, self.rules.prompt_ids)

    def register_candidates(
        self,
        generated: tuple[int, ...],
        candidates: Sequence[Candidate],
        outputs: dict[tuple[int, ...], ForwardOutput],
    ) -> None:
        """Note what each candidate follows in the cache, for the node that may be made of it.

        Args:
            generated: tokens of the node that was expanded. outputs: by the tokens after it.
        """
        for candidate in candidates:
            state = NodeState(outputs[candidate.tokens[:-1]].handle, candidate.tokens[-1:])
            self.nodes.setdefault((*generated, *candidate.tokens), state)

    def finished_rollouts(self) -> Iterator[tuple[int, ...]]:
        """All tokens of texts whose rollout is finished and was not asked for yet."""
        for job in self.jobs.values():
            if job.is_finished and job.expansion is None:
                yield (*job.generated, *job.result)

    def prune(self, cache: TreeCache | CopyCache, root: Node) -> None:
        """Keep the nodes at and below the root, and free the rest of the row; running jobs are dropped."""
        start = root.tokens_from_origin()
        finished = {key: job for key, job in self.jobs.items() if job.is_finished}
        for job in self.jobs.values():
            job.close()
        self.jobs = {key: job for key, job in finished.items() if key[0][: len(start)] == start}
        self.nodes = {tokens: state for tokens, state in self.nodes.items() if tokens[: len(start)] == start}
        cache.retain(self.row, [state.handle for state in self.nodes.values() if state.handle is not None])
