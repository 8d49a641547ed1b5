"""Diagnosis of reward models: what they read, what fools them, how sure they may be.

One way through: rows -> tokens and where their contents stand (`contents`) -> rewards of the text and of changed
texts, one record a pair (`measuring`) -> one small module a measure, pure functions of the records (`accuracy`,
`masking`, `attention`, `cue`, `length`, `calibration`) -> report (`plots`, `report`).

Two measures need more than a model and pairs, and are left out without it: models trained with flipped labels
(`noise_models` runs them, `noise` measures) and prompts with candidate completions (`candidates` reads them,
`candidate_scores` scores them, `best_of_n` measures).
"""
