"""The study of attention hacking: its small form runs, resumes and reports; each arm trains."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from support.study import CONFIG, SETS, accuracy, made_up_outcome, tiny_config
from transformers import LlamaForCausalLM

EQUAL_AT_FIRST = ("bradley_terry", "bradley_terry_longer", "uniform")  # `uniform` is in the run above
NOT_FOR_MINILM = ("interaction_before_rope",)


def write(config: dict, folder) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("is_trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_small_study_resumes_and_reports(modules, encoder, tmp_path, monkeypatch, is_trained):
    config = tiny_config(tmp_path, encoder)
    picture = "differences.hh_harmless.minilm.clean"
    config["report"]["pictures"] = [picture, "masking.hh_harmless.minilm.cue"]  # there are no runs with a cue
    config["report"]["rows"] = [
        {"test_set": ["mean of five"]},
        {"arm": ["bradley_terry", "uniform"], "test_set": ["bbq"]},
    ]
    path = write(config, tmp_path)
    study, done = modules.study, []
    carry_out = modules.running.Bench.carry_out

    def stopping(self, run, arm, settings):
        done.append(run.id)
        if len(done) == 4:
            raise KeyboardInterrupt
        return carry_out(self, run, arm, settings) if is_trained else made_up_outcome(self, run)

    monkeypatch.setattr(modules.running.Bench, "carry_out", stopping)
    with pytest.raises(KeyboardInterrupt):
        study.main(["--config", path])
    kept = modules.records.read_runs(tmp_path / "results")
    assert [record["id"] for record in kept] == done[:3]
    assert study.main(["--config", path, "--minutes", "-1"]) == kept and len(done) == 4  # no time, nothing begun
    results = study.main(["--config", path])
    again = [name for name in done if done.count(name) > 1]
    assert set(again) == {done[3]} and len(set(done)) == 2 + 9

    # Seeds outermost; ensembles as soon as their members are there.
    main = [record for record in results if not record["candidate"] and not record["arm"].startswith("ensemble")]
    assert [(record["seed"], record["arm"]) for record in main] == [
        (seed, arm) for seed in (0, 1, 2) for arm in ("bradley_terry", "interaction_joint", "uniform")
    ]
    ensembles = [record for record in results if record["arm"].startswith("ensemble")]
    assert len(ensembles) == 6 and {len(record["settings"]["members"]) for record in ensembles} == {3}
    tried = [record for record in results if record["candidate"]]
    assert all(record["tests"] == {} and record["validation"]["pairs"] >= 6 for record in tried)
    best = min(tried, key=lambda record: record["validation"]["scaled_nll"])
    for record in main:
        assert record["settings"]["arguments"]["learning_rate"] == best["settings"]["arguments"]["learning_rate"]
        assert set(record["tests"]) == set(SETS) and set(record["cued"]) == {"hh_harmless"}
        assert record["training"]["steps"] == 2 and record["seconds"]["training"] > 0 and record["hardware"]
    joint, uniform = (next(r for r in main if r["arm"] == arm) for arm in ("interaction_joint", "uniform"))
    assert joint["teacher"]["checksum"] == uniform["teacher"]["checksum"] != 0
    if is_trained:
        logs = {record["arm"]: record["training"]["last_log"].get("interaction/loss") for record in main}
        assert logs["bradley_terry"] is None and logs["interaction_joint"] != logs["uniform"] is not None
    assert_tables_show(main, tmp_path / "results")
    assert (tmp_path / "results" / f"{picture}.png").stat().st_size > 1000
    assert len(list((tmp_path / "results").iterdir())) == 4  # and no other picture
    assert study.main(["--config", path]) == results and len(done) == 2 + 9 + 1  # nothing is done twice

    config["max_length"] = 90
    with pytest.raises(ValueError, match="made with other settings"):
        study.main(["--config", write(config, tmp_path)])


def assert_tables_show(main: list[dict], folder) -> None:
    """`results.json` has the means of the runs, for the tests of the short tables and those asked for."""
    table = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    cell = next(row for row in table if (row["arm"], row["test_set"]) == ("uniform", "bbq"))
    means = [accuracy(record["tests"]["bbq"]) for record in main if record["arm"] == "uniform"]
    assert cell["mean"] == round(np.mean(means), 4) and cell["seeds"] == 3 and cell["metric"] == "accuracy"
    assert cell["ci95"][0] <= cell["mean"] <= cell["ci95"][1]
    assert cell["delta_ci95"][0] <= cell["delta_vs_bradley_terry"] <= cell["delta_ci95"][1]
    plain = next(row for row in table if (row["arm"], row["test_set"]) == ("bradley_terry", "bbq"))
    assert cell["delta_vs_bradley_terry"] == pytest.approx(cell["mean"] - plain["mean"], abs=2e-4)
    assert (plain["delta_vs_bradley_terry"], plain["delta_ci95"]) == (0, [0, 0])
    cell = next(row for row in table if (row["arm"], row["test_set"]) == ("uniform", "mean of five"))
    means = [accuracy(record["tests"][name]) for record in main if record["arm"] == "uniform" for name in SETS]
    assert cell["mean"] == round(np.mean(means), 4)
    assert {row["test_set"] for row in table if row["arm"] == "interaction_joint"} == {"mean of five"}
    assert {row["test_set"] for row in table if row["arm"] == "uniform"} == {"mean of five", "bbq"}
    assert {"runs.json.xz", "table.md"} < {file.name for file in folder.iterdir()}


def test_several_processes_share_the_runs(modules, encoder, tmp_path, monkeypatch):
    """A run that another process holds is left to it, and the results that it writes are kept."""
    config = tiny_config(tmp_path, encoder)
    config["selection"], config["report"]["pictures"] = [], []
    path, study, done = write(config, tmp_path), modules.study, []
    results, records = tmp_path / "results", modules.records
    theirs = modules.running.Run("hh_harmless", "minilm", "clean", "uniform", 0)

    def noting(self, run, arm, settings):
        outcome = made_up_outcome(self, run)
        done.append(run)
        if len(done) == 4:  # the other process comes to the end of its run
            settings = self.settings(theirs, modules.arms.Arm(**config["arms"]["uniform"]))
            mark = modules.running.checksum(settings)
            kept = records.read_runs(results)
            record = {**kept[0], "id": theirs.id, "arm": "uniform", "checksum": mark, "settings": settings}
            records.write_runs(results, [*kept, record])
        return outcome

    monkeypatch.setattr(modules.running.Bench, "carry_out", noting)
    lock = tmp_path / "runs" / "locks" / f"{theirs.id}.lock"
    with modules.claims.claim(lock, is_waiting=False) as is_ours:
        assert is_ours
        first = study.main(["--config", path])
    assert theirs not in done and len(done) == 8 and len({record["id"] for record in first}) == 9 + 6
    assert study.main(["--config", path]) == first and len(done) == 8
    assert records.read_runs(results) == first

    (results / records.PACKED).unlink()
    done.clear()
    study.main(["--config", path])  # the lock was let go
    assert theirs in done


@pytest.mark.parametrize("arm", [name for name in CONFIG["arms"] if name not in EQUAL_AT_FIRST + NOT_FOR_MINILM])
def test_each_arm_trains_with_its_own_loss(modules, encoder, arm, arm_losses):
    losses = arm_losses(modules, encoder, arm)
    assert np.isfinite(losses).all() and losses[0] != arm_losses(modules, encoder, "bradley_terry")[0]


def test_a_map_from_before_rope_is_another_than_the_one_after_it(modules, encoder, arm_losses):
    arms = ("bradley_terry", "interaction_joint", *NOT_FOR_MINILM)
    assert len({arm_losses(modules, encoder, arm, "small")[0] for arm in arms}) == 3


@pytest.fixture(scope="module")
def arm_losses(tmp_path_factory):
    folder, kept = tmp_path_factory.mktemp("arms"), {}

    def losses(modules, encoder, name, student="minilm"):
        if (name, student) in kept:
            return kept[name, student]
        if "bench" not in kept:
            config = tiny_config(folder, encoder)
            # The tiny encoder has three layers.
            for arm in ("interaction_all", "interaction_middle"):
                layers = config["arms"][arm]["arguments"]["student_layers"]
                layers = [min(layer, 2) if len(layers) == 1 else (layer - 1) // 2 for layer in layers]
                config["arms"][arm]["arguments"] |= {"student_layers": layers, "teacher_layers": [-1] * len(layers)}
            kept["bench"] = modules.running.Bench(config, encoder)
        bench = kept["bench"]
        run = modules.running.Run("hh_harmless", student, "clean", name, 0)
        arm = modules.arms.Arm(**bench.config["arms"][name])
        settings = bench.settings(run, arm)
        logs = []
        train = modules.running.ObjectiveTrainer.train

        def noting(self, *args, **kwargs):
            output = train(self, *args, **kwargs)
            logs.extend(log["loss"] for log in self.state.log_history if "loss" in log)
            return output

        modules.running.ObjectiveTrainer.train = noting
        try:
            bench.train(run, arm, settings["arguments"])
        finally:
            modules.running.ObjectiveTrainer.train = train
        kept[name, student] = logs
        return logs

    return losses


def test_a_run_with_a_different_teacher_is_refused(modules, encoder, tmp_path):
    study = modules.study.Study(tiny_config(tmp_path, encoder))
    run = modules.running.Run("hh_harmless", "minilm", "clean", "interaction_joint", 1)
    mark = {"kind": "fitted", "checksum": 1, "accuracy": 0.80, "order_agreement": 1.0, "pairs": 157}
    study.results = [{**vars(run), "id": "the first", "seed": 0, "teacher": mark}]
    study._require_one_teacher(run, {**mark, "checksum": 2, "accuracy": 0.83})
    with pytest.raises(ValueError, match=r"would have another teacher .* than the first had"):
        study._require_one_teacher(run, {**mark, "checksum": 2, "accuracy": 0.85})


def test_a_pretrained_student_begins_as_a_language_model_of_its_texts(modules, encoder, tmp_path):
    config = tiny_config(tmp_path, encoder)
    grid = config["grids"][0]
    config["selection"], config["grids"] = (
        [],
        [{**grid, "student": ["larger"], "arm": ["bradley_terry"], "seed": [0, 1]}],
    )
    first, second = modules.study.main(["--config", write(config, tmp_path)])
    mark = first["pretraining"]
    assert mark == second["pretraining"] and mark["loss"] < mark["loss_before"] - 0.1 and mark["epoch"] in (1, 2)
    assert first["settings"]["student"]["pretraining"]["num_train_epochs"] == 2

    study = modules.study.Study(config)
    begun = study.bench.student("larger", "hh_harmless", 0)
    again, other = (study.bench.student("larger", "hh_harmless", seed) for seed in (0, 1))
    for name, weight in begun.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
        assert torch.equal(weight, other.state_dict()[name]) == (name != "score.weight")
    writer = LlamaForCausalLM.from_pretrained(tmp_path / "runs" / "pretrained" / "larger" / "hh_harmless").eval()
    texts = [
        study.bench.formatter.encode(row["prompt"], row["chosen"])
        for row in study.bench.validation_rows("hh_harmless")
    ]
    states = [begun.eval().model(torch.tensor([text])).last_hidden_state for text in texts]
    assert all(
        torch.allclose(state, writer.model(torch.tensor([text])).last_hidden_state)
        for state, text in zip(states, texts, strict=True)
    )

    # Arms that began as another language model cannot be compared.
    mark_file = tmp_path / "runs" / "pretrained" / "larger" / "hh_harmless" / modules.pretraining.MARK
    grid = {**config["grids"][0], "seed": [2]}
    for loss, is_alike in ((mark["loss"] * 1.03, False), (mark["loss"] * 1.01, True)):
        mark_file.write_text(json.dumps({**mark, "loss": loss, "checksum": mark["checksum"] + 1}), encoding="utf-8")
        path = write({**config, "grids": [grid]}, tmp_path)
        if is_alike:
            assert len(modules.study.main(["--config", path])) == 3
        else:
            with pytest.raises(ValueError, match=r"seed2 would begin as another language model .* Remove the runs"):
                modules.study.main(["--config", path])


def test_a_decoder_needs_a_shape(modules, encoder):
    with pytest.raises(ValueError, match="The student 'tiny' has no `shape`; only `minilm` needs none"):
        modules.students.make_student("tiny", {}, encoder, 0)
