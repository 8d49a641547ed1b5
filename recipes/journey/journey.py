"""The day after training: a reward model is pushed, pulled, evaluated and served, drives GRPO and PPO, steers RAIN.

    python recipes/journey/journey.py [--reward_model runs/demo/interaction] [--output runs/journey]

No hub and no GPU: the Hub is a small one on this machine's loopback (`loopback_hub`), spoken to by the real client;
the policy is a tiny Llama with random weights, made here, so the steps of reinforcement learning show that everything
fits and teach it nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed

from hf_interdistill import RemoteRewardScorer, RewardScorer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.loopback_hub import LoopbackHub  # noqa: E402 - the Hub that the tests use
from support.serving import ServerProcess  # noqa: E402 - `interdistill serve`, at a free port of loopback

HERE = Path(__file__).parent
BENCHMARK = ROOT / "tests" / "reward_benchmarks" / "samples" / "reward_bench" / "filtered.jsonl"
TOKEN = "hf_" + "loopback" * 4  # of the small Hub here; it opens nothing else
REPOSITORY = "user/journey-rm"
PROMPTS = ["How do I boil an egg?", "My neighbour is loud at night. What can I do?"]
ANSWERS = ["Put it in boiling water for eight minutes.", "Talk to them first, kindly and by day."]
TOLERANCE = 1e-5  # float32, another batch
console = Console(markup=False, emoji=False)

# Runs in a process of its own that never imports hf_interdistill: what anybody with transformers can do.
PULL = """
import json, sys, torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer
repository, folder, conversations = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
model = AutoModelForSequenceClassification.from_pretrained(repository, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(repository)
rewards = []
for messages in conversations:
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        rewards.append(model(**inputs).logits.item())
snapshot_download(repository, local_dir=folder)
assert not any(name.startswith("hf_interdistill") for name in sys.modules)
print(json.dumps(rewards))
"""


def interdistill(*arguments: str, env: dict[str, str] | None = None) -> None:
    """One command in a process of its own."""
    console.rule("interdistill " + arguments[0])
    subprocess.run([sys.executable, "-m", "hf_interdistill.cli", *arguments], check=True, env=env, cwd=ROOT)


def conversations() -> list[list[dict[str, str]]]:
    """Each prompt with its answer, as messages."""
    return [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)
    ]


def compare(found: list[float], reward_model: Path, where: str) -> None:
    """End with an error if rewards are not those of `RewardScorer`."""
    scorer = RewardScorer.from_pretrained(str(reward_model))
    ours = scorer([messages[:1] for messages in conversations()], [messages[1:] for messages in conversations()])
    difference = max(abs(one - other) for one, other in zip(ours, found, strict=True))
    if difference > TOLERANCE:
        raise SystemExit(f"{where} gives {found}, RewardScorer {ours}: they differ by {difference}.")
    console.print(f"rewards of {where}: {found}, off by {difference:.1e} at most")


def push_and_pull(reward_model: Path, folder: Path) -> Path:
    """Push to a Hub on loopback, pull with plain transformers, compare rewards; returns what was pulled."""
    pulled = folder / "pulled"
    with LoopbackHub({TOKEN: "user"}) as hub:
        env = hub.environment(TOKEN, cache=folder / "hub_cache")
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
        interdistill("push", "--model", str(reward_model), "--repo_id", REPOSITORY, env=env)
        console.print(f"on the Hub: {', '.join(sorted(hub.files(REPOSITORY)))}")
        arguments = [REPOSITORY, str(pulled.resolve()), json.dumps(conversations())]
        run = subprocess.run(
            [sys.executable, "-c", PULL, *arguments], check=True, env=env, cwd=folder, capture_output=True, text=True
        )
    compare(json.loads(run.stdout.strip().splitlines()[-1]), reward_model, "the pulled model in plain transformers")
    return pulled


def make_policy(reward_model: Path, folder: Path) -> Path:
    """A tiny Llama with the reward model's tokenizer and random weights."""
    inputs = ["input_ids", "attention_mask"]  # a Llama has no token types, which a BERT's tokenizer would give it
    tokenizer = AutoTokenizer.from_pretrained(reward_model, padding_side="left", model_input_names=inputs)
    if tokenizer.pad_token_id == tokenizer.eos_token_id:  # PPO wants one that means nothing else
        tokenizer.pad_token = tokenizer.unk_token
    set_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(folder: Path) -> Path:
    """The prompts as messages: a folder with a train and a test split."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": [{"role": "user", "content": prompt}]}) for prompt in PROMPTS * 4]
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def serve(reward_model: Path, policy: Path, prompts: Path, folder: Path) -> None:
    """Serve the model over HTTP, compare its rewards, and let it drive GRPO (`RemoteRewardScorer`)."""
    console.rule("interdistill serve")
    with ServerProcess("--model", str(reward_model)) as server:
        remote = RemoteRewardScorer(server.url, model=str(reward_model))
        rows = conversations()
        found = remote([messages[:1] for messages in rows], [messages[1:] for messages in rows])
        compare(found, reward_model, "the served model")
        reinforce("grpo", reward_model, policy, prompts, folder, reward_server=server.url)


def reinforce(method: str, reward_model: Path, policy: Path, prompts: Path, folder: Path, **more: str) -> None:
    """A few steps of a method of recipes/rl, by its own script and the small recipe here."""
    console.rule(f"{method}: a few steps{' on the server' if more else ''}")
    flags = {"reward_model": reward_model, "model_name_or_path": policy, "dataset_name": prompts, "output_dir": folder}
    flags |= more
    arguments = [part for key, value in flags.items() for part in (f"--{key}", str(value))]
    script = ROOT / "recipes" / "rl" / "train.py"
    config = HERE / f"{method}.yaml"
    subprocess.run([sys.executable, str(script), method, "--config", str(config), *arguments], check=True, cwd=ROOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--reward_model", type=Path, default=Path("runs/demo/interaction"))
    parser.add_argument("--output", type=Path, default=Path("runs/journey"))
    arguments = parser.parse_args()
    reward_model, folder = arguments.reward_model.resolve(), arguments.output.resolve()
    if not (reward_model / "config.json").is_file():
        raise SystemExit(f"There is no reward model in {arguments.reward_model}. Run `make demo` first.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

    pulled = push_and_pull(reward_model, folder)
    interdistill(
        *("eval", "--model", str(pulled), "--benchmark", "reward_bench", "--data", str(BENCHMARK)),
        *("--output", str(folder / "eval")),
    )
    policy, prompts = make_policy(pulled, folder / "policy"), write_prompts(folder / "prompts")
    methods = ["grpo"]
    if importlib.util.find_spec("trl.experimental.ppo") is not None:
        methods.append("ppo")
    else:
        console.print("PPO is left out: this TRL has none any more (the extra `ppo` holds the last ones that do).")
    for method in methods:
        reinforce(method, pulled, policy, prompts, folder / method)
    serve(pulled, policy, prompts, folder / "grpo_served")
    interdistill(
        *("rain", "--config", str(HERE / "rain.yaml"), "--model", str(policy), "--reward_model", str(pulled)),
        *("--prompts", str(prompts / "test.jsonl"), "--output", str(folder / "rain.jsonl")),
    )
    answers = (folder / "rain.jsonl").read_text(encoding="utf-8").splitlines()
    console.print(
        f"Done: pushed, pulled, evaluated, {', '.join(methods)}, served, and RAIN steered over {len(answers)} prompts."
    )


if __name__ == "__main__":
    main()
