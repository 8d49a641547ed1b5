"""Pushed models, pulled by a fresh process that has transformers (and PEFT) alone, give the same rewards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from support.hub import FORBIDDEN, TOKEN, language_model, save_adapter, save_full

from hf_interdistill import RewardScorer
from hf_interdistill.cli import main

MESSAGES = [
    ([{"role": "user", "content": "What is the capital of France?"}], [{"role": "assistant", "content": answer}])
    for answer in ("It is Paris.", "Lyon, I think, or was it Nice? Ask somebody else.", "No.")
]
TEXTS = [("What is the capital of France?", answer) for answer in (" It is Paris.", " Lyon.", " No, no, and no.")]

PULL = r"""
import json, re, sys
from huggingface_hub import hf_hub_download

rewards = {}
for name, texts in json.loads(sys.argv[1]).items():
    card = open(hf_hub_download(name, "README.md"), encoding="utf-8").read()
    shown = {}
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], shown)  # what the card shows
    tokenizer, model, rewards[name] = shown["tokenizer"], shown["model"], [shown["reward"]]
    for prompt, completion in texts:
        if isinstance(prompt, str):
            inputs = tokenizer(prompt + completion + tokenizer.eos_token, return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(prompt + completion, return_dict=True, return_tensors="pt")
        rewards[name].append(model(**inputs).logits[0, 0].item())
assert not [name for name in sys.modules if name.split(".")[0] in ("hf_interdistill", "trl")]
print(json.dumps(rewards))
"""


def pull(hub, tmp_path, texts: dict[str, list]) -> dict[str, list[float]]:
    environment = hub.environment(TOKEN, tmp_path / "cache")
    environment.pop("PYTHONPATH", None)
    run = subprocess.run(
        [sys.executable, "-c", PULL, json.dumps(texts)], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_pulled_full_adapter_and_merged_models_give_the_same_rewards(hub, tmp_path, capsys):
    hub.part_size = 100_000  # weights go in three parts, the picture and the rest in one
    full = save_full(tmp_path / "full")
    plain = save_full(tmp_path / "plain", is_conversational=False)
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "language_model")
    api = HfApi()
    api.create_repo("user/language_model")
    api.upload_folder(repo_id="user/language_model", folder_path=tmp_path / "language_model")

    def push(folder, name, *options):
        assert main(["push", "--model", str(folder), "--repo_id", f"user/{name}", *options]) == 0

    push(full, "full", "--private", "true")
    push(plain, "plain")
    push(adapter, "adapter", "--base_model", "user/language_model")
    push(adapter, "merged", "--merge", "true")
    assert str(tmp_path) not in capsys.readouterr().out
    assert hub.repositories["user/full"].is_private and not hub.repositories["user/merged"].is_private

    got = pull(
        hub,
        tmp_path,
        {f"user/{name}": TEXTS if name == "plain" else MESSAGES for name in ("full", "plain", "adapter", "merged")},
    )
    folders = {"full": full, "plain": plain, "adapter": adapter, "merged": adapter}
    for name, folder in folders.items():
        texts = TEXTS if name == "plain" else MESSAGES
        scorer = RewardScorer.from_pretrained(str(folder), batch_size=1)
        expected = scorer([prompt for prompt, _ in texts], [completion for _, completion in texts])
        assert max(expected) - min(expected) > 1e-2
        assert got[f"user/{name}"] == pytest.approx([expected[0], *expected], abs=1e-6), name

    weights = {"full": "model.safetensors", "adapter": "adapter_model.safetensors", "merged": "model.safetensors"}
    for name, file in weights.items():
        files = hub.files(f"user/{name}")
        config = "adapter_config.json" if name == "adapter" else "config.json"
        tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
        assert set(files) == {".gitattributes", "README.md", config, file, *tokenizer}
        assert not [path for path in files if path.endswith(FORBIDDEN)]
        assert not [path for path, content in files.items() if str(tmp_path).encode() in content], name
    card = ModelCard(hub.files("user/adapter")["README.md"].decode())
    assert card.data.base_model == "user/language_model" and card.data.library_name == "peft"
    assert (
        json.loads(hub.files("user/adapter")["adapter_config.json"])["base_model_name_or_path"] == card.data.base_model
    )
    card = ModelCard(hub.files("user/merged")["README.md"].decode())
    assert card.data.base_model is None and card.data.library_name == "transformers"
    assert not {"lora", "peft"} & set(card.data.tags)


def test_pushing_another_kind_leaves_nothing_that_would_be_loaded_instead(hub, tmp_path):
    full = save_full(tmp_path / "full")
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "language_model")
    command = ["push", "--repo_id", "user/rm"]
    assert main([*command, "--model", str(adapter), "--base_model", "user/base"]) == 0
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.md", repo_id="user/rm")
    beside = ["training_args.bin", "reward_attributes.json", "additional_chat_templates/tools.jinja"]
    for path in beside:
        HfApi().upload_file(path_or_fileobj=b"of another model", path_in_repo=path, repo_id="user/rm")
    assert main([*command, "--model", str(full), "--commit_message", "The whole"]) == 0
    files = set(hub.files("user/rm"))
    assert "notes.md" in files and "model.safetensors" in files
    assert not files & {"adapter_config.json", "adapter_model.safetensors", *beside}


def test_a_branch_is_made_and_main_stays(hub, tmp_path):
    full = save_full(tmp_path / "full")
    assert main(["push", "--model", str(full), "--repo_id", "rm", "--revision", "try/one"]) == 0
    assert "model.safetensors" in hub.files("user/rm", "try/one") and "model.safetensors" not in hub.files("user/rm")
    path = HfApi().hf_hub_download("user/rm", "config.json", revision="try/one", cache_dir=tmp_path / "cache")
    assert json.loads(Path(path).read_text())["model_type"] == "llama"


def test_a_narrower_type_of_merged_weights(hub, tmp_path, capsys):
    adapter = save_adapter(tmp_path / "adapter", tmp_path / "language_model")
    command = ["push", "--model", str(adapter), "--repo_id", "user/rm"]
    assert main([*command, "--merge", "true"]) == 0
    wide = hub.files("user/rm")["model.safetensors"]
    assert main([*command, "--merge", "true", "--dtype", "bfloat16"]) == 0
    narrow = hub.files("user/rm")["model.safetensors"]
    assert 0.45 < len(narrow) / len(wide) < 0.55
    assert main([*command, "--dtype", "bfloat16"]) == 2
    assert "`dtype` is 'bfloat16', but it is the type of merged weights" in capsys.readouterr().err
    assert main(["push", "--model", str(save_full(tmp_path / "full")), "--repo_id", "a/b", "--merge", "true"]) == 2
    assert "holds no adapter, so there is nothing to merge" in capsys.readouterr().err


def test_dry_run_lists_sizes_and_uploads_nothing(hub, tmp_path, capsys):
    full = save_full(tmp_path / "full")
    recipe = tmp_path / "push.yaml"
    recipe.write_text(f"model: {full}\nrepo_id: user/rm\n")
    assert main(["push", "--config", str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    size = (full / "model.safetensors").stat().st_size
    assert f"{size:,}" in out and "model.safetensors" in out and "training_args" not in out
    assert hub.requests == []
    recipe.write_text(f"model: {full}\nrepo: user/rm\n")
    assert main(["push", "--config", str(recipe)]) == 2
    assert "Did you mean `repo_id`?" in capsys.readouterr().err


def test_language_models_are_no_reward_models(hub, tmp_path, capsys):
    assert main(["push", "--model", str(language_model(tmp_path / "lm")), "--repo_id", "user/lm"]) == 2
    assert "holds LlamaForCausalLM, but a reward model is" in capsys.readouterr().err and hub.requests == []
