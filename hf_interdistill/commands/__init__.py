"""What the `interdistill` command runs: each module has `ARGUMENTS` (dataclasses) and `run`."""
