"""Ends of texts tokenized apart give the ids of whole texts."""

import functools

import pytest
from conftest import tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hf_interdistill.rain.judge_prompts import JudgePrompt
from hf_interdistill.rain.text_ends import TextEnds

LONG = JudgePrompt.load("harmlessness").examples
BEGINNINGS = {"own": LONG, "bare": LONG.rstrip(), "cut": LONG + "Th", "short": "short "}
ENDS = st.text(max_size=40) | st.sampled_from(["", " ", "\n\n", "  \n a", "\u0301x", "ing", "A"])


def _trained(model, trainer, pre_tokenizer=None) -> PreTrainedTokenizerFast:
    made = Tokenizer(model)
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    made.train_from_iterator(LONG.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


@functools.cache
def tokenizer_like(kind: str):
    """`sentences` merges across words and lines, for nothing splits the text before."""
    if kind == "sentences":
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], max_token_length=16)
        return _trained(models.BPE(unk_token="<unk>"), trainer)
    if kind == "unigram":
        trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>")
        return _trained(models.Unigram(), trainer, pre_tokenizers.Metaspace())
    return tokenizer_of(kind)


KINDS = {"bytes": True, "metaspace": True, "sentences": True, "unigram": True, "wordpiece": False, "roberta": False}


def whole(tokenizer, texts):
    return tokenizer(texts, verbose=False)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BEGINNINGS)
@given(ends=st.lists(ENDS, min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_ids_are_those_of_whole_texts(kind, name, ends):
    tokenizer, beginning = tokenizer_like(kind), BEGINNINGS[name]
    texts = [beginning + end for end in ends]
    made = TextEnds(tokenizer, beginning)
    assert made.is_short == (KINDS[kind] and name != "short")  # the last two put a token at the end of a text
    assert made(texts) == whole(tokenizer, texts)


def test_only_ends_are_tokenized_and_odd_ones_whole():
    tokenizer, given_texts = tokenizer_of("bytes"), []

    class Changing:
        """Reads a text that says so in another way from its start on."""

        def __call__(self, texts, **settings):
            given_texts.append([len(text) for text in texts])
            ids = tokenizer(texts, **settings)["input_ids"]
            return {
                "input_ids": [
                    each[:0:-1] if "backwards" in text else each for text, each in zip(texts, ids, strict=True)
                ]
            }

    made = TextEnds(Changing(), LONG)
    given_texts.clear()
    texts = [LONG + "I am", LONG + "backwards"]
    assert made(texts) == Changing()(texts)["input_ids"]
    short, odd = given_texts[:2]
    assert max(short) < 300 and odd == [len(texts[1])]


def test_a_tokenizer_that_looks_at_the_whole_text_gets_the_whole_text():
    tokenizer = tokenizer_of("bytes")

    class Counting:
        """Begins with the length of the text."""

        def __call__(self, texts, **settings):
            return {"input_ids": [[*tokenizer(text)["input_ids"], len(text)] for text in texts]}

    made = TextEnds(Counting(), LONG)
    texts = [LONG + "I am", LONG + "so"]
    assert not made.is_short and made(texts) == Counting()(texts)["input_ids"]


def test_one_trial_that_does_not_agree_is_enough():
    tokenizer = tokenizer_of("bytes")

    class Closing:
        """Puts a token after a whole text that ends a line."""

        def __call__(self, texts, **settings):
            ids = tokenizer(texts, **settings)["input_ids"]
            closes = [text.endswith("\n") and len(text) > 1000 for text in texts]
            return {"input_ids": [[*each, 7] if close else each for each, close in zip(ids, closes, strict=True)]}

    texts = [LONG + "I am\n", LONG + "I am"]
    assert TextEnds(Closing(), LONG)(texts) == Closing()(texts)["input_ids"]
