"""Runs commands one after the other: `python -m support.run_commands '[["reward", ...], ...]'`."""

import json
import sys

import torch

from hf_interdistill.cli import main

if __name__ == "__main__":
    torch.set_num_threads(1)
    for command in json.loads(sys.argv[1]):
        status = main(command)
        if status:
            sys.exit(status)
