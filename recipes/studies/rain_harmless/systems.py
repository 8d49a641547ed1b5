"""The study's systems: how each answers, and what it reads.

A token counts when a model reads it, whichever model: a prompt once for all samples that share it, a token that ends
an answer never, and what a reward model or judge reads as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill import RewardScorer
from hf_interdistill.rain.api.jobs import RainJobConfig, run_rain_job
from hf_interdistill.scoring.prompts import tokenize_prompt

from .rows import Row

_SAMPLES = 32  # drawn at a time for best-of-n; those beyond the budget are not looked at


class Sampler:
    """Answers of the chat model by plain `generate`, many samples of one prompt at a time.

    Args:
        folder: the chat model. dtype: its dtype. generation: fields of `GenerationConfig`. seed: of all draws.
    """

    def __init__(self, folder: str, dtype: str, generation: Row, seed: int):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.generation, self.seed = generation, seed

    def seed_torch(self, system: str, row: Row) -> None:
        """Draws that depend on seed, system and prompt alone, so that a resumed run draws what it would have drawn."""
        digest = hashlib.blake2b(f"{self.seed} {system} {row['id']}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))

    @torch.no_grad()
    def sample(self, prompt: Sequence[Row], count: int, **changes) -> tuple[int, list[tuple[str, list[int]]]]:
        """Number of prompt tokens, and `count` answers as text and token ids. The prompt is read once."""
        ids = tokenize_prompt(self.tokenizer, prompt).reshape(1, -1)
        cache = self.model(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_repeat_interleave(count)
        rows = self.model.generate(
            ids.repeat(count, 1),
            attention_mask=torch.ones(count, ids.shape[1], dtype=torch.long),
            past_key_values=cache,
            pad_token_id=self.tokenizer.eos_token_id,
            **{**self.generation, **changes},
        )
        answers = []
        for row in rows[:, ids.shape[1] :].tolist():
            eos = self.tokenizer.eos_token_id
            row = row[: row.index(eos) + 1] if eos in row else row
            answers.append((self.tokenizer.decode(row, skip_special_tokens=True), row))
        return ids.shape[1], answers


def greedy(sampler: Sampler, row: Row) -> Row:
    """The likeliest token at each step."""
    length, ((text, ids),) = sampler.sample(row["prompt"], 1, do_sample=False, top_k=None)
    return _answer(text, ids, length + len(ids) - 1, samples=1)


def sampling(sampler: Sampler, row: Row) -> Row:
    """One sample."""
    sampler.seed_torch("sampling", row)
    length, ((text, ids),) = sampler.sample(row["prompt"], 1)
    return _answer(text, ids, length + len(ids) - 1, samples=1)


def best_of_n(sampler: Sampler, reward: RewardScorer, budget: int, row: Row) -> Row:
    """The sample of the highest reward, of as many as the budget pays for; the one that reaches it is still taken.

    Args:
        sampler: the chat model. reward: the reward model. budget: forward tokens. row: the prompt.
    """
    sampler.seed_torch("best_of_n", row)
    spent, samples, rewards, best = None, 0, {}, None
    while spent is None or spent < budget:
        length, answers = sampler.sample(row["prompt"], _SAMPLES)
        spent = length if spent is None else spent
        new = list(dict.fromkeys(text for text, _ in answers if text not in rewards))
        costs: dict[str, int] = {}
        if new:
            values = reward([row["prompt"]] * len(new), [[{"role": "assistant", "content": text}] for text in new])
            rewards.update(zip(new, values, strict=True))
            costs = dict(zip(new, reward.last_token_counts, strict=True))
        for text, ids in answers:
            spent += len(ids) - 1 + costs.pop(text, 0)
            samples += 1
            if best is None or rewards[text] > best[0]:
                best = (rewards[text], text, ids)
            if spent >= budget:
                break
    return _answer(best[1], best[2], spent, samples=samples)


def load_reward(folder: Path, dtype: str) -> RewardScorer:
    """A reward model in the dtype of the study."""
    return RewardScorer.from_pretrained(str(folder), dtype=getattr(torch, dtype), batch_size=32)


def rain(
    prompts: Path,
    output: Path,
    model: str,
    settings: dict,
    preset: dict,
    reward: Path | None = None,
    scale: dict | None = None,
    seed: int = 0,
) -> dict:
    """RAIN as a job: judged by the model itself, or by a reward model.

    Args:
        prompts, output: files of the job. model: the chat model. settings: `generation` and `dtype`.
        preset: fields of `RainConfig`. reward: the reward model, or `None` for the judge `self`.
        scale: `reward_center` and `reward_scale`. seed: of the search.
    """
    scorer = (
        {"scorer": "self"} if reward is None else {"scorer": "reward", "reward_model": str(reward), **(scale or {})}
    )
    return run_rain_job(
        RainJobConfig(
            model=model,
            prompts=str(prompts),
            output=str(output),
            rain=preset,
            seed=seed,
            **settings,
            **scorer,
        )
    )


def _answer(text: str, ids: list[int], tokens: int, samples: int) -> Row:
    return {"completion": text, "tokens": ids, "stats": {"forward_tokens": tokens, "samples": samples}}
