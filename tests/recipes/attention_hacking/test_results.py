"""What the study of attention hacking keeps: its runs, packed, and the tables that its pages show."""

from __future__ import annotations

import json
import lzma
import re

import pytest
import yaml
from support.study import CONFIG, FOLDER, accuracy, tiny_config

DELTA = "delta_vs_bradley_terry"
COLUMNS = {"train", "student", "condition", "arm", "test_set", "metric", "seeds", "mean", "ci95", DELTA, "delta_ci95"}
NUMBER = re.compile(r"[-+]?\d+\.\d+")
# Tables of the README: the heading above each, and what is trained in it. Other tables have no figure a test set.
TRAINED = {
    "Results": ("hh_harmless", "minilm"),
    "The friendly phrase": ("hh_harmless", "minilm"),
    "Trained on other texts": ("truthfulqa", "minilm"),
    "Trained on a mix": ("mix", "minilm"),
    "Less noise": ("hh_harmless", "minilm"),
    "A small decoder from scratch": ("hh_harmless", "small"),
    "A larger decoder, pretrained on its training texts": ("hh_harmless", "larger"),
}
TESTS = {"as it is": "hh_harmless", "without anthropic_evals": "mean of four, without anthropic_evals"}


@pytest.fixture(scope="module")
def runs(modules) -> list[dict]:
    return modules.records.read_runs(FOLDER)


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))


def alike(line: str, other: str) -> bool:
    """Whether lines differ by rounding alone: in a last digit, and a star where the interval ends at 0."""
    if [part.replace("*", "") for part in NUMBER.split(line)] != [p.replace("*", "") for p in NUMBER.split(other)]:
        return False
    pairs = zip(NUMBER.findall(line), NUMBER.findall(other), strict=True)
    return all(abs(float(one) - float(two)) < 0.11 for one, two in pairs)


def test_runs_are_packed_and_a_plain_file_is_read(modules, runs, tmp_path):
    records = modules.records
    assert records.read_runs(tmp_path) == []
    older = {"id": "é", "value": 0.1, "tests": {"a": {"pairs": 1, "right": "Ag=="}}, "cued": {}}
    (tmp_path / "runs.json").write_text(json.dumps([older]), encoding="utf-8")
    first = records.read_runs(tmp_path)
    assert first == [older]
    written = [*first, *runs[:50]]
    files = []
    for is_complete in (False, True, True):
        records.write_runs(tmp_path, written, is_complete=is_complete)
        assert records.read_runs(tmp_path) == written
        assert [file.name for file in tmp_path.iterdir()] == ["runs.json.xz"]  # no scratch file, no plain one
        files.append((tmp_path / "runs.json.xz").read_bytes())
    assert files[1] == files[2] and len(files[1]) < 0.8 * len(files[0])
    (tmp_path / "runs.json").write_text("[]", encoding="utf-8")
    assert records.read_runs(tmp_path) == written  # the packed one is the newer

    # Unpacked, a run is removed by its line.
    unpacked = lzma.decompress(files[2]).decode().splitlines(keepends=True)
    assert unpacked[3].startswith(f'{{"id":"{written[2]["id"]}"') and len(unpacked) == 2 * 51 + 4
    (tmp_path / "runs.json.xz").unlink()
    (tmp_path / "runs.json").write_text("".join(unpacked[:3] + unpacked[4:]), encoding="utf-8")
    assert records.read_runs(tmp_path) == written[:2] + written[3:]

    given = {"a": [0.123456789123, True, 7, None], "b": {"c": 1.0, "d": "0.123456789123"}}
    assert records.rounded(given) == {"a": [0.12345679, True, 7, None], "b": {"c": 1.0, "d": "0.123456789123"}}
    assert json.loads(records.as_lines(written)) == written and len(records.as_lines(written).splitlines()) == 51 + 2


def test_a_study_resumes_from_the_kept_runs(modules, encoder, runs, tmp_path, monkeypatch):
    """Each kept run has the settings of the config, so that none is done again."""
    tiny = tiny_config(tmp_path, encoder)
    config = {**CONFIG, **{name: tiny[name] for name in ("data", "encoder", "output_dir", "results_dir")}}
    (tmp_path / "results").mkdir()
    modules.records.write_runs(tmp_path / "results", runs)
    study = modules.study.Study(config, deadline=0)
    assert study._select()
    done = [run for grid in config["grids"] for run in modules.study._runs(grid) if study._record(run)]
    for run in done:
        study._require_settings(run, study.bench.settings(run, study._arm(run)))
    ids = {run.id for run in done}
    others = [record for record in runs if record["id"] not in ids]
    assert len(ids) > 400 and all(run["candidate"] or run["arm"].startswith("ensemble") for run in others)

    monkeypatch.setattr(modules.records, "_SMALLEST", 0)  # takes seconds otherwise
    assert study.run() == runs == modules.records.read_runs(tmp_path / "results")  # there is no time for another run


def test_each_row_has_the_public_columns_and_its_runs(rows, runs):
    tested = [record for record in runs if not record["candidate"]]
    shown = {(row["arm"], row["condition"]) for row in rows if row["test_set"] == "mean of five"}
    assert shown == {(run["arm"], run["condition"]) for run in tested}
    for row in rows:
        assert set(row) == COLUMNS and row["metric"] == "accuracy"
        own = [run for run in tested if all(run[key] == row[key] for key in ("train", "student", "condition", "arm"))]
        mean, *delta = figures(row, tested)
        assert row["seeds"] == len(own) and 100 * row["mean"] == pytest.approx(mean, abs=0.006)
        assert delta == ([] if row["delta_ci95"] is None else [pytest.approx(100 * row[DELTA], abs=0.006)])
        assert row["ci95"][0] <= row["mean"] <= row["ci95"][1]
        if row["arm"] == "bradley_terry":
            assert row[DELTA] == 0 and row["delta_ci95"] == [0, 0]


def regenerated(modules, runs: list[dict], *names: str) -> tuple[list[dict], list[str]]:
    """The rows for `results.json` and the lines of `table.md`, from the runs of some groups or of all."""
    table = modules.report.compare(runs, CONFIG, names)
    kept = modules.report.published(table, CONFIG["report"]["rows"])
    return kept, modules.tables.short_tables(table, runs).splitlines()


def assert_rows_alike(found: list[dict], rows: list[dict]) -> None:
    assert len(found) == len(rows)
    for one, two in zip(found, rows, strict=True):
        assert {key: one[key] for key in COLUMNS if isinstance(one[key], str | int)} == {
            key: two[key] for key in COLUMNS if isinstance(one[key], str | int)
        }
        for key in ("mean", "ci95", DELTA, "delta_ci95"):
            assert one[key] == (None if two[key] is None else pytest.approx(two[key], abs=2e-4))


def test_tables_of_one_group_are_those_of_its_runs(modules, rows, runs):
    kept, lines = regenerated(modules, runs, "mix.minilm.cue")
    group = {"train": "mix", "student": "minilm", "condition": "cue"}
    assert_rows_alike(kept, [row for row in rows if group.items() <= row.items()])
    assert len(kept) == 9
    stored = (FOLDER / "table.md").read_text(encoding="utf-8").splitlines()
    assert all(any(alike(line, other) for other in stored) for line in lines)


@pytest.mark.slow
def test_all_tables_are_those_of_the_runs(modules, rows, runs):
    kept, lines = regenerated(modules, runs)
    assert_rows_alike(kept, rows)
    stored = (FOLDER / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(stored) and all(alike(one, two) for one, two in zip(lines, stored, strict=True))


def readme_cells() -> list[tuple[dict, list[float]]]:
    """What the README's tables show: train, student, condition, arm and test of each cell, and its numbers."""
    cells, heading, header = [], "", []
    for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading, header = line.lstrip("# "), []
        if heading not in TRAINED or not line.startswith("| "):
            continue
        parts = [part.strip().replace("`", "") for part in line.strip("|").split("|")]
        if not header or parts[0].startswith("---"):
            header = header or parts
            continue
        train, student = TRAINED[heading]
        condition = {"10 %": "noise10", "20 %": "noise20"}.get(parts[0], parts[0])
        for name, part in zip(header, parts, strict=True):
            if name in ("condition", "flipped", "arm", "seeds"):
                continue
            test = TESTS.get(name, name)
            trained, side = re.fullmatch(r"(?:(\w+), )?(?:phrase on (\w+))?.*", test).groups()
            test = f"{trained or train}, cue on {side}" if side else test
            wanted = {"train": train, "student": student, "condition": condition, "arm": parts[1], "test_set": test}
            cells.append((wanted, [float(number) for number in NUMBER.findall(part)]))
    return cells


def figures(cell: dict, runs: list[dict]) -> list[float]:
    """Mean accuracy over seeds of a cell, and its mean difference to Bradley-Terry over common seeds, in points."""
    parts = CONFIG["means"].get(cell["test_set"], [cell["test_set"]])

    def by_seed(arm: str) -> dict[int, float]:
        found: dict[int, float] = {}
        for run in runs:
            if run["arm"] == arm and all(run[key] == cell[key] for key in ("train", "student", "condition")):
                tests = [kept_test(run, part) for part in parts]
                found[run["seed"]] = 100 * sum(map(accuracy, tests)) / len(tests)
        return found

    mine, plain = by_seed(cell["arm"]), by_seed("bradley_terry")
    common = [mine[seed] - plain[seed] for seed in mine if seed in plain]
    return [sum(mine.values()) / len(mine), *([sum(common) / len(common)] if common else [])]


def kept_test(run: dict, name: str) -> dict:
    trained, _, side = name.partition(", cue on ")
    return run["cued"][trained][f"on_{side}"] if side else run["tests"][name]


def test_each_figure_of_the_readme_is_that_of_its_runs(rows, runs):
    tested = [run for run in runs if not run["candidate"]]
    cells, with_row = readme_cells(), 0
    assert len(cells) > 450 and {(cell["train"], cell["student"]) for cell, _ in cells} == set(TRAINED.values())
    for cell, numbers in cells:
        expected = figures(cell, tested)[: len(numbers)]
        assert numbers[: len(expected)] == pytest.approx(expected, abs=0.051), cell
        row = next((row for row in rows if cell.items() <= row.items()), None)
        if row and len(numbers) == 4:
            with_row += 1
            assert numbers[2:] == pytest.approx([100 * bound for bound in row["delta_ci95"]], abs=0.06), cell
    assert with_row > 100


def test_the_table_at_a_glance_has_the_differences_and_intervals_of_the_results(rows):
    """Accuracy minus Bradley-Terry's; bold where the interval excludes 0."""
    section = (FOLDER / "README.md").read_text(encoding="utf-8").split("## At a glance\n")[1].split("\n## ")[0]
    names = {"MiniLM": "minilm", "small decoder": "small", "larger decoder": "larger"}
    checked = 0
    for line in re.findall(r"^\| (?:MiniLM|\w+ decoder) .*\|$", section, re.MULTILINE):
        student, arm, *cells, _ = (part.strip() for part in line.strip("|").split("|"))
        arm, seeds = re.match(r"`(\w+)`", arm)[1], int((re.findall(r"(\d+) seeds", arm) or [5])[0])
        for condition, cell in zip(("clean", "noise30", "cue"), cells, strict=True):
            wanted = {"train": "hh_harmless", "student": names[student], "condition": condition, "arm": arm}
            row = next((each for each in rows if {**wanted, "test_set": "mean of five"}.items() <= each.items()), None)
            assert (row is None) == (cell == "not run"), (arm, condition)
            if row is not None:
                checked += 1
                low, high = row["delta_ci95"]
                expected = [100 * each for each in (row[DELTA], low, high)]
                assert [float(each) for each in NUMBER.findall(cell)] == pytest.approx(expected, abs=0.051), line
                assert row["seeds"] == seeds and cell.startswith("**") == (low > 0 or high < 0), line
    assert checked == 20


def test_the_command_prints_and_draws_a_group(modules, tmp_path, capsys):
    config = tmp_path / "study.yaml"
    config.write_text(yaml.safe_dump({**CONFIG, "results_dir": str(FOLDER)}), encoding="utf-8")
    group = "mix.minilm.cue"
    modules.report.main([group, "--config", str(config), "--pictures", str(tmp_path / "pictures")])
    printed = capsys.readouterr().out
    assert "## Trained on mix, student minilm, condition cue" in printed and printed.count("## Trained on") == 1
    for title in ("Against `uniform`", "Loss, and against `bradley_terry`", "What `diagnose` says", "Ran on: "):
        assert title in printed
    names = {file.name for file in (tmp_path / "pictures").iterdir()}
    assert names == {f"differences.{group}.png", f"masking.{group}.png"}
    with pytest.raises(ValueError, match=r"No run is in the group 'mix\.large\.cue'; the groups are hh_harmless\."):
        modules.report.main(["mix.large.cue", "--config", str(config)])


def test_a_picture_has_one_of_two_kinds(modules):
    with pytest.raises(ValueError, match=r"'curve\.mix\.minilm\.cue' must begin with one of differences, masking"):
        modules.report._draw("curve.mix.minilm.cue", [], [], CONFIG, FOLDER)
