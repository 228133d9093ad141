"""Races in virtual time with the rules that go past the paper's: late launch and second copies."""

from ts_parity.testing import scenario

NEVER = 0.0
"""Seconds that a task takes which never ends."""
LATE = {"launch": "late", "launch_after_s": 0.05, "reconstruct_after_s": 0.05}
STUDENT = {"code": "student", "k": 2, "shared": True, "protections": 4}
HEDGE = {"copies": True, "extra_work": 0.1, "work_burst": 1.0, "hedge_after_s": 0.03}


def late(**more):
    policy = {**LATE, **more.pop("policy", {})}
    return scenario(**{**STUDENT, **more}, policy=policy)


def hedged(**more):
    policy = {**HEDGE, **more.pop("policy", {})}
    return scenario(code=None, policy=policy, **more)
