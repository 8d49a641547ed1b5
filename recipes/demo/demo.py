"""The demo: a teacher, a plain and an interaction-distilled reward model, and a chat model that answers with them.

`python recipes/demo/demo.py [--data FILE_OR_FOLDER]` from the project's root. Everything runs on a CPU and without a
hub (`hf_interdistill.embedded`): the teacher is MiniLM, the students are the first layers of SmolLM2-135M-Instruct,
which as a whole answers the prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from hf_interdistill.utils.stages import Stages

HERE = Path(__file__).parent
RUNS = Path("runs/demo")
INTERDISTILL = os.path.relpath(Path(sys.executable).with_name("interdistill"))  # of this environment


def command(*arguments: str) -> None:
    """Run one `interdistill` command, as on the command line."""
    print("$ interdistill", *arguments, flush=True)
    from hf_interdistill.cli import main as interdistill

    if interdistill(arguments):
        raise SystemExit(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=str(HERE / "preferences"), help="preference data: JSONL file or folder")
    start, data = time.monotonic(), parser.parse_args().data
    stages = Stages(RUNS / "demo.log", 8)
    with stages.stage("convert SmolLM2-135M-Instruct (the first time only), take its first layers as the student"):
        # Here, so that what libraries say when they are imported goes to the log.
        from answers import answer_all, table_of
        from steps import draw_maps, link_models, make_student, prepare_data, results_of, trains_in_bf16

        from hf_interdistill import (
            CompareConfig,
            InteractionDistillationConfig,
            InteractionTeacher,
            RewardScorer,
            compare,
            embedded,
        )
        from hf_interdistill.commands.quiet import known_noise_silenced
        from hf_interdistill.comparison.report.text import accuracy_table

        folder, rows = prepare_data(data, RUNS)
        language_model, encoder = embedded.language_model(), embedded.encoder("minilm")
        make_student(RUNS / "student", language_model)
        precision = ["--use_cpu", "true", "--bf16", "true"] if trains_in_bf16() else []
    with stages.stage("fit the teacher, MiniLM (22M parameters)"):
        recipe = str(HERE / "teacher.yaml")
        command("teacher", "--config", recipe, "--teacher_model", encoder, "--dataset_name", folder, *precision)
    # Data, two trainings and the scoring, a stage each.
    config = CompareConfig(output=str(RUNS / "compare"), seeds=1, diagnosis_pairs=0, overlap="drop", overwrite=True)
    recipe = HERE / "reward" / "interaction.yaml"
    has_strategies = hasattr(InteractionDistillationConfig, "train_sampling_strategy")  # transformers 5.2
    grouping = ["--train_sampling_strategy", "group_by_length"] if has_strategies else []
    overrides = ["--dataset_name", folder, *grouping, *precision]
    with known_noise_silenced():
        comparison = compare(recipe, config, overrides=overrides, stages=stages)
    with stages.stage("draw the maps"):
        link_models(RUNS / "compare", RUNS)
        results = results_of(comparison)
        teacher = InteractionTeacher.from_pretrained(str(RUNS / "teacher"))
        scorers = {name: RewardScorer.from_pretrained(str(RUNS / name)) for name in ("baseline", "interaction")}
        untrained = RewardScorer.from_pretrained(str(RUNS / "student"))
        students = {"student before training": untrained, "student after training": scorers["interaction"]}
        explained = draw_maps(rows, teacher, students, RUNS / "maps.png")
    with stages.stage("answer three prompts: plain, best-of-n and RAIN, by the distilled reward model"):
        dtype = "bfloat16" if precision else "float32"
        answers = answer_all(language_model, scorers["interaction"], RUNS, dtype)
        rewards = {"reward": scorers["interaction"], "reward of the plain model": scorers["baseline"]}
        shown, results["answers"] = table_of(answers, rewards)
    (RUNS / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")

    stages.console.print(accuracy_table(comparison), *comparison.verdicts(), f"{explained}\n", shown, sep="\n")
    stages.console.print(
        "`reward` is what best-of-n and RAIN climb, so it is no measure of quality; the plain model's is "
        "closer to one.\n\n"
        f"Done in {time.monotonic() - start:.0f} s. Look at:\n"
        f"  {RUNS}/compare/index.html the comparison on one page\n"
        f"  {RUNS}/maps.png           what the teacher attends to, and what the student simulates before and after\n"
        f"  {RUNS}/rain_tree_1.html   the search tree behind RAIN's first answer\n"
        f"  {RUNS}/results.json       all figures; {RUNS}/demo.log has everything the stages printed\n"
        "Next:\n"
        f"  {INTERDISTILL} score --model {RUNS}/interaction --input {folder}/test.jsonl "
        f"--output {RUNS}/scored.jsonl\n"
        f"  {INTERDISTILL} diagnose --model {RUNS}/baseline {RUNS}/interaction --data {folder}/test.jsonl "
        f"--output {RUNS}/diagnosis",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
