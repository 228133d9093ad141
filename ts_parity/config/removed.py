"""Settings of earlier versions: what says the same now, or why nothing has to.

The command line, files and the environment refuse their names with these sentences.
"""

from __future__ import annotations

_PLACE = (
    "where a protection stands says when it is launched: for late queries only beside the deployed model, with its "
    "group on machines of its own"
)
_LATE = "a backup is launched from a quantile of latency on that follows from its cost and extra_work, later under load"
_GROUP = "a group waits for as long as makes a query late, and no longer than others are likely to come"
_RELEASE = "reconstruct_after_s = auto is a quantile of latency, and a second until that is known; or give it seconds"
_SLOW = "an instance whose answers are surely slower than its pool's, by what those say, is left alone and tried again"
_FAILING = "an instance that fails three times in a row is left alone for a second, then for longer, and tried again"

_COPIES = "second copies are made from the 0.98 quantile of latency on, after a backup of the query has had its time"

REMOVED: dict[str, str] = {
    "code": "protect says it: auto, exact-only, off (it was none), or the one code to use",
    "k": "register only protections of the size you want; of several, the one that promises most is used",
    "group_wait_s": _GROUP,
    "seal_early": _GROUP,
    "launch": _PLACE,
    "launch_after_s": _LATE,
    "launch_quantile": _LATE,
    "launch_stretch": _LATE,
    "launch_waiting": "a query that waits for long gets its backup first; protect = exact-only allows only exact ones",
    "shed_load": "protections on shared machines are left out above 0.85 of the load; nobody needed another share",
    "reconstruct_quantile": _RELEASE,
    "reconstruct_cold_s": _RELEASE,
    "hedge_ratio": "extra_work is the budget for second copies, protections launched late and probes together",
    "hedge_burst": "extra_work is the budget; thirty inferences may be made at once",
    "hedge_after_s": _COPIES,
    "hedge_quantile": _COPIES,
    "default_answer_type": "it follows from the ending of the file default_answer, such as .json or .txt",
    "retry_burst": "retry_ratio is the budget; ten retries may be made at once",
    "max_attempts": "a query is tried three times; a model that must not run twice is --model NAME,repeatable=false",
    "slow_factor": _SLOW,
    "slow_until_out": _SLOW,
    "max_out": _SLOW,
    "age_factor": "to pass over instances with an old task has been measured to bring nothing (docs/policy.md)",
    "spare_places": "an instance whose reply alone seems late is given one task more",
    "balance": "each query goes to the instance with the fewest outstanding; round robin is only simulated",
    "failures_until_out": _FAILING,
    "out_s": _FAILING,
    "reject_pause_s": "an instance that says it is full is left alone for 0.05 s",
}
