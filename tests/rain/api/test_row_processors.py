"""Logits processors that treat the rows of a batch differently do so for the prompts of a search."""

import pytest
import torch
from support.rain import PROMPTS, build_causal, encode, rain
from support.tokenizers import tokenizer_of
from transformers import (
    LogitsProcessor,
    StoppingCriteria,
    SynthIDTextWatermarkingConfig,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

ALLOWED = [list(range(10 + 20 * row, 30 + 20 * row)) for row in range(6)]


class AllowedByRow(LogitsProcessor):
    """Knows the tokens of each row by its number, and counts on being given all rows."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, input_ids, scores):
        assert len(input_ids) == len(scores) == self.rows
        masked = torch.full_like(scores, -torch.inf)
        for row, allowed in enumerate(ALLOWED[: self.rows]):
            masked[row, allowed] = scores[row, allowed]
        return masked


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", ["function", "processor"])
def test_every_prompt_gets_the_tokens_of_its_row(kind, copies):
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    rows = len(PROMPTS) * copies
    given = {
        "function": {"prefix_allowed_tokens_fn": lambda row, ids: ALLOWED[row]},
        "processor": {"logits_processor": [AllowedByRow(rows)]},
    }[kind]
    settings = {"max_new_tokens": 5, "num_return_sequences": copies, "do_sample": copies > 1}
    output = rain(model, tokenizer, **settings, **given)
    plain = model.generate(**encode(tokenizer, PROMPTS), **settings, **given, pad_token_id=3)
    length = plain.shape[1] - 5
    for row in range(rows):
        # Whether a function gets the number of the prompt or of the row is a matter of transformers' version.
        (allowed,) = [each for each in ALLOWED if set(plain[row, length:].tolist()) <= set(each)]
        assert allowed in (ALLOWED[row], ALLOWED[row // copies])
        assert output.rain[row].tokens and set(output.rain[row].tokens) <= set(allowed)


def test_a_row_is_shown_as_generate_shows_it():
    """With its padding, and with every row of the batch, to processors and criteria alike."""
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    inputs = encode(tokenizer, PROMPTS)
    width = inputs["input_ids"].shape[1]
    starts = [tuple(row) for row in inputs["input_ids"].tolist()]
    seen = {}

    def allowed(row, ids):
        seen.setdefault(row, set()).add(tuple(ids.tolist()))
        return list(range(10, 40))

    class Lengths(StoppingCriteria):
        """Ends row `i` after `i + 1` tokens, counted from the padded start."""

        def __call__(self, input_ids, scores, **kwargs):
            assert len(input_ids) == len(PROMPTS)
            return torch.tensor([input_ids.shape[1] >= width + row + 1 for row in range(len(input_ids))])

    output = rain(model, tokenizer, max_new_tokens=6, prefix_allowed_tokens_fn=allowed, stopping_criteria=[Lengths()])
    assert [len(record.tokens) for record in output.rain] == [1, 2, 3]
    for row, start in enumerate(starts):
        assert seen[row] and all(ids[:width] == start for ids in seen[row])


def test_a_prompt_without_an_allowed_token_is_named():
    """By its number, whichever branch of it has none."""
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    with pytest.raises(ValueError, match=r"`prefix_allowed_tokens_fn` allows no token for prompt 1 after tokens that"):
        rain(model, tokenizer, max_new_tokens=4, prefix_allowed_tokens_fn=lambda row, ids: [] if row == 1 else [20])


def test_processors_that_follow_one_text_are_refused():
    model, tokenizer = build_causal(), tokenizer_of("bytes")
    keys = {"ngram_len": 3, "keys": [1, 2, 3]}
    with pytest.raises(ValueError, match="SynthIDTextWatermarkLogitsProcessor follows one text from token to token"):
        rain(model, tokenizer, max_new_tokens=4, watermarking_config=SynthIDTextWatermarkingConfig(**keys))
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, model)
    with pytest.raises(ValueError, match="UnbatchedClassifierFreeGuidanceLogitsProcessor follows one text"):
        rain(model, tokenizer, max_new_tokens=4, logits_processor=[guidance])
