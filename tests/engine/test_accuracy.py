"""The accuracy budget: alone, and in races of doubtful answers."""

import math

import pytest

from ts_parity.engine.accuracy import BURST, DEAR, PRIOR, STEEP, AccuracyBudget
from ts_parity.engine.trust import TRIAL
from ts_parity.testing import scenario


def left(tokens, share=0.01):
    """A budget of which so much is left."""
    budget = AccuracyBudget(share)
    budget.spend(BURST - tokens)
    return budget


# ---- alone ---------------------------------------------------------------------------------------------------------


def test_what_is_sure_costs_nothing():
    budget = AccuracyBudget(0.0)
    assert budget.price(0.0) == 0.0
    budget.spend(0.0)
    assert budget.spent == 0.0


def test_without_a_budget_nothing_doubtful_is_ever_given():
    budget = AccuracyBudget(0.0)
    for _ in range(10_000):
        budget.deposit()
    assert budget.price(1e-9) == math.inf


def test_without_a_limit_nobody_waits():
    budget = left(0.0, share=1.0)
    assert budget.price(0.9) == 0.0
    assert (budget.spent, budget.snapshot()["budget_left"]) == (BURST, BURST)


def test_what_more_is_in_doubt_than_is_left_waits_for_queries_to_come():
    budget = left(0.0)
    assert budget.price(0.05) == math.inf
    for _ in range(6):
        budget.deposit()
    assert budget.price(0.05) < math.inf


def test_no_more_is_saved_up_than_the_burst():
    budget = AccuracyBudget(0.5)
    for _ in range(100):
        budget.deposit()
    budget.spend(BURST)
    assert budget.price(0.01) == math.inf


def test_what_was_compared_lately_counts_most():
    """Hundreds agreed, as expected and better. Then another model is served, and of few each differs."""
    budget = AccuracyBudget(0.01)
    for _ in range(1000):
        budget.compared(0.5, differs=False)
    assert budget.correction < 0.01
    for _ in range(130):
        budget.compared(0.5, differs=True)
    assert budget.correction > 1.0


def test_a_full_budget_is_free_and_half_of_it_has_the_price_that_is_said():
    assert AccuracyBudget(0.01).price(0.5) == 0.0
    assert left(BURST / 2).price(DEAR * BURST / 2) == pytest.approx(1.0)
    assert left(BURST / 2).price(DEAR * BURST / 4) == pytest.approx(0.5**STEEP)


def test_where_doubt_does_not_wait_the_budget_still_binds():
    budget = AccuracyBudget(0.01, doubt_waits=False)
    budget.spend(BURST - 0.2)
    assert [budget.price(doubt) for doubt in (0.01, 0.19, 0.21)] == [0.0, 0.0, math.inf]


def test_the_more_doubt_and_the_less_is_left_the_longer():
    much, little = left(1.5), left(0.5)
    assert 0.0 < much.price(0.01) < much.price(0.1) < little.price(0.1) < math.inf


def test_expected_differences_stay_within_the_share_of_any_number_of_queries():
    """Whoever gives whatever has a price below infinity still keeps within it, but for what was saved before."""
    budget, given = AccuracyBudget(0.001), []
    for number in range(50_000):
        budget.deposit()
        doubt = (0.4, 0.05, 0.0003)[number % 3]
        may = number >= 20_000 and budget.price(doubt) < math.inf
        given.append(doubt if may else 0.0)
        if may:
            budget.spend(doubt)
    for first in range(0, 45_000, 2_500):
        assert sum(given[first : first + 5_000]) <= 0.001 * 5_000 + BURST + 1e-9
    assert sum(given[20_000:]) > 0.9 * 0.001 * 30_000, "and it is used"


def test_comparison_corrects_what_was_expected():
    budget = AccuracyBudget(0.01)
    for _ in range(200):
        budget.compared(0.1, differs=False)
    assert budget.correction < 0.5
    for number in range(2_000):
        budget.compared(0.1, differs=number % 10 < 3)
    assert budget.correction == pytest.approx(3.0, rel=0.25)
    before = budget.spent
    budget.spend(0.1)
    assert budget.spent - before == pytest.approx(0.1 * budget.correction)


def test_where_more_differ_than_was_expected_answers_are_dearer():
    budget = left(1.0)
    for _ in range(100):
        budget.compared(0.5, differs=True)
    assert budget.correction > 1.5
    assert budget.price(0.1) == pytest.approx((0.1 * budget.correction / DEAR) ** STEEP)
    assert budget.price(1.0 / budget.correction + 0.01) == math.inf


def test_a_few_comparisons_change_little():
    budget = AccuracyBudget(0.01)
    budget.compared(0.01, differs=True)
    assert 1.0 < budget.correction < (PRIOR + 1.0) / PRIOR


# ---- in a race -----------------------------------------------------------------------------------------------------

LATE = {
    "launch": "late", "launch_after_s": 0.020, "reconstruct_after_s": 0.020, "hedge_after_s": 0.500,
    "learn_speed": False, "launch_stretch": 0.0, "copies": True, "extra_work": 0.5, "differing": 0.01,
}  # fmt: skip


def late(**more):
    shape = {"code": "student", "k": 1, "deployed": 3, "protections": 3, "shared": True, "arrivals": [0.0]}
    policy = {**LATE, **more.pop("policy", {})}
    return scenario(policy=policy, **{**shape, **more})


FROZEN = (0, 0.0, "never")


def test_a_sure_answer_is_given_as_soon_as_its_query_is_late():
    run = late(tasks=[FROZEN, ("parity 0", 0.005, "0.9999")], differing_left=1.0)
    assert run.answers[0] == ("reconstructed", 0.025)


def test_a_saved_up_budget_makes_nobody_wait():
    run = late(tasks=[FROZEN, ("parity 0", 0.005, "0.6")])
    assert run.answers[0] == ("reconstructed", 0.025)


def test_a_doubtful_answer_is_held_and_its_query_gets_a_second_copy_at_once():
    tasks = [FROZEN, ("parity 0", 0.005, "0.6"), ("hedge 0", 0.010, "ok")]
    run = late(tasks=tasks, differing_left=0.0)
    assert [at for at, _ in run.sends("hedge 0")] == [0.025]
    assert run.answers[0] == ("hedged", 0.035)
    assert run.nothing_left_over()


def test_its_own_answer_counts_when_it_comes_first():
    tasks = [(0, 0.028, "ok"), ("parity 0", 0.005, "0.6"), ("hedge 0", 1.0, "ok")]
    assert late(tasks=tasks, differing_left=0.0).answers[0] == ("deployed", 0.028)


def test_a_doubtful_answer_is_given_once_its_query_is_late_enough():
    """With 1 left (and this query's own 0.01), a doubt of 0.4 waits nearly twice the usual 20 ms."""
    tasks = [FROZEN, ("parity 0", 0.005, "0.6"), ("hedge 0", 1.0, "never")]
    run = late(tasks=tasks, differing_left=1.0)
    longer = (0.4 / (DEAR * 1.01)) ** STEEP
    assert run.answers[0] == ("reconstructed", pytest.approx(0.020 * (1 + longer), abs=1e-6))


def test_what_is_held_is_given_when_later_queries_have_paid_for_it():
    arrivals = [0.0, *(0.1 + 0.02 * n for n in range(300))]
    tasks = [FROZEN, ("parity 0", 0.005, "0.6"), ("hedge 0", 0.0, "never")]
    policy = {"deadline_s": 30.0, "copies": False}
    source, at = late(arrivals=arrivals, tasks=tasks, policy=policy, differing_left=0.0).answers[0]
    assert source == "reconstructed"
    assert at > 0.8, "forty queries have paid for it, and it was not worth so much at once"


def test_what_is_held_is_given_sooner_when_it_has_become_cheaper():
    """At first it would wait for four seconds; the queries that come meanwhile fill the budget."""
    arrivals = [0.0, *(0.1 + 0.02 * n for n in range(200))]
    tasks = [FROZEN, ("parity 0", 0.005, "0.6"), ("hedge 0", 0.0, "never")]
    policy = {"deadline_s": 30.0, "copies": False}
    source, at = late(arrivals=arrivals, tasks=tasks, policy=policy, differing_left=0.5).answers[0]
    assert (source, 0.3 < at < 1.0) == ("reconstructed", True)


def test_where_doubt_does_not_wait_it_is_given_at_once():
    tasks = [FROZEN, ("parity 0", 0.005, "0.6"), ("hedge 0", 0.0, "never")]
    assert late(tasks=tasks, policy={"doubt_waits": False}, differing_left=0.5).answers[0] == ("reconstructed", 0.025)


def test_nothing_doubtful_is_given_at_the_deadline_either():
    run = late(tasks=[FROZEN, ("parity 0", 0.005, "0.6"), ("hedge 0", 0.0, "never")], differing_left=0.0)
    assert run.failures[0] == ("deadline", 1.0)
    assert run.nothing_left_over()


def test_without_a_word_of_its_own_an_answer_is_as_doubtful_as_its_protection():
    """Nothing is reported here, so three in ten are taken to differ."""
    tasks = [FROZEN, ("parity 0", 0.005, "ok"), ("hedge 0", 0.010, "ok")]
    assert late(tasks=tasks, differing_left=0.25).answers[0] == ("hedged", 0.035)
    (pool,) = (run := late(tasks=tasks)).scheduler.pools()
    assert run.answers[0] == ("reconstructed", 0.025)
    assert pool.release.budget.spent == pytest.approx(0.3)


def test_a_client_that_wants_more_confidence_gets_a_second_copy_at_once_and_its_own_answer():
    """However late it is, and although the budget is not touched."""
    tasks = [FROZEN, ("parity 0", 0.005, "0.98"), ("hedge 0", 0.010, "ok")]
    assert late(tasks=tasks).answers[0] == ("reconstructed", 0.025)
    run = late(tasks=tasks, least={0: 0.99})
    assert [at for at, _ in run.sends("hedge 0")] == [0.025]
    assert run.answers[0] == ("hedged", 0.035)
    assert late(tasks=tasks, least={0: 0.98}).answers[0] == ("reconstructed", 0.025)


def test_a_query_that_gave_way_to_its_backup_runs_itself_if_the_answer_is_not_sure_enough():
    tasks = [(0, 0.015, "ok"), ("parity 0", 0.005, "0.98"), (1, 0.010, "ok")]
    policy = {"launch_waiting": 0.5, "hedge_after_s": 5.0}
    run = late(arrivals=[0.0, 0.0], deployed=1, protections=1, policy=policy, tasks=tasks, least={1: 0.99})
    assert run.answers == {0: ("deployed", 0.015), 1: ("deployed", 0.03)}
    assert run.nothing_left_over()


def test_a_failed_query_that_wants_more_confidence_than_it_gets_fails_at_once():
    policy = {"copies": False, "max_attempts": 1}
    tasks = [(0, 0.021, "fail"), ("parity 0", 0.005, "0.98")]
    run = late(tasks=tasks, policy=policy, least={0: 0.99})
    assert run.failures[0] == ("failed", 0.025)


def test_what_is_decoded_without_enough_confidence_is_finished_once():
    policy = {"launch": "group", "group_wait_s": 0.01}
    shape = {"arrivals": [0.0, 0.0], "code": "sum", "k": 2, "shared": False, "protections": 1, "policy": policy}
    own = [FROZEN, (1, 0.010, "ok"), ("hedge 0", 1.0, "never"), ("finish 0", 0.001, "0.98")]
    run = late(**shape, tasks=own, least={0: 0.99})
    assert len(run.sends("finish 0")) == 1
    assert run.failures == {0: ("deadline", 1.0)}
    assert run.nothing_left_over()


def test_exact_answers_need_no_budget():
    run = late(code="exact", policy={"differing": 0.0}, tasks=[FROZEN, ("parity 0", 0.005, "ok")])
    assert run.answers[0] == ("reconstructed", 0.025)


def test_a_query_that_gave_way_to_its_backup_runs_itself_if_the_answer_is_in_doubt():
    """The second query has waited for the one machine, so its backup goes first; then it is its own turn."""
    tasks = [(0, 0.015, "ok"), ("parity 0", 0.005, "0.6"), (1, 0.010, "ok")]
    policy = {"launch_waiting": 0.5, "hedge_after_s": 5.0}
    run = late(arrivals=[0.0, 0.0], deployed=1, protections=1, policy=policy, tasks=tasks, differing_left=0.0)
    assert run.answers == {0: ("deployed", 0.015), 1: ("deployed", 0.03)}
    assert run.nothing_left_over()


def test_the_confidence_of_a_parity_model_is_that_of_what_was_decoded():
    """It is known when the answer is finished; until then the query is late enough for any."""
    policy = {"launch": "group", "group_wait_s": 0.01}
    shape = {"arrivals": [0.0, 0.0], "code": "sum", "k": 2, "shared": False, "protections": 1, "policy": policy}
    own = [FROZEN, (1, 0.010, "ok"), ("hedge 0", 0.010, "ok")]
    sure = late(**shape, tasks=[*own, ("finish 0", 0.001, "0.9999")], differing_left=1.0)
    assert [at for at, _ in sure.sends("finish 0")] == [0.02]
    assert sure.answers[0] == ("reconstructed", 0.021)
    doubtful = late(**shape, tasks=[*own, ("finish 0", 0.001, "0.6")], differing_left=0.0)
    assert doubtful.answers[0] == ("hedged", 0.031)
    assert doubtful.nothing_left_over()


def test_what_comparisons_find_is_counted_against_what_was_expected():
    """Two queries are rescued by answers of doubt 0.05; their own come later. Trials told nothing of theirs."""
    rescued = [
        *((number, 0.050, "ok") for number in (300, 301)),
        *(("parity 0", 0.005, "ok") for _ in range(TRIAL)),
        *(("parity 0", 0.005, "0.95") for _ in range(2)),
    ]

    def race(*findings):
        before = [0.02 * number for number in range(300)]
        return late(arrivals=[*before, 10.0, 11.0], tasks=rescued, proved=False, findings=findings)

    agreed = race()
    assert [agreed.answers[number][0] for number in (300, 301)] == ["reconstructed", "reconstructed"]
    expected = PRIOR + 2 * 0.05
    assert budget_of(agreed).correction == pytest.approx(PRIOR / expected)
    at = [n for n, (number, _, _) in enumerate(agreed.compared) if number >= 300]
    assert len(at) == 2
    differed = race(*("differed" if n in at else "agreed" for n in range(at[-1] + 1)))
    assert budget_of(differed).correction == pytest.approx((PRIOR + 2) / expected)
    unknown = race(*("unknown" if n in at else "agreed" for n in range(at[-1] + 1)))
    assert budget_of(unknown).correction == 1.0


def budget_of(run):
    (pool,) = run.scheduler.pools()
    return pool.release.budget


def test_another_share_keeps_what_is_left_and_what_was_found_out():
    budget = AccuracyBudget(0.01)
    budget.spend(0.5)
    budget.compared(0.5, differs=True)
    before = budget.snapshot()
    budget.adopt(0.02)
    assert budget.snapshot() == before
    budget.deposit()
    assert budget.snapshot()["budget_left"] == pytest.approx(before["budget_left"] + 0.02)


def test_a_share_of_nothing_gives_no_doubtful_answer_and_one_after_it_begins_full():
    budget = AccuracyBudget(0.01)
    budget.adopt(0.0)
    assert budget.price(0.1) == math.inf
    budget.adopt(0.01)
    assert budget.price(0.1) == 0.0
