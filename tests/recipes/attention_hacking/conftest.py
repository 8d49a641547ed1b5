"""Fixtures of these tests."""

from support.study import encoder, modules  # noqa: F401
