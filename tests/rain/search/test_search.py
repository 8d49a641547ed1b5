"""The search as a generator, driven without a model or a tokenizer."""

import numpy as np
import pytest
from support.search import Rules, drive

from hf_interdistill.rain.config import RainConfig
from hf_interdistill.rain.search.requests import Commit, Decode, Embed, Expansion, Judge
from hf_interdistill.rain.search.search import PromptSearch, weight_candidates
from hf_interdistill.rain.search.tree import Candidate


def expansions(requests):
    tasks = [task for each in requests if isinstance(each, Decode) for task in each.tasks]
    return [(node, expansion) for node, expansion in tasks if expansion is not None]


def quick(**changes) -> RainConfig:
    settings = {"candidates": 3, "iterations": 6, "extra_iterations": 2, "min_visits": 2, "num_speculative": 8}
    return RainConfig(**{**settings, **changes})


def test_first_requests_in_order():
    search = PromptSearch(quick(), Rules(), has_encoder=False)
    first, second, third, fourth, fifth = drive(search, steps=5)
    origin = search.tree.origin
    assert first.tasks == ((origin, Expansion(1, 3)),)
    # No empty answer is judged: the first text is the likeliest token and what follows.
    assert second.tasks == ((origin.children[0], None),)
    assert third == Judge(("ai",))
    # The leaf is selected again: now it is expanded, with two tokens per edge.
    assert isinstance(fourth, Decode)
    assert fourth.tasks[0][0] in origin.children and isinstance(fifth, Judge | Decode)
    expanded = expansions(drive(PromptSearch(quick(), Rules(), False)))
    lengths = {len(node.path()) - 1: expansion.length for node, expansion in expanded}
    assert [lengths[depth] for depth in range(3)] == [1, 2, 4]
    assert expanded[1][1] == Expansion(2, 3, True, (0, 1))


def test_a_text_that_ends_with_a_stop_character_is_judged_as_it_is():
    search = PromptSearch(quick(candidates=5, root_uniform=1.0, exploration=100.0), Rules(), has_encoder=False)
    texts = [text for each in drive(search, steps=40) if isinstance(each, Judge) for text in each.completions]
    assert "e" in texts and "ei" not in texts


def test_edges_do_not_pass_the_limit_and_the_text_ends_there():
    search = PromptSearch(quick(), Rules(limit=9), has_encoder=False)
    requests = drive(search)
    assert len(search.committed) == 9
    assert isinstance(requests[-1], Commit) and requests[-1].node.is_terminal
    assert [len(each.node.tokens) for each in requests if isinstance(each, Commit)] == [1, 2, 4, 2]


def test_a_good_token_set_is_committed_early_and_rewinds_are_counted():
    search = PromptSearch(quick(iterations=50), Rules(), has_encoder=False)
    drive(search, judge=lambda text: 1.0 if text.startswith("b") else -1.0)
    assert search.committed[0] == 1
    root = search.tree.origin
    best = root.children[1]
    assert best.is_committed and search.rewinds[root] == root.true_visits - 1
    assert root.true_visits < 50 and best.value > 0.8 and best.true_visits >= 3
    # Every iteration but the first of a step is a rewind.
    steps = sum(node.is_committed for node in root.subtree())
    assert sum(search.rewinds.values()) < search.iterations <= sum(search.rewinds.values()) + steps


def test_widening_requests_the_next_token_or_another_draw():
    search = PromptSearch(quick(iterations=40, candidates=2), Rules(), has_encoder=True)
    requests = drive(search, judge=lambda text: -1.0, steps=400)
    made = [expansion for _, expansion in expansions(requests)]
    assert Expansion(1, 3) in made and Expansion(1, 4) in made  # one more than there are children
    assert Expansion(2, 1, False, (1,)) in made and Expansion(2, 1, False, (2,)) in made
    assert 2 < len(search.tree.origin.children) <= 20
    good = PromptSearch(quick(iterations=40, candidates=2), Rules(), has_encoder=True)
    drive(good, judge=lambda text: 0.5, steps=400)
    assert len(good.tree.origin.children) == 2


def test_texts_are_embedded_in_one_call_per_backup_once_a_sibling_is_visited():
    search = PromptSearch(quick(iterations=12), Rules(), has_encoder=True)
    requests = drive(search, judge=lambda text: 0.5)
    judged = sum(isinstance(each, Judge) for each in requests)
    embedded = [each for each in requests if isinstance(each, Embed)]
    assert 0 < len(embedded) < judged
    for node in search.tree.origin.subtree():
        if node.embedding is not None and node is not search.tree.origin:
            pending = len(search._pending_texts.get(node, ()))
            assert node.embedded + pending == node.true_visits or node.is_committed


def test_a_text_is_embedded_once_between_commits():
    search, seen = PromptSearch(quick(iterations=30), Rules(limit=6), has_encoder=True), []

    def embed(text):
        seen[-1].append(text)
        return np.array([1.0, len(text) % 3])

    commit = search.tree.commit
    search.tree.commit = lambda: seen.append([]) or commit()
    seen.append([])
    drive(search, judge=lambda text: 0.5, embed=embed)
    assert len(seen) > 3 and all(len(texts) == len(set(texts)) for texts in seen)
    visits = sum(node.embedded for node in search.tree.origin.subtree())
    assert 0 < sum(map(len, seen)) < visits  # texts that came again count again in the means


def test_without_an_encoder_nothing_is_embedded():
    requests = drive(PromptSearch(quick(), Rules(), has_encoder=False), judge=lambda text: -1.0)
    assert not any(isinstance(each, Embed) for each in requests)


def test_weights_of_distinct_candidates():
    greedy = Candidate((1, 1), 0.5)
    sampled = [Candidate((1, 2), 0.1), Candidate((1, 1), 0.5), Candidate((1, 2), 0.1), Candidate((2, 2), 0.2, True)]
    assert weight_candidates((greedy,), sampled) == [
        Candidate((1, 1), pytest.approx(0.3)),
        Candidate((1, 2), 0.1),
        Candidate((2, 2), 0.2, True),
    ]
    assert weight_candidates((), sampled[:1]) == sampled[:1]
