"""Pairs of similar length in one batch: `train_sampling_strategy="group_by_length"`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from trl import RewardConfig, RewardTrainer

from ..training.sampling import SimilarLengths
from .data.rankings import OTHER_IDS


class LengthGrouping(RewardTrainer):
    """Trainer mixin that groups pairs by their tokens. transformers looks for `input_ids`, which preferences lack.

    Overrides `_get_train_sampler`, `_get_eval_sampler` and `_set_signature_columns_if_needed`.
    """

    args: RewardConfig

    def _get_train_sampler(self, train_dataset=None):
        if not is_grouped(self.args):
            return super()._get_train_sampler(train_dataset)
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SimilarLengths(rows[self.args.length_column_name], self.args)

    def _get_eval_sampler(self, eval_dataset):
        """The rows in their order: `predict` answers in it."""
        return None if is_grouped(self.args) else super()._get_eval_sampler(eval_dataset)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns or []
        name = self.args.length_column_name
        if is_grouped(self.args) and name not in columns:
            self._signature_columns = [*columns, name]  # type: ignore[assignment]  # declared as None


def is_grouped(args: RewardConfig) -> bool:
    """Whether pairs are grouped by length; transformers 5.1 has `group_by_length=True` for it."""
    return getattr(args, "train_sampling_strategy", "") == "group_by_length" or getattr(args, "group_by_length", False)


def check_grouping(dataset: Dataset | IterableDataset, args: RewardConfig) -> None:
    """Check that pairs can be grouped as the arguments say.

    Args:
        dataset: of training.

    Raises:
        ValueError: a stream; a column of lengths that are no whole numbers; `batch_rebalance`.
    """
    if getattr(args, "train_sampling_strategy", "") == "batch_rebalance":
        raise ValueError(
            "`train_sampling_strategy` is 'batch_rebalance', whose batches differ in size between processes, but "
            "`RewardTrainer` gathers rewards of batches of one size. Use 'group_by_length' or 'random'."
        )
    if not is_grouped(args):
        return
    if not isinstance(dataset, Dataset):
        raise ValueError(
            "`train_sampling_strategy` is 'group_by_length', but the training data are a stream, whose rows come in "
            "their own order. Use 'random', or a `Dataset`."
        )
    name = args.length_column_name
    if name in dataset.column_names and not all(isinstance(length, int) for length in dataset[name]):
        wrong = next(length for length in dataset[name] if not isinstance(length, int))
        raise ValueError(
            f"The column `{name}` holds {wrong!r}, but pairs are grouped by it, so it must hold the tokens of each "
            "pair as whole numbers. Rename it, or set `length_column_name` to a name that the data do not have: the "
            "tokens are then counted."
        )


def with_lengths(dataset: Any, args: RewardConfig) -> Any:
    """Add the tokens of all texts of each row, if pairs are grouped by them; a column of the user's is kept.

    Args:
        dataset: tokenized pairs to train on.
    """
    name = args.length_column_name
    if not is_grouped(args) or name in dataset.column_names:
        return dataset
    return dataset.map(_length, fn_kwargs={"name": name}, desc="Counting tokens", num_proc=args.dataset_num_proc)


def _length(row: Mapping[str, Any], name: str) -> dict[str, int]:
    others: Sequence[Sequence[int]] = row.get(OTHER_IDS) or ()
    return {name: len(row["chosen_ids"]) + len(row["rejected_ids"]) + sum(map(len, others))}
