"""Rows a second of `interdistill serve` with many clients, against the same scorer in one process.

The server runs in a process of its own with as many threads as the scorer has; the clients share the machine with it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import requests
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from hf_interdistill import RemoteRewardScorer, RewardScorer
from hf_interdistill.utils.data import load_preferences

ROOT = Path(__file__).parents[2]


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="reward model, or a language model to give a random score head")
    parser.add_argument("--input", default=str(ROOT / "recipes" / "demo" / "preferences" / "test.jsonl"))
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rows", type=int, default=256, help="rows in all")
    parser.add_argument("--rows_per_request", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2, help="the best one counts")
    parser.add_argument("--output", help="JSON to write")
    return parser


def main(arguments: list[str] | None = None) -> dict:
    args = argument_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = with_head(args.model, folder)
        data = load_preferences(args.input)["train"]
        pairs = [(row["prompt"], row[side]) for row in data for side in ("chosen", "rejected")]
        pairs = (pairs * (args.rows // len(pairs) + 1))[: args.rows]
        scorer = RewardScorer.from_pretrained(model, batch_size=args.batch_size)
        expected, alone = in_process(scorer, pairs, args.rounds)
        del scorer
        found, served, of_server = over_http(model, pairs, args)
    difference = max(abs(one - other) for one, other in zip(expected, found, strict=True))
    result = {
        "rows": args.rows,
        "clients": args.clients,
        "threads": torch.get_num_threads(),
        "in_process_rows_a_second": round(args.rows / alone.wall, 2),
        "served_rows_a_second": round(args.rows / served.wall, 2),
        "ratio": round(alone.wall / served.wall, 3),
        "ratio_by_processor_time": round(alone.processor / served.processor, 3),
        "largest_difference": difference,
        **of_server,
    }
    print(json.dumps(result, indent=2))
    if args.output:
        Path(args.output).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def with_head(name: str, folder: str) -> str:
    """The model itself if it is a reward model, else one of its weights with a random score head."""
    if any("SequenceClassification" in kind for kind in AutoConfig.from_pretrained(name).architectures or []):
        return name
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Seconds:
    """Of one round: on the clock, and of the processor in the process that scores (other work does not count)."""

    wall: float
    processor: float


def best(rounds: list[Seconds]) -> Seconds:
    return Seconds(min(each.wall for each in rounds), min(each.processor for each in rounds))


def in_process(scorer: RewardScorer, pairs: list, rounds: int) -> tuple[list[float], Seconds]:
    prompts, completions = zip(*pairs, strict=True)
    scorer(prompts[:4], completions[:4])
    times = []
    for _ in range(rounds):
        start, used = time.perf_counter(), time.process_time()
        rewards = scorer(prompts, completions)
        times.append(Seconds(time.perf_counter() - start, time.process_time() - used))
    return rewards, best(times)


def over_http(model: str, pairs: list, args) -> tuple[list[float], Seconds, dict]:
    command = [sys.executable, "-m", "hf_interdistill.cli", "serve", "--model", model, "--port", "0"]
    command += ["--batch_size", str(args.batch_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stdout is not None
        try:
            url = next(found[1] for line in server.stdout if (found := re.search(r"at (http://\S+)", line)))
            RemoteRewardScorer(url)(*zip(*pairs[:4], strict=True))
            times, memory = [], []
            for _ in range(args.rounds):
                start, used = time.perf_counter(), processor_seconds(server.pid)
                rewards = ask(url, pairs, args.clients, args.rows_per_request)
                times.append(Seconds(time.perf_counter() - start, processor_seconds(server.pid) - used))
                memory.append(resident_mib(server.pid))
            text = requests.get(f"{url}/metrics", timeout=30).text
        finally:
            server.terminate()
            server.stdout.read()
    counted = dict(re.findall(r"^interdistill_(\w+) (\S+)$", text, re.MULTILINE))
    of_server = {
        "server_mib_by_round": memory,
        "rows_per_batch": round(float(counted["rows_total"]) / float(counted["batch_rows_count"]), 2),
        "padding": round(float(counted["padding_tokens_total"]) / float(counted["tokens_total"]), 3),
    }
    return rewards, best(times), of_server


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def ask(url: str, pairs: list, clients: int, rows_per_request: int) -> list[float]:
    """Rewards in order; each client takes the next request when its last one is answered."""
    starts = iter(range(0, len(pairs), rows_per_request))
    lock, found = threading.Lock(), [float("nan")] * len(pairs)

    def client() -> None:
        scorer = RemoteRewardScorer(url)
        while True:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            rows = pairs[start : start + rows_per_request]
            found[start : start + len(rows)] = scorer(*zip(*rows, strict=True))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return round(int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024, 1)


if __name__ == "__main__":
    main()
