"""The strategies beside the tree search as generators, driven without a model or a tokenizer."""

import math

import pytest
from support.search import Rules, drive

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.search.guided import ChunkSearch, GuidedSearch, TokenSearch, build_search
from hf_interdistill.rain.search.requests import Commit, Decode, Expansion, Judge
from hf_interdistill.rain.search.search import PromptSearch
from hf_interdistill.rain.search.tree import Candidate


def started(strategy, limit=6, key=0, **settings) -> GuidedSearch:
    config = RainConfig.from_dict({"strategy": strategy, **settings})
    search = build_search(config, Rules(limit), False, key)
    assert isinstance(search, GuidedSearch)
    return search


def last_letter(text: str) -> float:
    """Later letters are better, up to `d`."""
    return {"a": -0.5, "b": 0.0, "c": 0.25, "d": 0.5}.get(text[-1:], -1.0)


def test_each_strategy_has_its_search():
    kinds = {"rain": PromptSearch, "args": TokenSearch, "rad": TokenSearch, "beam": ChunkSearch}
    for strategy, kind in {**kinds, "best_of_n": ChunkSearch}.items():
        assert type(build_search(RainConfig.resolve(None, strategy), Rules(), False, 0)) is kind


def test_args_scores_the_likeliest_tokens_and_commits_one_of_them():
    search = started("args", limit=2, candidates=3, reward_weight=2.0)
    requests = drive(search, last_letter)
    assert [type(each) for each in requests] == [Decode, Judge, Commit] * 2
    assert requests[0].tasks == ((search.tree.origin, Expansion(1, 3)),)
    assert requests[1] == Judge(("a", "b", "c")) and requests[4] == Judge(("ca", "cb", "cc"))
    # Weights are 1, 1/2 and 1/3: log p + 2 v is -1, -0.69 and -0.60.
    assert search.committed == [2, 2] and search.iterations == 6 and search.rewinds == {}


@pytest.mark.parametrize(("weight", "token"), [(0.0, 0), (1.3, 0), (1.5, 1), (1.7, 2)])
def test_args_weighs_the_score_against_the_log_probability(weight, token):
    values = {"a": -0.5, "b": 0.0, "c": 0.25}
    search = started("args", limit=1, candidates=3, reward_weight=weight)
    drive(search, lambda text: values[text])
    scores = [math.log(1 / (1 + number)) + weight * value for number, value in enumerate(values.values())]
    assert search.committed == [scores.index(max(scores))] == [token]


def test_without_a_weight_the_preset_has_it():
    values = {"a": -0.5, "b": 0.0, "c": 0.25}
    for weight in (None, 1.5):
        search = TokenSearch(RainConfig(strategy="args", candidates=3, reward_weight=weight), Rules(1))
        drive(search, lambda text: values[text])
        assert search.committed == [1]
    search = ChunkSearch(RainConfig(strategy="beam", candidates=3), Rules(1))
    assert search.num_beams == RainConfig.preset("beam").beams == 2


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_rad_samples_by_the_softmax_of_log_probability_and_weighted_score(weight):
    counts, draws = [0, 0, 0], 4000
    for key in range(draws):
        search = started("rad", limit=1, key=key, candidates=3, reward_weight=weight)
        drive(search, last_letter)
        counts[search.committed[0]] += 1
    weights = [math.exp(weight * value) / (1 + number) for number, value in enumerate((-0.5, 0.0, 0.25))]
    for count, each in zip(counts, weights, strict=True):
        share = each / sum(weights)
        assert abs(count / draws - share) < 4 * math.sqrt(share * (1 - share) / draws)


def test_rad_draws_by_its_key_alone():
    texts = []
    for key in (1, 1, 2, 3):
        search = started("rad", limit=12, key=key, reward_weight=0.0)
        drive(search, last_letter)
        texts.append(tuple(search.committed))
    assert texts[0] == texts[1] and len(set(texts)) == 3


class Ending(Rules):
    """Texts of letters that also end with `z`."""

    def finish_reason(self, tokens):
        return "eos" if tokens and tokens[-1] == 25 else super().finish_reason(tokens)


def run_with(search, chunks, values) -> tuple[list[tuple], list[tuple]]:
    """Answer a search from tables; returns the scored texts of each request, and what was expanded how.

    Args:
        chunks: by text the chunks that continue it. values: scores of texts.
    """
    run, answer, scored, expanded = search.run(), None, [], []
    while True:
        try:
            request = run.send(answer)
        except StopIteration:
            return scored, expanded
        answer = None
        if isinstance(request, Decode):
            answer = []
            for node, expansion in request.tasks:
                before = node.tokens_from_origin()
                expanded.append((search.rules.completion(before), expansion))
                found = [
                    tuple(ord(letter) - 97 for letter in chunk) for chunk in chunks[search.rules.completion(before)]
                ]
                ends = [search.rules.finish_reason((*before, *tokens)) is not None for tokens in found]
                answer.append([Candidate(tokens, 1.0, end) for tokens, end in zip(found, ends, strict=True)])
        elif isinstance(request, Judge):
            scored.append(request.completions)
            answer = [values[text] for text in request.completions]


def test_beams_keep_the_best_texts_and_the_best_one_is_committed():
    search = started("beam", limit=5, beams=2, candidates=2, edge_lengths=(2,))
    chunks = {"": ["aa", "bb", "cc", "dd"], "bb": ["aa", "bb"], "cc": ["aa", "bb"], "ccaa": "pq", "bbbb": "pq"}
    values = {"aa": 0.1, "bb": 0.4, "cc": 0.3, "dd": -0.2, "bbaa": 0.0, "bbbb": 0.2, "ccaa": 0.9, "ccbb": 0.1}
    values |= {"ccaap": -0.4, "ccaaq": -0.3, "bbbbp": -0.2, "bbbbq": -0.5}
    scored, expanded = run_with(search, chunks, values)
    assert scored[:2] == [("aa", "bb", "cc", "dd"), ("bbaa", "bbbb", "ccaa", "ccbb")]
    # Four chunks continue the prompt, then two each of the beams; the last ones have the one token that is left.
    drawn = [(2, 4, 4), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert [(each.length, each.count, len(each.draws)) for _, each in expanded] == drawn
    assert [text for text, _ in expanded] == ["", "bb", "cc", "ccaa", "bbbb"]
    assert not any(each.has_greedy for _, each in expanded)
    assert search.rules.completion(search.committed) == "bbbbp" and search.iterations == 12


def test_a_beam_that_has_ended_keeps_its_place_until_better_ones_take_it():
    config = RainConfig.from_dict({"strategy": "beam", "beams": 2, "candidates": 2, "edge_lengths": (1,)})
    chunks = {"": "zab", "a": "ab", "aa": "ab", "ab": "ab"}
    values = {"z": 0.5, "a": 0.4, "b": -0.9, "aa": 0.1, "ab": 0.2, "aba": 0.45, "abb": 0.6}
    search = ChunkSearch(config, Ending(3))
    scored, _ = run_with(search, chunks, values)
    assert scored == [("z", "a", "b"), ("aa", "ab"), ("aba", "abb")]
    assert search.rules.completion(search.committed) == "abb"
    search = ChunkSearch(config, Ending(3))
    run_with(search, chunks, {**values, "abb": 0.3})
    assert search.rules.completion(search.committed) == "z"


def test_tokens_that_all_beams_share_are_committed_at_once():
    search = started("beam", limit=4, beams=2, candidates=2, edge_lengths=(1,))
    requests = drive(search, lambda text: -len(set(text)) / 10 + ord(text[0]) / 1000)
    commits = [number for number, each in enumerate(requests) if isinstance(each, Commit)]
    assert len(search.committed) == 4 and commits[0] < len(requests) - 4
    tree = search.tree.origin
    assert [node.is_committed for node in tree.subtree()].count(True) == 4


def test_best_of_n_samples_whole_texts_and_takes_the_best():
    search = started("best_of_n", limit=5, candidates=3)
    requests = drive(search, lambda text: {"c": 0.1, "d": 0.9, "e": 0.3}[text[0]])
    assert [type(each) for each in requests] == [Decode, Judge, Commit]
    assert requests[0].tasks == ((search.tree.origin, Expansion(5, 3, False, (0, 1, 2))),)
    assert len(search.committed) == 5 and search.committed[0] == 3


@pytest.mark.parametrize("strategy", ["args", "beam"])
def test_a_search_that_is_late_commits_what_it_has(strategy):
    class Late(Rules):
        def is_late(self):
            return True

        def finish_reason(self, tokens):
            return "time" if tokens else None

    config = RainConfig.from_dict({"strategy": strategy, "candidates": 3})
    search = build_search(config, Late(20), False, 0)
    requests = drive(search, last_letter)
    assert sum(isinstance(each, Judge) for each in requests) == 1 and search.committed


def test_values_and_visits_of_the_tree_are_those_of_the_scored_texts():
    search = started("args", limit=3, candidates=4)
    drive(search, last_letter)
    nodes = [node for node in search.tree.origin.subtree() if node.tokens]
    assert len(nodes) == search.iterations == 12
    for node in nodes:
        assert node.value == last_letter(search.rules.completion(node.tokens_from_origin()))
        assert node.visits == node.true_visits == 1
    assert sum(child.prior for child in search.tree.origin.children) == pytest.approx(1.0)
