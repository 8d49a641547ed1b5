"""RAIN on the Hub: it loads where the package cannot be imported, and writes the same tokens."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest
from huggingface_hub import HfApi, ModelCard
from support.datasets import ROOT
from support.hub import TOKEN
from support.loopback_hub import LoopbackHub
from support.rain import PROMPTS, build_causal, encode, quick_config
from support.tokenizers import tokenizer_of

from hf_interdistill.cli import main
from hf_interdistill.rain.api import flat_modules
from hf_interdistill.rain.api.export import strategy_files

SETTINGS = quick_config(seed=5).to_dict()
OTHERS = {**SETTINGS, "seed": 6}
LOADS = """
import json, sys
sys.modules["hf_interdistill"] = None  # as where it is not installed
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
sources, prompts, other_settings = json.loads(sys.argv[1])
found = {}
for name in sources:
    tokenizer = AutoTokenizer.from_pretrained(name)
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    plain = AutoModelForCausalLM.from_pretrained(name)
    settings = {"tokenizer": tokenizer, "max_new_tokens": 6, "return_dict_in_generate": True}
    out = plain.generate(**inputs, custom_generate=name, trust_remote_code=True, **settings)
    own = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True)
    again = own.generate(inputs.input_ids, attention_mask=inputs.attention_mask, **settings)
    other = own.generate(**inputs, **settings, rain_config=other_settings)
    found[name] = [out.sequences.tolist(), again.sequences.tolist(), other.sequences.tolist()]
    assert out.rain[0].stats["judge_calls"] > 0
assert sys.modules["hf_interdistill"] is None
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    build_causal("llama", max_position_embeddings=2048).save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return folder


def push(*arguments, model=None, settings=SETTINGS) -> int:
    beside = [] if model is None else ["--model", str(model)]
    return main(["rain", "push", *arguments, *beside, "--rain", json.dumps(settings)])


def test_it_writes_the_same_tokens_without_the_package(hub: LoopbackHub, language_model, tmp_path):
    local = tmp_path / "strategy"
    assert push("--output", str(local), "--repo_id", "user/strategy", model=language_model) == 0
    code = [sys.executable, "-c", LOADS, json.dumps([["user/strategy", str(local)], PROMPTS, OTHERS])]
    ran = subprocess.run(
        code, env=hub.environment(TOKEN, tmp_path / "home"), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    model, tokenizer = build_causal("llama", max_position_embeddings=2048), tokenizer_of("bytes")
    inputs = encode(tokenizer, PROMPTS)
    options = {"tokenizer": tokenizer, "max_new_tokens": 6, "return_dict_in_generate": True}
    expected = model.generate(**inputs, strategy="rain", rain_config=SETTINGS, **options).sequences.tolist()
    other = model.generate(**inputs, strategy="rain", rain_config=OTHERS, **options).sequences.tolist()
    for name in ("user/strategy", str(local)):
        assert found[name] == [expected, expected, other], name


def test_every_file_that_is_named_is_there_and_names_no_package(hub, language_model, tmp_path):
    assert push("--repo_id", "user/strategy") == 0
    files = {
        path: content.decode() for path, content in hub.files("user/strategy").items() if path != ".gitattributes"
    }
    modules = {path for path in files if path.endswith(".py")}
    assert set(files) == {"README.md", "custom_generate/requirements.txt", *modules}
    assert "custom_generate/generate.py" in modules
    for path in modules:
        for name in re.findall(r"^\s*(?:from|import)\s+\.(\S+)", files[path], re.MULTILINE):
            assert f"custom_generate/{name}.py" in files, (path, name)
        for node in ast.walk(ast.parse(files[path])):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("hf_interdistill") for name in names), path
        assert not re.search(r"pip install [^\n]*hf_interdistill", files[path]), path
    assert "hf_interdistill" not in files["custom_generate/requirements.txt"]


def test_the_card_says_what_it_is_and_keeps_what_was_there(hub, language_model, tmp_path):
    assert push("--repo_id", "user/alone", "--preset", "harmless") == 0
    card = ModelCard(hub.files("user/alone")["README.md"].decode())
    assert card.data.tags == ["custom_generate", "rain"] and card.data.license == "apache-2.0"
    assert 'custom_generate="user/alone"' in card.text and "| `iterations` | `" in card.text
    assert "rain_scorer" in card.text and "### Cost" in card.text
    (language_model / "README.md").write_text("---\nlicense: mit\ntags: [chat]\n---\n\n# A model\n\nIt chats.\n")
    assert push("--repo_id", "user/chat", model=language_model) == 0
    assert push("--repo_id", "user/chat", settings={**SETTINGS, "iterations": 7}) == 0  # again, without the model
    files = hub.files("user/chat")
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.tags == ["chat", "custom_generate", "rain"]
    assert "It chats." in card.text and card.text.count("## RAIN decoding") == 1
    assert "| `iterations` | `7` |" in card.text
    assert "model.safetensors" in files and "config.json" in files  # the model is left there
    (language_model / "README.md").unlink()


def test_a_model_of_the_hub_keeps_card_license_and_notices(hub, language_model, tmp_path):
    """Pushed twice: to a new repository, and to one whose card names no license."""
    origin = {
        "README.md": "---\nlicense: other\nlicense_name: chat-1\nlanguage: [en]\n---\n\n# Origin\n\nIt chats.\n",
        "LICENSE": "Chat license 1",
        "NOTICE.txt": "By the authors.",
        "USE_POLICY.md": "Be kind.",
        "training.log": "private",
    }
    api = HfApi()
    api.create_repo("user/origin")
    api.upload_folder(repo_id="user/origin", folder_path=language_model)
    for path, text in origin.items():
        api.upload_file(path_or_fileobj=text.encode(), path_in_repo=path, repo_id="user/origin")
    api.create_repo("user/old")
    api.upload_file(path_or_fileobj=b"# Old\n\nMine.\n", path_in_repo="README.md", repo_id="user/old")
    environment = {**hub.environment(TOKEN, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    for name in ("new", "old"):
        command = [sys.executable, "-m", "hf_interdistill.cli", "rain", "push", "--model", "user/origin"]
        command += ["--repo_id", f"user/{name}", "--output", str(tmp_path / name), "--rain", json.dumps(SETTINGS)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr[-3000:]
        files = hub.files(f"user/{name}")
        for path in ("LICENSE", "NOTICE.txt", "USE_POLICY.md"):
            assert files[path].decode() == origin[path] == (tmp_path / name / path).read_text()
        assert "training.log" not in files and "model.safetensors" in files
        card = ModelCard(files["README.md"].decode())
        assert (card.data.license, card.data.license_name) == ("other", "chat-1")
        assert ("It chats." in card.text, "Mine." in card.text) == (name == "new", name == "old")
        local = ModelCard.load(tmp_path / name / "README.md")
        assert local.data.license == "other" and "It chats." in local.text
        assert card.data.base_model == local.data.base_model == "user/origin"


def test_modules_of_an_earlier_push_are_removed(hub, monkeypatch, tmp_path):
    assert push("--repo_id", "user/strategy", "--output", str(tmp_path / "out")) == 0
    monkeypatch.setattr(flat_modules, "flat_name", lambda name: "new_" + name.replace(".", "_"))
    monkeypatch.setattr("hf_interdistill.rain.api.export.flat_name", flat_modules.flat_name)
    assert push("--repo_id", "user/strategy", "--output", str(tmp_path / "out")) == 0
    pushed = {path for path in hub.files("user/strategy") if path.endswith(".py")}
    written = {f"custom_generate/{path.name}" for path in (tmp_path / "out" / "custom_generate").glob("*.py")}
    assert pushed == written
    assert all("/new_" in path or path.endswith("/generate.py") for path in pushed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Neither `repo_id` nor `output` is set"),
        (["--repo_id", "a/b/c"], "a/b/c"),
        (["--repo_id", "user/x", "--preset", "harmles"], "harmles"),
        (["--repo_id", "user/x", "--rain", '{"iteration": 3}'], "iterations"),
        (["--repo_id", "user/x", "--model", "not-there"], "not-there"),
    ],
)
def test_what_cannot_be_pushed(hub, arguments, message, capsys):
    assert main(["rain", "push", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert hub.repositories == {}


def test_a_dry_run_changes_nothing(hub, tmp_path, capsys):
    assert push("--repo_id", "user/strategy", "--output", str(tmp_path / "out"), "--dry_run", "true") == 0
    assert hub.repositories == {} and not (tmp_path / "out").exists()
    printed = capsys.readouterr().out
    assert "custom_generate/generate.py" in printed and "nothing was written or pushed" in printed


def test_requirements_are_those_of_the_package():
    lines = strategy_files("x")["custom_generate/requirements.txt"].splitlines()
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(lines) == 5 and all(f'    "{line}' in project for line in lines)


def test_the_tokens_do_not_depend_on_the_package_being_there(language_model, tmp_path):
    """Where it is imported too, the exported folder still runs its own code."""
    assert push("--output", str(tmp_path / "out"), model=language_model) == 0
    model, tokenizer = build_causal("llama", max_position_embeddings=2048), tokenizer_of("bytes")
    inputs = encode(tokenizer, PROMPTS[:1])
    found = model.generate(
        **inputs,
        custom_generate=str(tmp_path / "out"),
        trust_remote_code=True,
        tokenizer=tokenizer,
        rain_config=quick_config(seed=9),  # the package's own class
        max_new_tokens=5,
    )
    options = {"strategy": "rain", "tokenizer": tokenizer, "rain_config": quick_config(seed=9), "max_new_tokens": 5}
    assert found.tolist() == model.generate(**inputs, **options).tolist()
