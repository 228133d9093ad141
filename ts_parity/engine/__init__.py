"""The policy: told what happened and when, it answers what to do.

Pure. Reads no clock, waits for nothing, knows no arrays and no sockets. Standard library only. Read `events` (the
words), `group` (the rules of the race), `scheduler` (the story), then `fleet`, `policy` and `health`.
"""

from ts_parity.engine.events import (
    ARRIVED,
    ARRIVED_ERROR,
    ARRIVED_RAW,
    Action,
    Answer,
    Arrived,
    Cause,
    Code,
    Compare,
    Endpoint,
    Fail,
    Failed,
    Fleet,
    HealthChange,
    Instance,
    Kind,
    Outcome,
    Pool,
    Query,
    Reason,
    Rejected,
    Send,
    Source,
    Task,
)
from ts_parity.engine.group import CodingGroup
from ts_parity.engine.policy import Policy, plain
from ts_parity.engine.scheduler import Scheduler
from ts_parity.engine.trust import Finding, Standing, Trust

__all__ = [
    "ARRIVED",
    "ARRIVED_ERROR",
    "ARRIVED_RAW",
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
