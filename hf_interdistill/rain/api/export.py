"""Export of RAIN as a `custom_generate` folder that can be pushed with a model."""

from __future__ import annotations

import json
from pathlib import Path

from ..config import RainConfig

_SOURCE = '''"""RAIN decoding (arXiv 2309.07124) for this model. Written by hf_interdistill.

    model.generate(**inputs, custom_generate="{name}", trust_remote_code=True, tokenizer=tokenizer, max_new_tokens=64)
"""

import json

from hf_interdistill.rain.api.generate import generate_custom


RAIN_CONFIG = json.loads({config!r})


def generate(model, **kwargs):
    """RAIN with the settings above; accepts `rain_config`, `rain_scorer` and `rain_prompts`."""
    return generate_custom(model, RAIN_CONFIG, kwargs)
'''


def export_custom_generate(folder: str | Path, config: RainConfig | str | dict | None = None) -> Path:
    """Write `custom_generate/generate.py` into a folder (for example a model's, to be pushed with it).

    Args:
        folder: where to write; created if it does not exist.
        config: settings to write into the file (see `RainConfig.resolve`).

    Returns:
        The path of the file. Loading it requires this package; transformers reports it if it is missing.
    """
    path = Path(folder) / "custom_generate" / "generate.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    values = json.dumps(RainConfig.resolve(config).to_dict())
    path.write_text(_SOURCE.format(name=Path(folder).name, config=values), encoding="utf-8")
    return path
