"""Settings of a search that cannot be: named with value and rule, never a traceback of a library."""

from __future__ import annotations

import pytest
from support.rain import QUICK

from hf_interdistill import RainConfig, embedded
from hf_interdistill.embedded import conversion
from hf_interdistill.rain.api.jobs import RainJobConfig, load_scorer
from hf_interdistill.rain.scorers.judge_prompt import JudgePrompt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"turn_markers": [1]}, r"`turn_markers` is \(1,\), but must be strings that are not empty"),
        ({"turn_markers": [None]}, "`turn_markers` is .* but must be strings"),
        ({"judge": 3}, "`judge` is 3, but must be the name of a judge prompt or a YAML file"),
        ({"judge": None}, "`judge` is None, but must be"),
        ({"similarity_model": 5}, "`similarity_model` is 5, but must be None, a name or a path"),
        ({"similarity_model": True}, "`similarity_model` is True"),
        ({"judge_vote": ["hard"]}, "`judge_vote` is"),
        ({"preset": ["harmless"]}, r"`\['harmless'\]` is not a preset of RainConfig"),
        ({"preset": {}}, "`{}` is not a preset of RainConfig"),
    ],
)
def test_settings_of_another_kind_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RainConfig.from_dict(settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question: [", "judge.yaml is not valid YAML"),
        (b"question: \xff", "judge.yaml is not valid YAML"),
        (b"", "must hold the fields of a judge prompt, but holds a NoneType"),
    ],
)
def test_a_judge_prompt_that_is_no_yaml_is_named(tmp_path, content, message):
    path = tmp_path / "judge.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        JudgePrompt.load(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [("def f(:", "SyntaxError"), ("import json; json.nothing", "AttributeError"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_scorer_whose_module_fails_is_named(tmp_path, monkeypatch, source, message):
    name = f"scorer_{message.lower()}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    config = RainJobConfig(model="m", prompts="p", output="o", rain=QUICK, scorer=f"{name}:f")
    with pytest.raises(ValueError, match=f"`scorer` is '{name}:f', but must be .*{message}"):
        load_scorer(config)


def test_a_cache_that_cannot_be_made_is_named_with_the_fix(tmp_path, monkeypatch):
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(conversion, "installed_files", lambda source: [tmp_path / "x"])
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(OSError, match=r"a file/cache cannot be written[^\n]*Give another `cache_dir`, or set HF_HOME"):
        embedded.language_model(tmp_path / "a file" / "cache")
