"""Detects changes of a model on which cached keys and values depend."""

from __future__ import annotations

import functools

import torch


def layout_state(model) -> tuple:
    """What changes when weights are replaced or updated in place, and when adapters are switched, merged or disabled.

    It is almost free, but misses what is written through `Tensor.data` (an EMA, a sync from a trainer).
    """
    parameters = list(model.parameters())
    adapters = tuple(
        (str(module.active_adapters), module.disable_adapters, str(module.merged_adapters), str(module.scaling))
        for module in model.modules()
        if hasattr(module, "disable_adapters") and hasattr(module, "merged_adapters") and hasattr(module, "scaling")
    )
    versions = sum(each._version for each in parameters if not each.is_inference())
    return versions, sum(each.data_ptr() for each in parameters), hash(adapters), model.training


@torch.no_grad()
def weights_checksum(model) -> int:
    """A checksum of all weights, by value and place: products with fixed random vectors, so that each is read once.

    Changes that float32 loses in the sum of a column are not seen.
    """
    sums = []
    for parameter in model.parameters():
        values = parameter.detach()
        values = values.to_local() if hasattr(values, "to_local") else values
        if values.is_meta or not values.numel():
            continue
        rows = values.reshape(len(values), -1) if values.dim() else values.reshape(1, 1)
        by_column = _random(len(rows), values.device) @ rows.float()
        sums.append(float(by_column @ _random(rows.shape[1], values.device)))
    return hash(tuple(sums))


@functools.lru_cache(maxsize=64)
def _random(count: int, device: torch.device) -> torch.Tensor:
    """A fixed random vector, `(count,)`, float32."""
    return torch.randn(count, generator=torch.Generator().manual_seed(count)).to(device)
