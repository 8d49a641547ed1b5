"""What keeps a decoder from its teacher's map: trains on the alignment alone, and says how much is explained.

    python recipes/studies/attention_hacking/learnability.py --data FILE --variants last middle all

A short training for each variant, all from the same weights, on the same pairs in the same order; the embeddings are
frozen. The figures are shares of the teacher's map (see `ExplainedShare`) on held-out pairs, before and after, at each
layer. `column means` is the share of a map in which every row is the mean row of its pair: it needs no attention from
word to word.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from rotary import RotaryRecorder
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl.trainer.reward_trainer import DataCollatorForPreference

from hf_interdistill import InteractionTeacher, embedded
from hf_interdistill.interaction.attention.map_sources import dense
from hf_interdistill.interaction.attention.maps import pool_attention
from hf_interdistill.interaction.attention.recorder import AttentionRecorder, RecordedAttention
from hf_interdistill.interaction.data.collator import AlignmentCollator
from hf_interdistill.interaction.data.preference_tokenizer import PreferenceTokenizer
from hf_interdistill.interaction.losses.alignment import ALIGNMENT_SCOPES, RowWeights
from hf_interdistill.interaction.losses.explained import ExplainedShare
from hf_interdistill.interaction.prompt_sharing.packing import PackedPairs
from hf_interdistill.interaction.prompt_sharing.sharing import PromptSharing
from hf_interdistill.utils.data import load_preferences


@dataclass(frozen=True)
class Variant:
    """One way to simulate and to train the student's map.

    Args:
        layers: `last`, `middle` or `all`: the student's layers that are aligned, each with the teacher's last.
        heads: `mean` over all; `group`: those of the first group of keys alone; `learned`: weights per head.
        is_temperature_learned: a factor for the scores of each head is trained.
        rope: queries and keys `after` or `before` rotary positions.
        weight: of the alignment beside the reward loss; `None` trains on the alignment alone.
        learning_rate: highest one, of the student's weights; it rises over a tenth of the steps, then falls to 0.
    """

    layers: str = "last"
    heads: str = "mean"
    is_temperature_learned: bool = False
    rope: str = "after"
    weight: float | None = None
    learning_rate: float = 1e-4


VARIANTS = {
    "last": Variant(),
    "last_slow": Variant(learning_rate=2e-5),
    "last_fast": Variant(learning_rate=5e-4),
    "middle": Variant(layers="middle"),
    "all": Variant(layers="all"),
    "group": Variant(heads="group"),
    "learned_heads": Variant(heads="learned"),
    "temperature": Variant(is_temperature_learned=True),
    "heads_and_temperature": Variant(heads="learned", is_temperature_learned=True),
    "before_rope": Variant(rope="before"),
    "before_rope_temperature": Variant(rope="before", is_temperature_learned=True),
    "all_temperature": Variant(layers="all", is_temperature_learned=True),
    **{f"weight_{weight:g}": Variant(weight=weight) for weight in (0.1, 0.3, 1.0, 3.0, 10.0)},
}
_FACTOR_RATE = 0.02  # learning rate of weights and temperatures of heads


@dataclass(frozen=True)
class Batch:
    """Pairs packed in rows, and the teacher's map of them.

    Args:
        packed: the rows. index, units: place and unit of each content token, `(pairs, content)`.
        segments: `(pairs, units)`. teacher: `(pairs, units, units)`.
    """

    packed: PackedPairs
    index: torch.Tensor
    units: torch.Tensor
    segments: torch.Tensor
    teacher: torch.Tensor

    def shared(self) -> torch.Tensor:
        """Units that both have read, `(pairs, units)`."""
        count = torch.arange(self.segments.shape[1])
        has_tokens = (self.units[:, :, None] == count).any(1)
        return has_tokens & (self.teacher.sum(-1) > 0) & (self.segments >= 0)


class Heads(nn.Module):
    """Weights and temperatures of the heads of the aligned layers; constants unless the variant trains them."""

    def __init__(self, variant: Variant, layers: int, heads: int, groups: int):
        super().__init__()
        self.choice = nn.Parameter(torch.zeros(layers, heads), requires_grad=variant.heads == "learned")
        self.sharpness = nn.Parameter(torch.zeros(layers, heads), requires_grad=variant.is_temperature_learned)
        is_used = torch.ones(heads, dtype=torch.bool)
        if variant.heads == "group":
            is_used[heads // groups :] = False
        self.register_buffer("is_used", is_used)

    def weights(self, layer: int) -> torch.Tensor:
        return self.choice[layer].masked_fill(~self.is_used, float("-inf")).softmax(0)

    def map(self, record: RecordedAttention, batch: Batch, layer: int) -> torch.Tensor:
        """The simulated map `(pairs, units, units)` of one recorded layer."""

        def content(states: torch.Tensor) -> torch.Tensor:
            return states.gather(2, batch.index[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3]))

        query, key = content(record.query), content(record.key)
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = query @ key.transpose(2, 3) * record.scaling * self.sharpness[layer].exp()[:, None, None]
        scores = scores.masked_fill((batch.units < 0)[:, None, None], float("-inf"))
        attention = (scores.softmax(-1) * self.weights(layer)[:, None, None]).sum(1)
        return pool_attention(attention, batch.units, batch.segments.shape[1])


def divergences(student: torch.Tensor, batch: Batch) -> torch.Tensor:
    """`(3, scopes)`: loss, KL(teacher, student) and KL(teacher, uniform), as of `alignment_loss`."""
    rows = RowWeights.from_units(batch.shared(), batch.segments, student.dtype, None)
    return torch.stack([rows.measures(student, batch.teacher, 0, "kl", scope) for scope in ALIGNMENT_SCOPES], 1)


class Bench:
    """Model, teacher and pairs of all variants.

    Args:
        args: the command's arguments.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        source = embedded.language_model()
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        teacher = InteractionTeacher.from_pretrained(args.teacher or embedded.encoder("minilm")).freeze()
        fitting = (row for row in load_preferences(args.data)["train"] if self._tokens(row) <= args.longest)
        rows = list(islice(fitting, args.batch_size * args.steps + args.held_out))
        if len(rows) < args.held_out + args.batch_size:
            raise ValueError(f"{len(rows)} pairs have at most {args.longest} tokens: raise `--longest`.")
        batches = [rows[i : i + args.batch_size] for i in range(0, len(rows), args.batch_size)]
        batches = [self._batch(each, teacher) for each in batches if len(each) == args.batch_size]
        count = -(-args.held_out // args.batch_size)
        self.held_out, self.training = batches[:count], batches[count:]

    def _tokens(self, row: dict) -> int:
        texts = (row["prompt"] + row[side] for side in ("chosen", "rejected"))
        return sum(len(self.tokenizer.apply_chat_template(text, tokenize=True)["input_ids"]) for text in texts)

    @torch.no_grad()
    def _batch(self, rows: Sequence[dict], teacher: InteractionTeacher) -> Batch:
        encoder = PreferenceTokenizer(self.tokenizer, teacher.tokenizer)
        columns = [encoder.encode(dict(row), index)[0] for index, row in enumerate(rows)]
        collator = DataCollatorForPreference(pad_token_id=self.tokenizer.pad_token_id)
        batch = AlignmentCollator(collator, teacher.layout)(columns)
        inputs = {key.removeprefix("teacher_"): value for key, value in batch.items() if key.startswith("teacher_")}
        order = torch.zeros(len(rows), dtype=torch.long)
        maps = teacher.forward(inputs, order, [-1], batch["segments"].shape[1])[1][0]
        packed = PackedPairs.from_rows(batch["input_ids"], batch["attention_mask"], self.tokenizer.pad_token_id)
        index = packed.token_index.gather(1, batch["student_index"])
        return Batch(packed, index, batch["student_units"], batch["segments"], dense(maps))

    def student(self) -> nn.Module:
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            embedded.language_model(), num_hidden_layers=self.args.layers, num_labels=1, dtype=torch.float32
        )
        model.config.pad_token_id = self.tokenizer.pad_token_id
        model.get_input_embeddings().requires_grad_(False)
        return model

    def column_means(self) -> dict[str, float]:
        """The share of a map that has the teacher's mean row in every row."""
        share = ExplainedShare()
        for batch in self.held_out:
            own = batch.shared()[:, :, None]
            mean = (batch.teacher * own).sum(1, keepdim=True) / own.sum(1, keepdim=True)
            share.add(divergences(mean.expand_as(batch.teacher), batch)[1:])
        return share.take()

    def run(self, variant: Variant) -> dict:
        """Train a variant; shares of the aligned layers and of each layer on held-out pairs, before and after."""
        start, model = time.monotonic(), self.student()
        config, every = model.config, list(range(self.args.layers))
        aligned = {"last": every[-1:], "middle": [len(every) // 2], "all": every}[variant.layers]
        heads = Heads(variant, len(aligned), config.num_attention_heads, config.num_key_value_heads)
        before = self.measure(model, variant, heads, aligned)
        factors = [each for each in heads.parameters() if each.requires_grad]
        weights = [each for each in model.parameters() if each.requires_grad]
        groups = [{"params": weights, "lr": variant.learning_rate}, {"params": factors, "lr": _FACTOR_RATE}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        curve = []
        for step in range(self.args.steps):
            if time.monotonic() - start > self.args.seconds:
                break
            batch = self.training[step % len(self.training)]
            records, logits = self._forward(model, variant, aligned, batch)
            losses = [divergences(heads.map(record, batch, i), batch)[0, 0] for i, record in enumerate(records)]
            loss = torch.stack(losses).mean()
            curve.append(round(float(loss.detach()), 4))
            if variant.weight is not None:
                chosen, rejected = logits.squeeze(-1).chunk(2)
                loss = variant.weight * loss - nn.functional.logsigmoid(chosen - rejected).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return {
            "variant": asdict(variant),
            "steps": len(curve),
            "before": before,
            "after": self.measure(model, variant, heads, aligned),
            "loss": curve[:: max(len(curve) // 20, 1)],
            "head_weights": [[round(w, 3) for w in heads.weights(i).tolist()] for i in range(len(aligned))],
            "temperatures": [[round(t, 2) for t in row] for row in heads.sharpness.exp().tolist()],
            "seconds": round(time.monotonic() - start, 1),
        }

    def _rate(self, step: int) -> float:
        warm = max(self.args.steps // 10, 1)
        return min((step + 1) / warm, max(self.args.steps - step, 0) / max(self.args.steps - warm, 1))

    def _forward(self, model: nn.Module, variant: Variant, layers: Sequence[int], batch: Batch):
        recorder = (RotaryRecorder if variant.rope == "before" else AttentionRecorder)(model, layers)
        sharing = PromptSharing(model, "true", None)
        with recorder:
            logits = sharing.forward(model, batch.packed, use_cache=False).logits
        return recorder.records, logits

    @torch.no_grad()
    def measure(self, model: nn.Module, variant: Variant, heads: Heads, aligned: Sequence[int]) -> dict:
        """Shares on the held-out pairs: mean over the aligned layers, each layer, and accuracy of the rewards."""
        every = range(self.args.layers)
        shares = {layer: ExplainedShare() for layer in every}
        whole, right, pairs = ExplainedShare(), 0.0, 0
        plain = Heads(Variant(), self.args.layers, model.config.num_attention_heads, 1)
        model.eval()
        for batch in self.held_out:
            records, logits = self._forward(model, variant, list(every), batch)
            for layer, record in zip(every, records, strict=True):
                own = (heads, aligned.index(layer)) if layer in aligned else (plain, layer)
                found = divergences(own[0].map(record, batch, own[1]), batch)[1:]
                shares[layer].add(found)
                if layer in aligned:
                    whole.add(found)
            chosen, rejected = logits.squeeze(-1).chunk(2)
            right, pairs = right + float(((chosen - rejected).sign() / 2 + 0.5).sum()), pairs + len(chosen)
        model.train()
        layers = [round(shares[layer].take()["explained"], 6) for layer in every]
        found = {name: round(value, 6) for name, value in whole.take().items()}
        return {**found, "by_layer": layers, "accuracy": round(right / pairs, 3)}


def table(results: dict[str, dict]) -> str:
    lines = [
        "| variant | steps | before | after | own sequence | other response | by layer after |",
        "| --- " * 7 + "|",
    ]
    for name, found in results.items():
        old, new = found["before"], found["after"]
        parts = f"{new['explained_intra']:.2f} | {new['explained_inter']:.2f}"
        layers = " ".join(f"{share:.2f}" for share in new["by_layer"])
        steps = found["steps"]
        lines.append(f"| {name} | {steps} | {old['explained']:.2f} | {new['explained']:.2f} | {parts} | {layers} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="preferences, JSONL or a folder")
    parser.add_argument("--output", type=Path, default=Path("runs/learnability.json"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument("--teacher", help="folder of a fitted teacher; MiniLM as it comes by default")
    parser.add_argument("--layers", type=int, default=12, help="layers of SmolLM2 that the student has")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--held_out", type=int, default=64, help="pairs that the shares are measured on")
    parser.add_argument("--longest", type=int, default=400, help="tokens of both texts of a pair")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most, for each variant")
    args = parser.parse_args(arguments)
    bench = Bench(args)
    print("column means:", {name: round(share, 3) for name, share in bench.column_means().items()}, flush=True)
    results = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    for name in args.variants:
        results[name] = bench.run(VARIANTS[name])
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(table({name: results[name]}).splitlines()[-1], f"{results[name]['seconds']} s", flush=True)
    print(table(results))
    return results


if __name__ == "__main__":
    main()
