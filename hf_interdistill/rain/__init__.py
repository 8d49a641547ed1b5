"""RAIN: a frozen language model searches over its own next token sets, judges them, and rewinds.

Source: "RAIN: Your Language Models Can Align Themselves without Finetuning", arXiv 2309.07124.

One way through, from prompts to tokens:

- doors: `registration.py` and `entrance.py` (`strategy="rain"`), `decoder.py` (`custom_generate`), `processor.py`
  (a plain `generate`), `export.py` (a folder for the Hub), `jobs.py` (files of prompts).
- `preparation.py` makes prompts of what `generate` prepares, and refuses what RAIN cannot serve.
- `engine.py` runs many searches in lock-step. A search (`search.py`) yields requests (`requests.py`) over a tree of
  plain numbers (`tree.py`) and is sent the answers.
- `works.py` answers requests for tokens (rollouts and expansions, some read ahead) through the forward passes of
  `decoding.py`, with draws from `sampling.py` and ends from `rules.py`; keys and values lie in
  `cache.py` (one tree for all prompts, its slots handed out by `slots.py`, its passes laid out by `lines.py`) or
  `copying.py` (all other models), as `cache_choice.py` finds.
- scorers: `scorers.py` (functions, reward models, mixes), `judge.py` with `judge_prompts.py` and `shared_texts.py`
  (self-evaluation); `similarity.py` embeds texts.
- results: `records.py`, drawn by `views.py`. Settings, presets and deviations from the released code: `config.py`.
"""
