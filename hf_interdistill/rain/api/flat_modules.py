"""Modules of this package as files of one folder, which transformers loads as remote code without the package.

transformers copies the files that a module names in `from .name import`, and nothing else: no folders, no data.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from ..scorers.prompt_texts import judge_prompts

_ROOT = Path(__file__).parents[2]
_PROMPTS = "rain.scorers.prompt_texts"


def flat_modules(entry: str) -> dict[str, str]:
    """A module and all that it imports of this package: file name -> source, with relative imports of one dot.

    Args:
        entry: its name within the package, such as `rain.api.generate`; it becomes `rain_api_generate.py`.
    """
    found: dict[str, str] = {}
    to_do = [entry]
    while to_do:
        name = to_do.pop()
        if flat_name(name) + ".py" in found:
            continue
        source, needed = _flattened(name)
        found[flat_name(name) + ".py"] = _prompts_as_code() if name == _PROMPTS else source
        to_do += needed
    return dict(sorted(found.items()))


def flat_name(name: str) -> str:
    """`rain.api.generate` -> `rain_api_generate`."""
    return name.replace(".", "_")


def _flattened(name: str) -> tuple[str, list[str]]:
    """Source of a module with flat imports, and the modules that it imports."""
    path = _path(name)
    source = path.read_text(encoding="utf-8")
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    lines, needed = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
        before, line = lines[node.lineno - 1][: node.col_offset], lines[node.lineno - 1][node.col_offset :]
        inner = ".".join([*([base] if base else []), node.names[0].name])
        if _exists(inner):  # the module itself is imported: transformers finds its file by another import of it
            (imported,) = node.names
            name_here, flat = imported.asname or imported.name, flat_name(inner)
            line = f"from .{flat} import __name__ as _\n{before}from . import {flat} as {name_here}"
            needed.append(inner)
        else:
            line = re.sub(r"from\s+\.+[\w.]*", f"from .{flat_name(base)}", line, count=1)
            needed.append(base)
        lines[node.lineno - 1] = before + line
    return "\n".join(lines) + "\n", needed


def _path(name: str) -> Path:
    path = _ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _exists(name: str) -> bool:
    return _path(name).is_file()


def _prompts_as_code() -> str:
    """The module of judge prompts with their text in it."""
    entries = []
    for name, text in judge_prompts().items():
        lines = "".join(f"        {line!r}\n" for line in text.splitlines(keepends=True))
        entries.append(f"    {name!r}: (\n{lines}    ),\n")
    return (
        '"""The judge prompts of RAIN."""\n\n'
        f"_TEXTS = {{\n{''.join(entries)}}}\n\n\n"
        "def judge_prompts() -> dict[str, str]:\n"
        '    """YAML by name."""\n'
        "    return dict(_TEXTS)\n"
    )
