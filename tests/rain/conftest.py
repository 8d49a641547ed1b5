"""Fixtures of these tests."""

from support.rain import _model, device, model, stories, tokenizer  # noqa: F401
