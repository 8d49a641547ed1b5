"""Candidates follow the policy's distribution and end where they should."""

from __future__ import annotations

from collections import Counter

import torch
from support.selection import build_policy
from support.tokenizers import tokenizer_of

from hf_interdistill.selection.candidates import CandidateSampler


def test_samples_follow_the_distribution():
    """Frequencies of the first token against the softmax that temperature and top-k leave."""
    model, tokenizer = build_policy(), tokenizer_of("bytes")
    settings = {"max_new_tokens": 1, "temperature": 0.5, "top_k": 4}
    sampler = CandidateSampler(model, tokenizer, settings, seed=0, batch_size=500)
    drawn = Counter(candidate.text for candidate in sampler([("x", "Tell me", i) for i in range(2000)]))
    with torch.no_grad():
        logits = model(torch.tensor([tokenizer("Tell me")["input_ids"]])).logits[0, -1] / 0.5
    top = logits.topk(4)
    for token, probability in zip(top.indices.tolist(), top.values.softmax(0).tolist(), strict=True):
        share = drawn[tokenizer.decode([token], skip_special_tokens=True)] / 2000
        assert abs(share - probability) < 4 * (probability * (1 - probability) / 2000) ** 0.5 + 1e-3
    assert len(drawn) <= 4
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike at every step
    uniform = CandidateSampler(model, tokenizer, {"max_new_tokens": 12, "top_k": 0}, seed=0, batch_size=50)
    texts = [candidate.text for candidate in uniform([("x", "Tell me", i) for i in range(20)])]
    assert min(len(set(tokenizer(text)["input_ids"])) for text in texts) > 6  # each step samples again


def test_ends_of_texts():
    model, tokenizer = build_policy(), tokenizer_of("bytes")
    requests = [("x", "Tell me", i) for i in range(12)]
    free = CandidateSampler(model, tokenizer, {"max_new_tokens": 8}, seed=0, batch_size=5)(requests)
    letter = Counter("".join(candidate.text for candidate in free)).most_common(1)[0][0]
    stopped = CandidateSampler(
        model, tokenizer, {"max_new_tokens": 8, "stop_strings": [letter]}, seed=0, batch_size=5
    )(requests)
    for one, other in zip(free, stopped, strict=True):
        is_there = letter in one.text
        assert other.finish_reason == ("stop" if is_there else one.finish_reason)
        assert other.text == (one.text[: one.text.index(letter) + 1] if is_there else one.text)
    prompt = torch.tensor([tokenizer("Tell me")["input_ids"]])
    likeliest = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :].tolist()
    settings = {"max_new_tokens": 8, "eos_token_id": likeliest[2], "top_k": 1}
    (ended,) = CandidateSampler(model, tokenizer, settings, seed=0, batch_size=5)(requests[:1])
    place = likeliest.index(likeliest[2])
    assert ended.text == tokenizer.decode(likeliest[: place + 1], skip_special_tokens=True)
    assert ended.finish_reason == "eos"
