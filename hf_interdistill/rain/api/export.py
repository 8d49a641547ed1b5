"""RAIN as a `custom_generate` folder that works without this package, and the part of a model card about it."""

from __future__ import annotations

import json
import pprint
import re
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ...utils.atomic_io import write_atomically
from ..config import RainConfig, field_meaning
from ..strategies import STRATEGIES, is_read
from .flat_modules import flat_modules, flat_name

FOLDER, TAG = "custom_generate", "custom_generate"
_ENTRY = "rain.api.generate"
# What the modules import; transformers brings the rest. transformers compares one version per line.
_REQUIREMENTS = ("jinja2>=3.1.6", "numpy>=1.26", "pyyaml>=6", "torch>=2.6", "transformers>=5.1")
_SECTION = re.compile(r"<!-- rain -->.*?<!-- /rain -->", re.DOTALL)

_SOURCE = '''\
"""{title} (arXiv {source}) as `custom_generate`. hf_interdistill (Apache-2.0) wrote it, and is not needed.

    model.generate(**inputs, custom_generate="{name}", trust_remote_code=True, tokenizer=tokenizer, max_new_tokens=64)

The files beside it are modules of hf_interdistill, with their names made flat.
"""

from typing import TYPE_CHECKING

from .{entry} import generate_custom

if TYPE_CHECKING:  # never run: older versions of transformers copy only the files that this one names
{files}

RAIN_CONFIG = {config}


def generate(*args, model, **kwargs):
    """{title} with the settings above; accepts `rain_config`, `rain_scorer`, `rain_embedder` and `rain_prompts`."""
    return generate_custom(model, RAIN_CONFIG, args, kwargs)
'''


def strategy_files(name: str, config: RainConfig | str | dict | None = None) -> dict[str, str]:
    """The files of a strategy by their paths in a repository: `custom_generate/generate.py` and what it needs.

    Args:
        name: repository or folder, for the example.
        config: settings to write into `generate.py` (see `RainConfig.resolve`).
    """
    values = json.loads(json.dumps(RainConfig.resolve(config).to_dict()))
    modules = flat_modules(_ENTRY)
    named = [f"    from .{Path(file).stem} import __doc__" for file in modules if file.endswith(".py")]
    config_text = pprint.pformat(values, sort_dicts=False, width=100)
    strategy = STRATEGIES[values["strategy"]]
    source = _SOURCE.format(
        name=name,
        entry=flat_name(_ENTRY),
        config=config_text,
        files="\n".join(named),
        title="RAIN decoding" if values["strategy"] == "rain" else strategy.title,
        source=strategy.source,
    )
    modules = {
        "generate.py": source,
        "requirements.txt": "\n".join(_REQUIREMENTS) + "\n",
        **modules,
    }
    return {f"{FOLDER}/{file}": text for file, text in modules.items()}


def export_custom_generate(folder: str | Path, config: RainConfig | str | dict | None = None) -> Path:
    """Write `custom_generate/` into a folder (for example a model's, to be pushed with it).

    Args:
        folder: where to write; created if it does not exist. Modules of an earlier export are removed.
        config: settings to write into the file (see `RainConfig.resolve`).

    Returns:
        The path of `generate.py`. Loading it takes transformers and nothing of this package.
    """
    folder = Path(folder)
    contents = strategy_files(folder.name, config)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for old in (folder / FOLDER).glob("*.py"):
        if f"{FOLDER}/{old.name}" not in contents:
            old.unlink()
    for path, text in contents.items():
        write_atomically(folder / path, text)
    return folder / FOLDER / "generate.py"


def strategy_section(name: str, config: RainConfig | str | dict | None = None, *, has_model: bool = False) -> str:
    """Markdown about the method: an example, its arguments, settings and costs.

    Args:
        name: repository or folder to load from. config: the settings of `strategy_files`.
        has_model: whether a model lies beside the strategy.
    """
    settings = RainConfig.resolve(config)
    rows = [
        (field, json.dumps(value, ensure_ascii=False), field_meaning(field))
        for field, value in settings.to_dict().items()
        if is_read(settings.strategy, field)
    ]
    text = files(__package__).joinpath("templates/strategy.md").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=False).from_string(text)  # no HTML
    strategy, is_rain = STRATEGIES[settings.strategy], settings.strategy == "rain"
    return template.render(
        name=name, rows=rows, settings=settings, has_model=has_model, strategy=strategy, is_rain=is_rain
    )


def with_strategy_section(card_text: str, section: str) -> str:
    """A card's text with this section in place of the one it has, or at its end."""
    if _SECTION.search(card_text):
        return _SECTION.sub(lambda _: section, card_text, count=1)
    return f"{card_text.rstrip()}\n\n{section}\n"
