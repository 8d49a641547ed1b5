"""Random streams: the published SplitMix64, on keys and counters of any shape."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_interdistill.utils.random_streams import hash_bits, stream_key

INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(key: int, counter: int) -> int:
    """The top 53 bits of output `counter` of the generator with the state `key`, in unbounded integers."""
    word = 2**64
    state = (key + (counter + 1) * 0x9E3779B97F4A7C15) % word
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % word
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % word
    return (state ^ (state >> 31)) >> 11


def test_the_first_outputs_are_the_published_ones():
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    found = hash_bits(torch.zeros(4, dtype=torch.long), torch.arange(4))
    assert found.tolist() == [output >> 11 for output in published]


@given(st.lists(INT64, min_size=1, max_size=5), st.lists(st.integers(0, 2**40), min_size=1, max_size=5))
def test_bits_equal_unbounded_integers(keys, counters):
    found = hash_bits(torch.tensor(keys)[:, None], torch.tensor(counters))
    assert found.tolist() == [[splitmix64(key, counter) for counter in counters] for key in keys]


def test_keys_tell_their_parts_apart_and_stay():
    keys = {stream_key("a", 1), stream_key("a", 2), stream_key("b", 1), stream_key(1, "a"), stream_key((1, 2), 3)}
    assert len(keys) == 5 and all(0 <= key < 2**63 for key in keys)
    assert stream_key("a", 1) == 3379303928611769367
