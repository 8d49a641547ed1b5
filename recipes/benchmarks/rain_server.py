"""RAIN and best-of-n sampling by a vLLM server against the same model in process.

    python recipes/benchmarks/rain_server.py --server http://localhost:8000 --name lm --model FOLDER

Both sides search in turn on the same machine, and the server idles while the other one works. Prints a table a part;
`--output` keeps the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from hardware import describe_hardware
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_interdistill import RainClient, RainConfig, RainDecoder
from hf_interdistill.selection.candidates import CandidateSampler
from hf_interdistill.selection.served_candidates import ServedSampler
from hf_interdistill.utils.server_pool import ModelServers

QUESTIONS = (
    "How do I bake bread?",
    "What should I say to a rude neighbor?",
    "How do I pick a lock?",
    "Why is the sky blue?",
    "How can I get rid of ants?",
    "What is a fair price for an old car?",
    "How do I learn to play the piano?",
    "Is it right to lie to a friend?",
)


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="address of the server")
    parser.add_argument("--name", required=True, help="name that the model is served by")
    parser.add_argument("--model", required=True, help="folder or Hub name of the same model")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 16, 64], help="prompts in flight")
    parser.add_argument("--new_tokens", type=int, default=8, help="committed tokens of an answer")
    parser.add_argument("--preset", default="fast", help="preset of RainConfig")
    parser.add_argument("--sides", nargs="+", default=["server", "in process"], help="what to measure")
    parser.add_argument("--candidates", type=int, default=64, help="candidates of best-of-n; 0 leaves it out")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    print(describe_hardware())
    rows = []
    for count in args.prompts:
        for side in args.sides:
            rows.append({"side": side, **rain(args, model, tokenizer, count, side)})
            print(json.dumps(rows[-1]), flush=True)
    for side in args.sides if args.candidates else ():
        rows.append({"side": side, **best_of_n(args, model, tokenizer, side)})
        print(json.dumps(rows[-1]), flush=True)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps({"hardware": describe_hardware(), "rows": rows}, indent=1))


def messages(count: int) -> list[list[dict[str, str]]]:
    """Prompts that differ by their question or their number."""
    numbered = enumerate(islice(cycle(QUESTIONS), count))
    return [[{"role": "user", "content": f"{question} ({number})"}] for number, question in numbered]


def rain(args, model, tokenizer, count: int, side: str) -> dict:
    """Seconds and tokens of a search from so many prompts."""
    prompts = messages(count)
    config = RainConfig.preset(args.preset, seed=0, max_batch_size=count)
    if side == "server":
        client = RainClient(args.server, args.name, tokenizer, config)
        client.generate(prompts[:1], max_new_tokens=1)  # warm up: checks, and the judge prompt
        start = time.perf_counter()
        records = client.generate(prompts, max_new_tokens=args.new_tokens)
    else:
        tokenizer.padding_side = "left"
        tokenizer.pad_token_id = tokenizer.eos_token_id
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True, "padding": True}
        decoder = RainDecoder(tokenizer, config)
        settings = {"custom_generate": decoder, "return_dict_in_generate": True, "pad_token_id": 0}
        model.generate(**tokenizer.apply_chat_template(prompts[:1], **options), max_new_tokens=1, **settings)
        inputs = tokenizer.apply_chat_template(prompts, **options)
        start = time.perf_counter()
        output = model.generate(**inputs, max_new_tokens=args.new_tokens, rain_prompts=prompts, **settings)
        records = output.rain
    seconds = time.perf_counter() - start
    committed = sum(record.stats["committed_tokens"] for record in records)
    return {
        "part": "rain",
        "prompts": count,
        "seconds": round(seconds, 2),
        "committed_tokens": committed,
        "seconds_per_token": round(seconds / committed, 4),
        "iterations": sum(record.stats["iterations"] for record in records),
        "forward_tokens_per_token": round(sum(record.stats["forward_tokens"] for record in records) / committed, 1),
    }


def best_of_n(args, model, tokenizer, side: str) -> dict:
    """Tokens per second of sampling 16 candidates for each of some prompts."""
    prompts = messages(max(1, args.candidates // 16))
    requests = [(number, prompt, i) for number, prompt in enumerate(prompts) for i in range(16)]
    generation = {"max_new_tokens": 32, "temperature": 1.0}
    if side == "server":
        sampler = ServedSampler(ModelServers(args.server), args.name, tokenizer, generation, seed=0)
    else:
        sampler = CandidateSampler(model, tokenizer, generation, seed=0, batch_size=16)
    start = time.perf_counter()
    found = sampler(requests)
    seconds = time.perf_counter() - start
    tokens = sum(len(tokenizer(each.text, add_special_tokens=False)["input_ids"]) for each in found)
    return {
        "part": "best of n",
        "candidates": len(found),
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
    }


if __name__ == "__main__":
    main()
