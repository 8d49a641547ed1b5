"""The teacher's input: prompt and responses as one sequence in the pair format of its tokenizer.

`[CLS] prompt [SEP] first [SEP] second [SEP]` for BERT, `<s> prompt </s></s> first </s></s> second </s>` for RoBERTa:
the format is taken from what the tokenizer returns for a pair of texts. Decoders have none: `<bos> prompt <eos> first
<eos> second <eos>`, without the first token where the tokenizer adds none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .units import NO_UNIT


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of a prompt or response, and the unit of each token: two lists of equal length."""

    ids: Sequence[int]
    units: Sequence[int]


@dataclass(frozen=True)
class TokenizedPair:
    """A preference in the teacher's tokens."""

    prompt: TokenizedText
    chosen: TokenizedText
    rejected: TokenizedText

    @property
    def length(self) -> int:
        """Tokens of all three texts."""
        return sum(len(text.ids) for text in (self.prompt, self.chosen, self.rejected))


@dataclass(frozen=True)
class TeacherInput:
    """One row of the teacher's input.

    Args:
        ids, types, units: token id, token type and unit of each token; three lists of equal length.
        score_positions: for each response, the position of the separator after it, where its score is read.
    """

    ids: list[int]
    types: list[int]
    units: list[int]
    score_positions: list[int]


@dataclass(frozen=True)
class SequenceFormat:
    """How a tokenizer joins texts.

    Args:
        prefix, middle, suffix: special tokens before the first text, between two texts, after the last.
        types: token type of the first text and of those after it.
        pad_id: padding token.
        has_types: whether the tokenizer yields token types.
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]
    types: tuple[int, int]
    pad_id: int
    has_types: bool

    @classmethod
    def from_tokenizer(cls, tokenizer, *, is_decoder: bool = False) -> SequenceFormat:
        """The format of a tokenizer, from what it returns for a pair of texts.

        Tokenizers of decoders put no separator between texts. There each text ends with the end token (`eos_token`),
        which in chat models ends a turn, and the row begins with what the tokenizer puts before a text.

        Args:
            tokenizer: a fast one.
            is_decoder: whether the model is a decoder. Its padding token may be missing: padding is masked, so the
                end token stands in for it.

        Raises:
            ValueError: a slow tokenizer (without character offsets), no padding token, or no separator between texts
                (for a decoder: no end token).
        """
        name = type(tokenizer).__name__
        require_fast(tokenizer, "teacher")
        end = tokenizer.eos_token_id if is_decoder else None
        pad_id = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad_id is None:
            raise ValueError(
                f"The teacher's tokenizer ({name}) has no padding token; batches of pairs need one. "
                "Set `tokenizer.pad_token`, or use an encoder such as BERT, RoBERTa, ModernBERT or DeBERTa."
            )
        probe = tokenizer("the", add_special_tokens=False)["input_ids"]
        pair = tokenizer("the", "the")
        ids, size = pair["input_ids"], len(probe)
        starts = [i for i in range(len(ids) - size + 1) if ids[i : i + size] == probe]
        first, second = (starts[0], starts[-1]) if starts else (0, 0)
        middle, suffix = tuple(ids[first + size : second]), tuple(ids[second + size :])
        if end is not None and not (middle and suffix):
            return cls(tuple(ids[:first]), (end,), (end,), types=(0, 0), pad_id=pad_id, has_types=False)
        if not middle or not suffix:
            raise ValueError(
                f"The teacher's tokenizer ({name}) puts no separator between and after two texts (a pair gives "
                f"{tokenizer.convert_ids_to_tokens(ids)}). The teacher reads prompt, chosen and rejected as one "
                "sequence and needs one: use an encoder whose tokenizer adds [SEP] or </s>, or a decoder whose "
                "tokenizer has an end token (`eos_token`)."
            )
        types = pair.get("token_type_ids")
        return cls(
            prefix=tuple(ids[:first]),
            middle=middle,
            suffix=suffix,
            types=(types[first], types[second]) if types else (0, 0),
            pad_id=pad_id,
            has_types=types is not None,
        )

    def pack(self, prompt: TokenizedText, responses: Sequence[TokenizedText], max_length: int) -> TeacherInput:
        """Join prompt and responses to at most `max_length` tokens.

        Longer inputs lose the oldest prompt tokens first. If the responses alone are too long, the longest are cut at
        their ends.
        """
        specials = len(self.prefix) + len(self.middle) * len(responses) + len(self.suffix)
        room = max_length - specials
        lengths = _shorten([len(response.ids) for response in responses], room)
        kept = min(len(prompt.ids), room - sum(lengths))
        packed = TeacherInput(list(self.prefix), [], [NO_UNIT] * len(self.prefix), [])
        packed.ids.extend(prompt.ids[len(prompt.ids) - kept :])
        packed.units.extend(prompt.units[len(prompt.units) - kept :])
        self._add_special(packed, self.middle)
        packed.types.extend([self.types[0]] * len(packed.ids))
        for number, (response, length) in enumerate(zip(responses, lengths, strict=True)):
            packed.ids.extend(response.ids[:length])
            packed.units.extend(response.units[:length])
            packed.score_positions.append(len(packed.ids))
            self._add_special(packed, self.suffix if number == len(responses) - 1 else self.middle)
        packed.types.extend([self.types[1]] * (len(packed.ids) - len(packed.types)))
        return packed

    @staticmethod
    def _add_special(packed: TeacherInput, ids: tuple[int, ...]) -> None:
        packed.ids.extend(ids)
        packed.units.extend([NO_UNIT] * len(ids))

    def collate(self, packed: Sequence[TeacherInput]) -> dict[str, torch.Tensor]:
        """Pad to one batch.

        Returns:
            `input_ids`, `attention_mask`, `units` and, where the tokenizer has them, `token_type_ids`: all
            `(batch, length)`; `score_positions`: `(batch, responses)`.
        """
        length = max(len(row.ids) for row in packed)
        batch = {
            "input_ids": _padded([row.ids for row in packed], length, self.pad_id),
            "attention_mask": _padded([[1] * len(row.ids) for row in packed], length, 0),
            "units": _padded([row.units for row in packed], length, NO_UNIT),
            "score_positions": torch.tensor([row.score_positions for row in packed]),
        }
        if self.has_types:
            batch["token_type_ids"] = _padded([row.types for row in packed], length, 0)
        return batch


@dataclass(frozen=True)
class PairLayout:
    """The two rows in which a teacher reads a pair.

    Args:
        format: how its tokenizer joins texts.
        max_length: tokens of a row.
        has_late_interaction: each response with the prompt in its own row (chosen, then rejected). Otherwise each row
            holds both responses, in either order (chosen first, then rejected first).
    """

    format: SequenceFormat
    max_length: int
    has_late_interaction: bool

    def pack(self, pair: TokenizedPair) -> list[TeacherInput]:
        """The two rows, each cut to `max_length` by `SequenceFormat.pack`."""
        chosen, rejected = pair.chosen, pair.rejected
        rows = ((chosen,), (rejected,)) if self.has_late_interaction else ((chosen, rejected), (rejected, chosen))
        return [self.format.pack(pair.prompt, row, self.max_length) for row in rows]


def require_fast(tokenizer, owner: str) -> None:
    """Raise `ValueError` if the tokenizer has no character offsets."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"The {owner}'s tokenizer ({type(tokenizer).__name__}) is a slow one without character offsets, but "
            "teacher and student are matched word by word by offsets. Use its fast version (a `tokenizer.json`, "
            "`AutoTokenizer.from_pretrained(...)`), or train with `alignment_weight=0`."
        )


def _shorten(lengths: list[int], room: int) -> list[int]:
    """The lengths, cut until their sum is at most `room`, the longest first."""
    lengths = list(lengths)
    while sum(lengths) > max(room, 0):
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        others = max((length for i, length in enumerate(lengths) if i != longest), default=0)
        excess = sum(lengths) - max(room, 0)
        lengths[longest] -= min(excess, max(lengths[longest] - others, 1))
    return lengths


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> torch.Tensor:
    return torch.tensor([list(row) + [value] * (length - len(row)) for row in rows])
