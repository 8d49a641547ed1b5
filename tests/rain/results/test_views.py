"""Views of trees: complete, escaped, and of any depth."""

import json
import re

import pytest
from support.pages import check_page
from support.rain import encode, likes_short_words, quick_config
from support.rain import tree_node as node

from hf_interdistill.rain.results.records import TreeRecord, shown_prompt
from hf_interdistill.rain.results.views import lay_out, pruned, save, to_html, to_mermaid, walk
from hf_interdistill.rain.strategies import STRATEGIES

EVIL = '</script><script>alert("x")</script> & "quoted" {{ 7 * 7 }} `code`\n|]end'


@pytest.fixture
def record() -> TreeRecord:
    kept = node(EVIL, node("deep", visits=2.0), visits=3.2, is_committed=True, rewinds=4, is_terminal=True)
    return TreeRecord(node("", kept, node("bad", value=-1.0), node("unseen", visits=0.0)), EVIL, EVIL)


def test_json_holds_everything(record):
    assert (
        json.loads(record.to_json())
        == record.to_dict()
        == {
            "prompt": EVIL,
            "completion": EVIL,
            "strategy": "rain",
            "root": record.root,
        }
    )


def test_the_page_escapes_what_it_shows(record):
    html = to_html(record, title=EVIL, stats={"forward_passes": 12, "seconds": 1.5})
    page = check_page(html, None)
    assert len(page.scripts) == 2
    assert json.loads(page.scripts[0]) == record.to_dict()
    text = page.text
    assert text.count('alert("x")') >= 4 and "{{ 7 * 7 }}" in text and "49" not in text
    for figure in ("3.2", "+0.25", "-1.00", "0.50", "forward passes", "12", "1.5"):
        assert figure in text
    assert "1 never visited" in text and "↶" in text
    assert len(page.all("summary", "node committed")) + len(page.all("div", "node committed")) == 1


def test_the_committed_path_is_open_and_all_else_is_folded():
    second = node("second", node("never", visits=0.0), is_committed=True)
    first = node("first", second, node("other second", node("below")), is_committed=True)
    tried = node("tried", node("tried on", node("and on")), node("unseen", visits=0.0))
    page = check_page(to_html(TreeRecord(node("", tried, first), "p", "firstsecond")), None)
    folds = page.all("details")
    opened = [text for attributes, text in folds if "open" in attributes]
    assert [text.split()[:2] for text in opened] == [["1first", "committed"], ["2second", "committed"]]
    assert all(attributes.get("class") == "path" for attributes, _ in folds if "open" in attributes)
    closed = [text.split()[0] for attributes, text in folds if "open" not in attributes]
    assert closed == [
        "tried",
        "tried",
        "other",
    ]  # "tried on" is below "tried"; "and on" and "below" have nothing below
    assert "tried" in opened[0] and "and on" in opened[0] and "other second" not in opened[0]
    assert "other second" in opened[1] and "below" in opened[1]
    committed = page.all("summary", "node committed") + page.all("div", "node committed")
    assert len(committed) == 2 and all("committed" in text for _, text in committed)


def test_a_prompt_of_messages_is_a_conversation():
    """As scorers see it: plain turns in the record, whatever the messages hold."""
    messages = [
        {"role": "system", "content": "Be brief.", "extra": object()},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Hi"}, {"type": "image"}, {"type": "text", "text": EVIL}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{}]},
    ]
    turns = shown_prompt(messages)
    assert [(each["role"], each["content"]) for each in turns] == [
        ("system", "Be brief."),
        ("user", f"Hi {EVIL}"),
        ("assistant", ""),
    ]
    assert shown_prompt("plain") == "plain" and shown_prompt(("odd", 1)) == "('odd', 1)" and shown_prompt([]) == []
    record = TreeRecord(node("", node("a", is_committed=True)), turns, "a")
    page = check_page(to_html(record), None)
    roles = [text for _, text in page.all("span", "role")]
    assert roles[:3] == ["system", "user", "assistant"] and roles[3].startswith("answer")
    assert json.loads(record.to_json())["prompt"] == turns
    for prompt, end in ((turns[:1], "Be brief."), ("plain", "plain"), ([], "")):
        assert f'n0["{end}<br/>' in to_mermaid(TreeRecord(record.root, prompt, "a"))


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_deep_tree_is_drawn(is_committed, tmp_path):
    """Deeper than the recursion limit of Python (1,000) and the nesting limit of browsers (512)."""
    depth = 5_000
    root = leaf = node("")
    for number in range(depth):
        child = node(str(number), is_committed=is_committed)
        leaf["children"].append(child)
        leaf = child
    record = TreeRecord(root, "prompt", "text")
    assert len(list(walk(record.root))) == depth + 1
    text = record.to_json()
    opened = [place for place, character in enumerate(text) if character == "["]
    assert len(opened) == 2 * (depth + 1)  # `tokens` and `children` of every node
    assert text.startswith('{"prompt": "prompt", "completion": "text", "strategy": "rain", "root": {"text": "",')
    assert text.endswith('"children": []}' + "]}" * depth + "}")
    page = check_page(to_html(record), None)
    assert page.deepest < 40 and page.scripts[0] == text
    assert len(page.all("span", "meter")) == depth
    chart = to_mermaid(record, max_nodes=100)
    assert chart.count("==>" if is_committed else "-->") == 99
    assert chart.count("1 more") == 1
    assert save(record, tmp_path / "tree.json").stat().st_size > depth * 100


def test_rows_show_each_step_and_its_alternatives():
    second = node("second", is_committed=True)
    first = node("first", second, node("other second"), is_committed=True)
    tried = node("tried", node("tried on", node("and on")), node("never", visits=0.0))
    rows = lay_out(pruned(node("", tried, first), 10))
    shown = [(row.level, row.node["text"] if row.node else row.hidden, row.step, row.is_parent) for row in rows]
    assert shown == [
        (0, "first", 1, True),
        (1, "tried", 0, True),
        (2, "tried on", 0, True),
        (3, "and on", 0, False),
        (2, 1, 0, False),
        (0, "second", 2, True),
        (1, "other second", 0, False),
    ]
    assert [row.closes for row in rows] == [0, 0, 0, 1, 2, 0, 1]
    unfinished = lay_out(pruned(node("", node("a", node("b")), node("c")), 10))
    assert [(row.level, row.node["text"]) for row in unfinished] == [(0, "a"), (1, "b"), (0, "c")]


def test_json_of_many_children_is_what_json_writes():
    root = node("", node("ä", node("b"), node("c", node('"d"'))), node("e\n"), node("f", tokens=[]))
    record = TreeRecord(root, "p", "c")
    assert record.to_json() == json.dumps(record.to_dict(), ensure_ascii=False)


def test_mermaid_escapes_and_prunes(record):
    chart = to_mermaid(record)
    lines = chart.splitlines()
    assert lines[0] == "flowchart LR"
    assert all(
        re.fullmatch(r'  n\d+\["[^"\[\]`|{}]*"\](:::committed)?|  n\d+ (==|--)> n\d+', line) for line in lines[2:]
    )
    assert "<script" not in chart and "#60;" in chart
    assert chart.count("==>") == 1 and chart.count("-->") == 2
    assert "4 rewinds" in chart and "1 more" in chart
    assert to_mermaid(record, max_children=1).count("-->") == 1
    with pytest.raises(ValueError, match="`max_children` is 0"):
        to_mermaid(record, max_children=0)
    with pytest.raises(ValueError, match="`max_nodes` is 0"):
        to_mermaid(record, max_nodes=0)
    few = to_mermaid(record, max_nodes=2)
    assert few.count("==>") == 1 and few.count("-->") == 0 and few.count("2 more") == 1 and "1 more" in few


def test_pruning_keeps_the_committed_child():
    children = [node(str(number), visits=number + 5.0) for number in range(5)]
    children[0]["is_committed"] = True
    cut = pruned(node("", *children), 2)
    assert [child["text"] for child in cut["children"]] == ["0", "4"]
    assert cut["hidden"] == 3
    assert len(children) == 5


def test_the_suffix_selects_the_format(record, tmp_path):
    for ending, start in ((".json", "{"), (".html", "<!doctype"), (".mmd", "flowchart")):
        path = save(record, tmp_path / f"tree{ending}")
        assert path.read_text(encoding="utf-8").lstrip().lower().startswith(start)
    with pytest.raises(ValueError, match=r"ends with '.svg'"):
        save(record, tmp_path / "tree.svg")


def test_a_real_search_is_drawn(model, tokenizer, tmp_path):
    output = model.generate(
        **encode(tokenizer, ["Tell me"]),
        strategy="rain",
        tokenizer=tokenizer,
        rain_config=quick_config(),
        rain_scorer=likes_short_words,
        max_new_tokens=6,
        return_dict_in_generate=True,
    )
    record = output.rain[0]
    visited = [each for each, _, parent in walk(record.tree.root) if parent is not None and each["true_visits"]]
    page = to_html(record.tree, stats=record.stats)
    assert check_page(page, None).source.count('class="meter"') == len(visited)
    committed = [each["text"] for each, _, _ in walk(record.tree.root) if each["is_committed"]]
    assert "".join(committed) == record.text
    assert json.loads(record.tree.to_json())["completion"] == record.text


TITLES = {
    "rain": "Search tree of RAIN",
    "best_of_n": "Search tree of best-of-n",
    "beam": "Search tree of chunk-wise beam search",
    "args": "Search tree of ARGS",
    "rad": "Search tree of reward-augmented decoding",
}


@pytest.mark.parametrize("strategy", TITLES)
def test_a_page_says_what_its_strategy_does(strategy, model, tokenizer):
    output = model.generate(
        **encode(tokenizer, ["Tell me"]),
        strategy=strategy,
        tokenizer=tokenizer,
        rain_config={"candidates": 3, "seed": 1},
        rain_scorer=likes_short_words,
        max_new_tokens=6,
        return_dict_in_generate=True,
    )
    tree, stats = output.rain[0].tree, output.rain[0].stats
    assert json.loads(tree.to_json())["strategy"] == tree.strategy == strategy
    page = check_page(to_html(tree, stats=stats), None)
    assert [text for _, text in page.all("h1")] == [TITLES[strategy]] and page.all("title")[0][1] == TITLES[strategy]
    (sentence, *_) = (text for attributes, text in page.all("p") if attributes.get("class") == "soft")
    assert sentence == STRATEGIES[strategy].summary.replace("`", "")
    assert STRATEGIES[strategy].summary.count("`") == 2 * page.source.count("<code>")
    is_rain = strategy == "rain"
    assert ("rewinds" in page.text) == ("RAIN" in page.text) == is_rain
    assert to_html(tree, title="Mine").count("<h1>Mine</h1>") == 1


def test_a_root_without_children_has_a_page(record):
    """As of a search whose prompt is too long for a first step, or whose scorer fails at once."""
    tree = TreeRecord({**record.root, "children": []})
    assert check_page(to_html(tree), None).source.count('class="meter"') == 0
    assert to_mermaid(tree).startswith("flowchart")
