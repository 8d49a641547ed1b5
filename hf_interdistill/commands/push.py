"""`interdistill push`: upload a trained reward model to the Hub."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils import validate_repo_id

from ..hub.files import stage_model
from ..hub.merging import merged_model
from ..hub.push import push_files
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
        dry_run: list what would be uploaded, and upload nothing.
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
    dry_run: bool = field(default=False, metadata={"help": "List what would be uploaded, and upload nothing."})


ARGUMENTS = (PushArguments,)


def run(args: PushArguments) -> list[str]:
    """Check, list and upload; returns the paths in the repository."""
    validate_repo_id(args.repo_id)
    if args.dtype != "float32" and not args.merge:
        raise ValueError(
            f"`dtype` is {args.dtype!r}, but it is the type of merged weights: other weights are pushed as they were "
            "saved. Set `merge: true` too, or leave `dtype` out."
        )
    with merged_model(args.model, args.dtype) if args.merge else nullcontext(Path(args.model)) as folder:
        files = stage_model(folder, args.repo_id, base_model=args.base_model)
        print_files(f"To {args.repo_id}", files)
        if args.dry_run:
            print("A dry run: nothing was uploaded.")
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
