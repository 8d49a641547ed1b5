"""The rows that are scored, and never trained on: a test split, or whole prompts that are held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..interaction.data.pairs import FlatText, Preference, read_preferences
from ..interaction.data.rankings import best_and_worst
from ..interaction.data.winners import rows_with_winners
from ..interaction.teacher.training import split_by_prompt
from ..reward_benchmarks.items import Item
from ..utils.atomic_io import write_atomically
from ..utils.data import get_split
from ..utils.digests import digest_of
from ..utils.privacy import public_name
from .arms import Arm
from .config import CompareConfig

_HELD_OUT = 0.2
_SEED = 42  # of what is held out, so that every seed of the training and every later call has the same rows


@dataclass(frozen=True)
class ComparisonData:
    """The data of a comparison.

    Args:
        rows: those to score. description: where they are from, for a reader. dropped: how many were left out because
            their prompt is trained on.
        changes: for each arm the keys of its recipe that say which rows it trains on.
        digests: for each arm a digest of the rows that it trains on.
        trained_prompts: the prompts that any arm trains on, in the form of `prompt_keys`.
        training_pairs: how many rows the recipe itself trains on.
    """

    rows: list[dict[str, Any]]
    description: str
    dropped: int
    changes: dict[str, dict[str, Any]]
    digests: dict[str, str]
    trained_prompts: set[str]
    training_pairs: int

    @property
    def digest(self) -> str:
        """Of the rows to score."""
        return digest_of(self.rows)


def prepare_data(arms: Sequence[Arm], config: CompareConfig) -> ComparisonData:
    """Choose the rows to score from the recipe's data, and check that no arm trains on their prompts.

    Raises:
        ValueError: a split that is not there; data that cannot be split by prompt; `overlap` is `refuse`, and prompts
            that are scored are trained on.
    """
    main = arms[1]  # of the recipe that is compared with its baseline
    sources = {_source(arm): arm.data.load() for arm in arms}
    training = {source: get_split(splits, source[2], source[0]) for source, splits in sources.items()}
    splits = sources[_source(main)]
    changes: dict[str, dict[str, Any]] = {}
    name = public_name(main.data.dataset_name)
    if _has_test_split(main, splits, config):
        rows = splits[main.data.test_split].to_list()
        description = f"split {main.data.test_split} of {name}"
    else:
        share = config.held_out or _HELD_OUT
        kept, rows = _hold_out(training[_source(main)].to_list(), share, name)
        folder = Path(config.output) / "data"
        _refuse_data_of_the_user(main.data.dataset_name, folder)
        for split, part in (("train", kept), ("test", rows)):
            _write_rows(folder / f"{split}.jsonl", part)
        own = {"dataset_name": str(folder), "dataset_train_split": "train", "dataset_test_split": "test"}
        changes = {arm.name: own for arm in arms if _source(arm) == _source(main)}
        training[_source(main)] = kept
        description = f"{100 * share:g} % of {name}, whole prompts held out"
    winners = rows_with_winners(rows, "rows to score")
    if len(winners) < len(rows):
        description += f", without {len(rows) - len(winners)} pairs that have no winner"
    rows = winners
    trained = {source: _as_list(part) for source, part in training.items()}
    prompts = {key for source, part in trained.items() for key in prompt_keys(part, f"training data {source[0]}")}
    digests = {source: digest_of(part) for source, part in trained.items()}
    data = ComparisonData(
        rows=rows,
        description=description,
        dropped=0,
        changes={arm.name: changes.get(arm.name, {}) for arm in arms},
        digests={arm.name: digests[_source(arm)] for arm in arms},
        trained_prompts=prompts,
        training_pairs=len(trained[_source(main)]),
    )
    return _without_overlap(data, config.overlap)


def _source(arm: Arm) -> tuple[str, str | None, str]:
    return arm.data.dataset_name, arm.data.dataset_config, arm.data.dataset_train_split


def _as_list(rows: Any) -> list[dict[str, Any]]:
    return rows if isinstance(rows, list) else rows.to_list()


def _has_test_split(main: Arm, splits: DatasetDict, config: CompareConfig) -> bool:
    """Whether there is one to score; one that the recipe names must be there."""
    split = main.data.test_split
    if split == main.data.dataset_train_split:
        raise ValueError(
            f"`dataset_test_split` and `dataset_train_split` are both `{split}`: it would be trained on and scored. "
            "Name two splits, or leave `dataset_test_split` out, so that prompts are held out."
        )
    if split in splits:
        if config.held_out is not None:
            raise ValueError(
                f"`held_out` is {config.held_out}, but {main.data.dataset_name} has the split `{split}`, which is "
                "scored. Leave `held_out` out."
            )
        return True
    if "dataset_test_split" in main.settings:
        raise ValueError(
            f"{main.data.dataset_name} has no split `{split}`; it has {', '.join(splits)}. Name one of them as "
            "`dataset_test_split`, or leave it out, so that prompts are held out."
        )
    return False


def _refuse_data_of_the_user(source: str, folder: Path) -> None:
    """Raise `ValueError` if the data are read from the folder that the parts of a split are written to."""
    path = Path(source)
    if path.exists() and folder.resolve() == (path if path.is_dir() else path.parent).resolve():
        raise ValueError(
            f"`dataset_name` is {source}, in the folder {folder} that the prompts that are trained on and those that "
            "are held out would be written to: the data would be lost. Choose another `output`."
        )


def _hold_out(rows: list[dict[str, Any]], share: float, name: str) -> tuple[list[dict], list[dict]]:
    keys = prompt_keys(rows, name)
    if len(set(keys)) < 2:
        raise ValueError(f"{name} has only one prompt, so none can be held out. Give it a test split.")
    training, held_out = split_by_prompt([Preference(key, "", "") for key in keys], share, _SEED)
    return [rows[number] for number in training], [rows[number] for number in held_out]


def prompt_keys(rows: Sequence[dict[str, Any]], name: str) -> list[str]:
    """Keys of prompts: the text of each, whatever its format; without a prompt that of the whole pair."""
    pairs = [best_and_worst(row) for row in rows]
    return [_prompt_key(preference) for preference in read_preferences(pairs, name)]


def _prompt_key(preference: Preference) -> str:
    prompt, chosen, rejected = preference.flatten()
    return text_key(prompt) or "\n".join((text_key(chosen), text_key(rejected)))


def text_key(text: FlatText) -> str:
    """The words of a text."""
    return " ".join(" ".join(text.contents).split())


def _without_overlap(data: ComparisonData, overlap: str) -> ComparisonData:
    keys = prompt_keys(data.rows, "test data")
    is_trained = [key in data.trained_prompts for key in keys]
    count = sum(is_trained)
    if not count:
        return data
    if overlap == "refuse":
        first = next(key for key, trained in zip(keys, is_trained, strict=True) if trained)
        raise ValueError(
            f"{count} of {len(keys)} pairs to score have a prompt that is trained on; the first is {first[:80]!r}. "
            "Give the two splits prompts of their own, or set `overlap: drop`, which does not score these pairs."
        )
    rows = [row for row, trained in zip(data.rows, is_trained, strict=True) if not trained]
    if not rows:
        raise ValueError(f"All {count} pairs to score have a prompt that is trained on. Give other test data.")
    return replace(data, rows=rows, dropped=count)


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write JSONL, unless the file has this content already: readers cache results by its time."""
    text = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def item_key(item: Item) -> str:
    """The prompt of a benchmark's item in the form of `prompt_keys`."""
    return text_key(FlatText.flatten(item.prompt, is_prompt=True))
