"""`interdistill push`: upload a trained reward model to the Hub."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from ..hub.card import CardExtras
from ..hub.files import CARD, stage_model
from ..hub.licenses import license_of_base
from ..hub.merging import merged_model
from ..hub.push import push_files
from ..utils.atomic_io import write_atomically
from .evaluations import benchmark_section, evaluation_files, headline, read_evaluations
from .file_table import print_files


@dataclass
class PushArguments:
    """What to push, and where. The access token is that of `HF_TOKEN` or `hf auth login`.

    Args:
        model: folder of a trained reward model or adapter.
        repo_id: repository, `user/name`; made if it is not there.
        private: make the repository private.
        revision: branch to commit to, made if it is not there.
        commit_message: first line of the commit.
        merge: merge an adapter into its base model and push the full model.
        dtype: data type of the merged weights; narrower than float32 rounds the rewards.
        base_model: Hub name of the base model, where training started from a folder.
        license: as the Hub writes it (`apache-2.0`); by default that of the card, else of the base model.
        language: languages that it was trained on, as ISO codes (`en`).
        eval_results: `results.json` of `interdistill eval`, for the card and as `.eval_results/*.yaml` of the Hub.
        dry_run: list what would be uploaded, write the card beside the model (`README.hub.md`), and upload nothing.
    """

    model: str = field(metadata={"help": "Folder of a trained reward model or adapter."})
    repo_id: str = field(metadata={"help": "Repository, user/name; made if it is not there."})
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to commit to, made if it is not there."})
    commit_message: str = field(default="Upload reward model", metadata={"help": "First line of the commit."})
    merge: bool = field(default=False, metadata={"help": "Merge an adapter into its base model, push the whole."})
    dtype: str = field(
        default="float32",
        metadata={"help": "Data type of merged weights.", "choices": ["float32", "bfloat16", "float16"]},
    )
    base_model: str | None = field(
        default=None, metadata={"help": "Hub name of the base model, where training started from a folder."}
    )
    license: str | None = field(
        default=None, metadata={"help": "License, such as apache-2.0; default: the card's, else the base model's."}
    )
    language: list[str] | None = field(default=None, metadata={"help": "Languages as ISO codes, such as en."})
    eval_results: str | None = field(default=None, metadata={"help": "results.json of `interdistill eval`."})
    dry_run: bool = field(
        default=False, metadata={"help": "List the files, write the card beside the model, and upload nothing."}
    )


ARGUMENTS = (PushArguments,)


def run(args: PushArguments) -> list[str]:
    """Check, list and upload; returns the paths in the repository."""
    validate_repo_id(args.repo_id)
    if args.dtype != "float32" and not args.merge:
        raise ValueError(
            f"`dtype` is {args.dtype!r}, but it is the type of merged weights: other weights are pushed as they were "
            "saved. Set `merge: true` too, or leave `dtype` out."
        )
    evaluations = [] if args.eval_results is None else read_evaluations(args.eval_results, args.model, args.repo_id)
    extras = CardExtras(
        **({"license": args.license} if args.license else license_of_base(args.model, args.base_model)),
        language=args.language or [],
        benchmarks=benchmark_section(evaluations) if evaluations else None,
        headline=headline(evaluations) if evaluations else None,
    )
    with merged_model(args.model, args.dtype) if args.merge else nullcontext(Path(args.model)) as folder:
        files = stage_model(folder, args.repo_id, base_model=args.base_model, extras=extras)
        files += evaluation_files(evaluations)
        print_files(f"To {args.repo_id}", files)
        if args.dry_run:
            card = next(file.source for file in files if file.path_in_repo == CARD)
            assert isinstance(card, bytes)
            target = Path(args.model) / "README.hub.md"
            write_atomically(target, card.decode())
            print(f"A dry run: nothing was uploaded. The card is in {target}.")
        else:
            commit = push_files(
                files,
                args.repo_id,
                private=args.private,
                revision=args.revision,
                commit_message=args.commit_message,
            )
            print(f"Pushed: {commit.commit_url}")
    return [file.path_in_repo for file in files]
