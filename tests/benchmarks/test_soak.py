"""A short soak: everything is accounted for, nothing is left over. And the accounts themselves find what is missing."""

from dataclasses import replace

import pytest

import soak


@pytest.fixture(scope="module")
def books():
    return soak.soak(requests=3000, seed=7, connections=16, quiet=True)[0]


def bad(checks):
    return [(check.what, check.found, check.bounds) for check in checks if not check.good]


@pytest.mark.long
@pytest.mark.slow
def test_everything_is_accounted_for_and_nothing_left_over(books):
    assert books.faults == []
    assert bad([*soak.accounts(books), *soak.leftovers(books)]) == []
    use, checks = soak.memory(books.samples)
    assert bad(checks) == []
    assert use["end_mb"] < 2 * use["rest_mb"]


@pytest.mark.slow
def test_everybody_misbehaved(books):
    """Otherwise the soak would prove little."""
    for what in (
        "left mid-head",
        "left mid-headers",
        "left mid-body",
        "left mid-chunks",
        "left waiting",
        "left pipelining",
        "left mid-answer",
        "broken off",
        "source reconstructed",
    ):
        assert books.clients[what] > 0, what
    said = " ".join(books.upstream)
    for what in ("reset before", "end in it", "worker died", "slow", "idle close", "stream end", "stream reset"):
        assert what in said, what


@pytest.mark.slow
def test_what_is_missing_is_found(books):
    lost = {**books.clients, "answered 200, passed": books.clients["answered 200, passed"] - 1}
    assert "requests whose client stayed" in bad(soak.accounts(replace(books, clients=lost)))[0][0]
    unseen = {**books.upstream, "seen protection": books.upstream["seen protection"] - 100}
    assert "tasks, protection" in bad(soak.accounts(replace(books, upstream=unseen)))[0][0]
    held = {**books.held_after, "descriptors": books.held_after["descriptors"] + 1}
    assert "descriptors" in bad(soak.leftovers(replace(books, held_after=held)))[0][0]


def test_a_leak_is_a_slope():
    flat = [(n, 60_000_000 + (n % 7) * 1000) for n in range(0, 1_000_001, 5000)]
    leaking = [(n, rss + 10 * n) for n, rss in flat]
    assert bad(soak.memory(flat)[1]) == []
    assert "bytes per request" in bad(soak.memory(leaking)[1])[0][0]
