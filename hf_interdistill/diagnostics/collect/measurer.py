"""Runs a reward model over pairs and their changed texts: one record per pair, the input of every measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...interaction.attention.recorder import AttentionRecorder, resolve_layers
from ...scoring.batching import padded
from ...scoring.ensemble import RewardEnsemble
from ...scoring.opening import LocalScorer
from ...scoring.scorer import RewardScorer
from ..config import STAGES, DiagnosisConfig
from .contents import PairRows, read_pair, shown_text
from .scored_attention import scored_attention, stage_masses

_SHOWN = 1000  # characters of a text kept for examples


class PairMeasurer:
    """Measures pairs with one model.

    Args:
        scorer: the reward model. config: what to measure.

    Attributes:
        attention_problem: why the attention of this model cannot be recorded; `None` if it can.
    """

    def __init__(self, scorer: LocalScorer, config: DiagnosisConfig):
        self.scorer, self.config = scorer, config
        self.max_length = config.max_length or scorer.context_length
        self.attention_problem = self._probe_attention()

    def __call__(self, examples: Sequence[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
        """Records of indexed rows, in order.

        A record has `id`; `left_out` (why), or: `rewards`, `[chosen, rejected]` for `full`, `first F`, `last F`,
        `response start`, `prompt` (content that was removed) and `cue`; `lengths`, tokens of the responses;
        `attention`, for each of the two the mass on the first token and the shares of the stages, or `None`; `texts`,
        shortened; of an ensemble `members`, for each of the two the rewards of the members.
        """
        records, measured = [], []
        for number, example in examples:
            try:
                pair = read_pair(self.scorer.formatter, example, self.config.cue)
            except ValueError as error:
                raise ValueError(f"Row {number}: {error}") from None
            problem = self._problem(pair)
            if problem is None:
                records.append({"id": number, "lengths": [len(row.response) for row in pair.rows]})
                measured.append((records[-1], pair))
            else:
                records.append({"id": number, "left_out": problem})
        self._measure(measured)
        return records

    def _problem(self, pair: PairRows) -> str | None:
        if pair.rows[0].ids == pair.rows[1].ids:
            return "equal responses"
        if not pair.rows[0].response or not pair.rows[1].response:
            return "empty response"
        longest = max(len(ids) for ids in (*pair.cued, *(row.ids for row in pair.rows)))
        if self.max_length is not None and longest > self.max_length:
            return f"longer than {self.max_length} tokens"
        return None

    def _measure(self, measured: list[tuple[dict[str, Any], PairRows]]) -> None:
        variants: list[tuple[dict[str, Any], str, list[int], list[int]]] = []
        for record, pair in measured:
            record["rewards"], record["attention"] = {}, [None, None]
            record["texts"] = {name: shown_text(text, _SHOWN) for name, text in pair.texts.items()}
            for row, cued in zip(pair.rows, pair.cued, strict=True):
                changed = {f"first {f:g}": row.without_first(f) for f in self.config.fractions}
                changed |= {f"last {f:g}": row.without_last(f) for f in self.config.fractions}
                changed["response start"] = row.without_response_start(self.config.fractions[-1])
                changed |= {"prompt": row.without(row.prompt), "cue": (cued, list(range(len(cued))))}
                variants += [(record, name, ids, positions) for name, (ids, positions) in changed.items()]
        self._score_whole(measured)
        rewards = self.scorer.score_ids([ids for *_, ids, _ in variants], positions=[p for *_, p in variants])
        for (record, name, *_), reward in zip(variants, rewards, strict=True):
            record["rewards"].setdefault(name, []).append(reward)

    def _score_whole(self, measured: list[tuple[dict[str, Any], PairRows]]) -> None:
        """Rewards of the whole texts and, in the same pass, the attention of their scored tokens."""
        texts = [(record, side, pair.rows[side].ids) for record, pair in measured for side in (0, 1)]
        for record, *_ in texts:
            record["rewards"]["full"] = [0.0, 0.0]
            if isinstance(self.scorer, RewardEnsemble):
                record["members"] = [[], []]
        for numbers in self.scorer.batches([len(ids) for *_, ids in texts]):
            batch = [texts[number] for number in numbers]
            rows = [ids for *_, ids in batch]
            if isinstance(self.scorer, RewardEnsemble):
                members = self.scorer.member_rewards(rows)
                for (record, side, _), own in zip(batch, members.T.tolist(), strict=True):
                    record["members"][side] = own
                rewards, masses = self.scorer.rule(members).tolist(), [None] * len(rows)
            else:
                rewards, masses = self._score_batch(self.scorer, rows)
            for (record, side, _), reward, mass in zip(batch, rewards, masses, strict=True):
                record["rewards"]["full"][side] = reward
                record["attention"][side] = mass

    def _score_batch(self, scorer: RewardScorer, rows: list[list[int]]):
        if self.attention_problem is not None:
            return scorer.score_ids(rows), [None] * len(rows)
        side = scorer.padding_side  # measured before the recorder counts forward passes
        with AttentionRecorder(scorer.model, self._layers) as recorder:
            rewards = scorer.score_ids(rows)
        mask = self._mask(scorer, rows, side)
        positions = torch.arange(mask.shape[1], device=mask.device)
        last = torch.where(mask, positions, -1).argmax(1) if scorer.is_causal else mask.int().argmax(1)
        weights = torch.stack([scored_attention(record, mask, last) for record in recorder.records]).mean(0)
        recorder.release()
        return rewards, stage_masses(weights, mask, STAGES)

    @staticmethod
    def _mask(scorer: RewardScorer, rows: list[list[int]], side: str) -> torch.Tensor:
        """The real tokens of a batch padded on a side; a closing padding token is not the scored one."""
        batch = padded(scorer.tokenizer, rows, side)
        mask = batch["attention_mask"].bool()
        if scorer.is_causal:
            is_padding = batch["input_ids"] == scorer.tokenizer.pad_token_id
            ends_here = (~is_padding).flip(1).cumsum(1).flip(1) > 0
            mask = mask & ends_here
        return mask.to(scorer.device)

    def _probe_attention(self) -> str | None:
        if isinstance(self.scorer, RewardEnsemble):
            return "An ensemble has an attention for each member. Diagnose the members by themselves."
        layers = self.scorer.model.config.get_text_config().num_hidden_layers
        self._layers = resolve_layers(self.config.attention_layers, layers, "attention_layers")
        ids = self.scorer.tokenizer("a b c", verbose=False)["input_ids"]
        try:
            with AttentionRecorder(self.scorer.model, self._layers):
                self.scorer.score_ids([ids])
        except ValueError as error:
            return str(error).split(", so it has no")[0].removesuffix(".") + "."
        return None
