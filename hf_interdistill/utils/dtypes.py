"""Names of data types."""

from __future__ import annotations

import torch

from .fields import nearest_name

_USUAL = ("float32", "bfloat16", "float16", "float64")


def check_dtype(option: str, value: str | torch.dtype | None) -> None:
    """Raise `ValueError` for a name of a data type that `from_pretrained` would not know.

    Args:
        option: what the user set, for the message. value: a type, its name, `auto`, or `None`.
    """
    if not isinstance(value, str) or value == "auto":
        return
    if not isinstance(getattr(torch, value, None), torch.dtype):
        near = nearest_name(value, _USUAL)
        hint = "" if near is None else f" Did you mean `{near}`?"
        raise ValueError(
            f"`{option}` is {value!r}, but must be `auto`, {', '.join(_USUAL[:3])} or another type of torch.{hint}"
        )
