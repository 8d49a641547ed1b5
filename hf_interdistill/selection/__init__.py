"""Best-of-n and rejection sampling: many candidates per prompt, scored by a reward model, the best ones kept.

`job.py` loads prompts, `candidates.py` samples completions (unless the file has them), `RewardScorer` scores them,
`rules.py` chooses, `curve.py` draws the over-optimization curve. The arithmetic is in `scoring/best_of_n.py`.
"""
