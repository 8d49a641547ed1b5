"""What is saved and pushed answers with the reward itself, and says under which license and how good it is."""

from __future__ import annotations

import json
import math

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from support.hub import card_of, save_adapter, save_full
from support.models import build_student
from support.tokenizers import tokenizer_of
from support.training_runs import config
from transformers import AutoConfig, pipeline

from hf_interdistill import InteractionDistillationTrainer, RewardScorer
from hf_interdistill.cli import main
from hf_interdistill.hub.files import stage_model
from hf_interdistill.scoring.raw_reward import answer_with_raw_reward

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWERS = ["It is Paris.", "Lyon, I think, or was it Nice? Ask somebody else.", "No."]


def write(files, folder):
    for file in files:
        target = folder / file.path_in_repo
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.source if isinstance(file.source, bytes) else file.source.read_bytes())
    return folder


def assert_served_raw(folder):
    """The pipeline as users call it, with no word about activations, gives the rewards of the scorer."""
    served = pipeline("text-classification", model=str(folder), device="cpu")
    scorer = RewardScorer.from_pretrained(str(folder))
    for answer, reward in zip(ANSWERS, scorer([QUESTION] * 3, ANSWERS), strict=True):
        messages = [*QUESTION, {"role": "assistant", "content": answer}]
        text = served.tokenizer.apply_chat_template(messages, tokenize=False)
        found = served(text, add_special_tokens=False)[0]
        assert found == {"label": "reward", "score": pytest.approx(reward, abs=1e-5)}
        assert abs(reward - 1 / (1 + math.exp(-reward))) > 1e-3  # so that a sigmoid would be seen


def test_a_trained_model_is_served_raw(tmp_path, dataset):
    args = config(tmp_path, max_steps=1, alignment_weight=0)
    trainer = InteractionDistillationTrainer(
        build_student(), args, train_dataset=dataset, processing_class=tokenizer_of("bytes")
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoConfig.from_pretrained(tmp_path / "saved")
    assert saved.problem_type == "regression" and saved.id2label == {0: "reward"} and saved.num_labels == 1
    assert saved.sentence_transformers == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert_served_raw(tmp_path / "saved")


def test_a_model_that_was_saved_before_is_pushed_so(tmp_path):
    folder = save_full(tmp_path / "rm")
    assert AutoConfig.from_pretrained(folder).problem_type is None
    pushed = write(stage_model(folder, "user/rm"), tmp_path / "pushed")
    assert_served_raw(pushed)
    assert json.loads((pushed / "config.json").read_text())["label2id"] == {"reward": 0}


def test_a_label_with_a_name_keeps_it(tmp_path):
    folder = save_full(tmp_path / "rm")
    content = json.loads((folder / "config.json").read_text())
    content |= {"id2label": {"0": "helpfulness"}, "label2id": {"helpfulness": 0}}
    content["sentence_transformers"] = {"version": "5.0"}
    (folder / "config.json").write_text(json.dumps(content))
    pushed = write(stage_model(folder, "user/rm"), tmp_path / "pushed")
    found = AutoConfig.from_pretrained(pushed)
    assert found.id2label == {0: "helpfulness"} and found.problem_type == "regression"
    assert found.sentence_transformers == {"version": "5.0", "activation_fn": "torch.nn.modules.linear.Identity"}
    answer_with_raw_reward(found)
    assert found.id2label == {0: "helpfulness"}


def test_a_merged_adapter_is_served_raw(hub, tmp_path):
    folder = save_adapter(tmp_path / "rm", tmp_path / "base")
    assert main(["push", "--model", str(folder), "--repo_id", "user/merged", "--merge", "true"]) == 0
    for path, content in hub.files("user/merged").items():
        (tmp_path / "pulled" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pulled" / path).write_bytes(content)
    assert_served_raw(tmp_path / "pulled")


def push_base(hub, **metadata):
    HfApi().create_repo("user/base")
    text = f"---\n{yaml.safe_dump(metadata)}---\n\n# A base model\n"
    HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="user/base")


def pushed_card(hub, folder, *arguments) -> ModelCard:
    assert main(["push", "--model", str(folder), "--repo_id", "user/rm", *arguments]) == 0
    return ModelCard(hub.files("user/rm")["README.md"].decode())


def test_the_license_is_that_of_the_base_model(hub, tmp_path):
    push_base(hub, license="other", license_name="a-license", license_link="https://example.org")
    folder = save_full(tmp_path / "rm")
    data = pushed_card(hub, folder, "--base_model", "user/base", "--language", "en", "de").data
    assert (data.license, data.license_name, data.license_link) == ("other", "a-license", "https://example.org")
    assert data.language == ["en", "de"] and data.base_model == "user/base"
    assert pushed_card(hub, folder, "--base_model", "user/base", "--license", "mit").data.license == "mit"
    card = ModelCard.load(folder / "README.md")
    card.data.license = "apache-2.0"
    card.save(folder / "README.md")
    assert pushed_card(hub, folder, "--base_model", "user/base").data.license == "apache-2.0"


def test_an_unknown_license_is_a_warning(hub, tmp_path, caplog):
    assert pushed_card(hub, save_full(tmp_path / "rm"), "--base_model", "user/not-there").data.license is None
    assert "The license of the base model user/not-there was not found" in caplog.text


def results(path, *models, low=0.001):
    entry = {"benchmark": "reward_bench", "total": 0.71234567, "rows": 2985, "ties": 3, "cut_texts": 0}
    entry |= {"subsets": {}, "sections": {"Chat": 0.9, "Safety": 0.5}, "missing": []}
    entry |= {"intervals": {"total": {"value": 0.71234567, "low": 0.6951, "high": 0.7289, "items": 2985}}}
    entry |= {"baselines": {"chance": {"total": {"score": 0.5}}, "longest": {"total": {"score": 0.7006}}}}
    entry |= {"minus_best_baseline": {"total": {"baseline": "longest", "value": 0.01174, "low": low, "high": 0.03}}}
    path.write_text(json.dumps([{**entry, "model": model} for model in models]))
    return str(path)


def test_benchmarks_are_on_the_card_and_in_the_format_of_the_hub(hub, tmp_path):
    from huggingface_hub import parse_eval_result_entries  # not in the oldest versions

    folder = save_full(tmp_path / "rm")
    file = results(tmp_path / "results.json", str(folder), "another/model")
    for _ in range(2):  # the second push replaces the section
        card = pushed_card(hub, folder, "--eval_results", file)
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.files("user/rm")[".eval_results/reward_bench.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("allenai/reward-bench", "default", 0.712346)
    assert entry.notes.startswith("2985 rows, 3 ties") and len(entry.date) == 10
    assert card.text.count("## Benchmarks") == 1
    assert "| [reward_bench](https://huggingface.co/datasets/allenai/reward-bench) | 0.7123 |" in card.text
    assert "| reward_bench | Chat | 0.9000 |" in card.text


HEADLINE = (
    "**Score 0.712** (95 % interval 0.695 to 0.729, 2,985 rows) on "
    "[reward_bench](https://huggingface.co/datasets/allenai/reward-bench); chance is 0.500, the best baseline "
    "(longest) has 0.701"
)


def test_the_main_figure_of_eval_is_on_top_where_the_trainer_gave_none(hub, tmp_path):
    folder = save_full(tmp_path / "rm")
    file = results(tmp_path / "results.json", str(folder))
    for _ in range(2):
        text = pushed_card(hub, folder, "--eval_results", file).text
        assert text.count(HEADLINE + ".") == 1
        assert text.index("# rm") < text.index(HEADLINE) < text.index("## How to load it")
    text = pushed_card(hub, folder, "--eval_results", results(tmp_path / "results.json", str(folder), low=-0.01)).text
    assert HEADLINE + ", and these rows do not show that the model is better than that." in text
    (folder / "README.md").unlink()
    text = pushed_card(hub, folder, "--eval_results", file).text
    assert text.index(HEADLINE) < text.index("## How to load it")
    own = card_of("rm", metrics={"eval_accuracy": 0.8}, evaluation_pairs=100)
    own.save(folder / "README.md")
    text = pushed_card(hub, folder, "--eval_results", file).text
    assert "**Accuracy 0.800**" in text and HEADLINE not in text and "## Benchmarks" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "holds no results"), ("[]", "has results of no model"), ('[{"a": 1}]', "holds no results")],
)
def test_other_results_are_refused(hub, tmp_path, content, message, capsys):
    folder = save_full(tmp_path / "rm")
    (tmp_path / "results.json").write_text(content)
    arguments = ["push", "--model", str(folder), "--repo_id", "user/rm", "--eval_results"]
    assert main([*arguments, str(tmp_path / "results.json")]) == 2
    assert message in capsys.readouterr().err
    assert main([*arguments, results(tmp_path / "other.json", "another/model")]) == 2
    assert "has results of another/model, but needs those of" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "nothing.json")]) == 2
    assert hub.repositories == {}


def test_a_dry_run_writes_the_card_alone(hub, tmp_path, capsys):
    folder = save_full(tmp_path / "rm")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["push", "--model", str(folder), "--repo_id", "user/rm", "--license", "mit", "--dry_run", "true"]) == 0
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    card = after.pop(folder / "README.hub.md").decode()
    assert after == before and hub.repositories == {}
    assert "license: mit" in card and 'from_pretrained("user/rm"' in card
    assert "README.hub.md" in capsys.readouterr().out
    assert "README.hub.md" not in {file.path_in_repo for file in stage_model(folder, "user/rm")}


@pytest.mark.parametrize(
    ("metrics", "pairs", "expected"),
    [
        (
            {"eval_accuracy": 0.75},
            1000,
            "**Accuracy 0.750** (95 % interval 0.722 to 0.777, 1,000 pairs) of preferring the better answer; "
            "chance is 0.5.",
        ),
        (
            {"eval_accuracy": 0.6, "eval_interaction/teacher_accuracy": 0.8},
            20,
            "**Accuracy 0.600** (95 % interval 0.361 to 0.809, 20 pairs) of preferring the better answer; chance is "
            "0.5, its teacher has 0.800, these pairs do not show that the model is better than that.",
        ),
        ({"eval_accuracy": 0.6}, None, "**Accuracy 0.600** of preferring the better answer; chance is 0.5."),
        ({"eval_loss": 0.6}, 20, None),
    ],
)
def test_the_main_metric_is_on_top_with_interval_and_baseline(metrics, pairs, expected):
    """The intervals are those of scipy's `binomtest(...).proportion_ci(method="exact")`."""
    text = card_of("rm", metrics=metrics, evaluation_pairs=pairs).text
    if expected is None:
        assert "**Accuracy" not in text
    else:
        assert expected in text
        assert text.index(expected) < text.index("## How to load it")
    assert text.count("<details>") == text.count("</details>") == 3
    assert text.index("<summary>Settings</summary>") < text.index("`seed`") < text.index("</details>")
