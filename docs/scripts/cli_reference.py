"""Writes docs/reference/cli.md from the parsers: every option of every command, by group.

    python docs/scripts/cli_reference.py

A test compares the page with what this script writes.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hf_interdistill.cli import COMMANDS, LAUNCHED
from hf_interdistill.utils.option_groups import group_title, is_ours, option_groups
from hf_interdistill.utils.option_names import field_names, short_names

PAGE = Path(__file__).resolve().parents[1] / "reference" / "cli.md"
OTHERS = "## Options of TRL and transformers"
_HEAD = """# Command line

Every command takes `--config recipe.yaml`, then `--key value` overrides. An unknown key is an error that names the
nearest one. `interdistill COMMAND --help` prints the same options.

- `--model`, `--data` and `--output` work in every command. Where an option has another name, they mean that one:
  `--model` means `--model_name_or_path` (of `teacher`: `--teacher_model`), `--data` means `--dataset_name`, `--input`
  or `--prompts`, and `--output` means `--output_dir`. Each name works in place of the others, in YAML too.
- A list takes its values one after another: `--model runs/plain runs/rm`.
- A boolean takes `true` or `false`; the bare option means `true`.
- `none` (or `null`) as the value of an option without a default unsets it, such as one of a recipe or a preset:
  `--reward_model none`, `--preset harmless --similarity_model none`.
- A mapping is JSON: `--generation '{"max_new_tokens": 128}'`. In YAML it is a mapping.
- Shells do not complete options: the parser (transformers' `HfArgumentParser`, an `argparse`) offers no completion.

`python docs/scripts/cli_reference.py` writes this page from the parsers. Options that TRL and transformers define are
[at the end](#options-of-trl-and-transformers).
"""
_LAUNCH = """**Processes**

| option | default | meaning |
| --- | --- | --- |
| `--num_processes` | none | Processes that accelerate starts |
| `--accelerate_config` | none | Configuration of accelerate: file, or name of TRL's |
"""
_OTHERS_HEAD = f"""{OTHERS}

The commands `reward`, `compare` and `teacher` take these too. Defaults are those of the versions in
`constraints.txt`; the full descriptions are in the documentation of TRL and transformers.
"""


def page() -> str:
    """The whole page."""
    parts: list[str] = [_HEAD]
    others: dict[type, dict[str, dataclasses.Field]] = {}
    for name, (module, summary) in COMMANDS.items():
        arguments = importlib.import_module(f"hf_interdistill.{module}").ARGUMENTS
        groups = option_groups(arguments)
        parts.append(f"## interdistill {name}\n\n{summary[:1].upper()}{summary[1:]}.\n")
        short = short_names(field_names(arguments))
        parts += [_table(f"**{group_title(kind)}**", options, short) for kind, options in groups if is_ours(kind)]
        parts += [_LAUNCH] if name in LAUNCHED else []
        inherited = [kind for kind, _ in groups if not is_ours(kind)]
        if inherited:
            links = ", ".join(f"[`{_name(kind)}`](#{_name(kind).lower()})" for kind in inherited)
            parts.append(f"Further options: {links}.\n")
        for kind in inherited:  # a command that redefines an option takes it out of its class
            options = {each.name: each for each in dict(groups)[kind]}
            others[kind] = {**others.get(kind, {}), **options}
    parts.append(_OTHERS_HEAD)
    parts += [_table(f"### {_name(kind)}", list(options.values())) for kind, options in others.items()]
    return "\n".join(parts)


def _name(kind: type) -> str:
    return kind.__name__.lstrip("_")


def _table(title: str, options: list[dataclasses.Field], short: Mapping[str, str] = MappingProxyType({})) -> str:
    """A table of options. short: the name that all commands share, of those that have one."""
    names = {each.name: [each.name, short.get(each.name)] for each in options}
    shown = {name: ", ".join(f"`--{each}`" for each in both if each) for name, both in names.items()}
    rows = [f"| {shown[each.name]} | {_default(each)} | {_help(each)} |" for each in options]
    return "\n".join([title, "", "| option | default | meaning |", "| --- | --- | --- |", *rows, ""])


def _default(option: dataclasses.Field) -> str:
    value: Any = option.default
    if option.default_factory is not dataclasses.MISSING:
        value = option.default_factory()
    if value is dataclasses.MISSING:
        return "required"
    value = getattr(value, "value", value)  # of an enum
    if value is None or value == "":
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`".replace("\n", "\\n").replace("|", "\\|")


def _help(option: dataclasses.Field) -> str:
    """The first sentence of an option's help, and its choices."""
    text = " ".join(str(option.metadata.get("help", "")).replace("%%", "%").split())
    text = re.split(r"(?<!e\.g)(?<!i\.e)\. (?=[A-Z])", text)[0].rstrip(".")
    text = re.sub(r"[<>|]", lambda match: {"<": "&lt;", ">": "&gt;", "|": "\\|"}[match[0]], text)
    choices = option.metadata.get("choices")
    return text + (f" (one of {', '.join(f'`{each}`' for each in choices)})" if choices else "")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
