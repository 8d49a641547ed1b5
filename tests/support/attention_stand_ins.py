"""Flash and flex attention where neither runs: plain torch for the kernels, everything around them as it is."""

from __future__ import annotations

from collections import defaultdict
from functools import partial

import torch
from torch.nn.attention import flex_attention as torch_flex
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations import flex_attention as transformers_flex

CALLS: list[tuple[list[int], list[int]]] = []  # lengths of queries and keys of each varlen call


def varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale=None, **options):
    """`flash_attn_varlen_func`: `(tokens, heads, size)`, sequences one after the other, each with keys of its own; a
    causal mask is aligned at the bottom right."""
    window, softcap = options.get("window_size", (-1, -1))[0], options.get("softcap")
    lengths = [each.diff().tolist() for each in (cu_seqlens_q, cu_seqlens_k)]
    CALLS.append((lengths[0], lengths[1]))
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert (int(max_seqlen_q), int(max_seqlen_k)) == (max(lengths[0]), max(lengths[1]))
    assert int(cu_seqlens_q[-1]) == len(q) and int(cu_seqlens_k[-1]) == len(k) == len(v)
    assert causal and min(lengths[0]) > 0
    found = []
    for queries, keys, values in zip(q.split(lengths[0]), k.split(lengths[1]), v.split(lengths[1]), strict=True):
        groups = queries.shape[1] // keys.shape[1]
        keys, values = (each.repeat_interleave(groups, 1) for each in (keys, values))
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * (softmax_scale or queries.shape[-1] ** -0.5)
        scores = softcap * (scores / softcap).tanh() if softcap else scores
        behind = torch.arange(len(keys)) - torch.arange(len(queries))[:, None] - (len(keys) - len(queries))
        is_seen = (behind <= 0) & ((behind >= -window) if window >= 0 else True)
        weights = scores.masked_fill(~is_seen, -torch.inf).softmax(-1)
        found.append(torch.einsum("hqk,khd->qhd", weights, values))
    return torch.cat(found)


def plain(q, k, v, **options):
    """`flash_attn_func`: `(rows, length, heads, size)`."""
    rows, length = q.shape[:2]
    starts = torch.arange(rows + 1, dtype=torch.int32) * length
    joined = [each.flatten(0, 1) for each in (q, k, v)]
    options = {**options, "max_seqlen_q": length, "max_seqlen_k": length}
    return varlen(*joined, cu_seqlens_q=starts, cu_seqlens_k=starts, **options).unflatten(0, (rows, length))


def use_flash(monkeypatch, model):
    """Give a model flash attention by these functions; transformers' own code calls them."""
    process = partial(flash._process_flash_attention_kwargs, supports_mapping=defaultdict(lambda: True))
    loaded = (plain, varlen, None, flash._pad_input, flash._unpad_input), (process, None)
    if not hasattr(flash, "_flash_with_kvcache_fn"):  # transformers before it reads kept keys by a function of its own
        loaded = (plain, varlen, flash._pad_input, flash._unpad_input), process
    monkeypatch.setattr(flash, "lazy_import_flash_attention", lambda name: loaded)
    _set_implementation(model, "flash_attention_2")
    CALLS.clear()


def use_flex(monkeypatch, model):
    """Give a model torch's own flex attention, not compiled and with gradients: torch's reference, which it keeps from
    gradients on a CPU."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *states: None)
    monkeypatch.setattr(
        transformers_flex,
        "compile_friendly_flex_attention",
        lambda query, key, value, training=False, **options: torch_flex.flex_attention(query, key, value, **options),
    )
    _set_implementation(model, "flex_attention")


def _set_implementation(model, name: str) -> None:
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = name
