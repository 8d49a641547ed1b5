"""The study's arms: how each decodes, and what it spends.

`vanilla` and `best_of_n` sample with transformers' own `generate`; the RAIN arms are jobs of the package. A token
counts when a model reads it, so a token that ends a text is free, and a prompt is read once however many samples share
it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.self_evaluation import SelfEvaluationScorer
from hf_interdistill.utils.jsonl_jobs import JsonlJob

_SAMPLES = 32  # drawn at a time for best-of-n; those beyond the budget are not looked at


class Sampler:
    """Plain sampling from the decoder.

    Args:
        folder: the decoder. generation: fields of `GenerationConfig`. seed: of all draws.
    """

    def __init__(self, folder: str, generation: dict, seed: int):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.generation = generation
        self.seed = seed

    def seed_torch(self, arm: str, row: dict) -> None:
        """Draws that depend on arm and prompt alone, so that a resumed run draws what it would have drawn."""
        digest = hashlib.blake2b(f"{self.seed} {arm} {row['id']}".encode(), digest_size=7).digest()
        torch.manual_seed(int.from_bytes(digest, "big"))

    def sample(self, prompt: str, count: int) -> tuple[int, list[tuple[str, list[int]]]]:
        """Number of prompt tokens, and `count` completions as text and token ids."""
        inputs = self.tokenizer(prompt, return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        rows = self.model.generate(**inputs, **self.generation, do_sample=True, num_return_sequences=count)
        eos = self.tokenizer.eos_token_id
        answers = []
        for ids in rows[:, length:].tolist():
            ids = ids[: ids.index(eos) + 1] if eos in ids else ids
            answers.append((self.tokenizer.decode(ids, skip_special_tokens=True), ids))
        return length, answers


def run_job(output: Path, settings: dict, rows: Sequence[dict], answer: Callable[[dict], dict]) -> None:
    """Write `answer(row)` for each row that has none yet, in the files of a RAIN job."""
    with JsonlJob(output, rank=0) as job:
        job.open(settings)
        done = job.finished_ids()
        with job.appending() as append:
            for row in tqdm([row for row in rows if row["id"] not in done], desc=output.stem, unit="prompt"):
                append({**row, **answer(row)})
        job.merge([row["id"] for row in rows])


def vanilla(sampler: Sampler, row: dict) -> dict:
    """One sample."""
    sampler.seed_torch("vanilla", row)
    length, ((text, ids),) = sampler.sample(row["prompt"], 1)
    stats = {"forward_tokens": length + len(ids) - 1, "judge_calls": 0, "samples": 1}
    return _answer(text, ids, stats)


def best_of_n(sampler: Sampler, judge: SelfEvaluationScorer, budget: int, row: dict) -> dict:
    """The best of as many samples as the budget pays for; the sample that reaches the budget is still taken.

    Args:
        sampler: the decoder. judge: the judge that RAIN uses, bound to the decoder.
        budget: forward tokens that RAIN spent on this prompt, judge and search together.
        row: the prompt.
    """
    sampler.seed_torch("best_of_n", row)
    spent, samples, verdicts, best = None, 0, {}, None
    while spent is None or spent < budget:
        length, answers = sampler.sample(row["prompt"], _SAMPLES)
        spent = length if spent is None else spent
        new = list(dict.fromkeys(text for text, _ in answers if text not in verdicts))
        costs: dict[str, int] = {}
        if new:
            values, judged = judge.score_batch([Exchange(row["prompt"], text) for text in new])
            verdicts.update(zip(new, values, strict=True))
            costs = dict(zip(new, judged.tokens, strict=True))
        for text, ids in answers:
            spent += len(ids) - 1 + costs.pop(text, 0)
            samples += 1
            if best is None or verdicts[text] > best[0]:
                best = (verdicts[text], text, ids)
            if spent >= budget:
                break
    stats = {"forward_tokens": spent, "judge_calls": len(verdicts), "samples": samples}
    return _answer(best[1], best[2], stats)


def _answer(text: str, ids: list[int], stats: dict) -> dict:
    return {"completion": text, "tokens": ids, "stats": stats}
