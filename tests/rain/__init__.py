"""Tests of RAIN (a package, so that its conftest does not hide the shared one)."""
