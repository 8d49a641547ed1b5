"""Writes prompts as the parquet rows that verl reads, with each prompt again where `verl_reward.py` looks for it."""

from __future__ import annotations

import argparse

from datasets import Dataset

from hf_interdistill.training.data_arguments import DataArguments
from hf_interdistill.utils.data import get_split


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset_name", required=True, help="folder, file or Hub name, with a column `prompt`")
    parser.add_argument("--split", default="train", help="split to write")
    parser.add_argument("--output", required=True, help="parquet file to write")
    return parser


def verl_row(prompt: str | list[dict], number: int) -> dict:
    """One row: verl wants messages, a source and a ground truth, which a reward model needs not."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {
        "data_source": "interdistill",
        "prompt": messages,
        "ability": "chat",
        "reward_model": {"style": "model", "ground_truth": ""},
        "extra_info": {"index": number, "prompt": messages},
    }


def main(arguments: list[str] | None = None) -> None:
    args = argument_parser().parse_args(arguments)
    rows = get_split(DataArguments(dataset_name=args.dataset_name).load(), args.split, args.dataset_name)
    if "prompt" not in rows.column_names:
        raise SystemExit(f"{args.dataset_name} has the columns {rows.column_names}, but needs `prompt`.")
    written = Dataset.from_list([verl_row(prompt, number) for number, prompt in enumerate(rows["prompt"])])
    written.to_parquet(args.output)
    print(f"{len(written)} prompts in {args.output}.")


if __name__ == "__main__":
    main()
