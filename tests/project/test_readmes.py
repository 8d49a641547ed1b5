"""What READMEs and documentation show is there: commands and options, files, names in Python, keyword arguments."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import json
import re
import shlex
import shutil
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.datasets import ROOT, read_rows
from support.models import build_encoder
from support.pipeline import Pipeline
from transformers import GenerationConfig
from trl import ModelConfig

from hf_interdistill.cli import COMMANDS, LAUNCHED, main, parse, split_command
from hf_interdistill.utils.launching import split_launch_options

PAGES = [
    path
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md")])
    if path.name not in ("CHANGELOG.md", "table.md")
] + [ROOT / "tests" / "README.md"]
# Arguments of `generate` with `strategy="rain"`, beside those of transformers.
RAIN = {"strategy", "tokenizer", "rain_config", "rain_scorer", "rain_embedder", "rain_prompts"}
BUILTINS = set(filter(callable, vars(builtins).values()))  # some have no signature
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


def blocks(page: Path, *languages: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    """The shell commands of a page: lines of its blocks, and those between backticks in its text."""
    text = page.read_text(encoding="utf-8")
    lines = "\n".join(blocks(page, "bash", "sh")).replace("\\\n", " ").splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [" ".join(each.split()) for each in re.findall(r"`((?:interdistill|make|python) [^`]+)`", prose)]
    words = [line.split(" #")[0].strip() for line in lines]
    return [re.sub(r"^(\w+=\S+ )+", "", each) for each in words if each and not each.startswith("#")]


def found(*programs: str) -> list:
    return [
        pytest.param(each, id=f"{page.parent.name}-{page.stem}-{number}")
        for page in PAGES
        for number, each in enumerate(commands(page))
        if each.split()[0] in programs
    ]


@pytest.mark.parametrize("command", found("interdistill"))
def test_commands_parse(command, tmp_path):
    name, words = split_command(shlex.split(command)[1:])
    if name.startswith("-") or name == "COMMAND":
        return
    arguments = importlib.import_module(f"hf_interdistill.{COMMANDS[name][0]}").ARGUMENTS
    given = [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
    for word in given:
        assert not word.startswith(str(ROOT / "recipes")) or Path(word).exists(), word
    if "--config" not in given and "--model" not in given and "--prompts" not in given and len(given) < 4:
        options = {each for argument in arguments for each in argument.__dataclass_fields__} | {"config", "help"}
        assert {word[2:] for word in given if word.startswith("--")} <= options  # named in passing
        return
    if name in ("teacher", "reward", "compare"):
        given += [*ON_CPU, "--output_dir", str(tmp_path)]
        given += [] if "--config" in given else ["--dataset_name", "any"]
    given = split_launch_options(given)[1] if name in LAUNCHED else given
    assert len(parse(arguments, given)) == len(arguments)


@pytest.mark.parametrize("command", found("make"))
def test_targets_and_variables_of_make_are_there(command):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in shlex.split(command)[1:]:
        name, is_variable, _ = word.partition("=")
        if is_variable:
            assert f"$({name})" in makefile, word
        else:
            assert re.search(rf"^{re.escape(name)}:", makefile, re.MULTILINE), word


def options_of(script: Path) -> str:
    """The code in which a script's options are: its own, and that of the modules beside it which it imports."""
    code = script.read_text(encoding="utf-8")
    beside = [script.parent / f"{name}.py" for name in re.findall(r"^from (\w+) import", code, re.MULTILINE)]
    options = [f'"--{each.name}"' for each in fields(ModelConfig)] if "ModelConfig" in code else []
    return "\n".join([code, *options, *(path.read_text(encoding="utf-8") for path in beside if path.is_file())])


@pytest.mark.parametrize("command", found("python"))
def test_scripts_and_their_options_are_there(command):
    _, script, *words = shlex.split(command)
    if script == "-m":
        assert all((ROOT / word).exists() for word in words if word.startswith("tests/"))
        return
    path = ROOT / script
    assert path.is_file(), script
    code = options_of(path)
    for word in words:
        if word.startswith("recipes/"):
            assert (ROOT / word).exists(), word
        if word.startswith("--") and word != "--config":
            assert f'"{word}"' in code, f"{script} has no {word}"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with what the README's commands name: tiny models, prompts, preferences, the recipes."""
    folder = tmp_path_factory.mktemp("readme")
    pipeline = Pipeline(folder / "made")
    pipeline.add_language_model(2)
    (folder / "runs").mkdir()
    for name in ("rm", "plain"):
        shutil.copytree(folder / "made" / "student", folder / "runs" / name)
    config = json.loads((folder / "made" / "lm" / "config.json").read_text())
    (folder / "made" / "lm" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    shutil.copytree(folder / "made" / "lm", folder / "PATH")
    shutil.copy(folder / "made" / "prompts.jsonl", folder)
    rows = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows("test")[:4]]
    (folder / "preferences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for part in build_encoder():
        part.save_pretrained(folder / "encoder")
    return folder


SAMPLES = ROOT / "tests" / "reward_benchmarks" / "samples"
# What keeps a command from the Hub, and short.
SMALLER = {
    "eval": ["--data", str(SAMPLES / "reward_bench" / "filtered.jsonl"), str(SAMPLES / "rm_bench")],
    "diagnose": ["--resamples", "20", "--limit", "2"],
    "best-of-n": ["--n", "2", "--generation", '{"max_new_tokens": 4}'],
    "rain": ["--similarity_model", "encoder", "--iterations", "2", "--extra_iterations", "0"],
    "score": [],
    "push": ["--dry_run", "true"],
}
RUN = [each for each in commands(ROOT / "README.md") if each.split()[0] == "interdistill" and "--" in each]


def test_every_command_of_the_readme_is_run_or_has_tests_of_its_own():
    assert {each.split()[1] for each in RUN} == {*SMALLER, "teacher", "reward", "compare", "serve", "convert"}


@pytest.mark.parametrize("command", [each for each in RUN if each.split()[1] in SMALLER])
def test_commands_of_the_readme_run(command, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    words = shlex.split(command)[1:]
    smaller = [*SMALLER[words[0]], *(["--max_new_tokens", "2"] if words[0] == "rain" else [])]
    assert main([*words, *smaller]) == 0, capsys.readouterr().err
    for option in ("--output", "--selected"):
        if option in words:
            assert (workplace / words[words.index(option) + 1]).exists()


def samples(command: str) -> bool:
    words = command.split()
    return words[:2] == ["interdistill", "best-of-n"] and "--model" in words and "--config" not in words


SAMPLING = [pytest.param(page, id=page.stem) for page in PAGES if any(map(samples, commands(page)))]


@pytest.mark.parametrize("page", SAMPLING)
def test_best_of_n_says_how_long_texts_may_be(page, workplace, monkeypatch, capsys):
    """The tiny models say nothing of it, and neither do most models. `selected` has the best of each prompt alone."""
    monkeypatch.chdir(workplace)
    if not (workplace / "runs" / "ensemble").exists():
        members = [str(workplace / "runs" / name) for name in ("rm", "plain")]
        (workplace / "runs" / "ensemble").mkdir()
        (workplace / "runs" / "ensemble" / "reward_ensemble.json").write_text(json.dumps({"members": members}))
    for command in filter(samples, commands(page)):
        words = shlex.split(command)[1:]
        assert json.loads(words[words.index("--generation") + 1])["max_new_tokens"] > 0
        if "--server" in words:
            continue
        outputs = {name: str(workplace / f"{page.stem}-{name}.jsonl") for name in ("output", "selected")}
        smaller = [*SMALLER["best-of-n"], *(part for name, path in outputs.items() for part in (f"--{name}", path))]
        assert "--selected" in words and main([*words, *smaller]) == 0, capsys.readouterr().err
        count, best = (len(Path(path).read_text().splitlines()) for path in outputs.values())
        assert count == best == len((workplace / "prompts.jsonl").read_text().splitlines())


class Snippet:
    """A block of Python: what its names stand for, as far as that is known without running it."""

    def __init__(self, code: str):
        self.tree = ast.parse(textwrap.dedent(code))
        self.names: dict[str, Any] = {}
        self.checked = 0

    def check(self) -> int:
        """Raise `AssertionError` for a name or keyword that does not exist; returns how many calls were checked."""
        for statement in self.tree.body:
            if isinstance(statement, ast.Import):
                for alias in statement.names:
                    importlib.import_module(alias.name)
            if isinstance(statement, ast.ImportFrom):
                module = importlib.import_module(statement.module)
                for alias in statement.names:
                    assert hasattr(module, alias.name), f"{statement.module} has no {alias.name}"
                    self.names[alias.asname or alias.name] = getattr(module, alias.name)
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    self._check_call(node)
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                self.names[statement.targets[0].id] = self._made_by(statement.value)
        return self.checked

    def _check_call(self, node: ast.Call) -> None:
        keywords = [each.arg for each in node.keywords if each.arg is not None]
        if ast.unparse(node.func) == "model.generate":
            known = {*GenerationConfig().to_dict(), *RAIN}
            assert set(keywords) <= known, set(keywords) - known
            self.checked += 1
            return
        called = self._value(node.func)
        if called is None:
            return
        if called in BUILTINS:
            return
        parameters = inspect.signature(called).parameters
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            self.checked += 1
            return
        unknown = set(keywords) - set(parameters)
        assert not unknown, f"{ast.unparse(node.func)} has no argument {unknown}"
        self.checked += 1

    def _value(self, node: ast.expr) -> Any:
        """What an expression that is called stands for; `None` if that is not known."""
        if isinstance(node, ast.Name):
            value = self.names.get(node.id, getattr(builtins, node.id, None) if node.id != "print" else None)
            return getattr(value.kind, "__call__", None) if isinstance(value, Instance) else value  # noqa: B004
        if isinstance(node, ast.Attribute):
            owner = self.names.get(node.value.id) if isinstance(node.value, ast.Name) else self._made_by(node.value)
            owner = owner.kind if isinstance(owner, Instance) else owner
            if owner is None:
                return None
            assert hasattr(owner, node.attr), f"{owner} has no {node.attr}"
            return getattr(owner, node.attr)
        return None

    def _made_by(self, node: ast.expr) -> Any:
        """An instance of the class that is called, or whose `from_pretrained` or `preset` is."""
        if not isinstance(node, ast.Call):
            return None
        called = self._value(node.func)
        if inspect.isclass(called):
            return Instance(called)
        is_constructor = inspect.ismethod(called) and inspect.isclass(called.__self__)
        return Instance(called.__self__) if is_constructor else None


class Instance:
    def __init__(self, kind: type):
        self.kind = kind


SNIPPETS = [
    pytest.param(code, id=f"{page.parent.name}-{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_names_and_arguments_in_python_exist(code):
    if "from hf_interdistill" not in code and "diagnose(" in code:
        code = f"from hf_interdistill import diagnose\n{code}"  # a block that goes on from the one before
    assert Snippet(code).check() > 0 or "hf_interdistill" not in code


@pytest.mark.parametrize(
    "code",
    [
        "from hf_interdistill import RewardScorers",
        "from hf_interdistill import RewardScorer\nRewardScorer.from_pretraind('x')",
        "from hf_interdistill import diagnose\ndiagnose('x', 'y', output='z')",
        "from hf_interdistill import RewardScorer\ns = RewardScorer.from_pretrained('x')\ns.scores(['a'], ['b'])",
        "from hf_interdistill import InteractionDistillationConfig as C\nC(output_dir='x', alignment_wieght=1)",
        "model.generate(strategy='rain', rain_conf=1)",
    ],
)
def test_wrong_names_and_arguments_are_found(code):
    with pytest.raises(AssertionError):
        Snippet(code).check()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_dotted_names_exist(page):
    for name in re.findall(r"`(hf_interdistill(?:\.\w+)+)", page.read_text(encoding="utf-8")):
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                value = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                value = getattr(value, part)
            break
