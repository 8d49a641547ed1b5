"""Settings of best-of-n jobs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ..scoring.reward_apis import refuse_unused_of_reward_server
from ..utils.dtypes import check_dtype
from ..utils.fields import as_mapping, refuse_unused, require_kinds, require_positive
from ..utils.server_pool import check_urls
from .candidates import check_generation

# Candidates and their scores depend on these; the other settings can be changed for a finished job.
_RESULT_SETTINGS = (
    "prompts",
    "reward_model",
    "gold_model",
    "model",
    "n",
    "generation",
    "seed",
    "dtype",
    "reward_dtype",
)


@dataclass(frozen=True)
class BestOfNConfig:
    """Settings of `interdistill best-of-n`.

    Args:
        prompts: JSONL file with `prompt` (text or messages) and, if wanted, `id`, `tools`, `chat_template_kwargs`.
            Without `model` each row brings its candidates as `completions`, and maybe their `gold_rewards`.
        output: JSONL file to write: `id`, `prompt`, `completions`, `rewards`, `gold_rewards` if there are any, and
            `finish_reasons` of sampled ones.
        reward_model: the reward model to choose by: name or folder, of a full model, an adapter or an ensemble.
        model: name or folder of a causal LM to sample from.
        n: candidates per prompt to sample.
        generation: fields of `GenerationConfig` (`max_new_tokens`, `temperature`, ...).
        selected: JSONL file for what is kept.
        keep: `completions` or `pairs` (best against worst); see `rules.selected_rows`.
        top_k: completions to keep per prompt. threshold: the least reward of kept completions.
        margin: the reward difference that pairs must exceed.
        gold_model: a reward model that counts as the truth, for the curve.
        curve: JSON file for the over-optimization curve; the picture is written beside it.
        batch_size: completions per forward pass, in sampling and scoring.
        seed: of the samples.
        dtype, reward_dtype: of the causal LM and of the reward models, as in `from_pretrained`.
        overwrite: start again where `output` was made with other settings.
        server: address of a vLLM server that has `model`, which is then the name that it is served by; or of several,
            as a list.
        tokenizer: name or folder of the served model's tokenizer; by default `model`.
        reward_server: address of a server that has `reward_model`, which is then the name that it is served by; or of
            several, as a list.
        reward_api: how that server is asked: `interdistill` for `interdistill serve`, `classify` for vLLM.
        reward_tokenizer: with `classify`, name or folder of that model's tokenizer; by default `reward_model`.
        server_timeout: seconds that a request to a server may take.
    """

    prompts: str = field(metadata={"help": "JSONL of prompts, without `model` with `completions`."})
    output: str = field(metadata={"help": "JSONL to write: all candidates with rewards."})
    reward_model: str = field(metadata={"help": "Reward model to choose by."})
    model: str | None = field(default=None, metadata={"help": "Causal LM to sample from."})
    n: int = field(default=16, metadata={"help": "Candidates per prompt to sample."})
    generation: dict[str, Any] | str | None = field(
        default_factory=dict, metadata={"help": "Fields of GenerationConfig; JSON."}
    )
    selected: str | None = field(default=None, metadata={"help": "JSONL for what is kept."})
    keep: str = field(default="completions", metadata={"help": "completions or pairs."})
    top_k: int = field(default=1, metadata={"help": "Completions to keep per prompt."})
    threshold: float | None = field(default=None, metadata={"help": "Least reward of kept completions."})
    margin: float = field(default=0.0, metadata={"help": "Reward difference that pairs must exceed."})
    gold_model: str | None = field(default=None, metadata={"help": "Reward model that counts as the truth."})
    curve: str | None = field(default=None, metadata={"help": "JSON for the over-optimization curve."})
    batch_size: int = field(default=16, metadata={"help": "Completions per forward pass."})
    seed: int = field(default=0, metadata={"help": "Seed of the samples."})
    dtype: str = field(default="auto", metadata={"help": "Data type of the causal LM."})
    reward_dtype: str = field(default="float32", metadata={"help": "Data type of the reward models."})
    overwrite: bool = field(default=False, metadata={"help": "Start again where settings differ."})
    server: list[str] | None | str = field(  # noqa: RUF036  # in this order TRL's parser reads a list
        default=None, metadata={"help": "Addresses of vLLM servers that have the LM."}
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of the served causal LM."})
    reward_server: list[str] | None | str = field(  # noqa: RUF036  # in this order TRL's parser reads a list
        default=None, metadata={"help": "Addresses of servers with the reward model."}
    )
    reward_api: str = field(default="interdistill", metadata={"help": "Its kind: interdistill, or classify (vLLM)."})
    reward_tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of the served reward model."})
    server_timeout: float = field(default=300.0, metadata={"help": "Seconds that a request to a server may take."})

    def __post_init__(self):
        require_kinds(self)
        for name in ("server", "reward_server"):
            check_urls(name, getattr(self, name))
        object.__setattr__(self, "generation", as_mapping("generation", self.generation))
        check_generation(self.generation_settings())
        for name in ("dtype", "reward_dtype"):
            check_dtype(name, getattr(self, name))
        for name in ("n", "top_k", "batch_size"):
            require_positive(name, getattr(self, name))
        if self.keep not in ("completions", "pairs"):
            raise ValueError(f"`keep` is {self.keep!r}, but must be `completions` or `pairs`.")
        if self.model is None and self.generation:
            raise ValueError("`generation` is set, but no `model` to sample from. Set `model`, or leave it out.")
        chosen = {"top_k": self.top_k != 1, "threshold": self.threshold is not None, "margin": self.margin != 0}
        unused = [name for name, is_set in chosen.items() if is_set and (name == "margin") != (self.keep == "pairs")]
        if unused:
            raise ValueError(
                f"`{unused[0]}` changes nothing with `keep: {self.keep}`: `top_k` and `threshold` choose completions, "
                "`margin` chooses pairs."
            )
        if self.selected is None and (any(chosen.values()) or self.keep != "completions"):
            raise ValueError("There is a choice of what to keep, but no file for it. Set `selected`.")
        if self.server is not None and self.model is None:
            raise ValueError("`server` is set, but no `model`. Set it to the name that the server serves it by.")
        refuse_unused_of_reward_server(self)
        has_server = self.server is not None or self.reward_server is not None
        refuse_unused(
            self,
            {
                "tokenizer": (self.server is not None, "`server`"),
                "dtype": (self.server is None, "a model that is loaded here"),
                "reward_dtype": (self.reward_server is None or self.gold_model is not None, "a reward model here"),
                "server_timeout": (has_server, "`server` or `reward_server`"),
            },
        )

    def generation_settings(self) -> dict[str, Any]:
        """`generation` as a dictionary."""
        return as_mapping("generation", self.generation)

    def result_settings(self) -> dict[str, Any]:
        """The settings that the candidates and their scores depend on."""
        values = asdict(self)
        # Where servers are decides nothing, so that another address can resume a job.
        served: dict[str, Any] = {}
        if self.server is not None:
            served |= {"server": True, "tokenizer": self.tokenizer}
        if self.reward_server is not None:
            names = ("reward_api", "reward_tokenizer")
            served |= {"reward_server": True, **{name: values[name] for name in names}}
        return {**{name: values[name] for name in _RESULT_SETTINGS}, **served}
