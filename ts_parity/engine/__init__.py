"""The policy: it receives what happened and when, and returns what to do.

Pure. Reads no clock, waits for nothing, knows no arrays and no sockets. Standard library only. Read `life` first (the
theory, the states of a query and their table), then `events`, `query` and `scheduler`. Each rule has a file of its own:
`admission`, `selection`, `placement`, `launch`, `hedging`, `release`, `lateness`, `retries`, `budgets`, `health`,
`outliers`, `ejection`, `trust`, `trials`, `accuracy`.
"""

from ts_parity.engine.events import (
    ARRIVED,
    ARRIVED_ERROR,
    ARRIVED_RAW,
    Arrived,
    Blame,
    Cause,
    Code,
    Endpoint,
    Failed,
    Fleet,
    HealthChange,
    Instance,
    Kind,
    Outcome,
    Pool,
    Reason,
    Rejected,
    Source,
)
from ts_parity.engine.policy import Policy, plain
from ts_parity.engine.query import LOSSLESS, Action, Answer, CodingGroup, Compare, Fail, Query, Send, Task
from ts_parity.engine.scheduler import Scheduler
from ts_parity.engine.trust import Finding, Standing, Trust

__all__ = [
    "ARRIVED",
    "ARRIVED_ERROR",
    "ARRIVED_RAW",
    "LOSSLESS",
    "Action",
    "Answer",
    "Arrived",
    "Cause",
    "Code",
    "CodingGroup",
    "Compare",
    "Endpoint",
    "Fail",
    "Failed",
    "Blame",
    "Finding",
    "Fleet",
    "HealthChange",
    "Instance",
    "Kind",
    "Outcome",
    "Policy",
    "Pool",
    "Query",
    "Reason",
    "Rejected",
    "Scheduler",
    "Send",
    "Source",
    "Standing",
    "Task",
    "Trust",
    "plain",
]
