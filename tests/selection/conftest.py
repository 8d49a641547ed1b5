"""Fixtures of these tests."""

from support.selection import job, models  # noqa: F401
