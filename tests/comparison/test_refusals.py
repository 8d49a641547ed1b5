"""What a comparison refuses before it trains, what it says of a failed training, and how it resumes after a kill."""

from __future__ import annotations

import fcntl
import json
import sys

import pytest
from support.comparisons import config_of, recipe_of, start_forked, starts
from support.faults import at_call, at_step
from support.models import read_weights
from support.pipeline import PAIRS
from support.processes import forked

from hf_interdistill import CompareConfig, compare
from hf_interdistill.cli import main
from hf_interdistill.comparison import runs
from hf_interdistill.comparison.data import prompt_keys
from hf_interdistill.utils.errors import RunError


def compared(pipeline, recipe=None, **changes):
    """The comparison of `made` again, with something changed."""
    config = config_of(pipeline.path("compared"), seeds=2, **changes)
    return compare(recipe or pipeline.recipe, config, is_progress_shown=False)


def without_costs(comparison) -> dict:
    found = comparison.to_dict()
    for model in found["models"]:
        model.pop("cost"), model.pop("diagnosis")
    return found


def test_finished_runs_are_not_trained_again_and_more_seeds_are_added(made, pipeline):
    config = config_of(pipeline.path("compared"), seeds=3)
    found = compare(pipeline.recipe, config, is_progress_shown=False)
    assert found.seeds == (7, 8, 9) and set(starts(pipeline.path("compared")).values()) == {1}
    assert found.model("baseline").of_seeds[7] == made.comparison.model("baseline").of_seeds[7]
    log = pipeline.path("compared", "compare.log").read_text()
    assert log.count("Saved to") == 2


def test_a_changed_recipe_is_refused_or_trained_again(made, pipeline):
    changed = recipe_of(made, "changed", alignment_weight=0.5)
    before = read_weights(pipeline.path("compared", "runs", "interaction", "seed-7", "model.safetensors"))
    with pytest.raises(
        ValueError, match=r"seed-7 was trained with other .*`alignment_weight` .* was '1.0', and is '0.5'"
    ):
        compared(pipeline, changed)
    compared(pipeline, changed, overwrite=True)
    after = read_weights(pipeline.path("compared", "runs", "interaction", "seed-7", "model.safetensors"))
    assert any((after[key] != value).any() for key, value in before.items())
    log = pipeline.path("compared", "compare.log").read_text()
    assert log.count("Saved to") == 2  # the baseline is the same


def test_overwriting_removes_no_run_before_all_is_checked(made, pipeline):
    weights = pipeline.path("compared", "runs", "interaction", "seed-7", "model.safetensors")
    before, stray = weights.read_bytes(), pipeline.path("compared", "runs", "interaction", "seed-9")
    stray.mkdir()
    (stray / "notes.txt").write_text("mine")
    changed = recipe_of(made, "changed", alignment_weight=0.5)
    with pytest.raises(ValueError, match="holds files, but not the record of a training"):
        compare(changed, config_of(pipeline.path("compared"), seeds=3, overwrite=True), is_progress_shown=False)
    assert weights.read_bytes() == before


@pytest.mark.parametrize("name", ["data", "data/train.jsonl"])
def test_the_data_are_not_replaced_by_the_parts_of_their_split(made, tmp_path, name):
    """With `output` beside them, `data/train.jsonl` would be the part that is trained on."""
    (tmp_path / "data").mkdir()
    rows = tmp_path / "data" / "train.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in PAIRS[:16]))
    before = rows.read_bytes()
    recipe = recipe_of(made, "beside", dataset_name=str(tmp_path / name))
    with pytest.raises(ValueError, match=r"the data would be lost\. Choose another `output`"):
        compare(recipe, config_of(tmp_path), is_progress_shown=False)
    assert rows.read_bytes() == before


def test_changed_data_and_a_changed_model_are_refused(pipeline):
    """They have the same names; the recipe's own folder is the copy."""
    recipe = recipe_of(pipeline, "own", max_steps=1)
    compare(recipe, config_of(pipeline.path("own")), is_progress_shown=False)
    rows = pipeline.path("data", "train.jsonl").read_text().splitlines()
    pipeline.path("data", "train.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"baseline/seed-7 was trained with other .*`training rows` has changed"):
        compare(recipe, config_of(pipeline.path("own")), is_progress_shown=False)
    pipeline.path("data", "train.jsonl").write_text("\n".join(rows) + "\n")
    weights = pipeline.path("student", "model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="`model` has changed"):
        compare(recipe, config_of(pipeline.path("own")), is_progress_shown=False)


def test_other_rows_are_scored_anew_and_nothing_is_trained(made, pipeline):
    other = made.path("fewer")
    other.mkdir()
    for split, part in (("train", PAIRS[:64:2]), ("test", PAIRS[64:77]), ("few", PAIRS[64:68])):
        made.write_rows(f"fewer/{split}.jsonl", part)
    recipe = recipe_of(made, "fewer", dataset_name=str(other))
    config = config_of(pipeline.path("fewer"))
    assert compare(recipe, config, is_progress_shown=False).pairs == 13
    made.write_rows("fewer/test.jsonl", PAIRS[64:70])
    assert compare(recipe, config, is_progress_shown=False).pairs == 6
    assert set(starts(pipeline.path("fewer")).values()) == {1}


def test_a_kill_anywhere_changes_nothing(made, tmp_path, monkeypatch):
    """The comparison itself is killed between trainings, then one of its trainings is, in its first step."""
    config = config_of(tmp_path / "out", seeds=2)
    recipe = made.recipe

    def action():
        at_call(runs, "start", 3)
        compare(recipe, config, is_progress_shown=False)

    status, printed = forked(action)
    assert status == -9, printed
    assert starts(tmp_path / "out") == {"baseline/seed-7": 1, "interaction/seed-7": 1, "baseline/seed-8": 1}

    def start_and_kill(words, log, lock):
        monkeypatch.setattr(runs, "start", start_forked)
        status, printed = forked(lambda: (at_step(1, "seed-8"), main(list(words[words.index("-m") + 2 :]))))
        log.write_text(printed)
        return status

    monkeypatch.setattr(runs, "start", start_and_kill)
    with pytest.raises(RunError, match=r"baseline/seed-8 failed: it was ended by signal 9 \(All that"):
        compare(recipe, config, is_progress_shown=False)
    found = compare(recipe, config, is_progress_shown=False)
    assert without_costs(found) == without_costs(made.comparison)
    assert starts(tmp_path / "out") == {
        "baseline/seed-7": 1,
        "baseline/seed-8": 3,
        "interaction/seed-7": 1,
        "interaction/seed-8": 1,
    }
    one = compare(recipe, config_of(tmp_path / "out"), is_progress_shown=False).model("baseline").cost
    assert one.seconds is not None and found.model("baseline").cost.seconds == one.seconds  # of the whole one alone


def test_a_loss_that_is_not_finite_ends_it_and_keeps_the_others(made, tmp_path):
    broken = recipe_of(made, "broken", learning_rate=1e38, max_grad_norm=0.0, max_steps=6)
    config = config_of(tmp_path, recipes=[f"broken={broken}"])
    with pytest.raises(RunError, match=r"runs/broken/seed-7 failed: .*not finite .*the same command resumes"):
        compare(made.recipe, config, is_progress_shown=False)
    assert starts(tmp_path) == {"baseline/seed-7": 1, "broken/seed-7": 1, "interaction/seed-7": 1}
    finished = [json.loads(path.read_text()).get("finished") for path in sorted(tmp_path.glob("runs/*/*/run.json"))]
    assert finished == [True, None, True] and not (tmp_path / "index.html").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"alignment_weight": 0}, "no option of the reward loss, so `recipe` and `baseline` would be equal recipes"),
        ({"dataset_test_split": "validation"}, "has no split `validation`; it has test, train"),
        ({"dataset_train_split": "training"}, "has no split `training`; it has test, train"),
        ({"dataset_test_split": "train"}, "`dataset_test_split` and `dataset_train_split` are both `train`"),
        ({"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}, "chooses a ch"),
        ({"dataset_streaming": True}, "`dataset_streaming` is true in `interaction`"),
        ({"teacher_model": None}, "but no `teacher_model`"),
        ({"alignment_wieght": 1}, "Unknown key `alignment_wieght` in .*. Did you mean `alignment_weight`"),
    ],
)
def test_recipes_that_cannot_be_compared(made, tmp_path, changes, message):
    recipe = recipe_of(made, "refused", **{"save_strategy": "steps", **changes})
    with pytest.raises(ValueError, match=message):
        compare(recipe, config_of(tmp_path / "out"), is_progress_shown=False)
    assert not list((tmp_path / "out").glob("runs"))


def test_equal_and_wrongly_named_recipes(made, tmp_path):
    same = recipe_of(made, "same", output_dir="elsewhere", seed=3)
    for given, message in (
        ([f"same={same}"], "`interaction` and `same` are equal recipes"),
        ([f"baseline={same}"], "named 'baseline', but a name is one word"),
        ([f"a/b={same}"], "named 'a/b'"),
        (["same"], "`recipes` has 'same', but each must be NAME=FILE"),
        ([f"same={same}", f"same={same}"], "names `same` twice"),
        (["other=nowhere.yaml"], "nowhere.yaml"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(made.recipe, config_of(tmp_path, recipes=given), is_progress_shown=False)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"seeds": 0}, "`seeds` is 0, but must be a whole number of at least 1"),
        ({"diagnosis_pairs": -1}, "`diagnosis_pairs` is -1"),
        ({"held_out": 1.5}, "`held_out` is 1.5, but must lie between 0 and 1"),
        ({"overlap": "ignore"}, "`overlap` is 'ignore', but must be one of refuse, drop"),
        ({"benchmark": ["rm_bench", "rm_bench"]}, "`benchmark` names one twice"),
        ({"benchmark_data": ["a"]}, "0 benchmarks and 1 `benchmark_data`"),
        ({"teacher_config": "nowhere.yaml"}, "`teacher_config` is 'nowhere.yaml', but there is no such file"),
        ({"num_processes": 0}, "`num_processes` is 0"),
        ({"accelerate_config": "zero4"}, "`accelerate_config` is 'zero4', but must be a file or one of TRL's"),
    ],
)
def test_settings_of_the_wrong_kind(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**{"output": str(tmp_path), **changes})


def test_prompts_that_are_trained_on_are_not_scored(made, tmp_path):
    """One of three test pairs has a trained prompt, but for spaces."""
    made.path("overlap").mkdir()
    made.write_rows("overlap/train.jsonl", PAIRS[:16])
    made.write_rows("overlap/test.jsonl", [{**PAIRS[2], "prompt": f" {PAIRS[2]['prompt']} "}, *PAIRS[64:66]])
    recipe = recipe_of(made, "overlap", dataset_name=str(made.path("overlap")), max_steps=1)
    with pytest.raises(ValueError, match="1 of 3 pairs to score have a prompt that is trained on; the first is"):
        compare(recipe, config_of(tmp_path / "out"), is_progress_shown=False)
    found = compare(recipe, config_of(tmp_path / "out", overlap="drop"), is_progress_shown=False)
    assert (found.pairs, found.dropped) == (2, 1)


def test_a_prompt_is_the_same_in_every_format():
    """Text, messages, and a prompt that both sides begin with; without a prompt the whole pair counts."""
    text = {"prompt": "Why is  it so? ", "chosen": "a", "rejected": "b"}
    chat = {
        "prompt": [{"role": "user", "content": "Why is it so?"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    implicit = {side: chat["prompt"] + chat[side] for side in ("chosen", "rejected")}
    bare = [{"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "b"}]
    keys = prompt_keys([text, chat, implicit, *bare], "rows")
    assert keys[:3] == ["Why is it so?"] * 3 and len(set(keys[2:])) == 3


def test_what_is_held_out_or_given_needs_no_more(made, tmp_path):
    with pytest.raises(ValueError, match=r"`held_out` is 0.5, but .* has the split `test`, which is scored"):
        compare(made.recipe, config_of(tmp_path, held_out=0.5), is_progress_shown=False)
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text("num_train_epochs: 1\n")
    with pytest.raises(ValueError, match=r"a teacher that is fitted already. Leave `teacher_config` out"):
        compare(made.recipe, config_of(tmp_path, teacher_config=str(teacher)), is_progress_shown=False)
    one = made.write_rows("one.jsonl", [{**row, "prompt": "Always the same."} for row in PAIRS[:8]])
    recipe = recipe_of(made, "one", dataset_name=one)
    with pytest.raises(ValueError, match="has only one prompt, so none can be held out"):
        compare(recipe, config_of(tmp_path), is_progress_shown=False)


def test_two_comparisons_do_not_share_a_folder(pipeline):
    with pipeline.path("compared", ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another comparison, or a training that it started, is running"):
            compared(pipeline)
    stray = pipeline.path("compared", "runs", "baseline", "seed-9")
    stray.mkdir()
    (stray / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds files, but not the record of a training"):
        compare(pipeline.recipe, config_of(pipeline.path("compared"), seeds=3), is_progress_shown=False)


def test_a_training_is_a_process_that_holds_the_lock(tmp_path, monkeypatch):
    monkeypatch.undo()
    with (tmp_path / "lock").open("w") as file:
        code = f"import os; os.fstat({file.fileno()}); print('said'); raise SystemExit(3)"
        assert runs.start([sys.executable, "-c", code], tmp_path / "log", file.fileno()) == 3
    assert (tmp_path / "log").read_text() == "said\n"


def test_a_comparison_is_started_once(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="was started in 2 processes, but it starts those of each training itself"):
        compare({}, CompareConfig(output=str(tmp_path)))
