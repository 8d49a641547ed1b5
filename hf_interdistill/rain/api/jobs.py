"""Long jobs: RAIN over a file of prompts. Each answer is written when it is finished; a killed job can be resumed.

Prompts are JSONL rows with `prompt` (text or messages) and, optionally, `id`. Every process appends to its own shard.
At the end the shards are merged into `output`, in the order of the prompts.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import GenerationConfig
from transformers.generation import StopStringCriteria

from ...scoring.prompts import load_prompts, tokenize_prompt
from ...utils.atomic_io import require_writable
from ...utils.causal_models import load_causal_lm
from ...utils.dtypes import check_dtype
from ...utils.fields import as_mapping, refuse_unknown, require_kinds
from ...utils.jsonl_jobs import JsonlJob, error_field, run_sharded_job
from ...utils.sources import refuse_same_file
from ..config import RainConfig
from ..engine.engine import Prompt, RainEngine
from ..results.records import RainRecord
from ..results.views import save, to_html
from ..scorers.base import Scorer
from ..scorers.builtin import RewardModelScorer, check_scale
from ..scorers.resolve import as_scorer, scorer_from_config
from .checks import check_tokenizer, warn_of_use_cache
from .decoder import RainDecoder
from .inputs import PreparedGeneration, build_prompts, prepare_generation, warn_of_empty_answer

logger = logging.getLogger(__name__)
_SUMS = ("forward_passes", "forward_tokens", "judge_calls", "committed_tokens")


@dataclass(frozen=True)
class RainJobConfig:
    """Settings of `interdistill rain`.

    Args:
        model: name or folder of a causal LM.
        prompts: JSONL file of prompts.
        output: JSONL file to write: `id`, `prompt`, `completion`, `finish_reason`, `tokens`, `stats`.
        rain: fields of `RainConfig`; `preset` names the preset to start from.
        generation: fields of `GenerationConfig` (`max_new_tokens`, `do_sample`, ...); the model's own config supplies
            the others.
        scorer: `self`; `reward` (see `reward_model`); or `module:function`, a function of a list of texts.
        reward_model: name or folder of a reward model, for `scorer: reward`.
        reward_scale: the difference of rewards that counts as clear (see `RewardModelScorer`).
        reward_center: the reward of an answer that is neither good nor bad.
        trees: folder for the tree of each prompt; by default trees are not written.
        tree_format: `json`, `html` or `mmd`.
        seed: seed of the search, before that of `rain`; 0 if neither has one.
        dtype: dtype of the model, as in `from_pretrained`.
        overwrite: start over if `output` was made with other settings.
    """

    model: str = field(metadata={"help": "Name or folder of a causal LM."})
    prompts: str = field(metadata={"help": "JSONL file of prompts."})
    output: str = field(metadata={"help": "JSONL file to write."})
    # Dictionaries; on the command line JSON (the union with `str` is what TRL's parser understands).
    rain: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Fields of RainConfig, with `preset` to start from; JSON."}
    )
    generation: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Fields of GenerationConfig; JSON."}
    )
    scorer: str = field(default="self", metadata={"help": "self, reward, or module:function."})
    reward_model: str | None = field(default=None, metadata={"help": "Reward model, for scorer: reward."})
    reward_scale: float = field(default=1.0, metadata={"help": "The difference of rewards that counts as clear."})
    reward_center: float = field(default=0.0, metadata={"help": "Reward of an answer neither good nor bad."})
    trees: str | None = field(default=None, metadata={"help": "Folder for search trees."})
    tree_format: str = field(default="json", metadata={"help": "json, html or mmd."})
    seed: int | None = field(default=None, metadata={"help": "Seed of the search; 0 if `rain` has none either."})
    dtype: str = field(default="auto", metadata={"help": "The model's dtype."})
    overwrite: bool = field(default=False, metadata={"help": "Start over if the settings differ."})

    def __new__(cls, *args, **kwargs):
        refuse_unknown(cls.__name__, kwargs, (each.name for each in fields(cls)))
        return super().__new__(cls)

    def __post_init__(self):
        require_kinds(self)
        for name in ("rain", "generation"):
            object.__setattr__(self, name, as_mapping(name, getattr(self, name)))
        check_dtype("dtype", self.dtype)
        if self.tree_format not in ("json", "html", "mmd"):
            raise ValueError(f"`tree_format` is {self.tree_format!r}, but must be json, html or mmd.")
        if (self.scorer == "reward") != (self.reward_model is not None):
            raise ValueError(
                f"`scorer` is {self.scorer!r} and `reward_model` is {self.reward_model!r}, but `scorer: reward` "
                "requires `reward_model`, and no other scorer accepts it."
            )
        self._refuse_unused()
        check_scale(self.reward_scale, self.reward_center)
        known = [name for name in GenerationConfig().to_dict() if not name.startswith("_")]
        refuse_unknown("`generation`", self.generation_settings(), known)
        _refuse_settings_of_a_call(self.generation_settings())
        self.rain_config()

    def _refuse_unused(self) -> None:
        """Raise `ValueError` for settings of rewards or trees where there are none."""
        for name, is_used, needs in (
            ("reward_scale", self.scorer == "reward", "scorer: reward"),
            ("reward_center", self.scorer == "reward", "scorer: reward"),
            ("tree_format", self.trees is not None, "trees"),
        ):
            if not is_used and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"`{name}` changes nothing without `{needs}`. Set that too, or leave it out.")

    def rain_config(self) -> RainConfig:
        """The settings of the search, with a seed."""
        config = RainConfig.from_dict(as_mapping("rain", self.rain))
        return config if config.seed is not None and self.seed is None else config.replace(seed=self.seed or 0)

    def generation_settings(self) -> dict[str, Any]:
        """`generation` as a dictionary."""
        return as_mapping("generation", self.generation)

    def result_settings(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        values = asdict(self)
        for name in ("output", "overwrite", "trees", "tree_format"):
            del values[name]
        return {**values, "seed": self.seed or 0, "rain": self.rain_config().to_dict()}


def _refuse_settings_of_a_call(settings: dict[str, Any]) -> None:
    """Raise `ValueError` for settings that mean something in one call of `generate`, and nothing in a job."""
    if (settings.get("num_return_sequences") or 1) != 1:
        raise ValueError(
            f"`num_return_sequences` is {settings['num_return_sequences']}, but a job writes one answer to each row "
            "of `prompts`. Repeat the prompt in further rows: equal prompts get answers of their own."
        )
    if settings.get("max_time") is not None:
        raise ValueError(
            f"`max_time` is {settings['max_time']}, but the prompts of a job share their forward passes, so no time "
            "is a prompt's own. Limit `max_new_tokens`, or `iterations` in `rain`."
        )


def run_rain_job(config: RainJobConfig) -> dict[str, Any]:
    """Search for every prompt that has no answer yet.

    Args:
        config: the job.

    Returns:
        `output` (path), `prompts` (all), `searched` (by this call, over all processes known to this one), and the
        sums of the answers' `forward_passes`, `forward_tokens`, `judge_calls`, `committed_tokens`.

    Raises:
        ValueError: a bad row (named by its line), a prompt longer than the context, or an output made with other
            settings or of other prompts.
        FailedRowsError: the scorer failed for some prompts, which have a row with `error`; all others are written.
    """
    refuse_same_file({"`output`": config.output}, {"`prompts`": config.prompts})
    rows = load_prompts(config.prompts)
    if config.trees is not None:
        require_writable("trees", config.trees, "trees would be lost")

    def work(job: JsonlJob, share: Sequence[dict]) -> None:
        model, tokenizer = _load(config, PartialState().device)
        prompts = _prepare(config, model, tokenizer, rows)
        _search(config, job, (model, tokenizer), [(row, prompts[row["id"]]) for row in share])

    job, searched = run_sharded_job(
        config.output, rows, work, settings=config.result_settings(), overwrite=config.overwrite
    )
    return {"output": config.output, "prompts": len(rows), "searched": searched, **_sums(job)}


def _load(config: RainJobConfig, device):
    model, tokenizer = load_causal_lm(config.model, config.dtype)
    model = model.to(device).eval()
    check_tokenizer(model, tokenizer)
    return model, tokenizer


def load_scorer(config: RainJobConfig) -> Scorer | Any:
    """The scorer of a job."""
    if config.scorer == "self":
        return scorer_from_config("self", config.rain_config())
    if config.reward_model is not None:  # with `scorer: reward`, and only then
        from ...scoring.scorer import RewardScorer

        reward = RewardScorer.from_pretrained(config.reward_model)
        return RewardModelScorer(reward, scale=config.reward_scale, center=config.reward_center)
    module, separator, name = config.scorer.partition(":")
    try:
        return as_scorer(getattr(importlib.import_module(module), name))
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}" if separator else "there is no colon"
        raise ValueError(
            f"`scorer` is {config.scorer!r}, but must be 'self', 'reward', or the 'module:function' of a function "
            f"that can be imported ({reason})."
        ) from error


def _prepare(config: RainJobConfig, model, tokenizer, rows: Sequence[dict]) -> dict[Any, Prompt]:
    """Prompts by id; all of them are checked before the first search."""
    generation_config = GenerationConfig(**config.generation_settings())
    strings = generation_config.stop_strings or model.generation_config.stop_strings
    criteria = [StopStringCriteria(tokenizer, strings)] if strings else []
    warn_of_use_cache(model._prepare_generation_config(generation_config)[0])
    prompts: dict[Any, Prompt] = {}
    seen: Counter[Any] = Counter()
    for row in rows:
        ids = tokenize_prompt(tokenizer, row["prompt"]).to(model.device)
        try:
            full_config, processors = prepare_generation(model, generation_config, ids)
            _refuse_settings_of_a_call(full_config.to_dict())
            prepared = PreparedGeneration(full_config, [row["prompt"]], processors, criteria)
            (prompt,) = build_prompts(model, ids, None, prepared)
        except ValueError as error:
            raise ValueError(f"Prompt {row['id']!r} of {config.prompts}: {error}") from error
        # Counted over the whole file, so that a resumed job draws the same tokens as an uninterrupted one.
        prompts[row["id"]] = replace(prompt, occurrence=seen[prompt.ids])
        seen[prompt.ids] += 1
    return prompts


def _search(config: RainJobConfig, job: JsonlJob, loaded: tuple, work: Sequence[tuple[dict, Prompt]]) -> None:
    """Search for the prompts of this process, and write each answer when it is finished."""
    model, tokenizer = loaded
    decoder = RainDecoder(tokenizer, config.rain_config(), load_scorer(config))
    engine: RainEngine = decoder.build_engine(model, isolates_errors=True)
    engine.start([prompt for _, prompt in work], decoder.seed())
    bar = tqdm(total=len(work), desc="RAIN", unit="prompt", disable=not PartialState().is_local_main_process)
    tokens = finished_iterations = 0
    with job.appending() as append, bar:
        while not engine.is_finished:
            tokens += sum(len(part) for _, part in engine.step())
            for number, record in engine.take_finished():
                row, prompt = work[number]
                warn_of_empty_answer(tokenizer, prompt.ids, record)
                if config.trees is not None:
                    _write_tree(Path(config.trees), row["id"], record, config.tree_format)
                append({"id": row["id"], "prompt": row["prompt"], **_result(record)})
                finished_iterations += int(record.stats["iterations"])
                bar.update()
            iterations = finished_iterations + sum(each.search.iterations for each in engine.requests)
            bar.set_postfix(tokens=tokens, iterations=iterations, refresh=False)
            bar.update(0)  # redraws where it is time to: a prompt can take minutes


def _result(record: RainRecord) -> dict[str, Any]:
    """What a job writes of a record beside the prompt."""
    if record.error is not None:
        return error_field(record.error)
    return {
        "completion": record.text,
        "finish_reason": record.finish_reason,
        "tokens": record.tokens,
        "stats": record.stats,
    }


def _sums(job: JsonlJob) -> dict[str, float]:
    """Total costs of the answers."""
    sums: Counter = Counter()
    for row in job.rows():
        sums.update({name: row["stats"][name] for name in _SUMS})
    return {name: sums[name] for name in _SUMS}


def _write_tree(folder: Path, name: str | int, record: RainRecord, ending: str) -> Path:
    """Save the tree of a prompt; the file name is made of the prompt's id."""
    folder.mkdir(parents=True, exist_ok=True)
    safe = re.sub(r"[^\w.-]", "_", str(name)).encode()[:80].decode(errors="ignore")  # file systems limit bytes
    is_like_a_number = isinstance(name, str) and name.lstrip("-").isdecimal()  # as ids that are numbers are written
    if safe != str(name) or is_like_a_number:  # different ids may have the same safe name
        safe += "-" + hashlib.blake2b(str(name).encode(), digest_size=4).hexdigest()
    path = folder / f"{safe}.{ending}"
    if ending == "html":
        path.write_text(to_html(record.tree, stats=record.stats), encoding="utf-8")
        return path
    return save(record.tree, path)
