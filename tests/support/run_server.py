"""A server that answers as vLLM does, in a process of its own, with vLLM's words: `serve FOLDER --host H ...`."""

from __future__ import annotations

import argparse
import os
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.vllm_server import VllmLike, served

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("command", "folder", "--host", "--port", "--served-model-name"):
        parser.add_argument(name)
    parser.add_argument("--max-logprobs", type=int, default=20)
    parser.add_argument("--logprobs-mode", default="raw_logprobs")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.folder).eval()
    backend = VllmLike(
        model,
        AutoTokenizer.from_pretrained(args.folder),
        args.served_model_name,
        max_logprobs=args.max_logprobs,
        is_processed=args.logprobs_mode == "processed_logprobs",
    )
    with served(backend, int(args.port), args.host):
        while True:  # until it is ended
            time.sleep(0.2)
            if (log := os.environ.get("SERVER_LOG")) is not None:
                with open(f"{log}-{os.environ['SLURM_NODEID']}", "w") as file:
                    file.write("\n".join(path for path, _ in list(backend.requests)) + "\n")
