"""Timers: what is stale goes, though its time has not come."""

from ts_parity.engine import Arrived, Policy, Query, Scheduler, Send
from ts_parity.testing import POOL, fleet


def test_answered_queries_are_not_kept_by_their_timers():
    """A thousand within the time after which the first of them would have been late."""
    scheduler, most = Scheduler(fleet(deployed=2, code=None), Policy()), 0
    for number in range(1_000):
        now = number * 1e-6
        [sent] = [
            action for action in scheduler.query_arrived(Query(number, POOL, None), now) if isinstance(action, Send)
        ]
        scheduler.task_done(sent.task, Arrived(), now)
        most = max(most, len(scheduler._timers))
    assert most <= 20
