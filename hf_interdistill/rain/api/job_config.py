"""Settings of RAIN jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from transformers import GenerationConfig

from ...scoring.reward_apis import refuse_unused_of_reward_server
from ...utils.dtypes import check_dtype
from ...utils.fields import as_mapping, refuse_unknown, refuse_unused, require_kinds, require_positive
from ...utils.server_pool import check_urls
from ..config import RainConfig
from ..scorers.builtin import check_scale

_SERVERS = ("server", "tokenizer", "reward_server", "reward_api", "reward_tokenizer", "server_timeout")


@dataclass(frozen=True)
class RainJobConfig:
    """Settings of `interdistill rain`.

    Args:
        model: name or folder of a causal LM; with `server` the name that the server serves it by.
        prompts: JSONL file of prompts.
            A row may have `id`, and `tools` and `chat_template_kwargs` for the chat template and the reward model.
        output: JSONL file to write: the prompt's row, with `completion`, `finish_reason`, `tokens`, `stats`.
        rain: fields of `RainConfig`; `preset` names the preset to start from.
        generation: fields of `GenerationConfig` (`max_new_tokens`, `do_sample`, ...); the model's own config supplies
            the others.
        scorer: `self`; `reward` (see `reward_model`); or `module:function`, a function of a list of texts.
        reward_model: name or folder of a reward model or an ensemble, for `scorer: reward`.
        reward_scale: the difference of rewards that counts as clear (see `RewardModelScorer`).
        reward_center: the reward of an answer that is neither good nor bad.
        reward_cache: whether the reward model keeps what it has read of each text (see `CachedRewardScorer`).
        trees: folder for the tree of each prompt; by default trees are not written.
        tree_format: `json`, `html` or `mmd`.
        batch_size: completions that the reward model scores per forward pass, or per request to its server.
        seed: seed of the search, before that of `rain`; 0 if neither has one.
        dtype, reward_dtype: of the causal LM and of the reward model, as in `from_pretrained`.
        overwrite: start over if `output` was made with other settings.
        server: address of a vLLM server that has the model, which is then not loaded here; or of several, as a list.
        tokenizer: name or folder of the served model's tokenizer; by default `model`.
        reward_server: address of a server that has `reward_model`, which is then the name that it is served by; or of
            several, as a list.
        reward_api: how that server is asked: `interdistill` for `interdistill serve`, `classify` for vLLM.
        reward_tokenizer: with `classify`, name or folder of that model's tokenizer; by default `reward_model`.
        server_timeout: seconds that a request to a server may take.
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
    reward_cache: bool = field(default=False, metadata={"help": "Read only what is new of a text, for rewards."})
    trees: str | None = field(default=None, metadata={"help": "Folder for search trees."})
    tree_format: str = field(default="json", metadata={"help": "json, html or mmd."})
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass of the reward model."})
    seed: int | None = field(default=None, metadata={"help": "Seed of the search; 0 if `rain` has none either."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the causal LM."})
    reward_dtype: str = field(default="float32", metadata={"help": "Data type of the reward model."})
    overwrite: bool = field(default=False, metadata={"help": "Start over if the settings differ."})
    server: list[str] | None | str = field(  # noqa: RUF036  # in this order TRL's parser reads a list
        default=None, metadata={"help": "Addresses of vLLM servers that have the model."}
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of the served model."})
    reward_server: list[str] | None | str = field(  # noqa: RUF036  # in this order TRL's parser reads a list
        default=None, metadata={"help": "Addresses of servers with the reward model."}
    )
    reward_api: str = field(default="interdistill", metadata={"help": "Its kind: interdistill, or classify (vLLM)."})
    reward_tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of the served reward model."})
    server_timeout: float = field(default=300.0, metadata={"help": "Seconds that a request to a server may take."})

    def __new__(cls, *args, **kwargs):
        refuse_unknown(cls.__name__, kwargs, (each.name for each in fields(cls)))
        return super().__new__(cls)

    def __post_init__(self):
        require_kinds(self)
        for name in ("server", "reward_server"):
            check_urls(name, getattr(self, name))
        for name in ("rain", "generation"):
            object.__setattr__(self, name, as_mapping(name, getattr(self, name)))
        for name in ("dtype", "reward_dtype"):
            check_dtype(name, getattr(self, name))
        require_positive("batch_size", self.batch_size)
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
        refuse_settings_of_a_call(self.generation_settings())
        self._check_search()

    def _check_search(self) -> None:
        """Raise `ValueError` for settings of the search that cannot be."""
        self.rain_config()

    def _refuse_unused(self) -> None:
        """Raise `ValueError` for settings of rewards, trees or servers where there are none."""
        is_served, has_reward = self.server is not None, self.scorer == "reward"
        refuse_unused_of_reward_server(self, needs=(has_reward, "`scorer: reward`"))
        refuse_unused(
            self,
            {
                "reward_scale": (has_reward, "`scorer: reward`"),
                "reward_center": (has_reward, "`scorer: reward`"),
                "reward_cache": (has_reward and self.reward_server is None, "a reward model that is loaded here"),
                "reward_dtype": (has_reward and self.reward_server is None, "a reward model that is loaded here"),
                "batch_size": (has_reward and not self.reward_cache, "a reward model that reads whole texts"),
                "tree_format": (self.trees is not None, "`trees`"),
                "tokenizer": (is_served, "`server`"),
                "dtype": (not is_served, "a model that is loaded here"),
                "server_timeout": (is_served or self.reward_server is not None, "`server` or `reward_server`"),
            },
        )

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
        served = {"is_served": True, "tokenizer": self.tokenizer} if self.server is not None else {}
        # Results do not depend on where the servers are, so that another address can resume a job.
        for name in ("output", "overwrite", "trees", "tree_format", "batch_size", *_SERVERS):
            del values[name]
        return {**values, **served, "seed": self.seed or 0, "rain": self.rain_config().to_dict()}


def refuse_settings_of_a_call(settings: dict[str, Any]) -> None:
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
