"""Records of a diagnosis are those of its rows, whatever an earlier diagnosis in the folder has read."""

from __future__ import annotations

import json

import pytest
from support.diagnostics import RuleModel
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.diagnostics.config import DiagnosisConfig
from hf_interdistill.diagnostics.diagnosis import diagnose

CONFIG = DiagnosisConfig(resamples=20, batch_size=4, context_measures=())
ROWS = [{"prompt": f"what is {n}?", "chosen": " it is good", "rejected": " it is not"} for n in range(8)]
SWAPPED = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in ROWS]


def scorer(rule: str = "perfect") -> RewardScorer:
    tokenizer = tokenizer_of("bytes")
    return RewardScorer(RuleModel(tokenizer, rule), tokenizer)


def diagnosed(data, folder, **options):
    return diagnose(scorer(), data, CONFIG, name="rm", records_dir=str(folder), is_progress_shown=False, **options)


def as_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("kind", ["rows", "file", "folder"])
def test_changed_rows_of_the_same_name_are_refused(tmp_path, kind):
    def data(rows):
        (tmp_path / "data").mkdir(exist_ok=True)
        path = as_file(tmp_path / "data" / "train.jsonl", rows)
        return {"rows": rows, "file": path, "folder": str(tmp_path / "data")}[kind]

    assert diagnosed(data(ROWS), tmp_path / "kept").accuracy.accuracy.value == 1.0
    assert diagnosed(data(ROWS), tmp_path / "kept").accuracy.accuracy.value == 1.0
    for number, rows in ((0, SWAPPED), (0, SWAPPED[:4]), (3, [*ROWS[:3], *SWAPPED[3:]]), (0, [*ROWS[1:], *ROWS])):
        message = f"rm.pairs.jsonl holds a record in line {number + 1}, but the rows of the data have changed since"
        with pytest.raises(ValueError, match=message):
            diagnosed(data(rows), tmp_path / "kept")
    assert diagnosed(data(SWAPPED), tmp_path / "fresh").accuracy.accuracy.value == 0.0


@pytest.mark.parametrize("kind", ["rows", "folder"])
def test_more_and_fewer_of_the_same_rows_are_read(tmp_path, kind):
    def data(rows):
        (tmp_path / "data").mkdir(exist_ok=True)
        as_file(tmp_path / "data" / "train.jsonl", rows)
        return rows if kind == "rows" else str(tmp_path / "data")  # of a folder the number of rows is not known

    many = [*ROWS, *SWAPPED]
    for rows, accuracy in ((ROWS, 1.0), (many, 0.5), (many[:10], 0.8)):
        found = diagnosed(data(rows), tmp_path / "kept")
        assert found.pairs == len(rows) and found.accuracy.accuracy.value == pytest.approx(accuracy)


def test_changed_candidates_are_refused(tmp_path):
    rows = [{"prompt": f"q {n}", "completions": [" good", " not"], "gold_rewards": [1.0, 0.0]} for n in range(4)]
    path = as_file(tmp_path / "candidates.jsonl", rows)
    diagnosed(ROWS, tmp_path / "kept", candidates=path)
    changed = [{**row, "completions": row["completions"][::-1]} for row in rows]
    with pytest.raises(ValueError, match=r"rm\.candidates\.jsonl holds a record in line 1, but the rows"):
        diagnosed(ROWS, tmp_path / "kept", candidates=as_file(tmp_path / "candidates.jsonl", changed))


def test_records_without_a_digest_are_refused(tmp_path):
    diagnosed(ROWS, tmp_path / "kept")
    path = tmp_path / "kept" / "rm.pairs.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    as_file(path, [{key: record[key] for key in record if key != "row_digest"} for record in records])
    with pytest.raises(ValueError, match="of a version that noted no rows"):
        diagnosed(ROWS, tmp_path / "kept")
