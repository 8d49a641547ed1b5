"""`diagnose` on real model classes: what is measured is what the model does; reports; resuming."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from support.datasets import read_rows
from support.models import build_encoder, build_student
from support.pages import check_page
from support.tokenizers import tokenizer_of
from transformers import AutoModelForSequenceClassification

from hf_interdistill import RewardScorer, diagnose
from hf_interdistill.cli import main
from hf_interdistill.diagnostics import diagnosis as diagnosis_module
from hf_interdistill.diagnostics.collect.contents import read_pair, with_cue
from hf_interdistill.diagnostics.collect.loading import as_scorer, scorer_beside
from hf_interdistill.diagnostics.collect.measurer import PairMeasurer
from hf_interdistill.diagnostics.collect.scored_attention import scored_attention, stage_masses
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.report.page import write_report
from hf_interdistill.interaction.attention.recorder import AttentionRecorder, RecordedAttention

FAST = DiagnosisConfig(resamples=50, batch_size=4)
CUE = " I hope this helps!"


def preferences(count: int) -> list[dict]:
    return [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in read_rows()[:count]]


def scorer_of(family="llama", padding_side="right", **options) -> RewardScorer:
    tokenizer = tokenizer_of("bytes")
    tokenizer.padding_side = padding_side
    return RewardScorer(build_student(family, **options), tokenizer, batch_size=4)


def test_contents_are_found_and_templates_kept():
    scorer = scorer_of()
    example = preferences(1)[0]
    pair = read_pair(scorer.formatter, example, CUE)
    decode = scorer.tokenizer.decode
    for row, side in zip(pair.rows, ("chosen", "rejected"), strict=True):
        assert decode([row.ids[i] for i in row.response]).strip() == example[side][0]["content"].strip()
        prompts = "".join(message["content"] for message in example["prompt"])
        assert decode([row.ids[i] for i in row.prompt]).replace(" ", "") == prompts.replace(" ", "")
        template = decode(row.without(row.content)[0])
        assert "<|user|>" in template and template.endswith("<|assistant|>\n<|end|>\n")
        assert decode(pair.cued[("chosen", "rejected").index(side)]).endswith(f"{CUE}<|end|>\n")
        ids, positions = row.without_first(0.5)
        assert [row.ids[i] for i in positions] == ids and len(ids) == len(row.ids) - round(0.5 * len(row.content))
        assert set(row.content[: round(0.5 * len(row.content))]).isdisjoint(positions)
        positions = row.without_response_start(0.8)[1]
        assert set(row.prompt) <= set(positions) and set(row.response[: len(row.response) // 2]).isdisjoint(positions)
        assert row.without_last(0.2)[1][-1] == len(row.ids) - 1


def test_a_report_names_no_owner_of_a_folder(tmp_path, monkeypatch):
    home = tmp_path / "alice"
    model = home / "rm"
    build_student().save_pretrained(model)
    tokenizer_of("bytes").save_pretrained(model)
    monkeypatch.setattr("pathlib.Path.home", lambda: home)
    (home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preferences(2)))
    found = diagnose(model, home / "pairs.jsonl", FAST, split="train")
    assert (found.model, found.data) == ("rm", "pairs.jsonl")
    (home / "drawn.jsonl").write_text(json.dumps({"prompt": "a", "completions": ["b", "c"], "scores": [0, 1]}))
    extra = {"noise_models": {0.2: home / "flipped"}, "candidates": home / "drawn.jsonl"}
    shutil.copytree(model, home / "flipped")
    found = diagnose(model, home / "pairs.jsonl", FAST, is_progress_shown=False, **extra)
    assert (found.label_noise.models, found.best_of_n.gold_name) == (("flipped",), "drawn.jsonl")


def test_text_preferences_with_an_implicit_prompt():
    scorer = scorer_of()
    shared = "Human: How are you?\n\nAssistant: "
    pair = read_pair(scorer.formatter, {"chosen": f"{shared}Well, thanks.", "rejected": f"{shared}No idea."}, CUE)
    decode = scorer.tokenizer.decode
    assert decode([pair.rows[0].ids[i] for i in pair.rows[0].response]).strip() == "Well, thanks."
    assert decode(pair.cued[1]) == f"{shared}No idea.{CUE}</s>"
    assert decode(pair.rows[0].without(pair.rows[0].content)[0]).strip() == "</s>"


def test_cue_goes_to_the_last_text():
    parts = [{"type": "text", "text": "One. "}, {"type": "image"}]
    (message,) = with_cue([{"role": "assistant", "content": parts}], CUE)
    assert message["content"] == [{"type": "text", "text": f"One.{CUE}"}, {"type": "image"}]
    assert with_cue("Yes.\n", CUE) == f"Yes.{CUE}"
    with pytest.raises(ValueError, match="without text"):
        with_cue([{"role": "assistant", "content": None}], CUE)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_removing_tokens_equals_masking_them(family, padding_side):
    """Leaving tokens out and keeping positions gives the reward of the whole row with those tokens masked."""
    scorer = scorer_of(family, padding_side, **({"sliding_window": 512} if family == "mistral" else {}))
    rows = [read_pair(scorer.formatter, example, CUE).rows[0] for example in preferences(3)]
    taken = [row.without_first(0.6) for row in rows]
    found = scorer.score_ids([ids for ids, _ in taken], positions=[positions for _, positions in taken])
    for row, (_, positions), reward in zip(rows, taken, found, strict=True):
        mask = torch.zeros(1, len(row.ids), dtype=torch.long)
        mask[0, positions] = 1
        with torch.no_grad():
            output = scorer.model(
                input_ids=torch.tensor([row.ids]),
                attention_mask=mask,
                position_ids=torch.arange(len(row.ids))[None],
                use_cache=False,
            )
        assert reward == pytest.approx(float(output.logits), abs=2e-4)
        assert reward != pytest.approx(scorer.score_ids([row.ids])[0], abs=1e-2)


@pytest.mark.parametrize("padding_side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_attention_of_the_scored_token_is_the_models_own(family, padding_side):
    """Against `output_attentions=True` of the eager model, for texts of different lengths in one batch."""
    config = DiagnosisConfig(attention_layers=(0, -1), batch_size=4)
    scorer = scorer_of(family, padding_side, attention="eager" if family == "gemma2" else "sdpa")
    records = PairMeasurer(scorer, config)(list(enumerate(preferences(2))))
    eager = build_student(family, attention="eager")
    for record, example in zip(records, preferences(2), strict=True):
        pair = read_pair(scorer.formatter, example, config.cue)
        for row, masses, reward in zip(pair.rows, record["attention"], record["rewards"]["full"], strict=True):
            with torch.no_grad():
                output = eager(torch.tensor([row.ids]), output_attentions=True, use_cache=False)
            assert reward == pytest.approx(float(output.logits), abs=2e-4)
            weights = torch.stack([output.attentions[layer][0, :, -1].mean(0) for layer in (0, -1)]).mean(0)
            rest = weights[1:] / weights[1:].sum()
            expected = [float(weights[0]), *(float(part.sum()) for part in torch.tensor_split(rest, 5))]
            assert masses == pytest.approx(expected, abs=1e-4)


def test_rewards_of_a_record_are_the_scorers():
    scorer = scorer_of()
    example = preferences(1)[0]
    (record,) = PairMeasurer(scorer, FAST)([(7, example)])
    assert record["id"] == 7 and set(record["rewards"]) == {
        "full", "prompt", "response start", "cue",
        *(f"{side} {f}" for side in ("first", "last") for f in (0.2, 0.4, 0.6, 0.8)),
    }  # fmt: skip
    plain = scorer([example["prompt"]] * 2, [example["chosen"], example["rejected"]])
    assert record["rewards"]["full"] == pytest.approx(plain, abs=1e-4)
    cued = scorer([example["prompt"]] * 2, [with_cue(example[side], FAST.cue) for side in ("chosen", "rejected")])
    assert record["rewards"]["cue"] == pytest.approx(cued, abs=1e-4)


def test_long_texts_need_no_square_of_their_length():
    """At 4,096 tokens nothing larger than a few rows is made."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.size = max(self.size, result.numel())
            return result

    length, generator = 4096, torch.Generator().manual_seed(0)
    query = torch.randn(2, 8, length, 16, generator=generator)
    key = torch.randn(2, 2, length, 16, generator=generator)
    mask = torch.ones(2, length, dtype=torch.bool)
    with Largest() as largest:
        weights = scored_attention(RecordedAttention(query, key, 0.25), mask, torch.tensor([length - 1, length - 1]))
    assert largest.size <= key.numel() < length * length
    whole = (query[0, 3, -1] @ key[0, 0].T * 0.25).softmax(-1)
    first_group = torch.stack([(query[0, head, -1] @ key[0, head // 4].T * 0.25).softmax(-1) for head in range(8)])
    assert torch.allclose(weights[0], first_group.mean(0), atol=1e-6) and torch.allclose(whole, first_group[3])
    assert stage_masses(torch.ones(1, 4) / 4, torch.ones(1, 4, dtype=torch.bool), 5) == [None]


def encoder_scorer(family) -> RewardScorer:
    encoder, tokenizer = build_encoder(family)
    config = type(encoder.config)(**{**encoder.config.to_dict(), "num_labels": 1})
    return RewardScorer(AutoModelForSequenceClassification.from_config(config), tokenizer, batch_size=4)


def text_preferences(count: int) -> list[dict]:
    return [
        {
            "prompt": row["prompt"][-1]["content"] + " ",
            **{side: row[side][0]["content"] for side in ("chosen", "rejected")},
        }
        for row in preferences(count)
    ]


@pytest.mark.parametrize(("family", "sees"), [("bert", True), ("deberta-v2", False)])
def test_encoders_as_reward_models(family, sees):
    scorer = encoder_scorer(family)
    scorer.tokenizer.eos_token = scorer.tokenizer.sep_token
    found = diagnose(scorer, text_preferences(6), FAST, is_progress_shown=False)
    assert found.pairs == 6
    assert (found.attention is not None) == sees
    if not sees:
        assert "AttentionInterface" in found.attention_problem


def test_scored_token_of_an_encoder_is_its_first():
    scorer = encoder_scorer("bert")
    scorer.tokenizer.eos_token = scorer.tokenizer.sep_token
    measurer = PairMeasurer(scorer, FAST)
    (record,) = measurer([(0, text_preferences(1)[0])])
    row = read_pair(scorer.formatter, text_preferences(1)[0], FAST.cue).rows[0]
    layers = scorer.model.config.num_hidden_layers
    with AttentionRecorder(scorer.model, [layers - 1]) as recorder:
        scorer.score_ids([row.ids])
    attention = recorder.records[0]
    weights = (attention.query[0] @ attention.key[0].transpose(-1, -2) * attention.scaling).softmax(-1).mean(0)[0]
    assert record["attention"][0][0] == pytest.approx(float(weights[0]), abs=1e-5)


def test_uninformative_pairs_are_dropped_and_counted():
    rows = preferences(4)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["chosen"] = [{"role": "assistant", "content": " ".join(["word"] * 600)}]
    found = diagnose(scorer_of(), rows, FAST, is_progress_shown=False)
    assert found.pairs == 2 and found.left_out == {"equal responses": 1, "longer than 512 tokens": 1}
    with pytest.raises(ValueError, match="no pair to look at: 1 rows"):
        diagnose(scorer_of(), rows[1:2], FAST, is_progress_shown=False)
    with pytest.raises(ValueError, match="Row 0: Column `chosen`"):
        diagnose(scorer_of(), [{"chosen": 3, "rejected": "a"}], FAST, is_progress_shown=False)


def test_broken_model_is_named():
    scorer = scorer_of()
    with torch.no_grad():
        scorer.model.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="Row 0 has a reward that is not finite"):
        diagnose(scorer, preferences(2), FAST, is_progress_shown=False)


def test_a_model_that_is_named_is_read_on_a_gpu_if_there_is_one(tmp_path, monkeypatch):
    scorer = scorer_of()
    for part in (scorer.model, scorer.tokenizer):
        part.save_pretrained(tmp_path / "model")
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(RewardScorer, "to", lambda self, device: moved.append(device) or self)
    as_scorer(str(tmp_path / "model"), None, 4)
    assert moved == ["cuda"]
    assert as_scorer(scorer, None, 4) is scorer and moved == ["cuda"]
    scorer_beside(str(tmp_path / "model"), scorer)
    assert moved == ["cuda", torch.device("cpu")]


def test_killed_run_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis_module, "_BATCHES_PER_WRITE", 1)
    rows, calls = preferences(10), []
    straight = diagnose(scorer_of(), rows, FAST, name="rm", is_progress_shown=False)
    original = PairMeasurer.__call__

    def killed(self, chunk):
        calls.append(len(chunk))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, chunk)

    monkeypatch.setattr(PairMeasurer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        diagnose(scorer_of(), rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)
    path = tmp_path / "rm.pairs.jsonl"
    path.write_bytes(path.read_bytes() + b'{"id": 4, "rew')  # cut off in the middle of a line
    resumed = diagnose(scorer_of(), rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)
    assert calls == [4, 4, 4, 2]
    assert resumed.to_dict() == straight.to_dict()
    with pytest.raises(ValueError, match="other settings \\(cue differ\\)"):
        diagnose(scorer_of(), rows, DiagnosisConfig(resamples=50, batch_size=4, cue=CUE), name="rm",
                 records_dir=str(tmp_path), is_progress_shown=False)  # fmt: skip
    with pytest.raises(ValueError, match="weights differ"):
        diagnose(scorer_of(seed=3), rows, FAST, name="rm", records_dir=str(tmp_path), is_progress_shown=False)


def test_report_shows_models_side_by_side_and_needs_nothing_else(tmp_path, diagnoses):
    from dataclasses import replace

    evil = replace(diagnoses["length"], model="<script>alert(1)</script>", examples=[
        {"prompt": "</blockquote><img src=x>", "chosen": "a & b", "rejected": "<b>c</b>", "margin": -1.0}
    ])  # fmt: skip
    page = write_report([diagnoses["perfect"], evil], str(tmp_path))
    read = check_page(page.read_text(encoding="utf-8"), None)
    assert not read.scripts and "<img src=x>" not in read.source
    assert "<script>alert(1)</script>" in read.text and "</blockquote><img src=x>" in read.text
    for name in ("accuracy", "masking", "cue", "length", "calibration"):
        assert "<svg" in read.source.split(f'<section id="{name}">')[1].split("</section>")[0]
    assert {path.name for path in tmp_path.iterdir()} == {"diagnosis.json", "index.html"}
    assert "It prefers longer responses" in read.text and "How to read it" in read.text
    written = json.loads((tmp_path / "diagnosis.json").read_text())
    assert [each["model"] for each in written] == ["perfect", "<script>alert(1)</script>"]
    assert written[1]["findings"]["length"]["verdict"] == "flag"
    assert written[0]["masking"]["first"][3]["value"] == diagnoses["perfect"].masking.first[3].value
    with pytest.raises(ValueError, match="different names"):
        write_report([evil, evil], str(tmp_path))


def test_report_of_attention_and_of_a_model_without_an_opinion(tmp_path, diagnoses):
    seen = diagnose(scorer_of(), preferences(6), FAST, name="seen", is_progress_shown=False)
    write_report([seen, diagnoses["constant"]], str(tmp_path))
    read = check_page((tmp_path / "index.html").read_text(encoding="utf-8"), None)
    assert "<svg" in read.source.split('<section id="attention">')[1].split("</section>")[0]
    assert "not run" in read.text and "n/a" in read.text and "nan" not in read.text


def test_command_line(tmp_path, capsys):
    for name, seed in (("one", 0), ("two", 1)):
        build_student("llama", seed=seed).save_pretrained(tmp_path / name)
        tokenizer_of("bytes").save_pretrained(tmp_path / name)
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in preferences(6)))
    models = [str(tmp_path / "one"), str(tmp_path / "two")]
    arguments = ["--data", str(data), "--output", str(tmp_path / "report"), "--limit", "4", "--resamples", "20"]
    assert main(["diagnose", "--model", *models, *arguments]) == 0
    written = json.loads((tmp_path / "report" / "diagnosis.json").read_text())
    assert [each["pairs"] for each in written] == [4, 4] and written[0]["data"].endswith("pairs.jsonl")
    page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
    folder = tmp_path.name
    names = f"--model {folder}/one {folder}/two --data {folder}/pairs.jsonl --output {folder}/report"
    check_page(page, f"interdistill diagnose {names} --limit 4 --resamples 20")
    assert str(tmp_path.parent) not in page
    assert written[0]["accuracy"] != written[1]["accuracy"] or written[0]["calibration"] != written[1]["calibration"]
    assert "early_context" in written[0] and "swapped_prompt" in written[0] and "turn_removal" in written[0]
    assert "masking" in capsys.readouterr().out
    for given, made in ((["none"], set()), (["turn_removal"], {"turn_removal"})):
        assert main(["diagnose", "--model", models[0], *arguments, "--context_measures", *given]) == 0
        (written,) = json.loads((tmp_path / "report" / "diagnosis.json").read_text())
        assert {*written} & {"swapped_prompt", "early_context", "turn_removal"} == made
    assert main(["diagnose", "--model", models[0], *arguments, "--context_measures", "turns"]) == 2
    assert "`context_measures` names 'turns', but known are" in capsys.readouterr().err
    assert main(["diagnose", "--model", models[0], models[0], *arguments]) == 2
    assert "names one twice" in capsys.readouterr().err
