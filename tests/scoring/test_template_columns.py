"""`tools` and `chat_template_kwargs` of another kind are named with value, rule and fix."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer
from hf_interdistill.scoring.formatting import template_kwargs

USER, ASSISTANT = [{"role": "user", "content": "How?"}], [{"role": "assistant", "content": "So."}]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("tools", "{no", r"`tools` is the text '\{no', which is not JSON .*`json.dumps`"),
        ("tools", "", "which is not JSON"),
        ("tools", 3, "`tools` is 3, but must be a list of tools"),
        ("tools", "3", "`tools` is 3, but must be a list of tools"),
        ("tools", {"type": "function"}, "must be a list of tools"),
        ("tools", ["weather"], "must be a list of tools"),
        ("chat_template_kwargs", "no", "`chat_template_kwargs` is the text 'no', which is not JSON"),
        ("chat_template_kwargs", [1], r"`chat_template_kwargs` is \[1\], but must be a `dict`"),
        ("chat_template_kwargs", "3", "must be a `dict`"),
        ("chat_template_kwargs", True, "must be a `dict`"),
        ("chat_template_kwargs", {"tools": []}, "holds `tools`, .*a column of their own"),
        ("chat_template_kwargs", {"tokenize": False}, "holds `tokenize`"),
    ],
)
def test_other_kinds_are_named(column, value, message):
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    with pytest.raises(ValueError, match=rf"^Row 1: .*{message}"):
        scorer([USER] * 2, [ASSISTANT] * 2, **{column: [None, value]})


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT, "null"])
def test_missing_ones_are_none(missing):
    assert template_kwargs({"tools": missing, "chat_template_kwargs": missing}) == {"tools": None}


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA])
def test_missing_prompts_are_none(missing):
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    assert scorer([missing], ["So."]) == scorer([None], ["So."])


def test_tables_in_place_of_columns_and_missing_completions():
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    frame = pd.DataFrame({"prompt": ["Why?", "How?"], "completion": ["So.", "No."]})
    with pytest.raises(TypeError, match="`prompts` is a DataFrame with 2 rows, but must be one column"):
        scorer(frame, frame)
    with pytest.raises(ValueError, match=r"Row 0: The completion holds <NA>.*fill it in"):
        scorer(["Why?"], [pd.NA])
