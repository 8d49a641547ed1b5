"""The one place that reads rows of more than two ranked responses: `prompt`, `completions`, `ranks`.

Such a row becomes a pair of its best and its worst response, with the other responses in columns of their own.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import torch
from datasets import Dataset, Features, Value
from datasets import List as ListFeature
from trl.data_utils import get_dataset_column_names

from ...scoring.formatting import RewardFormatter, normal_text, template_kwargs
from .labels import LABEL_COLUMNS

COMPLETIONS, RANKS, OTHER_IDS = "completions", "ranks", "other_ids"
RANKING_COLUMNS = (RANKS, OTHER_IDS)


def is_ranked(columns: Container[str]) -> bool:
    """Whether a dataset has rows of ranked responses."""
    return COMPLETIONS in columns and RANKS in columns


def check_ranking_columns(columns: Collection[str], where: str) -> None:
    """Raise `ValueError` for a dataset of ranked responses without prompts, or with columns of pairs."""
    if "prompt" not in columns:
        raise ValueError(f"{where} has `{COMPLETIONS}` and `{RANKS}`, but no column `prompt`. Add it.")
    wrong = [column for column in ("chosen", "rejected", *LABEL_COLUMNS) if column in columns]
    if wrong:
        raise ValueError(
            f"{where} has `{COMPLETIONS}` and `{RANKS}`, and also `{wrong[0]}`, which is a column of pairs. Remove "
            "one or the other."
        )


def check_ranking_options(args: Any) -> None:
    """Raise `ValueError` for options of pairs, which change nothing in the loss of ranked responses."""
    for name, default in (("label_smoothing_factor", 0), ("tie_model", "none"), ("agreement_margin", 0)):
        value = getattr(args, name)
        if value != default:
            raise ValueError(
                f"`{name}` is {value!r}, but the train dataset has ranked responses (`{COMPLETIONS}`, `{RANKS}`), and "
                "their loss (Plackett-Luce) has no such option. Leave it out, or make pairs of the rows."
            )


class RankingReader:
    """Turns a row of ranked responses into a pair of the best and the worst, with the others tokenized.

    Args:
        tokenizer: the student's.

    Returns of a call: `chosen`, `rejected`; `ranks`, those of chosen, rejected and the others; `other_ids`, the token
    ids of prompt and response for each of the others, in the order of their ranks.

    Raises:
        ValueError: fewer than two responses; as many ranks as responses are not there, or one is not a finite number;
            equal ranks throughout; a response that cannot be read. The message names the row.
    """

    def __init__(self, tokenizer):
        self.formatter = RewardFormatter(tokenizer)

    def __call__(self, row: Mapping[str, Any], index: int) -> dict[str, Any]:
        try:
            return self._read(row)
        except ValueError as error:
            raise ValueError(f"Row {index}: {error}") from None

    def _read(self, row: Mapping[str, Any]) -> dict[str, Any]:
        completions, ranks = row[COMPLETIONS], row[RANKS]
        _check_ranking(completions, ranks)
        best, *others, worst = _order(ranks)
        prompt, kwargs = normal_text(row["prompt"]), {} if isinstance(completions[0], str) else template_kwargs(row)
        texts = [normal_text(completions[number]) for number in others]
        return {
            "chosen": completions[best],
            "rejected": completions[worst],
            RANKS: [float(ranks[number]) for number in (best, worst, *others)],
            OTHER_IDS: [self.formatter.encode(prompt, text, **kwargs) for text in texts],
        }


def best_and_worst(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row of ranked responses as the pair of its best and its worst; any other row as it is.

    Raises:
        ValueError: as `RankingReader`, without the number of the row.
    """
    if not is_ranked(row):
        return row
    _check_ranking(row[COMPLETIONS], row[RANKS])
    best, *_, worst = _order(row[RANKS])
    kept = {name: value for name, value in row.items() if name not in (COMPLETIONS, RANKS)}
    return {**kept, "chosen": row[COMPLETIONS][best], "rejected": row[COMPLETIONS][worst]}


def _order(ranks: Sequence[float]) -> list[int]:
    """Numbers of the responses from best to worst; equal ranks stay in their order."""
    return sorted(range(len(ranks)), key=lambda number: ranks[number])


def _check_ranking(completions: Any, ranks: Any) -> None:
    if not isinstance(completions, list) or not isinstance(ranks, list) or len(completions) != len(ranks):
        sizes = [len(each) if isinstance(each, list) else repr(each) for each in (completions, ranks)]
        raise ValueError(
            f"`{COMPLETIONS}` and `{RANKS}` have {sizes[0]} and {sizes[1]} entries, but must be lists with one rank "
            "for each response."
        )
    if len(ranks) < 2:
        raise ValueError(f"`{RANKS}` is {ranks}, but at least two responses are needed. Remove the row.")
    for rank in ranks:
        if not isinstance(rank, numbers.Real) or not math.isfinite(rank):
            raise ValueError(
                f"`{RANKS}` is {ranks}, but each must be a finite number, the lowest for the best response."
            )
    if len(set(ranks)) == 1:
        raise ValueError(f"`{RANKS}` is {ranks}: no response is better than another. Remove the row.")


def read_rankings(dataset, tokenizer, *, name: str, num_proc: int | None):
    """A dataset or stream of ranked responses in the form that `RankingReader` gives; any other as it is."""
    columns = get_dataset_column_names(dataset)
    if not is_ranked(columns):
        return dataset
    check_ranking_columns(columns, f"The {name} dataset")
    options: dict[str, Any] = {"with_indices": True, "remove_columns": [COMPLETIONS]}
    if isinstance(dataset, Dataset):
        known = dataset.features
        side = known[COMPLETIONS].feature if hasattr(known[COMPLETIONS], "feature") else Value("string")
        own = {"chosen": side, "rejected": side, RANKS: ListFeature(Value("float64"))}
        own[OTHER_IDS] = ListFeature(ListFeature(Value("int64")))
        kept = {column: feature for column, feature in known.items() if column not in (COMPLETIONS, RANKS)}
        options |= {"features": Features({**kept, **own}), "num_proc": num_proc, "desc": f"Reading {name} rankings"}
    return dataset.map(RankingReader(tokenizer), **options)


def without_long(dataset, max_length: int | None, columns: Container[str]):
    """Leave out rows of which another response than chosen and rejected is too long; `columns` are the dataset's."""
    if max_length is None or OTHER_IDS not in columns:
        return dataset
    return dataset.filter(lambda ids: all(len(each) <= max_length for each in ids), input_columns=[OTHER_IDS])


def collate_rankings(
    examples: Sequence[Mapping[str, Any]], batch: Any, pad_token_id: int | None
) -> dict[str, torch.Tensor]:
    """The other responses of a batch of rankings, and its rows of pairs as wide as those.

    Args:
        batch: of the reward collator, `input_ids` and `attention_mask` `(2 * pairs, length)`.

    Returns:
        `input_ids`, `attention_mask` `(2 * pairs, widest)`; `other_input_ids`, `other_attention_mask`
        `((responses - 2) * pairs, widest)`, the third response of each pair, then the fourth, ...; `ranks`
        `(pairs, responses)`, NaN where a pair has none. Nothing for a batch without rankings.
    """
    if OTHER_IDS not in examples[0]:
        return {}
    count = max(len(example[OTHER_IDS]) for example in examples)
    rows = [
        example[OTHER_IDS][number] if number < len(example[OTHER_IDS]) else []
        for number in range(count)
        for example in examples
    ]
    width = max([batch["input_ids"].shape[1], *map(len, rows)])
    pad = pad_token_id or 0
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], dtype=torch.long).view(len(rows), width)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], dtype=torch.long).view(
        len(rows), width
    )
    ranks = torch.tensor([example[RANKS] + [math.nan] * (count + 2 - len(example[RANKS])) for example in examples])
    missing = width - batch["input_ids"].shape[1]
    return {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, missing), value=pad),
        "attention_mask": torch.nn.functional.pad(batch["attention_mask"], (0, missing)),
        "other_input_ids": ids,
        "other_attention_mask": mask,
        RANKS: ranks.float(),
    }
