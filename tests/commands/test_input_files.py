"""Files and options of every command are checked before models are loaded or trained; errors name file and line."""

from __future__ import annotations

import json

import pytest
from support.datasets import read_rows
from support.models import build_encoder, build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import InteractionTeacher, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.interaction.trainer import InteractionDistillationTrainer

GOOD = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:6]]
LINE = json.dumps(GOOD[0])
READERS = ["teacher", "reward", "diagnose", "score"]
PROMPTS = ["best-of-n", "candidates"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    build_student().save_pretrained(folder / "rm")
    tokenizer_of("bytes").save_pretrained(folder / "rm")
    model, tokenizer = build_encoder()
    model.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    return folder


@pytest.fixture
def no_work(monkeypatch):
    """Fails if a text is scored, a teacher is fitted or a model is trained."""

    def work(*args, **kwargs):
        raise AssertionError("work began")

    score_ids = RewardScorer.score_ids

    def score(self, rows, **kwargs):
        assert len(rows) == 1, "more was scored than one text to see whether attention can be recorded"
        return score_ids(self, rows, **kwargs)

    monkeypatch.setattr(RewardScorer, "score_ids", score)
    monkeypatch.setattr("hf_interdistill.interaction.teacher.teacher.train_network", work)
    monkeypatch.setattr(InteractionDistillationTrainer, "train", work)


def command(name: str, models, source, output) -> list[str]:
    student, out = str(models / "rm"), ["--output", str(output)]
    good = source.with_name("good.jsonl")
    good.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    train = ["--dataset_name", str(source), "--output_dir", str(output), "--use_cpu", "true", "--report_to", "none"]
    return {
        "teacher": [*train, "--teacher_model", str(models / "encoder")],
        "reward": [*train, "--model_name_or_path", student, "--alignment_weight", "0"],
        "diagnose": ["--data", str(source), "--model", student, *out],
        "candidates": ["--data", str(good), "--model", student, "--candidates", str(source), *out],
        "score": ["--input", str(source), "--model", student, *out],
        "best-of-n": ["--prompts", str(source), "--reward_model", student, *out],
        "eval": ["--benchmark", "llmbar", "--data", str(source), "--model", student, *out],
    }[name]


def fails(name: str, arguments: list[str], capsys) -> str:
    assert main(["diagnose" if name == "candidates" else name, *arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", [*READERS, *PROMPTS, "eval"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'{LINE}\n\n{{"prompt": \n', "Line 3 of {source} is not a JSON object"),
        (f"{LINE}\n[1, 2]\n", "Line 2 of {source} is not a JSON object, but '[1, 2]'"),
        (json.dumps(GOOD[0], indent=2), "Line 1 of {source} is not a JSON object"),
    ],
)
def test_lines_that_are_no_objects_are_named(name, content, message, models, tmp_path, no_work, capsys):
    source = tmp_path / "data.jsonl"
    good = {**GOOD[0], "completions": ["a", "b"], "gold_rewards": [0, 1]}
    source.write_text(content.replace(LINE, "" if name == "eval" else json.dumps(good)))
    assert message.format(source=source) in fails(name, command(name, models, source, tmp_path / "out"), capsys)


@pytest.mark.parametrize("name", [*READERS, *PROMPTS, "eval"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe{}\n"])
def test_files_without_rows_or_text(name, content, models, tmp_path, no_work, capsys):
    source = tmp_path / "data.jsonl"
    source.write_bytes(content)
    error = fails(name, command(name, models, source, tmp_path / "out"), capsys)
    if content.startswith(b"\xff"):
        assert f"Line 1 of {source} is not UTF-8" in error
    else:
        assert str(source) in error or name == "candidates"
        assert any(part in error for part in ("is empty", "holds no row", "holds no prompts", "no prompt with"))


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choosen": "So.", "chosen": "-"}, "`chosen`"),
        ({"chosen": [{"from": "gpt", "value": "So."}]}, "ShareGPT's format"),
        ({"chosen": [{"role": "gpt", "content": "So."}]}, "unknown role 'gpt'"),
        ({"chosen": [{"content": "So."}]}, "`role` must be a text"),
        ({"chosen": []}, "empty conversation"),
        ({"chosen": [{"role": "assistant", "content": 4}]}, "the `content` 4"),
        ({"chosen": 3}, "holds 3"),
        ({"chosen": None}, "missing (null)"),
        ({"prompt": "How?"}, "text"),
    ],
)
def test_rows_that_are_no_preferences(name, change, message, models, tmp_path, no_work, capsys):
    if name == "teacher" and "unknown role" in message:
        pytest.skip("a teacher reads any role: it has no chat template")
    rows = [{**row, **change} for row in GOOD[:2]]
    rows = [{key: value for key, value in row.items() if value != "-"} for row in rows]
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    error = fails(name, command(name, models, source, tmp_path / "out"), capsys)
    assert message in error, error
    if "choosen" in change and name != "score":
        assert "is `choosen` meant as `chosen`?" in error
    elif "choosen" not in change:
        assert ("line 1" if name == "score" else "Row 0") in error, error


def test_kinds_that_change_within_a_file(models, tmp_path, no_work, capsys):
    source = tmp_path / "data.jsonl"
    rows = [{"prompt": "a", "chosen": chosen, "rejected": "c"} for chosen in ("b", 3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "Row 1" in fails("teacher", command("teacher", models, source, tmp_path / "out"), capsys)


@pytest.mark.parametrize("name", [*READERS, *PROMPTS, "eval"])
def test_outputs_that_cannot_be_written(name, models, tmp_path, no_work, capsys):
    source, file = tmp_path / "data.jsonl", tmp_path / "file"
    source.write_text("".join(json.dumps({**row, "completions": ["a", "b"], "scores": [0, 1]}) + "\n" for row in GOOD))
    file.write_text("")
    if name == "eval":
        source.write_text('{"input": "a", "output_1": "b", "output_2": "c", "label": 1}\n')
    error = fails(name, command(name, models, source, file / "out"), capsys)
    assert "cannot be written" in error, error


@pytest.mark.parametrize("name", ["score", "eval", "diagnose"])
@pytest.mark.parametrize(("option", "value"), [("batch_size", "-1"), ("batch_size", "0"), ("max_length", "0")])
def test_sizes(name, option, value, models, tmp_path, no_work, capsys):
    source = tmp_path / "data.jsonl"
    source.write_text(LINE + "\n")
    arguments = [*command(name, models, source, tmp_path / "out"), f"--{option}", value]
    assert f"`{option}` is {value}, but must be a whole number of at least 1" in fails(name, arguments, capsys)


@pytest.mark.parametrize("name", ["eval", "diagnose"])
def test_every_model_is_looked_for_before_the_first_is_scored(name, models, tmp_path, no_work, capsys):
    source = tmp_path / "data.jsonl"
    source.write_text(LINE + "\n")
    arguments = command(name, models, source, tmp_path / "out")
    arguments.insert(arguments.index(str(models / "rm")) + 1, "./nowhere")
    assert "model ./nowhere is not there" in fails(name, arguments, capsys)


def test_every_benchmark_is_read_before_the_first_is_scored(models, tmp_path, no_work, capsys):
    (tmp_path / "one.jsonl").write_text('{"winner": "model_a", "question_id": "1"}\n')
    arguments = ["--model", str(models / "rm"), "--output", str(tmp_path / "out")]
    arguments += [
        "--benchmark",
        "ppe_human_preference",
        "llmbar",
        "--data",
        str(tmp_path / "one.jsonl"),
        "nowhere.json",
    ]
    assert main(["eval", *arguments]) == 2
    assert "one.jsonl, line 1" in capsys.readouterr().err


def test_the_test_split_is_read_before_a_teacher_is_fitted(models, tmp_path, no_work, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    bad = {**GOOD[1], "chosen": []}
    (tmp_path / "data" / "test.jsonl").write_text(LINE + "\n" + json.dumps(bad) + "\n")
    arguments = command("teacher", models, tmp_path / "data", tmp_path / "out")
    assert "`test`: Row 1: Column `chosen` is an empty conversation" in fails("teacher", arguments, capsys)


def test_what_a_teacher_cannot_be_fitted_on(teacher, tmp_path, no_work):
    with pytest.raises(TypeError, match=r"`preferences` is a dict with the keys train"):
        teacher.fit({"train": GOOD})
    with pytest.raises(TypeError, match=r"`preferences` is 'user/data'"):
        teacher.fit("user/data")
    with pytest.raises(ValueError, match="`preferences` is empty"):
        teacher.fit([])
    with pytest.raises(ValueError, match=r"`eval_dataset`: Row 0: .*no column `rejected`"):
        teacher.fit(GOOD, eval_dataset=[{"chosen": "a"}])
    with pytest.raises(ValueError, match=r"`preferences`: Row 1: A preference is 'x'"):
        teacher.fit([GOOD[0], "x"])
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match=r"`output_dir` .*cannot be written"):
        teacher.fit(GOOD, output_dir=str(tmp_path / "file"))
    with pytest.raises(ValueError, match="`batch_size` is -1"):
        teacher.score_pairs(GOOD, batch_size=-1)
    assert isinstance(teacher, InteractionTeacher) and teacher.metrics is None


def test_an_older_run_is_removed_when_nothing_else_can_stop_the_new_one(models, tmp_path, no_work, capsys):
    source, older = tmp_path / "data.jsonl", tmp_path / "out" / "checkpoint-5"
    older.mkdir(parents=True)
    arguments = command("reward", models, source, tmp_path / "out")
    source.write_text(LINE + "\n")
    assert "holds checkpoints of an earlier run" in fails("reward", arguments, capsys)
    source.write_text('{"chosen": "a"}\n')
    assert "no column `rejected`" in fails("reward", [*arguments, "--overwrite", "true"], capsys)
    assert older.exists()
    source.write_text(LINE + "\n")
    with pytest.raises(AssertionError, match="work began"):
        main(["reward", *arguments, "--overwrite", "true"])
    assert not older.exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("reward", {"dataset_name": "data", "model": "models/rm", "teacher_model": "models/encoder"}),
        ("teacher", {"dataset_name": "data", "teacher_model": "models/encoder"}),
        ("diagnose", {"data": "data", "model": "models/rm", "noise_models": "noisy"}),
        ("eval", {"model": "models/rm", "data": "data"}),
        ("compare", {"dataset_name": "data", "model": "models/rm", "teacher_model": "models/encoder"}),
    ],
)
def test_an_output_folder_that_is_read_is_refused(name, options, models, tmp_path, no_work, capsys):
    (tmp_path / "models").symlink_to(models)
    for folder in ("data", "noisy"):
        (tmp_path / folder).mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    for option, folder in options.items():
        output = tmp_path / folder
        before = sorted(path.name for path in output.iterdir())
        if name == "compare":
            keys = {"model_name_or_path": models / "rm", "teacher_model": models / "encoder", "use_cpu": "true"}
            keys |= {"dataset_name": tmp_path / "data", "alignment_weight": 0.5}
            recipe = tmp_path / "recipe.yaml"
            recipe.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
            words = ["--config", str(recipe), "--output", str(output)]
        else:
            words = command(name, models, tmp_path / "data", output)
            words += {
                "reward": ["--teacher_model", str(models / "encoder")],
                "diagnose": ["--noise_models", json.dumps({0.1: str(tmp_path / "noisy")})],
            }.get(name, [])
        written = "output_dir" if name in ("reward", "teacher") else "output"
        message = fails(name, words, capsys)
        assert f"`{written}` and `{option}`" in message and f"are the same folder, {output}" in message
        assert f"Choose another `{written}`" in message
        assert sorted(path.name for path in output.iterdir()) == before


def test_an_output_folder_beside_or_around_what_is_read_is_taken(models, tmp_path):
    source = tmp_path / "data.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    short = ["--max_steps", "1", "--save_strategy", "no", "--bf16", "false"]
    for folder in (tmp_path, tmp_path / "data" / "run"):  # of a file that is named, and inside a folder
        assert main(["reward", *command("reward", models, source, folder), *short]) == 0
        assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["reward", "teacher"])
def test_a_test_split_that_is_named_must_be_there(name, models, tmp_path, no_work, capsys):
    source = tmp_path / "data"
    source.mkdir()
    for split in ("train", "validation"):
        (source / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    words = command(name, models, source, tmp_path / "out")
    for split in ("tset", "test"):
        message = fails(name, [*words, "--dataset_test_split", split], capsys)
        assert f"{source} has no split `{split}`; it has train, validation." in message
    with pytest.raises(AssertionError, match="work began"):  # without a name none is needed
        main([name, *words])
    with pytest.raises(AssertionError, match="work began"):
        main([name, *words, "--dataset_test_split", "validation"])
