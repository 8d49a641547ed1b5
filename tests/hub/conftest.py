"""Fixtures of these tests."""

from support.hub import hub  # noqa: F401
