"""Order in which training examples are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices


class SimilarLengths(torch.utils.data.Sampler):
    """Batches of examples of similar length, in random order: less padding.

    Its order depends only on seed and epoch, so a resumed run has the batches of an uninterrupted one. (Batches of
    transformers' `LengthGroupedSampler` run from long to short, in an order of the global random state.)

    Args:
        lengths: of each example, in tokens.
        args: of the trainer: batch size of one optimizer step over all processes, and seed.
    """

    def __init__(self, lengths: Sequence[int], args: TrainingArguments):
        self.lengths, self.epoch = list(lengths), 0
        self.batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.seed = args.seed if args.data_seed is None else args.data_seed

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        indices = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        whole = len(batches) - (len(batches[-1]) < self.batch_size)  # a short batch stays last
        order = [*torch.randperm(whole, generator=generator).tolist(), *range(whole, len(batches))]
        return (index for batch in order for index in batches[batch])
