"""What a best-of-n job keeps of its candidates, and the curve of their number."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.selection import PROMPTS, read, write_rows

from hf_interdistill import RewardScorer, run_best_of_n
from hf_interdistill.scoring.best_of_n import best_of_n_scores, over_optimization_curve
from hf_interdistill.selection.curve import draw_curve
from hf_interdistill.selection.rules import best_and_worst, best_candidates


def test_choices_can_be_changed_after_the_work(job, tmp_path):
    run_best_of_n(job())
    selected = str(tmp_path / "kept.jsonl")
    pairs = run_best_of_n(job(selected=selected, keep="pairs"))
    assert pairs["scored"] == 0 and pairs["selected"] == 5
    for row, scored in zip(read(selected), read(job().output), strict=True):
        assert (row["reward_chosen"], row["reward_rejected"]) == (max(scored["rewards"]), min(scored["rewards"]))
        assert row["chosen"] != row["rejected"]
    gaps = sorted(row["reward_chosen"] - row["reward_rejected"] for row in read(selected))
    assert run_best_of_n(job(selected=selected, keep="pairs", margin=gaps[2]))["selected"] == 2
    everything = sorted(reward for row in read(job().output) for reward in row["rewards"])
    run_best_of_n(job(selected=selected, top_k=4, threshold=everything[10]))
    assert sorted(row["reward"] for row in read(selected)) == everything[10:]
    with pytest.raises(ValueError, match=r"made with other settings \(n differ"):
        run_best_of_n(job(n=5))


def test_the_curve(job, models, tmp_path):
    curve = tmp_path / "figures" / "curve.json"
    config = job(gold_model=str(models / "gold"), curve=str(curve))
    run_best_of_n(config)
    rows = read(config.output)
    written = json.loads(curve.read_text())
    assert [point["n"] for point in written["points"]] == [1, 2, 4]
    proxy, gold = [row["rewards"] for row in rows], [row["gold_rewards"] for row in rows]
    gold_scorer = RewardScorer.from_pretrained(str(models / "gold"))
    assert gold[0] == pytest.approx(gold_scorer([PROMPTS[0]] * 4, rows[0]["completions"]), abs=1e-4)
    for point in written["points"]:
        assert point["gold"] == pytest.approx(best_of_n_scores(proxy, gold, point["n"]).mean())
        assert point["proxy"] == pytest.approx(best_of_n_scores(proxy, proxy, point["n"]).mean())
    assert (tmp_path / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")
    own = [{"prompt": "a", "completions": ["b", "c"], "gold_rewards": [1.0, 2.0]}]
    ready = job(
        model=None,
        generation={},
        prompts=write_rows(tmp_path / "own.jsonl", own),
        output=str(tmp_path / "own_scored.jsonl"),
        curve=str(curve),
    )
    run_best_of_n(ready)
    points = json.loads(curve.read_text())["points"]
    assert points[0]["gold"] == 1.5 and points[1]["gold"] in (1.0, 2.0) and points[0]["gold_se"] is None


def test_rules():
    texts, rewards = ["a", "b", "a", "c"], [3.0, 1.0, 3.0, 2.0]
    assert best_candidates(texts, rewards, top_k=3) == [0, 3, 1]  # no text twice
    assert best_candidates(texts, rewards, top_k=3, threshold=2.0) == [0, 3]
    assert best_candidates(texts, rewards, threshold=4.0) == []
    assert best_and_worst(texts, rewards) == (0, 1)
    assert best_and_worst(texts, rewards, margin=2.0) is None
    assert best_and_worst(["a", "b"], [1.0, 1.0]) is None


def test_the_picture_of_the_curve_draws_gains_and_their_errors():
    generator = np.random.default_rng(0)
    proxy, gold = generator.normal(size=(2, 6, 4))
    points = over_optimization_curve(proxy.tolist(), gold.tolist())
    (axes,) = draw_curve(points).axes
    assert "gain over a random choice" in axes.get_ylabel() and "one standard error" in axes.get_ylabel()
    for container, name in zip(axes.containers, ("proxy", "gold"), strict=True):
        line, _, (bars,) = container
        assert line.get_xdata() == pytest.approx([point["kl"] for point in points])
        assert line.get_ydata() == pytest.approx([point[f"{name}_gain"] for point in points])
        heights = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
        assert heights == pytest.approx([2 * point[f"{name}_gain_se"] for point in points]) and heights[0] == 0.0
        assert name in container.get_label()
