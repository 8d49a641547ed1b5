"""Fixtures of these tests."""

from support.diagnostics import diagnoses, faulty_pairs  # noqa: F401
