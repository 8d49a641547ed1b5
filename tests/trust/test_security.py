"""Untrusted files run no code, tokens do not leak, names in data stay in their folder."""

from __future__ import annotations

import ast
import json
import logging
from pathlib import Path

import pytest
import torch
from support.datasets import ROOT
from support.hub import save_full
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config

from hf_interdistill import InteractionDistillationTrainer, InteractionTeacher, RewardScorer
from hf_interdistill.hub.files import stage_model
from hf_interdistill.rain.api.job_output import _write_tree
from hf_interdistill.rain.results.records import RainRecord, TreeRecord
from hf_interdistill.rain.scorers.embedder import TextEncoder

SOURCES = sorted((ROOT / "hf_interdistill").rglob("*.py"))
SECRET = "hf_" + "Secret" * 6
# Calls that read code out of data, or give data to a shell.
FORBIDDEN = {
    "torch.load", "pickle.load", "pickle.loads", "dill.load", "dill.loads", "joblib.load", "marshal.loads",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "np.load", "numpy.load", "os.system", "os.popen",
    "eval", "exec", "compile",
}  # fmt: skip


def calls(tree: ast.AST):
    """The dotted name and the keywords of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {each.arg: each.value for each in node.keywords}


def offenses(source: str) -> list[str]:
    """What a source file does and no file of this package may do."""
    found = []
    for name, keywords in calls(ast.parse(source)):
        is_safe = ast.unparse(keywords.get("weights_only", ast.Constant(None))) == "True"
        if name == "torch.load" and is_safe:  # tensors and plain containers; anything else is an error
            continue
        if name in FORBIDDEN:
            found.append(name)
        found += [f"{name}({key}=)" for key in ("trust_remote_code", "weights_only", "shell") if key in keywords]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_the_package_executes_data(path):
    assert offenses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, mmap=True)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "run(c, shell=True)",
        "eval(x)",
    ],
)
def test_such_a_file_would_be_found(source):
    assert len(offenses(source)) == 1 and offenses("model.eval(); re.compile(x); json.load(f)") == []
    assert offenses("torch.load(f, weights_only=True)") == [] != offenses("torch.load(f, weights_only=flag)")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def bomb(path: Path, mark: Path) -> None:
    torch.save({"model.embed_tokens.weight": torch.zeros(2), "x": Bomb(mark)}, path)


def reward_model(folder: Path) -> Path:
    build_student().save_pretrained(folder)
    tokenizer_of("bytes").save_pretrained(folder)
    return folder


def encoder(folder: Path) -> Path:
    model, tokenizer = build_encoder()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_teacher(folder):
    return InteractionTeacher.from_pretrained(str(folder))


LOADERS = {
    "scorer": (reward_model, lambda folder: RewardScorer.from_pretrained(str(folder))),
    "teacher": (encoder, read_teacher),
    "similarity": (encoder, lambda folder: TextEncoder.from_pretrained(str(folder))),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_a_pickled_checkpoint_runs_nothing(loader, tmp_path):
    save, load = LOADERS[loader]
    folder, mark = save(tmp_path / "model"), tmp_path / "it_ran"
    (folder / "model.safetensors").unlink()
    bomb(folder / "pytorch_model.bin", mark)
    with pytest.raises(Exception, match=r"(?i)weights|pickle"):
        load(folder)
    assert not mark.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # what it would have done
    assert mark.exists()


def test_safetensors_are_loaded_even_beside_a_pickle(tmp_path):
    folder, mark = reward_model(tmp_path / "model"), tmp_path / "it_ran"
    bomb(folder / "pytorch_model.bin", mark)
    bomb(folder / "training_args.bin", mark)
    RewardScorer.from_pretrained(str(folder))
    assert not mark.exists()


def test_a_pickled_adapter_and_a_pickled_head_run_nothing(tmp_path):
    peft = pytest.importorskip("peft")
    mark, base = tmp_path / "it_ran", reward_model(tmp_path / "base")
    model = peft.get_peft_model(build_student(), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    bomb(tmp_path / "adapter" / "adapter_model.bin", mark)
    with pytest.raises(Exception, match=r"(?i)weights|pickle"):
        RewardScorer.from_pretrained(str(tmp_path / "adapter"))
    teacher = InteractionTeacher(*build_encoder(), max_length=64, metrics={"accuracy": 1.0})
    teacher.save_pretrained(str(tmp_path / "teacher"))
    (head,) = [each for each in (tmp_path / "teacher").glob("*.safetensors") if each.name != "model.safetensors"]
    bomb(head, mark)
    with pytest.raises(Exception, match=r"(?i)header"):
        read_teacher(tmp_path / "teacher")
    assert not mark.exists()


CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_code_in_a_repository_is_not_run(loader, tmp_path):
    save, load = LOADERS[loader]
    folder, mark = save(tmp_path / "model"), tmp_path / "it_ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    autos = ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForCausalLM")
    auto_map = {"AutoConfig": "own.OwnConfig", **dict.fromkeys(autos, "own.OwnModel")}
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, "auto_map": auto_map}))
    load(folder)  # a known type: transformers' own classes, with the weights
    (folder / "config.json").write_text(json.dumps({**known, "model_type": "own", "auto_map": auto_map}))
    TextEncoder.from_pretrained.__func__.cache_clear()
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder)
    assert not mark.exists()


def test_no_loader_trusts_remote_code(tmp_path, monkeypatch):
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    seen = []

    def watch(owner):
        plain = owner.from_pretrained.__func__

        def from_pretrained(cls, *args, **kwargs):
            seen.append((cls.__name__, kwargs))
            return plain(cls, *args, **kwargs)

        monkeypatch.setattr(owner, "from_pretrained", classmethod(from_pretrained))

    for owner in (AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer):
        watch(owner)
    for name, (save, load) in LOADERS.items():
        load(save(tmp_path / name))
    names = {name for name, _ in seen}
    assert {"AutoModel", "AutoModelForSequenceClassification", "AutoTokenizer", "AutoConfig"} <= names
    assert all(not kwargs.get("trust_remote_code") for _, kwargs in seen)


def test_a_token_is_in_no_log_and_no_file_but_the_pickled_arguments(
    dataset, tmp_path, tokenizer, fitted_teacher, monkeypatch, caplog, capsys
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with caplog.at_level(logging.DEBUG, logger="hf_interdistill"):
        trainer = InteractionDistillationTrainer(
            build_student(),
            config(tmp_path, max_steps=1, save_strategy="steps", save_steps=1, hub_token=SECRET),
            train_dataset=dataset.select(range(4)),
            processing_class=tokenizer,
            teacher=fitted_teacher,
        )
        trainer.train()
        trainer.save_model()
        trainer.create_model_card()
    assert SECRET not in caplog.text + "".join(capsys.readouterr()) + repr(trainer.args)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    holders = {path.name for path in files if SECRET.encode() in path.read_bytes()}
    assert holders <= {"training_args.bin"}  # transformers writes it, and it is never pushed


def test_an_index_cannot_name_files_of_other_folders(tmp_path):
    folder = save_full(tmp_path / "model", max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    assert any(file.path_in_repo == index.name for file in stage_model(folder, "user/rm"))
    shards = json.loads(index.read_text())
    key = next(iter(shards["weight_map"]))
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "sub/../../secret.safetensors"):
        build_student().save_pretrained(tmp_path / "other")
        (tmp_path / "other" / "model.safetensors").rename(tmp_path / "secret.safetensors")
        index.write_text(json.dumps({**shards, "weight_map": {**shards["weight_map"], key: name}}))
        with pytest.raises(ValueError, match="names weights outside the folder"):
            stage_model(folder, "user/rm")


NAMES = [
    "../../out",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a/b",
    "a\\b",
    "a\x00b",
    "日" * 200,
    "\U00020000" * 200,
    "x" * 5000,
    7,
    "a.b",
]


def test_ids_in_data_name_files_in_the_trees_folder_only(tmp_path):
    root = {"text": "", "visits": 0.0, "prior": 1.0, "is_committed": False, "rewinds": 0, "children": []}
    record = RainRecord(TreeRecord(root), stats={})
    paths = [_write_tree(tmp_path / "trees", name, record, "html") for name in NAMES]
    assert len(set(paths)) == len(NAMES)
    assert all(path.resolve().parent == (tmp_path / "trees").resolve() and path.is_file() for path in paths)
    assert {path.name for path in paths} >= {"7.html", "a.b.html"}
    assert [path.name for path in tmp_path.iterdir()] == ["trees"]
