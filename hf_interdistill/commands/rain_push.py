"""`interdistill rain push`: RAIN as a decoding strategy on the Hub, alone or beside a model."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from ..hub.files import CARD, HubFile
from ..hub.licenses import LICENSE_KEYS, folder_of_card, legal_files, license_of_base
from ..hub.push import push_files
from ..rain.api.export import FOLDER, TAG, strategy_files, strategy_section, with_strategy_section
from ..rain.config import RainConfig
from ..utils.atomic_io import write_atomically
from ..utils.causal_models import load_causal_lm
from ..utils.fields import as_mapping
from ..utils.model_config import require_model
from ..utils.privacy import hub_name, refuse_private_text, refuse_private_values
from .file_table import print_files


@dataclass
class RainPushArguments:
    """What to push, and where. The access token is that of `HF_TOKEN` or `hf auth login`.

    Args:
        repo_id: repository, `user/name`; made if it is not there. Its card keeps its text and gets a section.
        output: folder to write the same files to, instead of or beside a repository.
        model: a causal language model to put beside the strategy: folder or Hub name.
        preset: published settings to start from.
        rain: settings of `RainConfig` that differ, as a mapping (JSON on the command line).
        private, revision, commit_message: of the repository and its commit.
        dry_run: list what would be pushed, and push nothing.
    """

    repo_id: str | None = field(default=None, metadata={"help": "Repository, user/name; made if it is not there."})
    output: str | None = field(default=None, metadata={"help": "Folder to write the files to."})
    model: str | None = field(
        default=None, metadata={"help": "Causal language model to lay beside the strategy: folder or Hub name."}
    )
    preset: str | None = field(default=None, metadata={"help": "Published settings to start from."})
    rain: dict[str, Any] | str | None = field(default=None, metadata={"help": "Settings of RainConfig, as JSON."})
    private: bool = field(default=False, metadata={"help": "Make the repository private."})
    revision: str | None = field(default=None, metadata={"help": "Branch to commit to, made if it is not there."})
    commit_message: str = field(default="Upload RAIN decoding", metadata={"help": "First line of the commit."})
    dry_run: bool = field(default=False, metadata={"help": "List what would be pushed, and push nothing."})


ARGUMENTS = (RainPushArguments,)


def run(args: RainPushArguments) -> list[str]:
    """Write and push; returns the paths in the repository."""
    if args.repo_id is None and args.output is None:
        raise ValueError("Neither `repo_id` nor `output` is set. Name a repository, `user/name`, or a folder.")
    if args.repo_id is not None:
        validate_repo_id(args.repo_id)
    preset = {} if args.preset is None else {"preset": args.preset}
    config = RainConfig.from_dict({**preset, **as_mapping("rain", args.rain)})
    if args.model is not None:
        require_model("model", args.model)
    name = args.repo_id or Path(str(args.output)).name
    contents = strategy_files(name, config)
    section = strategy_section(name, config, has_model=args.model is not None)
    with tempfile.TemporaryDirectory() as folder:
        model_files = [] if args.model is None else _save_model(args.model, Path(folder))
        source = None if args.model is None else folder_of_card(args.model)
        model_files += [HubFile(path.name, path) for path in ([] if source is None else legal_files(source))]
        local = _card_in(args.output) or _card_in(source)
        if args.output is not None and not args.dry_run:
            _write(Path(args.output), contents, model_files, _card(local, name, section, args, source))
        card = _card(_repository_card(args) or local, name, section, args, source)
        files = [HubFile(path, text.encode()) for path, text in contents.items()]
        files += [HubFile(CARD, str(card).encode()), *model_files]
        files.sort(key=lambda file: file.path_in_repo)
        print_files(f"To {args.repo_id or args.output}", files)
        if args.dry_run:
            print("A dry run: nothing was written or pushed.")
        elif args.repo_id is not None:
            commit = push_files(
                files,
                args.repo_id,
                private=args.private,
                revision=args.revision,
                commit_message=args.commit_message,
                superseded=(f"{FOLDER}/*.py",),  # never the weights of a model in that folder
            )
            print(f"Pushed: {commit.commit_url}")
        if args.output is not None and not args.dry_run:
            print(f"Written to {args.output}.")
    return [file.path_in_repo for file in files]


def _save_model(name: str, folder: Path) -> list[HubFile]:
    """Save a model and its tokenizer again: safetensors, and no other files of their folder."""
    model, tokenizer = load_causal_lm(name)
    if hasattr(model, "peft_config"):
        raise ValueError(
            f"`model` is {name!r}, an adapter, but only a full model can be put beside a strategy. Merge it "
            "(`merge_and_unload`), save the result and name its folder."
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [HubFile(path.relative_to(folder).as_posix(), path) for path in files]


def _write(output: Path, contents: dict[str, str], model_files: list[HubFile], card: ModelCard) -> None:
    for path, text in {**contents, CARD: str(card)}.items():
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output / path, text)
    for old in (output / FOLDER).glob("*.py"):
        if f"{FOLDER}/{old.name}" not in contents:
            old.unlink()
    for file in model_files:
        assert isinstance(file.source, Path)
        (output / file.path_in_repo).parent.mkdir(parents=True, exist_ok=True)
        (output / file.path_in_repo).write_bytes(file.source.read_bytes())


def _card_in(folder: str | Path | None) -> ModelCard | None:
    """The card in a folder, if it has one."""
    if folder is None or not (Path(folder) / CARD).is_file():
        return None
    return ModelCard.load(Path(folder) / CARD)


def _inherited(model: str, source: Path | None) -> dict[str, str]:
    """License and base model for the card of a repository that gets a copy of a model."""
    own = _card_in(source)
    data = {} if own is None else own.data.to_dict()
    if "license" not in data and source is not None:
        data |= license_of_base(source)
    name = hub_name(model)
    return {**{key: data[key] for key in LICENSE_KEYS if key in data}, **({"base_model": name} if name else {})}


def _repository_card(args: RainPushArguments) -> ModelCard | None:
    """The card of the repository, which keeps its text."""
    if args.repo_id is None or args.dry_run:
        return None
    try:
        return ModelCard.load(args.repo_id)
    except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
        return None


def _card(card: ModelCard | None, name: str, section: str, args: RainPushArguments, source: Path | None) -> ModelCard:
    """The card with the strategy's section and tag, and the license of the model.

    Args:
        card: what there is, not changed. source: folder with the model's own card.
    """
    if card is None:
        data = ModelCardData(
            library_name="transformers",
            pipeline_tag="text-generation",
            base_model=hub_name(args.model),
            license="apache-2.0" if args.model is None else None,
            tags=[TAG, "rain"],
        )
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name.split('/')[-1]}\n")
    else:
        card = ModelCard(card.content)
        card.data["tags"] = list(dict.fromkeys([*(card.data.get("tags") or []), TAG, "rain"]))
    if args.model is not None:
        inherited = _inherited(args.model, source)
        if card.data.get("license") is None:
            for key in LICENSE_KEYS:
                card.data[key] = inherited.get(key)
        if card.data.get("base_model") is None and "base_model" in inherited:
            card.data["base_model"] = inherited["base_model"]
    card.text = with_strategy_section(card.text, section)
    refuse_private_values(f"the metadata of {CARD}", card.data.to_dict())
    refuse_private_text(CARD, card.text)
    return card
