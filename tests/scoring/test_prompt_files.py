"""Files of prompts: encodings, line ends, ids."""

import json

import pytest

from hf_interdistill.scoring.prompts import load_prompts


def test_marks_line_ends_and_empty_lines_change_nothing(tmp_path):
    rows = [{"prompt": "Tell me é\u2028"}, {"prompt": "Why?", "id": "b"}]
    first, second = (json.dumps(row, ensure_ascii=False) for row in rows)
    texts = [f"{first}\n\n{second}\n", f"\ufeff{first}\r\n\r\n{second}", f"{first}\n  \n\ufeff{second}\n\n"]
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(text.encode())
        assert load_prompts(path) == [{"id": 1, "prompt": "Tell me é\u2028"}, {"id": "b", "prompt": "Why?"}]


def test_numbers_and_texts_are_different_ids(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a", "id": 1}\n{"prompt": "b", "id": "1"}\n', encoding="utf-8")
    assert [row["id"] for row in load_prompts(path)] == [1, "1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "caf\xe9"}\n', r"Line 1 of .* is not UTF-8 \(.*byte 15\)\. Save the file as UTF-8"),
        ('{"prompt": "a"}\n'.encode("utf-16"), "Line 1 of .* is not UTF-8"),
        (b'{"prompt": "a"}\n{"prompt": "b\xc3', "Line 2 of .* is not UTF-8"),
        (b'{"prompt": "a"}\n{"prompt": "b \\ud83d"}', r"Line 2 of .* holds half a character \('\\ud83d' after"),
        (b'{"prompt": "a", "id": "\\udc00"}', "Line 1 of .* holds half a character"),
        (b'{"prompt": [{"role": "user", "content": "\\ud83d"}]}', "Line 1 of .* holds half a character"),
        (b'{"prompt": "a", "id": 7}\n{"prompt": "b", "id": 7}', "Line 2 of .* has the id 7, which line 1 has too"),
        (
            b'{"prompt": "a", "id": 2}\n{"prompt": "b"}',
            "Line 2 .*has no `id`, so its id is the line's number 2, which",
        ),
        (b'{"prompt": "a", "id": true}', "has the id True, but ids must be texts or whole numbers"),
        (b'{"prompt": "a", "id": null}', "has the id None"),
        (b'{"prompt": "a"', "Line 1 of .* is not a JSON object"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(path)


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "\\ud83d\\ude00"}')
    assert load_prompts(path)[0]["prompt"] == "\U0001f600"
