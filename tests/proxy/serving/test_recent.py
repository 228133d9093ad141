"""The last five minutes: a query counts where it was answered, whenever it is known what it would have waited."""

from __future__ import annotations

from ts_parity.proxy.serving.durations import bucket_of
from ts_parity.proxy.serving.recent import SLOT_S, SLOTS, Recent, slot_number

NOON = 1_800_000_000.0


def counts(slot: dict[str, object], name: str) -> list[list[int]]:
    return slot[name].get("m", [])  # type: ignore[attr-defined, no-any-return]


def test_what_is_known_later_counts_where_the_query_was_answered() -> None:
    recent = Recent()
    recent.given(NOON, "m", "reconstructed", {bucket_of(0.02): 1}, unprotected=False)
    recent.given(NOON + 3 * SLOT_S, "m", "deployed", {bucket_of(0.01): 5}, unprotected=True)
    recent.unprotected(NOON + 1.0, "m", 4.0)
    first, last = recent.described(())
    assert (first["number"], counts(first, "unprotected")) == (slot_number(NOON), [[bucket_of(4.0), 1]])
    assert counts(last, "given") == counts(last, "unprotected") == [[bucket_of(0.01), 5]]
    assert first["sources"] == {"m": {"reconstructed": 1}}


def test_one_answered_just_before_anything_was_counted_has_a_slot() -> None:
    recent = Recent()
    recent.given(NOON, "m", "deployed", {3: 1}, unprotected=True)
    recent.unprotected(NOON - 0.1, "m", 1.0)
    assert [slot["number"] for slot in recent.described(())] == [slot_number(NOON) - 1, slot_number(NOON)]


def test_five_minutes_are_kept_and_what_belongs_to_earlier_is_dropped() -> None:
    recent = Recent()
    for second in range(1000):
        recent.given(NOON + second, "m", "deployed", {3: 1}, unprotected=True)
    slots = recent.described(())
    assert len(slots) == SLOTS
    recent.unprotected(NOON, "m", 1.0)
    assert recent.described(()) == slots


def test_those_still_out_count_as_long_as_they_have_been_out_and_leave_nothing_behind() -> None:
    recent = Recent()
    recent.given(NOON, "m", "hedged", {3: 1}, unprotected=False)
    for age_s in (1.0, 2.0):
        (slot,) = recent.described([(NOON, "m", age_s)])
        assert counts(slot, "unprotected") == [[bucket_of(age_s), 1]]
    (slot,) = recent.described(())
    assert counts(slot, "unprotected") == []


def test_a_clock_that_is_set_back_ends_nothing() -> None:
    recent = Recent()
    recent.given(NOON, "m", "deployed", {3: 1}, unprotected=True)
    for at in (NOON - 7200.0, NOON - 7199.0):
        recent.spent(at, 3.0, 0.5)
        recent.given(at, "m", "deployed", {3: 1}, unprotected=True)
    (slot,) = recent.described(())
    assert (slot["number"], slot["sources"]) == (slot_number(NOON - 7200.0), {"m": {"deployed": 2}})


def test_spending_is_told_as_what_was_spent_in_each_slot() -> None:
    recent = Recent()
    recent.spent(NOON, 3.0, 0.5)
    recent.spent(NOON + SLOT_S, 4.0, 0.5)
    assert [(slot["extra_work"], slot["differing"]) for slot in recent.described(())] == [(3.0, 0.5), (1.0, 0.0)]
