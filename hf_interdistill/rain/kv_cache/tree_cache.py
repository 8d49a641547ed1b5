"""Keys and values of a search: each token of a tree is stored once.

`TreeCache` is one pool of slots for all prompts. A token's keys and values lie in one slot. A forward pass gathers the
slots that its texts attend to; a 4-D mask says which of them each token sees, and position ids count its depth.
Branching copies nothing, pruning frees slots, and prompts share the slots of a common prefix. That needs full
attention in every layer; `CopyCache` serves all other models.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicCache

from .batching import Batch, Branch, batch_rows, build_batch, plan_passes, visible_slots
from .cuda_graphs import CudaGraphs
from .forward import CacheHandle, ForwardCounter, ForwardInput, ForwardOutput, cache_argument
from .layers import AttentionMetadata, SlotLayer
from .slot_allocator import SlotAllocator

_SLOTS_WITH_GRAPHS = 2048  # at first, for each row up to four: all graphs are lost when the pool grows


class TreeCache(ForwardCounter):
    """A pool of slots under tree masks.

    Args:
        model: a causal LM with full attention in every layer, run with sdpa or eager attention.
        rows: prompts held at once.
        graphs: replays passes that fit; `None`: all passes are eager.
    """

    supports_mixed_lengths = True  # branches of all lengths run in one pass

    def __init__(self, model, rows: int, graphs: CudaGraphs | None = None):
        super().__init__()
        self.model = model
        self.rows = rows
        self.graphs = graphs
        self.slots = SlotAllocator(rows) if graphs is None else SlotAllocator(rows, _SLOTS_WITH_GRAPHS * min(rows, 4))
        self.layers = [SlotLayer() for _ in DynamicCache(config=model.config).layers]
        self.cache = Cache(layers=list(self.layers))
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.cache_argument = cache_argument(model)

    @property
    def num_tokens(self) -> int:
        """Tokens whose keys and values are held now; one that rows share counts once."""
        return self.slots.num_held

    def free_row(self, row: int) -> None:
        """Free all slots of a row."""
        self.slots.retain(row, set())

    def retain(self, row: int, handles: Iterable[CacheHandle]) -> None:
        """Free every slot of a row that no handle reaches."""
        kept: set[int] = set()
        for handle in handles:
            kept.update(handle.slots.tolist())
        self.slots.retain(row, kept)

    def truncate(self, handle: CacheHandle, keep: CacheHandle) -> None:
        """Free the slots of `handle` beyond those of its ancestor `keep`."""
        self.slots.free(handle.row, handle.slots[keep.length :].tolist())

    def forward(
        self, inputs: Sequence[ForwardInput], token_ids: torch.Tensor | None = None
    ) -> dict[ForwardInput, ForwardOutput]:
        """Run the model on all inputs in one forward pass; very long ones (new prompts) get a pass of their own.

        Args:
            inputs: the branches; one that follows another comes after it.
            token_ids: whose logits are wanted; `None` for the whole vocabulary.
        """
        branches = self._allocate(inputs)
        logits: dict[Branch, torch.Tensor] = {}
        for chosen in plan_passes(list(branches.values())):
            rows, values = [chosen], self._replay(chosen, token_ids)
            if values is None:
                rows = batch_rows(chosen, self.slots.capacity)
                values = self._run_eagerly(build_batch(rows, self.slots.capacity), max(map(len, rows)), token_ids)
            self.count_pass(chosen)
            for row, row_values in zip(rows, values, strict=True):
                logits.update(zip(row, row_values[len(row_values) - len(row) :], strict=True))
        return {
            each: ForwardOutput(self._handle(branch), len(branch.tokens), logits[branch])
            for each, branch in branches.items()
        }

    @staticmethod
    def _handle(branch: Branch) -> CacheHandle:
        return CacheHandle(branch.row, len(branch.slots), branch.slots)

    def _allocate(self, inputs: Sequence[ForwardInput]) -> dict[ForwardInput, Branch]:
        """Slots for the tokens of each input; a new text computes only what follows a cached prefix."""
        branches: dict[ForwardInput, Branch] = {}
        new: dict[int, Branch] = {}  # row -> the branch of this call that its text starts with
        for each in inputs:
            if each.parent is None:
                allocation = self.slots.allocate_sequence(each.row, each.tokens)
                owner = None if allocation.owner is None else new.get(allocation.owner)
                branch = Branch(each.row, each.tokens[allocation.num_shared :], allocation.slots, owner)
                new[each.row] = branch
            else:
                parent = branches[each.parent] if isinstance(each.parent, ForwardInput) else each.parent
                slots = np.concatenate([parent.slots, self.slots.allocate(each.row, len(each.tokens))])
                branch = Branch(each.row, each.tokens, slots, parent if isinstance(parent, Branch) else None)
            branches[each] = branch
        return branches

    def _replay(self, branches: Sequence[Branch], token_ids: torch.Tensor | None) -> torch.Tensor | None:
        """Logits of a pass by its CUDA graph, `(1, branches, logits)`; `None` where there is none."""
        capacity = self.slots.capacity
        if self.graphs is None or not all(layer.is_initialized for layer in self.layers):
            return None
        for layer in self.layers:
            layer.grow(capacity)
        num_tokens = sum(len(branch.tokens) for branch in branches)
        gathered = len(visible_slots(branches, capacity))
        shape = self.graphs.shape(self.model, self.layers, num_tokens, len(branches), gathered, token_ids)
        if shape is None:
            return None
        batch = build_batch([branches], capacity, shape.width, shape.gathered)
        logits = self.graphs.replay(self.model, shape, batch, capacity, self._forward)
        return None if logits is None else logits[:, -len(branches) :].to(torch.float32, copy=True)

    def _run_eagerly(self, batch: Batch, keep: int, token_ids: torch.Tensor | None) -> torch.Tensor:
        """Logits of the last `keep` tokens of each batch row, float32 `(rows, keep, logits)`."""
        ids, positions, slots, gather_slots, mask = (
            torch.from_numpy(values).to(self.model.device) for values in vars(batch).values()
        )
        metadata = AttentionMetadata(slots.flatten(), gather_slots, self.slots.capacity)
        return self._forward(ids, positions, mask, metadata, keep, token_ids).float()

    @torch.no_grad()
    def _forward(self, ids, positions, mask: torch.Tensor, metadata: AttentionMetadata, keep: int, token_ids):
        """Logits as in `_run_eagerly`, in the model's dtype; `mask` is boolean, and all is on the device."""
        for layer in self.layers:
            layer.metadata = metadata
        extra = {"logits_to_keep": keep} if self.keeps_logits else {}
        # An additive mask: sdpa would make one of a boolean mask in every layer.
        mask = torch.zeros(mask.shape, dtype=self.model.dtype, device=mask.device).masked_fill(
            ~mask, torch.finfo(self.model.dtype).min
        )
        logits = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            **{self.cache_argument: self.cache},
            **extra,
        ).logits[:, -keep:]
        return logits if token_ids is None else logits[..., token_ids.to(logits.device)]
