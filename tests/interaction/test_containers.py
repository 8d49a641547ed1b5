"""A row is the same tokens in training, scoring, diagnosis and on servers, whatever container it was in."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import trl
from datasets import Dataset, load_dataset
from packaging.version import Version
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config
from trl import RewardConfig, RewardTrainer

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.diagnostics.collect.contents import read_pair
from hf_interdistill.scoring.formatting import normal_text, template_kwargs
from hf_interdistill.scoring.normal_form import normal_value
from hf_interdistill.scoring.serving import serving_text

# Tools and calls become tokens with all their keys, and a key counts as there if it is defined.
TEMPLATE = (
    "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}</tools>{% endif %}"
    "{% if mood is defined %}<mood>{{ mood }}</mood>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.tool_calls is defined %}{% for call in m.tool_calls %}<call>{{ call | tojson }}</call>{% endfor %}"
    "{% endif %}{% if m.content is defined %}{{ m.content }}{% if m.name is defined %} by {{ m.name }}{% endif %}"
    "{% endif %}<|end|>\n{% endfor %}"
)


def tool(name: str, parameters: dict, **more) -> dict:
    schema = {"type": "object", "properties": parameters, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, **more, "parameters": schema}}


def call(name: str, **arguments) -> dict:
    return {
        "role": "assistant",
        "tool_calls": [{"type": "function", "function": {"name": name, "arguments": arguments}}],
    }


ROWS = [
    {
        "prompt": [{"role": "user", "content": "What is the weather?", "name": "Ann"}],
        "chosen": [call("weather", zone="north", city="Paris", days=2)],
        "rejected": [{"role": "assistant", "content": "I cannot know."}],
        "tools": [
            tool("weather", {"zone": {"type": "string", "enum": ["north", None]}, "city": {"type": "string"}}),
            tool("time", {"city": {"type": "string"}}, description="the time in a city"),
        ],
        "chat_template_kwargs": {"mood": "calm"},
    },
    {
        "prompt": [{"role": "user", "content": "And in Rome?"}, {**call("weather", city="Rome"), "content": None}],
        "chosen": [{"role": "assistant", "content": "Rain."}],
        "rejected": [
            call("weather", days=1.5, city="Rome", near={"sea": True, "hills": [{"height": 3}, {"name": "x"}]})
        ],
        "tools": [tool("weather", {"city": {"type": "string", "description": "where"}})],
        "chat_template_kwargs": None,
    },
    {
        "prompt": [{"role": "user", "content": "Hello"}],
        "chosen": [{"role": "assistant", "content": "Hi"}],
        "rejected": [call("time")],
        "tools": None,
        "chat_template_kwargs": {},
    },
    {
        "prompt": [{"role": "user", "content": "Bye"}, {**call("time", city="Oslo"), "content": None}],
        "chosen": [{"role": "assistant", "content": "Bye bye"}],
        "rejected": [{"role": "assistant", "content": "No"}],
        "tools": [tool("time", {"city": {"type": "string"}})],
        "chat_template_kwargs": {"mood": "sad"},
    },
]
COLUMNS = list(ROWS[0])


def from_jsonl(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))


def from_parquet(tmp_path, rows: Dataset):
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    return pd.read_parquet(tmp_path / "rows.parquet")


def datasets_of(tmp_path) -> dict[str, Dataset]:
    listed, read = Dataset.from_list(ROWS), from_jsonl(tmp_path)
    return {
        "list": listed,
        "jsonl": read,
        "pandas": Dataset.from_pandas(pd.DataFrame(ROWS)),
        "stream": listed.to_iterable_dataset(),
        "parquet": Dataset.from_pandas(from_parquet(tmp_path, listed)),
    }


def tables_of(tmp_path) -> dict[str, dict[str, list]]:
    """Columns as users hand them to a scorer."""
    listed = Dataset.from_list(ROWS)
    frames = {"frame": pd.DataFrame(ROWS, index=[7, 8, 9, 3]), "parquet": from_parquet(tmp_path, listed)}
    frames |= {"jsonl parquet": from_parquet(tmp_path, from_jsonl(tmp_path))}
    frames |= {"read_json": pd.read_json(tmp_path / "rows.jsonl", lines=True)}
    plain = {name: [row[name] for row in ROWS] for name in COLUMNS}
    return {"plain": plain, "dataset": listed, "jsonl": from_jsonl(tmp_path), **frames}


@pytest.fixture
def student():
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def expected_ids(tokenizer, side: str) -> list[list[int]]:
    """What the rows say, written by hand without what they do not say."""
    found = []
    for row in ROWS:
        text = tokenizer.apply_chat_template(
            normal_value([*row["prompt"], *row[side]]),
            tools=normal_value(row["tools"]),
            tokenize=False,
            **(row["chat_template_kwargs"] or {}),
        )
        assert "null" not in text.replace('"north", null', "") and "None" not in text and "1.0" not in text
        found.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return found


@pytest.mark.parametrize("weight", [0, 0.3])
def test_trained_ids_are_scored_ids_through_every_container(tmp_path, student, fitted_teacher, weight, monkeypatch):
    expected = {side: expected_ids(student, side) for side in ("chosen", "rejected")}
    for name, data in datasets_of(tmp_path).items():
        args = config(tmp_path, alignment_weight=weight)
        teacher = fitted_teacher if weight else None
        trainer = InteractionDistillationTrainer(
            build_student(), args, train_dataset=data, processing_class=student, teacher=teacher
        )
        rows = list(trainer.train_dataset)
        for side, ids in expected.items():
            assert [row[f"{side}_ids"] for row in rows] == ids, (name, side)
    scorer = RewardScorer(build_student(), student)
    scored: list = []
    monkeypatch.setattr(scorer, "score_ids", lambda rows, **_: scored.extend(rows) or [0.0] * len(rows))
    for name, table in tables_of(tmp_path).items():
        for side, ids in expected.items():
            scored.clear()
            scorer(
                table["prompt"],
                table[side],
                tools=table["tools"],
                chat_template_kwargs=table["chat_template_kwargs"],
            )
            assert scored == ids, (name, side)
    for data in (ROWS, Dataset.from_list(ROWS), tables_of(tmp_path)["jsonl parquet"].to_dict("records")):
        for number, row in enumerate(data):
            pair = read_pair(scorer.formatter, dict(row), " yes") if number == 3 else None
            assert serving_text(scorer, row, "chosen").ids == expected["chosen"][number]
            assert pair is None or pair.rows[0].ids == expected["chosen"][number]


@pytest.mark.skipif(Version(trl.__version__) < Version("1.12"), reason="tried with TRL 1.12 to 1.16")
def test_reward_trainer_reads_the_same_where_arrow_adds_nothing(tmp_path, student):
    row = {
        "prompt": [{"role": "user", "content": "Weather in Rome?"}],
        "chosen": [{**call("weather", city="Rome", zone="south"), "content": None}],
        "rejected": [{**call("weather", city="Roma", zone="south"), "content": None}],
        "tools": [tool("weather", {"city": {"type": "string"}, "zone": {"type": "string"}})],
    }
    data = Dataset.from_list([row] * 4)
    ours = InteractionDistillationTrainer(
        build_student(), config(tmp_path, alignment_weight=0), train_dataset=data, processing_class=student
    )
    args = RewardConfig(output_dir=str(tmp_path / "trl"), use_cpu=True, bf16=False, report_to="none")
    theirs = RewardTrainer(build_student(), args, train_dataset=data, processing_class=student)
    assert ours.train_dataset["chosen_ids"][:] == theirs.train_dataset["chosen_ids"][:]
    assert "tool_calls" not in student.decode(ours.train_dataset["chosen_ids"][0])


def test_normal_form_by_hand():
    given = {
        "b": np.array([{"z": None, "a": np.int64(3)}, None], dtype=object),
        "name": "n",
        "a": (1.0, 1.5, float("inf"), True, -0.0, 2.0**60),
        "c": {"d": None},
    }
    expected = {"name": "n", "a": [1, 1.5, float("inf"), True, 0, 2.0**60], "b": [{"a": 3}, None], "c": {}}
    assert normal_value(given) == expected and list(normal_value(given)) == ["name", "a", "b", "c"]
    assert [type(each) for each in normal_value(given)["a"]] == [int, float, float, bool, int, float]
    assert normal_text([{"content": None, "role": "user"}]) == [{"role": "user"}]
    assert normal_text(float("nan")) is normal_text(None) is None and normal_text("None") == "None"
    function = {"type": "function", "function": '{"name": "f", "arguments": "{}"}'}  # as pandas reads Parquet
    assert normal_value(function)["function"] == {"name": "f", "arguments": "{}"}
    assert normal_value({"function": "{}"}) == {"function": "{}"}
    assert normal_text(["a", "b"]) == ["a", "b"] and normal_text(3) == 3


def test_a_null_that_is_meant_stays_in_tools_as_json():
    schema = tool("weather", {"city": {"type": "string", "default": None}})
    kwargs = template_kwargs({"tools": json.dumps([schema])})
    assert kwargs == {"tools": [schema]}
    assert "default" not in json.dumps(template_kwargs({"tools": [schema]}))
