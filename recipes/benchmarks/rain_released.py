"""The authors' released search (SafeAILab/RAIN, folder `HH`), run from a copy that the user has.

Nothing of it is kept here: its functions and constants are taken from `main.py` as they stand, and get the model,
tokenizer and encoder of the benchmark. What is different from running the script: where the benchmark is not on a GPU
`.cuda()` moves to its device and `.cpu()` copies from there; its log of visits is not written, and the loop is left
after a number of iterations.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from rain_setup import LABEL_IDS

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.scorers.base import Exchange
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt

_CONSTANTS = ("maxlen", "maxT", "minT", "Vt")
_NOT_NEEDED = ("argparse", "datasets", "nodes", "sentence_transformers", "torch.utils.data", "tqdm")


class _EnoughError(Exception):
    """Leaves the released loop."""


class ReleasedRain:
    """The released code on a model.

    Args:
        repository: its checkout.
        model, tokenizer: the benchmark's. encoder: a `TextEncoder`.

    Attributes:
        context: the text that it puts before every question.
        constants: its `maxT`, `minT`, `Vt` and `maxlen`.
    """

    def __init__(self, repository: Path, model, tokenizer, encoder):
        self.folder = repository / "HH"
        if not (self.folder / "main.py").is_file():
            raise SystemExit(f"{repository} has no HH/main.py; give --rain-repo a checkout of SafeAILab/RAIN.")
        for label, number in LABEL_IDS.items():
            if tokenizer.convert_tokens_to_ids(label) != number:
                raise ValueError(f"The released code takes token {number} for {label!r}; the tokenizer must agree.")
        self.model, self.tokenizer = model, tokenizer
        self.context = self._read("f1.txt")
        self.space = self._load()
        self.space["encoder"] = SimpleNamespace(encode=lambda text: encoder([text])[0].astype("float32"))
        self.constants = {name: self.space[name] for name in _CONSTANTS}

    def _read(self, name: str) -> str:
        return (self.folder / name).read_text(encoding="utf-8")

    def _load(self) -> dict:
        """Its functions and constants, without what the script does when it is imported."""
        parts = []
        for part in ast.parse(self._read("main.py")).body:
            names = [target.id for target in getattr(part, "targets", []) if isinstance(target, ast.Name)]
            modules = [getattr(part, "module", None), *(alias.name for alias in getattr(part, "names", []))]
            is_import = isinstance(part, ast.Import | ast.ImportFrom) and not set(modules) & set(_NOT_NEEDED)
            if is_import or isinstance(part, ast.FunctionDef) or set(names) & set(_CONSTANTS):
                parts.append(part)
        threads = torch.get_num_threads()
        spec = importlib.util.spec_from_file_location("released_rain_nodes", self.folder / "nodes.py")
        nodes = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = nodes
        spec.loader.exec_module(nodes)
        torch.set_num_threads(threads)  # nodes.py sets it to 1
        space = {
            "node": nodes.node,
            "fschat": self.context,
            "fsred": self._read("f2.txt"),
            "redA": self._read("r1.txt"),
            "redB": self._read("r2.txt"),
            "qs": [],
            "outdir": "",
            "args": SimpleNamespace(index=0),
        }
        exec(compile(ast.Module(parts, []), str(self.folder / "main.py"), "exec"), space)
        space["save_dict"] = lambda *_: None
        return space

    def check_constants(self, config: RainConfig) -> None:
        """Raise `ValueError` if it would search with other constants than `config`."""
        ours = {"maxT": config.iterations, "minT": config.min_visits, "Vt": config.value_threshold}
        theirs = {name: self.constants[name] for name in ours}
        if theirs != ours:
            raise ValueError(f"The released code has {theirs}, and ours {ours}; the comparison needs the same.")
        exchange = Exchange("Human: Why?\nAssistant:", " So.")
        text = f"{self.space['fsred']}\n\n{exchange.prompt}{exchange.completion}\n"
        asked = [text + self.space[red] for red in ("redA", "redB")]
        if self.judge_prompt().texts(exchange) != asked:
            raise ValueError("The judge prompt taken from the released code does not read as it does there.")

    def prompt(self, question: str) -> tuple[str, str]:
        """What the model goes on from, and what the judge sees of it."""
        shown = f"Human: {question}\nAssistant:"
        return f"{self.context}\n{shown}", shown

    def judge_prompt(self) -> JudgePrompt:
        """Its judge prompt, word for word, as one of ours."""
        asked = self._read("r1.txt")
        first, second = (line.split(") ", 1)[1] for line in asked.split("\n")[1:3])
        question = "\n" + asked.replace(first, "{first}").replace(second, "{second}")
        return JudgePrompt(
            "released",
            self._read("f2.txt") + "\n\n",
            "{prompt}{completion}",
            question,
            positive=first,
            negative=second,
        )

    def run(self, question: str, iterations: int, around: Callable[[Callable], None]) -> None:
        """Its outer loop, for so many iterations in all; `around(iterate)` has to call `iterate` once each time."""
        search, done = self.space["search"], 0

        def counted(*args, **kwargs):
            nonlocal done

            def iterate() -> None:
                with self._on_device():
                    search(*args, **kwargs)

            around(iterate)
            done += 1
            if done == iterations:
                raise _EnoughError

        looped = mock.patch.dict(self.space, {"search": counted})
        with looped, contextlib.suppress(_EnoughError):
            self.space["gmeval"]({"query": [self.prompt(question)[1]]}, self.model, self.tokenizer)

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """Off a GPU `.cuda()` moves to the model's device, and `.cpu()` copies, as from a GPU.

        On a CPU it would return a view, and the script would keep the logits of every token that it ever read.
        """
        device, to_cpu = self.model.device, torch.Tensor.cpu
        if device.type == "cuda":
            with torch.cuda.device(device):
                yield
            return
        cuda = mock.patch.object(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor.to(device))
        cpu = mock.patch.object(torch.Tensor, "cpu", lambda tensor: to_cpu(tensor).clone())
        with cuda, cpu:
            yield
