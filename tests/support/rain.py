"""Tiny causal language models, and ways to search with them."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

from hf_interdistill.rain.api.decoder import RainDecoder
from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.kv_cache.cuda_graphs import CudaGraphs
from hf_interdistill.rain.kv_cache.forward import ForwardInput
from hf_interdistill.rain.kv_cache.tree_cache import TreeCache
from hf_interdistill.rain.results.views import walk
from hf_interdistill.rain.search.tree import Candidate, SearchTree
from support.datasets import SHARED_DATA
from support.models import STUDENT_FAMILIES

STORIES = SHARED_DATA / "stories260k"
CAUSAL_FAMILIES = {**STUDENT_FAMILIES, "gemma": STUDENT_FAMILIES["llama"], "jamba": STUDENT_FAMILIES["llama"]}
_RECURRENT = {name: STUDENT_FAMILIES["llama"][name] for name in ("hidden_size", "num_hidden_layers", "vocab_size")}
CAUSAL_FAMILIES.update(dict.fromkeys(("mamba", "mamba2", "rwkv"), _RECURRENT))
TREE_FAMILIES = ("llama", "qwen3", "gemma", "gpt2")
PROMPTS = ["How do I bake bread?", "Tell me", "What is the best way to learn how to play the piano?"]
COPYING_FAMILIES = ("mistral", "gemma3_text")
# Few iterations, so that a test takes a second; long enough edges to branch and to be pruned.
QUICK = {"seed": 3, "iterations": 8, "extra_iterations": 3, "min_visits": 2, "candidates": 4, "rollout_max_tokens": 6}
TEXT, OTHER = list(range(10, 40)), list(range(50, 57))


def build_causal(family: str = "llama", attention: str = "sdpa", seed: int = 0, **changes):
    """A tiny causal LM with random weights, sharp enough for its likeliest tokens to differ."""
    shape = {key: value for key, value in {**CAUSAL_FAMILIES[family], **changes}.items() if value is not None}
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    return model.eval()


def quick_config(**changes) -> RainConfig:
    return RainConfig(**{**QUICK, **changes})


def likes_short_words(texts: list[str]) -> list[float]:
    """A scorer with many different values, so that searches go different ways."""
    return [1 - 2 * (sum(map(ord, text)) % 97) / 96 for text in texts]


def encode(tokenizer, prompts: list[str]):
    tokenizer.padding_side = "left"
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    return {key: inputs[key] for key in ("input_ids", "attention_mask")}


def rain(model, tokenizer, prompts=PROMPTS, /, **settings):
    """`generate` by the strategy of RAIN; texts as prompts, or inputs that are ready."""
    own = {
        "strategy": "rain",
        "tokenizer": tokenizer,
        "rain_config": quick_config(),
        "rain_scorer": likes_short_words,
        "return_dict_in_generate": True,
        **settings,
    }
    inputs = encode(tokenizer, prompts) if isinstance(prompts, list) else prompts
    return model.generate(**inputs, **own)


class Repeating:
    """What a capture is on a CPU: a replay calls the pass again, on the same buffers, into the same tensor."""

    captured = 0

    def __init__(self, device):
        pass

    def __call__(self, run):
        type(self).captured += 1
        with torch.inference_mode(False):
            output = run().clone()

        def replay():
            return output.copy_(run())

        return replay


def build_on(device: str, *args, **changes):
    return build_causal(*args, **changes).to(device)


def separate(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens], device=model.device)).logits[0, -1].float()


def forward(cache, inputs, token_ids=None) -> list:
    """Outputs in the order of the inputs."""
    outputs = cache.forward(inputs, token_ids)
    return [outputs[each] for each in inputs]


def assert_reads_separately(model, reads, sequences, columns=None):
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if model.device.type == "cpu" else {"atol": 1e-3, "rtol": 1e-3}
    for read, tokens in zip(reads, sequences, strict=True):
        wanted = separate(model, tokens)
        wanted = wanted if columns is None else wanted[columns]
        torch.testing.assert_close(read.logits, wanted, **tolerance)
        assert read.handle.length == len(tokens)


def grown(model, steps: int = 4) -> TreeCache:
    """A cache whose passes of one token are replayed."""
    cache = TreeCache(model, 1, graphs=CudaGraphs())
    (read,) = forward(cache, [ForwardInput(0, None, TEXT)])
    for token in range(steps):
        (read,) = forward(cache, [ForwardInput(0, read.handle, [token])])
    assert len(cache.graphs) > 0
    return cache


def tree_of(weights, **changes) -> SearchTree:
    tree = SearchTree(RainConfig(**changes))
    tree.expand(tree.root, [Candidate((number,), weight) for number, weight in enumerate(weights)])
    return tree


def tree_shape(tree):
    """What decides a tree; priors apart, for logits are rounded differently from batch to batch."""
    return [
        (number, parent, each["tokens"], each["visits"], each["value"], each["is_committed"])
        for each, number, parent in walk(tree.root)
    ]


def tree_node(text, *children, visits=1.0, **changes):
    return {
        "text": text,
        "tokens": [1],
        "visits": visits,
        "true_visits": int(visits),
        "value": 0.25,
        "prior": 0.5,
        "rewinds": 0,
        "is_committed": False,
        "is_terminal": False,
        "children": list(children),
        **changes,
    }


def search(model, tokenizer, prompts=PROMPTS, config=None, scorer=likes_short_words, **changes):
    decoder = RainDecoder(tokenizer, config or quick_config(), scorer, embedder=changes.pop("embedder", None))
    settings = {"max_new_tokens": 8, "return_dict_in_generate": True, **changes}
    return model.generate(**encode(tokenizer, prompts), custom_generate=decoder, **settings)


def letters(texts):
    """An embedder: counts of a few letters."""
    rows = [[text.count(letter) + 0.1 for letter in "aeiounrst"] for text in texts]
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=-1).numpy()
