"""Faults made on purpose, one at a time: the tests must notice each.

    python -m tests.mutants                   all of them, minutes each on a busy machine
    python -m tests.mutants engine worker     those of these rooms
    python -m tests.mutants --list            which there are

Each replaces a piece of one file of a copy of the package and runs the tests that look at it, the quickest first, until
one fails. A mutant that they pass has survived: a rule of the package is then tested by nobody. Exit code 0: none has;
1: some have; 2: a piece to be replaced is not there, or is there twice, since the code has changed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from tqdm import tqdm

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Mutant:
    """What is changed, and where it must be noticed."""

    what: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def room(self) -> str:
        return self.file.partition("/")[0].removesuffix(".py")


def _engine(what: str, file: str, before: str, after: str) -> Mutant:
    """The rule's own tests first: they notice most, in a second."""
    own = f"tests/engine/test_{file}.py"
    return Mutant(what, f"engine/{file}.py", before, after, (*([own] if (ROOT / own).exists() else []), "tests/engine"))


MUTANTS = [
    _engine(
        "a crowded pool launches its groups' protections all the same",
        "launch",
        "return self._load.value > SHED_LOAD and self._shared",
        "return False",
    ),
    _engine(
        "late launches are not stretched under load",
        "launch",
        "base * (1.0 + policy.launch_stretch * min(1.0, max(0.0, (self._load.value - 0.5) / 0.5)))",
        "base",
    ),
    _engine(
        "a change of everything leaves machines under suspicion",
        "suspicion",
        "            self._forget_speeds(pool, now)\n            return False",
        "            pass",
    ),
    _engine("a machine's speed is never forgotten", "speed", "FORGOTTEN: Final = 0.02", "FORGOTTEN: Final = 0.0"),
    _engine(
        "a machine that was out is still slow", "speed", "FORGOTTEN_OUT: Final = 0.5", "FORGOTTEN_OUT: Final = 0.02"
    ),
    _engine("one late answer proves that a machine is slow", "speed", "RARE: Final = 0.02", "RARE: Final = 1e-9"),
    _engine("answers that come together count each for itself", "speed", "APART: Final = 0.25", "APART: Final = 0.0"),
    _engine(
        "late by a tenth is as telling as late by twice the time",
        "speed",
        "sorted([*edges, TWICE * ordered[int(SOONEST * number)]])",
        "sorted(edges)",
    ),
    _engine(
        "a target launches for everybody",
        "target",
        "min(LATEST_OF_ALL, max(SOONEST, 1.0 - payable))",
        "SOONEST",
    ),
    _engine("a target counts from sending", "target", "self.release_by(arrived_at) -", "self.release_by(sent_at) -"),
    _engine(
        "a target releases nothing",
        "target",
        "math.inf if target_s is None else arrived_at + IN_TIME * target_s",
        "math.inf",
    ),
    _engine(
        "a target is not looked at",
        "life",
        "min(late_at, pool.target.launch_by(query.arrived_at, now, query.scale))",
        "late_at",
    ),
    _engine(
        "the release ignores the target", "life", "min(late_at, pool.target.release_by(query.arrived_at))", "late_at"
    ),
    _engine("doubt always waits", "release", "policy.differing, policy.doubt_waits", "policy.differing"),
    _engine("big bodies are late as small ones", "sizes", "FAR else max(SHORTEST, ratio)", "FAR else 1.0"),
    _engine("a class may be infinitely quick", "sizes", "max(SHORTEST, ratio)", "ratio"),
    _engine(
        "what takes long for its size teaches what is usual",
        "fleet",
        "self.latency.add(latency_s / query.scale)",
        "self.latency.add(latency_s)",
    ),
    _engine("help for a big body costs as that for a small one", "sizes", "left -= scale", "left -= 1.0"),
    _engine(
        "errors take out an endpoint whose load the others cannot bear",
        "ejection",
        "place.record.share > 0.5 or self._load.value * count < BEARABLE * fit",
        "True",
    ),
    _engine(
        "errors take out the last endpoint above suspicion",
        "ejection",
        "if not any(s.health.condition is Condition.IN and not s.record.suspect for s in others):",
        "if False:",
    ),
    _engine(
        "slow endpoints do not help in a crowd",
        "selection",
        "return self.policy.learn_speed and waiting > 0 and self.deployed.out > 0",
        "return False",
    ),
    _engine(
        "slow endpoints help although nobody waits",
        "selection",
        "and waiting > (min(state.speed.ratio, HELPED) - 1.0) * fit * state.endpoint.places",
        "",
    ),
    _engine(
        "the busiest of the overdue is given the benefit of the doubt",
        "selection",
        "min(overdue, key=lambda s: (s.host.in_flight, s.last_sent), default=None)",
        "max(overdue, key=lambda s: (s.host.in_flight, s.last_sent), default=None)",
    ),
    _engine(
        "a second attempt may go to the failure domain of the first",
        "selection",
        "return not far or state.domain != query.domain",
        "return True",
    ),
    _engine(
        "a second copy goes to a busy machine",
        "selection",
        "if chosen is None or chosen.host.in_flight or chosen.endpoint.instance in query.avoid:",
        "if chosen is None or chosen.endpoint.instance in query.avoid:",
    ),
    _engine(
        "a second copy does not wait for the backup's own time",
        "hedging",
        "return max(after_s * scale, launch_after_s + (self._backup_latency.quantile(LATE) or 0.0) * scale)",
        "return after_s * scale",
    ),
    _engine(
        "groups are never sealed early",
        "placement",
        "return not (self.policy.seal_early and self._partial) or now + self.gap.mean <= group.closes_at",
        "return True",
    ),
    _engine(
        "queries that wait never get a backup first",
        "launch",
        "return waiting * self.after_s if waiting and self.late else math.inf",
        "return math.inf",
    ),
    _engine(
        "the oldest goes first under pressure too",
        "admission",
        "return now > oldest.stale_at or (now < self._pressed_until and oldest.start_by < math.inf)",
        "return False",
    ),
    _engine(
        "what cannot be in time is sent all the same",
        "scheduler",
        "if now >= query.start_by and pool.admission.is_in_vain(query, now):",
        "if False:",
    ),
    _engine("one model's crowd keeps the others out", "scheduler", "else next_pool(waiting)", "else waiting[0]"),
    _engine("an answer is finished thrice", "release", "MAX_FINISHES: Final = 2", "MAX_FINISHES: Final = 3"),
    _engine(
        "a query that wants the deployed model's own answer gets another",
        "release",
        "if known and not self.is_confident(query, group):",
        "if False:",
    ),
    _engine(
        "a query that wants the deployed model's own answer has a student launched",
        "launch",
        "return code.lossless or (query.least <= 1.0 and self.policy.differing > 0.0)",
        "return True",
    ),
    _engine(
        "an answer that turns out to be in more doubt than its client takes is given",
        "life",
        "if self._fleet.pool_of(query.pool).release.is_confident(query, group):",
        "if True:",
    ),
    _engine(
        "launches take what second copies need",
        "life",
        "                else:\n                    self.work.spend(query.scale * pool.pool.cost)",
        "",
    ),
    _engine(
        "probes take what late queries need",
        "life",
        "self.pays_for_copy(query, KEPT_FROM_PROBES)",
        "self.pays_for_copy(query, 0.0)",
    ),
    _engine(
        "a cheap protection and a dear one are launched equally early",
        "launch",
        "min(LATEST_OF_ALL, max(LATE, 1.0 - share))",
        "LATE",
    ),
    _engine(
        "a rebuilt answer is used before its time",
        "release",
        "return now >= query.release_at and not query.finishes_pending",
        "return not query.finishes_pending",
    ),
    _engine(
        "a query that has killed a worker goes on killing",
        "query",
        "return not self.kills or (self.kills == 1 and not self.last_chance and not others)",
        "return True",
    ),
    _engine(
        "a retry costs nothing",
        "retries",
        "self.budget.take()\n",
        "pass\n",
    ),
    _engine("retries never come back with time", "budgets", "if self._per_s:\n", "if False:\n"),
    _engine(
        "errors of a suspect count as its successes",
        "suspicion",
        "if outcome.error and place.record.suspect and task.kind is Kind.DEPLOYED:",
        "if False:",
    ),
    _engine(
        "protections on trial answer clients",
        "life",
        "if not pool.protecting:\n                    self.proving",
        "if False:\n                    self.proving",
    ),
    _engine(
        "a lossless protection may answer differently from the model",
        "trust",
        "        if self.lossless:\n            return True\n",
        "        if self.lossless:\n            return False\n",
    ),
    _engine(
        "a protection is in use after its first comparison",
        "trust",
        "return self._compared >= (TRIAL_WHERE_QUIET if quiet else self._needed)",
        "return True",
    ),
    _engine("an endpoint that comes back gets all its places at once", "health", "self.ramp = 1\n", "pass\n"),
    _engine(
        "an endpoint that fails each time it comes back is tried as often as at first",
        "health",
        "min(LONGEST_SLOW if slow else LONGEST_OUT, 2**self._returns)",
        "1.0",
    ),
    _engine(
        "where a fifth of the answers are late, late is usual",
        "lateness",
        "return min(_at(ordered, share), usual)",
        "return _at(ordered, share)",
    ),
    _engine(
        "a model and its protection on one machine take places at once",
        "capacity",
        "if self.in_flight >= self.endpoint.places or share.in_flight >= share.places:",
        "if self.in_flight >= self.endpoint.places:",
    ),
    _engine(
        "a finish goes to an endpoint that is gone",
        "selection",
        "if s in there and s.has_place()",
        "if s.has_place()",
    ),
    _engine(
        "a trial takes places from those who are served",
        "selection",
        "or 2 * host.in_flight <= host.instance.places else None",
        "or True else None",
    ),
    _engine(
        "machines that are twice as slow are looked for where only far slower ones answer",
        "speed",
        "zip(self._shares(TWICE), usual, strict=True)",
        "zip(self._shares(FAR), usual, strict=True)",
    ),
    _engine(
        "nobody knows how slow the slow ones are",
        "speed",
        "latency_s / median if median else 1.0",
        "1.0",
    ),
    _engine(
        "one absurd latency decides how slow a machine is",
        "speed",
        "min(ratio, MOST)",
        "ratio",
    ),
    _engine(
        "only the latest answer of all is looked at",
        "speed",
        "self.usual_s = ordered[int(USUALLY * number)]",
        "self.usual_s = ordered[-1]",
    ),
    _engine(
        "where nearly all machines of a pool seem slow they stay so",
        "suspicion",
        "> MOST_SLOW * len(everyone)",
        "> 2 * len(everyone)",
    ),
    _engine("a class is known from its first answers", "sizes", "len(answers) >= FEW and ", ""),
    _engine("a size never seen takes as long as the smallest", "sizes", "max(smaller)", "min(smaller)"),
    _engine("no other size becomes usual", "sizes", "if latest[TURN // 4] <= 1.0 <=", "if 0.0 <="),
    _engine("half of the answers turn what is usual", "sizes", "latest[TURN // 4] <= 1.0", "latest[TURN // 2] <= 1.0"),
    _engine("the longest of the latest become usual", "sizes", "usual = latest[TURN // 2]", "usual = latest[-1]"),
    _engine("what is known is not rescaled", "fleet", "self.latency.rescale(usual)", "pass"),
    _engine("what backups take is not rescaled", "fleet", "self.backup_latency.rescale(usual)", "pass"),
    _engine("the latest are not rescaled", "fleet", "self.launch.latest.rescale(usual)", "pass"),
    _engine("queries in flight keep the scale that they had", "life", "other.scale /= usual", "pass"),
    _engine("tasks in flight keep the scale that they had", "life", "task.scale /= usual", "pass"),
    _engine("paths share their scales", "sizes", "known[0] == size[0] and ", ""),
    _engine(
        "lateness of some becomes usual",
        "sizes",
        "sorted(answers)[len(answers) // 2]",
        "sum(answers) / len(answers)",
    ),
    _engine(
        "big bodies are helped early however full the pool is",
        "sizes",
        "min(1.0, max(0.0, (FULL - load) / (FULL - HALF)))",
        "1.0",
    ),
    _engine(
        "a big body is late before one of usual size",
        "sizes",
        "min(late_s * scale, max(late_s, self.after_s))",
        "min(late_s * scale, self.after_s)",
    ),
    _engine(
        "a big query brings as much extra work as a small one",
        "life",
        "self.work.deposit(query.scale)",
        "self.work.deposit()",
    ),
    _engine(
        "a backup of a big query is launched as early as that of a small one",
        "life",
        "late_at = now + pool.launch.latest.bound(pool.launch.after_s, query.scale)",
        "late_at = now + pool.launch.after_s",
    ),
    _engine(
        "a second copy of a big query costs as much as that of a small one",
        "life",
        "        self.work.spend(query.scale - 1.0)\n",
        "",
    ),
    _engine(
        "queries ride along unpaid",
        "life",
        "(query.waiting or self.work.affords(pool.pool.cost))",
        "True",
    ),
    _engine(
        "extra work is saved up without end",
        "budgets",
        "self.tokens = min(self._burst, self.tokens + self._ratio * scale)",
        "self.tokens += self._ratio * scale",
    ),
    _engine(
        "what is kept for others is taken",
        "budgets",
        "if self.tokens - cost < reserve * self._burst - 1e-9:",
        "if self.tokens - cost < -1e-9:",
    ),
    _engine(
        "second copies take what protections need",
        "scheduler",
        "KEPT_FROM_COPIES if pool.launch.late else 0.0",
        "0.0",
    ),
    _engine(
        "what comparisons find changes no price",
        "accuracy",
        "        cost = doubt * self.correction\n        if cost",
        "        cost = doubt\n        if cost",
    ),
    _engine(
        "what comparisons find changes no spending",
        "accuracy",
        "        cost = doubt * self.correction\n        self.spent",
        "        cost = doubt\n        self.spent",
    ),
    _engine(
        "what was compared long ago counts as much as what was lately",
        "accuracy",
        "if self._expected > REMEMBERED:",
        "if False:",
    ),
    _engine(
        "a doubtful answer is as cheap when little is left",
        "accuracy",
        "(cost / (DEAR * self._tokens)) ** STEEP",
        "(cost / (DEAR * BURST)) ** STEEP",
    ),
    _engine(
        "answers that may differ are saved up without end",
        "accuracy",
        "min(BURST, self._tokens + self._share) if self._share else 0.0",
        "self._tokens + self._share if self._share else 0.0",
    ),
    _engine(
        "an answer that is given costs none of what may differ",
        "life",
        "            pool.release.budget.spend(doubt)\n",
        "",
    ),
    _engine(
        "what is held is not looked at again before its time",
        "life",
        "min(at, now + pool.release.after_s * query.scale)",
        "at",
    ),
    _engine(
        "a machine whose last answer was late is as good as any",
        "selection",
        "rank = (unwanted, not host.clean, own,",
        "rank = (unwanted, False, own,",
    ),
    _engine(
        "a machine of many places is fuller than one of few",
        "selection",
        "taken / instance.places, state.last_sent)",
        "float(taken), state.last_sent)",
    ),
    _engine(
        "a query that has failed once already probes",
        "selection",
        "if avoid and health.condition is Condition.OUT:",
        "if False:",
    ),
    _engine(
        "a slow machine that is far slower never helps a crowd",
        "selection",
        "min(state.speed.ratio, HELPED)",
        "state.speed.ratio",
    ),
    _engine(
        "a second copy goes to the failure domain of its query",
        "selection",
        "return chosen if chosen.domain != query.domain or self._domains == 1 else None",
        "return chosen",
    ),
    _engine(
        "a late query's backup goes to the failure domain of its query",
        "selection",
        "return chosen if all(state.domain == query.domain for state in everyone) else None",
        "return chosen",
    ),
    _engine(
        "of endpoints that are all out the last to be back is asked",
        "selection",
        "return min(out, key=lambda s: (s.health.resumes_at, s.last_sent), default=None)",
        "return max(out, key=lambda s: (s.health.resumes_at, s.last_sent), default=None)",
    ),
    _engine(
        "a big query is overdue as soon as a small one",
        "selection",
        "overdue_s * oldest.scale",
        "overdue_s",
    ),
    _engine(
        "one more than its places goes to a machine whose last answer was late too",
        "selection",
        "            if state.host.clean\n            and state.share",
        "            if state.share",
    ),
    Mutant(
        "what hides behind its neighbours' rounding is decoded",
        "codes.py",
        "if (noise > enough).any():",
        "if False:",
        ("tests/test_codes.py",),
    ),
    Mutant(
        "slots that nobody is in are learned from",
        "training/goals.py",
        "(divergence.flatten(2).mean(-1) * present).sum() / present.sum()",
        "divergence.flatten(2).mean()",
        ("tests/training/test_goals.py",),
    ),
    Mutant(
        "the last weights are kept, not the best",
        "training/fit.py",
        "if goodness >= state.best:",
        "if True:",
        ("tests/training/test_training.py",),
    ),
    Mutant(
        "nobody looks whether a packed archive answers as the network that was trained",
        "training/packing.py",
        "if _loads_as(packed, self.bodies, expected):",
        "if True:",
        ("tests/training/test_training.py", "tests/training/test_dtypes.py", "tests/training/test_texts.py"),
    ),
    Mutant(
        "the cheapest is recommended, whatever it loses",
        "training/recommend.py",
        "small = [c for c in usable if loss(c) <= SMALL_LOSS]",
        "small = [*usable]",
        ("tests/training/test_recommend.py",),
    ),
    Mutant(
        "what loses too much is recommended",
        "training/recommend.py",
        "if loss(c) <= MOST_LOSS]\n    return _choose",
        "]\n    return _choose",
        ("tests/training/test_recommend.py",),
    ),
    Mutant(
        "what is scored is learned from too",
        "training/split.py",
        "np.flatnonzero(np.isin(contents, different[learned]))",
        "np.arange(len(contents))",
        ("tests/training/test_split.py",),
    ),
    Mutant(
        "answers of one group count as if each told something of its own",
        "training/intervals.py",
        "        if self.together:\n",
        "        if False:\n",
        ("tests/training/test_intervals.py",),
    ),
    Mutant(
        "of two slots that are lost together, one is there",
        "training/evaluate.py",
        "itertools.combinations(range(members), min(erased, members))",
        "itertools.combinations(range(members), 1)",
        ("tests/training/test_evaluate.py",),
    ),
    Mutant(
        "an interrupted run goes on with other bodies",
        "training/workshop.py",
        '"inputs": _contents(bodies),',
        '"inputs": "",',
        ("tests/training/test_leaks.py",),
    ),
    Mutant(
        "a confidence is judged by answers that it was fitted to",
        "training/calibration.py",
        "joined([*others, *folds[:place], *folds[place + 1 :]])",
        "joined([*others, *folds])",
        ("tests/training/test_calibration.py",),
    ),
    Mutant(
        "rows that err alike are believed from two bodies on",
        "training/weighing.py",
        "believed = bodies / (bodies + HALF_BELIEVED)",
        "believed = 1.0",
        ("tests/training/test_weighing.py",),
    ),
    Mutant(
        "networks learn from full groups only",
        "training/goals.py",
        "np.flatnonzero(rng.random(groups) < empty)",
        "np.flatnonzero(rng.random(groups) < 0.0)",
        ("tests/training/test_goals.py", "tests/training/test_training.py"),
    ),
    Mutant(
        "the time of the whole group is called that of one answer",
        "training/cost.py",
        "one_s = statistics.mean(each_s)",
        "one_s = sum(each_s)",
        ("tests/training/test_cost.py",),
    ),
    Mutant(
        "a protection's measured cost is left out of the work",
        "proxy/serving/driver.py",
        "if target.cost is None:",
        "if True:",
        (
            "tests/proxy/serving/test_predictions.py",
            "tests/proxy/operations/test_status.py",
            "tests/proxy/serving/test_late_launch.py",
        ),
    ),
    Mutant(
        "a group is encoded for a code that is no longer its pool's",
        "proxy/serving/driver.py",
        "if code is not task.group.code and code != task.group.code:",
        "if False:",
        ("tests/proxy/test_app.py",),
    ),
    Mutant(
        "a client may say what only the proxy may",
        "proxy/http/messages.py",
        "return tuple(pair for pair in headers if not header_flags(pair[0]) & CONTROL), controls",
        "return tuple(headers), controls",
        (
            "tests/proxy/http/test_heads.py",
            "tests/proxy/http/test_fidelity.py",
            "tests/proxy/http/test_messages.py",
        ),
    ),
    Mutant(
        "lossless answers that differ by a tenth are taken for equal",
        "proxy/serving/comparison.py",
        "CLOSE: Final = 1e-3",
        "CLOSE: Final = 1e-1",
        ("tests/proxy/serving/test_comparison.py",),
    ),
    Mutant(
        "targets that climb above the root are passed on",
        "proxy/http/request_line.py",
        "        if depth < 0:\n",
        "        if False:\n",
        ("tests/proxy/http/test_request_line.py",),
    ),
    Mutant(
        "where instances have many places no client is let in",
        "proxy/http/descriptors.py",
        "max(left, files // 8)",
        "left",
        ("tests/proxy/http/test_descriptors.py",),
    ),
    Mutant(
        "a forwarded query is forwarded again",
        "proxy/serving/service.py",
        "if isinstance(responder, PeerResponder):\n                final = True",
        "if not responder:\n                final = True",
        ("tests/proxy/serving/test_forwarding.py",),
    ),
    Mutant(
        "what must be asked once is taken back from a peer that broke off",
        "proxy/serving/forwarding.py",
        "if untouched or self._repeatable:",
        "if True:",
        ("tests/proxy/serving/test_forwarding.py",),
    ),
    Mutant(
        "anything that comes back from a peer's address is its answer",
        "proxy/serving/forwarding.py",
        "if mark == FORWARDED_ANSWERED:",
        "if mark != FORWARDED_UNABLE:",
        ("tests/proxy/serving/test_forwarding.py",),
    ),
    Mutant(
        "a heartbeat's answer may be an old one",
        "proxy/fleet/peers.py",
        'self._proof("say", nonce, body.decode())',
        'self._proof("say", "", body.decode())',
        ("tests/proxy/fleet/test_peers.py",),
    ),
    Mutant(
        "whoever claims to be a peer is one",
        "proxy/fleet/peers.py",
        'or not self._is_proof(proof, "forward", member)',
        "",
        ("tests/proxy/fleet/test_peers.py",),
    ),
    _engine(
        "who was away itself blames its peers",
        "members",
        "if 0.0 < away_s < math.inf:",
        "if away_s == 0.125:",
    ),
    _engine(
        "queries are forwarded to proxies before another fleet",
        "members",
        "elif word.fleet != self.fleet:",
        "elif not word.member:",
    ),
    Mutant(
        "a page may ask the admin port by a name of its own",
        "proxy/operations/admin.py",
        "if not _is_ours(host, name):",
        "if False:",
        ("tests/proxy/operations/test_admin.py",),
    ),
    Mutant(
        "what never came counts as nothing saved",
        "proxy/serving/races.py",
        'self._decide(race, "never", race.deadline_s)',
        'self._decide(race, "never", race.given_s)',
        ("tests/proxy/serving/test_races.py",),
    ),
    Mutant(
        "a failure that would have been tried again counts as the deadline",
        "proxy/serving/races.py",
        "known_s if again else race.deadline_s",
        "race.deadline_s",
        ("tests/proxy/serving/test_races.py",),
    ),
    Mutant(
        "any comparison counts as one of what was given",
        "proxy/serving/races.py",
        "if not isinstance(race, Race) or race.given != other.id or own.hedge:",
        "if not isinstance(race, Race):",
        ("tests/proxy/serving/test_races.py",),
    ),
    Mutant(
        "percentiles are told of a handful of answers",
        "proxy/serving/durations.py",
        "behind < min(BEHIND, 0.5 * number) - 1e-9",
        "False",
        ("tests/proxy/serving/test_durations.py",),
    ),
    Mutant(
        "times of several processes are added up",
        "proxy/operations/merge.py",
        'if not _is_cumulative(family) and family.name.endswith(("_seconds", "_ratio", "_info")):',
        "if False:",
        ("tests/proxy/operations/test_merge.py",),
    ),
    Mutant(
        "queries that a header keeps apart share a group",
        "proxy/fleet/backends/torchserve.py",
        "if lower in group_by or lower in _ALWAYS_GROUP_BY:",
        "if False:",
        ("tests/proxy/serving/test_predictions.py",),
    ),
    Mutant(
        "a body that must never be coded is",
        "proxy/serving/service.py",
        "if key is not None and plan.never_code is not None",
        "if False and plan.never_code is not None",
        ("tests/proxy/serving/test_predictions.py", "tests/proxy/test_promises.py", "tests/proxy/fleet/test_plan.py"),
    ),
    Mutant(
        "a body that may have killed a worker is sent with its group all the same",
        "proxy/serving/driver.py",
        "if member is not None and slot in sent else None",
        "if member is not None else None",
        ("tests/proxy/serving",),
    ),
    Mutant(
        "a protection made for other weights is used",
        "proxy/fleet/plan.py",
        "elif protects.weights and weights and protects.weights not in weights:",
        "elif False:",
        ("tests/proxy/fleet/test_plan.py",),
    ),
    Mutant(
        "an operation needs no secret",
        "worker/entry.py",
        "if index not in allowed:",
        "if False:",
        ("tests/worker/test_operations.py",),
    ),
    Mutant(
        "the handler sees the headers that are for its wrapper",
        "worker/entry.py",
        "                    del each[name]\n",
        "                    pass\n",
        ("tests/worker/test_operations.py", "tests/worker/test_requests.py"),
    ),
    Mutant(
        "rows and headers that do not belong together are matched",
        "worker/entry.py",
        "if not any(operations) or len(headers) != len(data):",
        "if not any(operations):",
        ("tests/worker/test_operations.py", "tests/worker/test_requests.py"),
    ),
    Mutant(
        "a raw output that is not finite goes out",
        "worker/operations.py",
        " or not np.isfinite(raw).all():",
        ":",
        ("tests/worker/test_operations.py",),
    ),
    Mutant(
        "a response may be larger than TorchServe bears",
        "worker/operations.py",
        "if len(answer.body) + raw.nbytes > self._max_response_size:",
        "if False:",
        ("tests/worker/test_operations.py",),
    ),
    Mutant(
        "an answer with NaN in it is finished",
        "worker/operations.py",
        "if not_finite(answer.body):",
        "if False:",
        ("tests/worker/test_operations.py",),
    ),
    Mutant(
        "requests of a batch are run apart although that makes a difference",
        "worker/operations.py",
        "self.verdict.state is VerdictState.CODABLE and self.verdict.alone is True",
        "self.verdict.state is VerdictState.CODABLE",
        ("tests/worker/test_operations.py",),
    ),
    Mutant(
        "a handler that was refused is coded after its next good answer",
        "worker/verdict.py",
        "        if not self.refused:\n            self.state, self.reason = VerdictState.CODABLE, reason",
        "        self.state, self.reason = VerdictState.CODABLE, reason",
        ("tests/worker/test_verdict.py", "tests/worker/test_operations.py"),
    ),
    Mutant(
        "an input of NaN is added to its neighbours",
        "worker/encoders.py",
        "if not is_finite",
        "if False",
        ("tests/worker/test_encoders.py", "tests/worker/test_operations.py"),
    ),
    Mutant(
        "a GPU's memory is kept after it ran out",
        "worker/gpu.py",
        "        torch.cuda.empty_cache()",
        "        pass",
        ("tests/worker/test_gpu.py",),
    ),
    Mutant(
        "a worker goes on without its GPU",
        "worker/gpu.py",
        '"CUDA error" in str(error) and _is_lost()',
        "False",
        ("tests/worker/test_gpu.py",),
    ),
    Mutant(
        "a worker ends at any error of its GPU",
        "worker/gpu.py",
        '"CUDA error" in str(error) and _is_lost()',
        '"CUDA error" in str(error)',
        ("tests/worker/test_gpu.py",),
    ),
    Mutant(
        "the precision around a call is forgotten",
        "worker/boundary.py",
        "        with call.as_called():\n            return run(*call.args, **call.kwargs)",
        "        return run(*call.args, **call.kwargs)",
        ("tests/worker/test_gpu.py",),
    ),
    Mutant(
        "a self-test out of memory refuses a handler",
        "worker/selftest.py",
        "        if is_out_of_memory(error):\n            raise\n        names",
        "        names",
        ("tests/worker/test_gpu.py",),
    ),
    Mutant(
        "a trace computes on the device it was made on",
        "worker/protections.py",
        '            constant.s_("value", str(device))',
        "            pass",
        ("tests/worker/test_gpu.py",),
    ),
    Mutant(
        "half precision is added in half precision",
        "worker/encoders.py",
        "wide = torch.promote_types(dtype, torch.float32)",
        "wide = dtype",
        ("tests/worker/test_encoders.py",),
    ),
    Mutant(
        "user code may change a raw output after it was taken",
        "worker/outputs.py",
        "_WIRE_DTYPES[tensor.dtype], copy=True)",
        "_WIRE_DTYPES[tensor.dtype])",
        ("tests/worker/test_outputs.py", "tests/worker/test_boundary.py"),
    ),
    Mutant(
        "a percentile is told of a handful of samples",
        "lab/report.py",
        "if len(ordered) < needed(share):",
        "if not ordered:",
        ("tests/lab/test_report.py",),
    ),
    Mutant(
        "latency counts from when a query could be sent",
        "lab/traffic.py",
        "latency_s = time.monotonic() - self.origin - due_at",
        "latency_s = time.monotonic() - self.origin - sent_at",
        ("tests/lab/test_traffic.py",),
    ),
    Mutant(
        "a client's patience begins when its query could be sent",
        "lab/traffic.py",
        "max(0.001, self.timeout_s - (sent_at - due_at))",
        "self.timeout_s",
        ("tests/lab/test_traffic.py",),
    ),
    Mutant(
        "models of one emulated machine run at once",
        "lab/emulated_handler.py",
        "fcntl.flock(lock, fcntl.LOCK_EX)",
        "pass",
        ("tests/lab/test_emulation.py",),
    ),
    Mutant(
        "an emulated machine is slow beyond its spell",
        "lab/emulated_handler.py",
        "takes, at = takes - (until - at) / factor, until",
        "takes, at = takes * factor - (until - at), until",
        ("tests/lab/test_emulation.py",),
    ),
    Mutant(
        "a bench goes on though all of it fails",
        "lab/bench.py",
        'self._last.append("" if record.answered else _told(record))',
        'self._last.append("")',
        ("tests/lab/test_bench.py",),
    ),
    Mutant(
        "a query that is lost is as good as none",
        "lab/bench.py",
        "else math.inf for r in records]",
        "else 0.0 for r in records]",
        ("tests/lab/test_bench_judged.py",),
    ),
    Mutant(
        "a threshold holds for what was not measured",
        "lab/thresholds.py",
        'return f"{self.text}: not measured{beside}"',
        'return ""',
        ("tests/lab/test_bench.py",),
    ),
    Mutant(
        "an interval takes neighbours for independent",
        "lab/intervals.py",
        "size = max(1, math.ceil(len(ordered) / BLOCKS))",
        "size = 1",
        ("tests/lab/test_bench.py",),
    ),
    Mutant(
        "an instance is frozen twice at once",
        "lab/faults.py",
        "at += lasts + rng.expovariate(1 / mean_gap_s)",
        "at += rng.expovariate(1 / mean_gap_s)",
        ("tests/lab/test_faults.py",),
    ),
    Mutant(
        "an injector that ends leaves frozen what it froze",
        "lab/faults.py",
        "await asyncio.gather(*spells, return_exceptions=True)  # each thaws what it froze",
        "pass",
        ("tests/lab/test_faults.py",),
    ),
    Mutant(
        "a frozen machine works on",
        "lab/simulate.py",
        'if outage.kind == "frozen":\n                at = max(at, outage.ends_at)\n',
        'if outage.kind == "frozen":\n',
        ("tests/lab/test_simulate.py",),
    ),
    Mutant(
        "machines beyond those that were seen are slow together with them",
        "lab/spells.py",
        "((index // len(seen) + begun) * 0.618034 % 1.0)",
        "(begun * 0.618034 % 1.0)",
        ("tests/lab/test_spells.py",),
    ),
    Mutant(
        "a plan takes what loses too much where nothing was said of it",
        "lab/plan.py",
        'elif row["loss_each"] > MOST_LOSS and self.loss is None:',
        "elif False:",
        ("tests/lab/test_plan.py",),
    ),
    Mutant(
        "of plans that do as well the fastest is taken, whatever it costs",
        "lab/plan.py",
        'return min(close, key=lambda row: (row["extra_machines"], row["work"], row["loss"]))',
        "return min(close, key=_tail)",
        ("tests/lab/test_plan.py",),
    ),
    Mutant(
        "a setting that needs a restart is run at once",
        "config/changes.py",
        "**{name: getattr(running.settings, name) for name in RESTART}",
        "",
        ("tests/proxy/operations/test_reloading.py",),
    ),
    Mutant(
        "a restart that is needed is not named",
        "config/changes.py",
        "tuple(told[name] for name in names if name in RESTART)",
        "()",
        ("tests/proxy/operations/test_reloading.py",),
    ),
    Mutant(
        "a reload tells keys",
        "config/changes.py",
        '    if item.metadata["secret"]:\n        return',
        "    if False:\n        return",
        ("tests/proxy/operations/test_reloading.py",),
    ),
    Mutant(
        "where a kept setting came from is told of the new file",
        "config/changes.py",
        "{**origins, **kept}",
        "{**kept, **dict(wanted.origins)}",
        ("tests/proxy/operations/test_reloading.py",),
    ),
    Mutant(
        "of contradictions only the first kind is looked for",
        "config/reading.py",
        "(_check_listening, _check_peers, _check_models, _check_instances)",
        "(_check_listening,)",
        ("tests/test_config.py", "tests/test_configuration.py"),
    ),
    Mutant(
        "environment wins over flags",
        "config/reading.py",
        "                self._take(name, text, flag, ValueOrigin(FLAG, flag))",
        "                self._values.setdefault(name, convert(FIELDS[name], text, flag))",
        ("tests/test_config.py", "tests/test_configuration.py", "tests/proxy/operations/test_reloading.py"),
    ),
    Mutant(
        "a port of 65536 is one",
        "config/schema.py",
        'setting(8080, "inference port; 0: a free one", unit="port", below=65536',
        'setting(8080, "inference port; 0: a free one", unit="port", below=65537',
        ("tests/test_config.py", "tests/test_configuration.py"),
    ),
    Mutant(
        "config show tells secrets",
        "config/show.py",
        'HIDDEN if item.metadata["secret"] and value else value',
        "value",
        ("tests/test_config.py", "tests/test_configuration.py", "tests/proxy/operations/test_reloading.py"),
    ),
    Mutant(
        "a late answer to one reload is taken for the next one's",
        "proxy/operations/processes.py",
        "self._awaited.get((step, number))",
        "next(iter(self._awaited.values()), None)",
        ("tests/proxy/operations/test_processes.py",),
    ),
    Mutant(
        "a process that has not committed is not told of",
        "proxy/operations/processes.py",
        "            self._overdue = number\n",
        "            pass\n",
        ("tests/proxy/operations/test_processes.py",),
    ),
    Mutant(
        "one process that cannot use the new settings stops nobody",
        "proxy/operations/processes.py",
        "            if problem:\n                raise ConfigError(problem)",
        "            if False:\n                raise ConfigError(problem)",
        ("tests/proxy/operations/test_processes.py", "tests/proxy/operations/test_reloading.py"),
    ),
    Mutant(
        "a process that was started with older settings keeps them",
        "proxy/operations/processes.py",
        "        if settings is not self.settings:  # they were changed meanwhile",
        "        if False:",
        ("tests/proxy/operations/test_processes.py", "tests/proxy/operations/test_reloading.py"),
    ),
    Mutant(
        "half of a configuration goes on",
        "proxy/operations/child.py",
        'could not be adopted: draining")\n            self._proxy.drain()',
        'could not be adopted: draining")',
        ("tests/proxy/operations/test_processes.py",),
    ),
    Mutant(
        "what is left of one recording is in the next",
        "proxy/operations/processes.py",
        "self._recording is None or number != self._recordings or",
        "self._recording is None or",
        ("tests/proxy/operations/test_processes.py",),
    ),
    Mutant(
        "connections to instances that are gone are kept",
        "proxy/app.py",
        "            for url in urls - _urls(settings):\n                self.upstream.forget(url)\n",
        "",
        ("tests/proxy/operations/test_reloading_kinds.py", "tests/proxy/operations/test_reloading.py"),
    ),
    Mutant(
        "connections with other TLS settings are kept",
        "proxy/http/upstream.py",
        "if made is not self._tls.get(url):",
        "if False:",
        ("tests/proxy/http/test_upstream.py", "tests/proxy/operations/test_reloading.py"),
    ),
    Mutant(
        "a refused reload leaves the old settings in doubt",
        "proxy/operations/reloading.py",
        "        self._running, self._pending = running, found.restart\n",
        "        self._running = running\n",
        ("tests/proxy/operations/test_reloading.py",),
    ),
    Mutant(
        "pairs of every model are recorded",
        "proxy/serving/recording.py",
        "if not self.wanted.covers(pool):",
        "if False:",
        ("tests/proxy/serving/test_recording.py", "tests/proxy/test_record_command.py"),
    ),
    Mutant(
        "errors are recorded as answers",
        "proxy/serving/recording.py",
        "200 <= answer.status < 300",
        "True",
        ("tests/proxy/serving/test_recording.py", "tests/proxy/test_record_command.py"),
    ),
    Mutant(
        "a recording that nobody reads grows for ever",
        "proxy/serving/recording.py",
        "full = len(self._waiting) >= MOST_WAITING or self._waiting_bytes + size > MOST_WAITING_BYTES",
        "full = False",
        ("tests/proxy/serving/test_recording.py",),
    ),
    Mutant(
        "what a client samples is not traced",
        "proxy/serving/tracing.py",
        "and not (client is not None and client.sampled)",
        "",
        ("tests/proxy/serving/test_tracing.py",),
    ),
    Mutant(
        "a task that outlives its query is in no trace",
        "proxy/serving/tracing.py",
        "for trace in self._outlived.pop(task.id, ()):",
        "for trace in ():",
        ("tests/proxy/serving/test_tracing.py",),
    ),
    Mutant(
        "a rescued query is not traced",
        "proxy/serving/tracing.py",
        "wanted = source is not Source.DEPLOYED or status",
        "wanted = status",
        ("tests/proxy/serving/test_tracing.py",),
    ),
    Mutant(
        "the spans of two proxies are in two traces",
        "proxy/serving/tracing.py",
        "under = header(request.controls, SPAN) if by_peer else None",
        "under = None",
        ("tests/proxy/serving/test_tracing.py",),
    ),
    Mutant(
        "a client says what another proxy's span is",
        "proxy/serving/tracing.py",
        "under = header(request.controls, SPAN) if by_peer else None",
        "under = header(request.controls, SPAN)",
        ("tests/proxy/serving/test_tracing.py",),
    ),
    Mutant(
        "spans that wait have no bound",
        "proxy/serving/tracing.py",
        "if len(self._waiting) >= MOST_WAITING:",
        "if False:",
        ("tests/proxy/serving/test_tracing.py",),
    ),
    Mutant(
        "a student's error is shown to a client",
        "proxy/fleet/backends/plain.py",
        "if not 200 <= result.status < 300 or not self.is_answer(result):",
        "if False:",
        ("tests/proxy/fleet/backends", "tests/proxy/test_plain_servers.py"),
    ),
    Mutant(
        "a query of a sequence may be copied",
        "proxy/fleet/backends/open_inference.py",
        'if sequence not in (None, 0, ""):',
        "if False:",
        ("tests/proxy/fleet/backends", "tests/proxy/test_plain_servers.py"),
    ),
    Mutant(
        "a compressed body of a sequence may be copied",
        "proxy/fleet/backends/open_inference.py",
        '(request.header("content-encoding") or "identity").lower() != "identity"',
        "False",
        ("tests/proxy/fleet/backends", "tests/proxy/test_plain_servers.py"),
    ),
    Mutant(
        "a server that says that it is not ready is left at once",
        "proxy/fleet/backends/probing.py",
        "if last is not None and last.up:  # readiness alone takes nobody out",
        "if False:",
        ("tests/proxy/fleet/backends", "tests/proxy/test_plain_servers.py"),
    ),
    Mutant(
        "what another address hosted is believed after a reload",
        "proxy/fleet/backends/probing.py",
        " or addresses.get(given.name) != given.inference",
        "",
        ("tests/proxy/fleet/backends", "tests/proxy/operations/test_reloading_kinds.py"),
    ),
    Mutant(
        "warnings are no errors, however strict",
        "doctor/check.py",
        "wrong = [r for r in results if r.state == ERROR or (strict and r.state == WARNING)]",
        "wrong = [r for r in results if r.state == ERROR]",
        ("tests/doctor",),
    ),
    Mutant(
        "the highest exit code wins",
        "doctor/check.py",
        "return min((r.check.exit_code for r in wrong), default=0)",
        "return max((r.check.exit_code for r in wrong), default=0)",
        ("tests/doctor",),
    ),
    Mutant(
        "a bundle tells secrets",
        "doctor/bundle.py",
        '(GIVEN if value else "") if item.metadata.get("secret") else shown(value)',
        "shown(value)",
        ("tests/doctor",),
    ),
    Mutant(
        "more places than workers are well",
        "doctor/models.py",
        "        if given > capacity:",
        "        if given > capacity + 1:",
        ("tests/doctor",),
    ),
    Mutant(
        "a group that an instance refuses is well",
        "doctor/protection.py",
        "        if not probe.taken",
        "        if False",
        ("tests/doctor",),
    ),
    _engine(
        "what two instances died of is sent to a third",
        "scheduler",
        " or (lost and self._life.broke_again(task, now))",
        "",
    ),
    _engine(
        "a third has what the second may still die of, as a copy",
        "life",
        "query.hedge_at = max(hedge_at, now + AS_LONG * query.broke_s)",
        "query.hedge_at = hedge_at",
    ),
    _engine(
        "a third has what the second may still die of, as a retry",
        "life",
        "query.yields_until = now + AS_LONG * max(0.0, query.copied_at - task.sent_at)",
        "query.yields_until = now",
    ),
    _engine(
        "what two instances died of while it waited is sent all the same",
        "life",
        "            if query.waiting and not query.may_run():",
        "            if False:",
    ),
    _engine(
        "what everybody rejects stands first in the line",
        "life",
        "        if rounds >= 0:",
        "        if False:",
    ),
    _engine(
        "while a query rests, no other has a copy",
        "fleet",
        "any(now >= query.yields_until for query in self.retries.values())",
        "bool(self.retries)",
    ),
    Mutant(
        "a counter falls where one process loses an endpoint before another",
        "proxy/operations/merge.py",
        "if any(there.get(series, 0.0) < family.values[series] for series in block)",
        "if False",
        ("tests/proxy/operations/test_processes.py",),
    ),
    Mutant(
        "endpoints that no process has any more are shown for ever",
        "proxy/operations/merge.py",
        "return series not in there and 'pool=\"' in series",
        "return False",
        ("tests/proxy/operations/test_processes.py",),
    ),
    Mutant(
        "a client that gives two ids has its servers doubted",
        "proxy/fleet/backends/open_inference.py",
        "if servers not in self._echoing or not _has_one_id(request):",
        "if servers not in self._echoing:",
        ("tests/proxy/fleet/backends/test_confused.py",),
    ),
    Mutant(
        "servers that make up ids are doubted because another model's do not",
        "proxy/fleet/backends/open_inference.py",
        "if servers not in self._echoing or",
        "if not self._echoing or",
        ("tests/proxy/fleet/backends/test_confused.py",),
    ),
    Mutant(
        "a version that somebody else has registered is unregistered",
        "torchserve/rollout.py",
        "if error.upstream_status == CONFLICT and self._undo:",
        "if False:",
        ("tests/torchserve/test_rollout.py",),
    ),
    Mutant(
        "a trial that somebody else has registered is unregistered",
        "torchserve/rollout.py",
        "if error.upstream_status == CONFLICT and self._undo:",
        "if error.upstream_status == CONFLICT and name is None and self._undo:",
        ("tests/torchserve/test_rollout.py",),
    ),
    Mutant(
        "the first goes while no proxy uses another",
        "torchserve/rollout.py",
        'view.alone(step.instance, f"{step.model}/{step.version}", step.others)',
        '""',
        ("tests/proxy/test_replacing.py",),
    ),
    _engine("hundreds of answered queries are kept", "timers", "ROOM: Final = 16", "ROOM: Final = 256"),
    _engine(
        "where few of the latest are far off, the rest are not looked at",
        "sizes",
        "if not self._spend(left, far):",
        "if not self._spend(left, far) and not far:",
    ),
    _engine(
        "another promise of a student's need not be kept",
        "trust",
        "        self._reported = agreement\n        self.restart(now)",
        "        self._reported = agreement",
    ),
    _engine(
        "no retries means ten",
        "budgets",
        "burst = policy.retry_burst if policy.retry_ratio else 0.0",
        "burst = policy.retry_burst",
    ),
    _engine(
        "a queue of many places takes as long as one of one",
        "admission",
        "return waiting * self._latency.median / self._places",
        "return waiting * self._latency.median",
    ),
]


def made(mutant: Mutant, text: str) -> str:
    """The text of its file, changed. Raise ValueError if the piece is not there just once."""
    if (times := text.count(mutant.before)) != 1:
        raise ValueError(f"{mutant.what}: its piece is {times} times in {mutant.file}")
    return text.replace(mutant.before, mutant.after)


def survives(mutant: Mutant) -> bool:
    """Run its tests on a copy of the package. Raise ValueError if it cannot be made or its tests cannot be run."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ts_parity", "tests", "handlers", "examples", "benchmarks", "docs", "pyproject.toml", "README.md"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("__pycache__", ".*", "*.so"))
            else:
                shutil.copy(source, folder)
        file = Path(folder, "ts_parity", mutant.file)
        file.write_text(made(mutant, file.read_text()))
        for which in ("not slow", "slow"):
            for tests in mutant.tests:
                if _fails(mutant, tests, which, folder):
                    return False
    return True


def _fails(mutant: Mutant, tests: str, which: str, folder: str) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", tests]
    command += ["-m", f"not torchserve and {which}"]
    environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if ran.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise ValueError(f"{mutant.what}: its tests could not be run\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return ran.returncode == pytest.ExitCode.TESTS_FAILED


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help="only the mutants of these folders of the package")
    parser.add_argument("--list", action="store_true", help="say which there are, and run nothing")
    args = parser.parse_args(argv)
    chosen = [mutant for mutant in MUTANTS if not args.rooms or mutant.room in args.rooms]
    if args.list:
        for mutant in chosen:
            print(f"{mutant.room}: {mutant.what}")
        return 0
    survivors, stale = [], []
    for mutant in tqdm(chosen, unit="mutant"):
        try:
            if survives(mutant):
                survivors.append(mutant)
                tqdm.write(f"SURVIVED  {mutant.room}: {mutant.what}")
        except ValueError as error:
            stale.append(mutant)
            tqdm.write(f"NOT RUN   {error}")
    print(f"{len(chosen)} mutants, {len(survivors)} survived, {len(stale)} not run")
    return 2 if stale else 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
