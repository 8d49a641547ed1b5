"""Fixtures of these tests."""

from support.pipeline_fixtures import no_pictures, straight, workshop  # noqa: F401
