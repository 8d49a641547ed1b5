"""The simulation of RAIN over servers, against times worked out by hand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest
from support.datasets import ROOT

SPEC = importlib.util.spec_from_file_location("rain_scale", ROOT / "recipes" / "benchmarks" / "rain_scale.py")
scale = importlib.util.module_from_spec(SPEC)
sys.modules["rain_scale"] = scale  # where dataclasses look for their annotations
SPEC.loader.exec_module(scale)
ROUNDS = [[(1, 1)]]


def times(client_seconds=0.0, rounds=ROUNDS, slowdown=None):
    """A request takes 1 s, the judge's 0.5 s; two at once take half as long again."""
    return scale.Times((1.0, 0.5), slowdown or {1: 1.0, 2: 1.5}, rounds, client_seconds, 100.0)


@pytest.mark.parametrize(
    ("settings", "prompts", "servers", "per_server", "seconds"),
    [
        ({}, 1, 1, 1, 1.5),
        ({}, 2, 1, 1, 3.0),  # one after the other
        ({}, 2, 1, 2, 2.25),  # side by side: 1.5 s and 0.75 s
        ({}, 2, 2, 1, 1.5),
        ({}, 3, 2, 1, 3.0),
        ({}, 4, 1, 4, 4.5),  # beyond what was measured: four at once take four times 1.5 / 2
        ({"rounds": [[(2, 0), (1, 2)]]}, 1, 1, 1, 1.5 + 1.0 + 0.75),
        ({"client_seconds": 0.1}, 1, 1, 1, 0.1 + 1.0 + 0.1 + 0.5),
        # The second comes 0.1 s later. The first has done 0.1, and does 0.9 at two thirds: until 1.55. The second then
        # needs 0.1 more: until 1.65, when the first's judge comes; that has 0.1 s alone, then 0.4 at two thirds, until
        # 2.35; the other judge has 0.1 left.
        ({"client_seconds": 0.1}, 2, 1, 2, 2.45),
    ],
)
def test_times_are_those_by_hand(settings, prompts, servers, per_server, seconds):
    found = scale.Simulation(times(**settings), prompts, servers, per_server=per_server).run()
    assert found.seconds == pytest.approx(seconds)
    assert found.most == min(prompts, servers * per_server)


def test_shares_of_time():
    """Two prompts on two servers in 1.5 s each; full servers would do 2 / 1.5 seconds of work in a second."""
    found = scale.Simulation(times(), 2, 2, per_server=1).run()
    assert found.busy == pytest.approx(3.0 / (1.5 * 2 * (2 / 1.5)))
    assert (found.requests, found.client_busy) == (4, 0)
    found = scale.Simulation(times(client_seconds=0.1), 1, 1).run()
    assert found.client_busy == pytest.approx(0.2 / 1.7)


def test_one_client_is_the_limit_and_several_raise_it():
    many = times(client_seconds=0.01, rounds=[[(4, 4)]], slowdown={1: 1.0, 100: 1.0})
    one = scale.Simulation(many, 400, 200, per_server=2).run()
    assert one.requests == 3200
    assert 32.0 < one.seconds < 34.0 and one.client_busy > 0.95
    four = scale.Simulation(many, 400, 200, per_server=2, clients=4).run()
    assert 8.0 < four.seconds < 10.0
    fast = scale.Simulation(many, 400, 200, per_server=2, speed=100.0).run()
    assert 32.0 < fast.seconds <= one.seconds


def test_prompts_are_drawn_by_the_seed():
    mixed = times(rounds=[[(1, 1)], [(1, 1)] * 5])
    runs = [scale.Simulation(mixed, 20, 2, seed=seed).run() for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_a_slowdown_between_measured_numbers():
    found = times(slowdown={2: 1.0, 6: 3.0})
    assert [found.slow(number) for number in (1, 2, 3, 4, 6, 12)] == pytest.approx([1, 1, 1.5, 2, 3, 6])


def test_figures_of_the_other_script_are_read(tmp_path):
    """Weights of kinds are those of the fullest run."""

    def run(in_flight, judge, rollout, prompts):
        return {
            "in_flight": in_flight,
            "seconds_of_a_request": {"judge": judge, "rollout": rollout, "sampled": rollout},
            "requests_of_a_kind": {"judge": 6, "rollout": 3, "sampled": 1},
            "requests": 10,
            "client_seconds_of_a_request": 0.002,
            "rounds": [[[1, 2], [1, 1]]] * prompts,
        }

    client = [{"peak_kib_of_a_prompt": 700.0}, {"peak_kib_of_a_prompt": 600.0}]
    file = tmp_path / "times.json"
    file.write_text(json.dumps({"runs": [run(8, 0.2, 1.6, 4), run(2, 0.1, 0.4, 1)], "client": client}))
    found = scale.Times.of(json.loads(file.read_text()))
    assert found.base == pytest.approx((0.4, 0.1))
    assert found.slowdown == pytest.approx({2: 1.0, 8: 0.6 * 2 + 0.4 * 4})
    assert (found.client_seconds, found.kib) == (0.002, 700.0)
    assert found.rounds == [[(1, 2), (1, 1)]] * 4
    command = [sys.executable, str(ROOT / "recipes" / "benchmarks" / "rain_scale.py"), "--times", str(file)]
    printed = subprocess.run([*command, "--prompts", "10", "--servers", "1", "2"], capture_output=True, text=True)
    assert printed.returncode == 0, printed.stderr
    assert "at most 500 requests a second; 700 KiB" in printed.stdout
    assert len(printed.stdout.splitlines()) == 5
