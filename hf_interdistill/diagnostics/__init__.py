"""Diagnosis of reward models: what they read, what misleads them, whether they are calibrated.

Data flow: rows -> tokens and the positions of their contents -> rewards of the text and of changed texts, one record
per pair (`collect`) -> one small module per measure, pure functions of the records (`measures`: `accuracy`,
`masking`, `attention`, `cue`, `length`, `calibration`) -> one page with its plots (`report`).

Three measures ask whether the prompt is read, with texts that are made of several pairs or of planted instructions
(`context_measures` collects them; `swapped_prompt`, `early_context`, `turn_removal` measure).

Two measures need more than a model and pairs, and are left out without it: models trained with flipped labels
(`noise_models` runs them, `noise` measures) and prompts with candidate completions (`candidates` reads them,
`candidate_scores` scores them, `best_of_n` measures).
"""
