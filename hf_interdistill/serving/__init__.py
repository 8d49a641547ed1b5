"""Rewards over HTTP: `interdistill serve`."""
