"""`interdistill compare`: reward models with and without what a recipe adds to TRL's, and their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from ..comparison.arms import RECIPE
from ..comparison.comparison import compare
from ..comparison.config import CompareConfig
from ..comparison.report.text import accuracy_table, benchmark_table, cost_table
from ..comparison.result import Comparison
from ..training.output_dir import OutputDirArguments
from ..utils.parsing import read_yaml
from .tables import console

# `overwrite` is a key of the comparison here.
ARGUMENTS = (CompareConfig, *(each for each in RECIPE if each is not OutputDirArguments))
TAKES_WORDS = True  # `run` gets the words of the command line after the parsed arguments


def run(config: CompareConfig, *recipe, words: Sequence[str]) -> Comparison:
    """Train, score and compare; write the page, and print the tables.

    Args:
        config: of the comparison. recipe: the recipe's parsed and checked keys.
        words: of the command line; those that are not keys of the comparison change every recipe.
    """
    path, overrides = _recipe_words(words)
    found = compare(path, config, overrides=overrides)
    for table in (accuracy_table(found), *([benchmark_table(found)] if found.benchmarks else []), cost_table(found)):
        console().print(table)
    for sentence in found.verdicts():
        console().print(sentence, soft_wrap=True)
    print(f"Page: {config.output}/index.html")
    return found


def _recipe_words(words: Sequence[str]) -> tuple[str, list[str]]:
    """The file that `--config` names, and the words that change keys of recipes.

    Raises:
        ValueError: there is no `--config`, or a folder that the comparison would not write to.
    """
    own, kept, path, key = {each.name for each in fields(CompareConfig)}, [], None, ""
    for word in (part for each in words for part in (each.split("=", 1) if each.startswith("--") else [each])):
        if word.startswith("--"):
            key = word[2:].replace("-", "_")
        elif key == "config":
            path = word
        if key == "output_dir":
            raise ValueError("`output_dir` is given, but each run has a folder in the comparison's. Write `--output`.")
        if key != "config" and key not in own:
            kept.append(word)
    if path is None:
        raise ValueError(
            "There is no recipe. Write `--config recipe.yaml`, a recipe of `interdistill reward` with a positive "
            "`alignment_weight`, or with options of the reward loss."
        )
    if "output" in read_yaml(path):
        raise ValueError(f"{path} has `output`, which is the comparison's here. Write `output_dir` in a recipe.")
    return path, kept
