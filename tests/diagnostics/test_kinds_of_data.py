"""Data that are several splits, or a table that iterates over its columns, are named with the way out."""

from __future__ import annotations

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict
from support.models import build_student
from support.tokenizers import tokenizer_of

from hf_interdistill import RewardScorer, diagnose

ROWS = [{"prompt": "Why? ", "chosen": "So.", "rejected": "No."}]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": ROWS}, "`data` is a dict with the keys train, .* Choose one split"),
        (DatasetDict(train=Dataset.from_list(ROWS)), "`data` is a DatasetDict .* Choose one split"),
        (pd.DataFrame(ROWS), r"`data` is a DataFrame of pandas.*`Dataset.from_pandas\(frame\)`"),
        (Dataset.from_list(ROWS).data.table, "`data` is a Table of pyarrow"),
        (3, "`data` is 3, but must be a dataset or a list of rows"),
    ],
)
def test_what_is_no_collection_of_rows(data, message):
    scorer = RewardScorer(build_student(), tokenizer_of("bytes"))
    with pytest.raises(TypeError, match=message):
        diagnose(scorer, data)
