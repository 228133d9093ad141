"""The pages of reference that are made from the code: `python docs/reference.py` writes them, a test compares them.

docs/settings.md and docs/doctor.md are made by the package itself: `python -m ts_parity.config` and `... .doctor`.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from ts_parity import errors, wire
from ts_parity.arguments import Parser, subcommands
from ts_parity.cli import build_parser
from ts_parity.codes import make_code
from ts_parity.config import Settings
from ts_parity.config.schema import FIELDS
from ts_parity.engine import Endpoint, Fleet, Instance, Policy, Pool, Scheduler, policy
from ts_parity.errors import EXIT_CODES, TsParityError
from ts_parity.proxy.operations.admin import AdminServer
from ts_parity.proxy.operations.reloading import Reloader
from ts_parity.proxy.serving.durations import WIDE_S
from ts_parity.proxy.serving.metrics import FEW, MOST_ENDPOINTS, MOST_POOLS, Metrics
from ts_parity.tables import markdown

DOCS = Path(__file__).parent
MADE = "Made by `python docs/reference.py` from {}; do not edit by hand."


# ---- commands ----------------------------------------------------------------------------------------------------


def commands() -> str:
    lines = ["# Commands", "", MADE.format("the commands' own parsers"), ""]
    lines += ["`ts-parity COMMAND --help` says the same in a terminal.", ""]
    root = build_parser()
    told = {action.dest: action.help or "" for action in _choices(root)}
    rows = [(f"[`{name}`](#ts-parity-{name})", told[name]) for name in subcommands(root)]
    lines += [markdown(("command", "what it does"), rows), ""]
    lines += ["Exit codes, of every command:", "", markdown(("code", "meaning"), _codes()), ""]
    for name, parser in subcommands(root).items():
        lines += _command(f"ts-parity {name}", parser, 2)
        for inner, of_it in subcommands(parser).items():
            lines += _command(f"ts-parity {name} {inner}", of_it, 3)
    return "\n".join(lines)


def _codes() -> list[tuple[str, str]]:
    return [(str(code), what) for code, what in EXIT_CODES.items()]


def _choices(parser: argparse.ArgumentParser) -> Iterable[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action._choices_actions


def _command(name: str, parser: Parser, level: int) -> list[str]:
    lines = [f"{'#' * level} {name}", "", _plain(parser.description or ""), ""]
    if parser._examples:
        lines += [*(f"    {line}" for line in parser._examples), ""]
    groups = [
        (group, [action for action in group._group_actions if _is_told(action)]) for group in parser._action_groups
    ]
    for group, actions in groups:
        if actions:
            head = "option" if group.title in ("options", "positional arguments", None) else group.title
            lines += [markdown((head, "default", "what it is"), [_option(action) for action in actions]), ""]
    if any(action.dest in FIELDS for action in parser._actions):
        lines += ["Each [setting](settings.md) is a flag too: `deadline_s` is `--deadline-s`.", ""]
    return lines


def _is_told(action: argparse.Action) -> bool:
    if isinstance(action, argparse._HelpAction | argparse._SubParsersAction) or action.help == argparse.SUPPRESS:
        return False
    return action.dest not in FIELDS


def _option(action: argparse.Action) -> tuple[str, str, str]:
    name = action.option_strings[-1] if action.option_strings else ""
    value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
    default = "required" if action.required and name else ""
    if not (action.default is None or action.default is False or action.default in ([], argparse.SUPPRESS)):
        default = f"`{action.default}`"
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return _cell(f"`{f'{name} {value}'.strip()}`"), default, _plain(text)


def _plain(text: str) -> str:
    """As Markdown: what begins with dashes is code, and nothing is markup by accident."""
    parts = text.split("`")  # every other one is code already
    parts[::2] = [re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"`\1`", part).replace("<", "&lt;") for part in parts[::2]]
    return _cell("`".join(parts))


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


# ---- metrics -----------------------------------------------------------------------------------------------------

OPEN = {"pool", "endpoint", "version", "python", "compiled"}
"""Labels whose values are names, or say what runs."""
METRICS = """\
# Metrics

{head}

`GET /metrics` of the [admin port](http.md#the-admin-port), or of `metrics_address`, for Prometheus; as OpenMetrics,
with exemplars, for clients that accept it. [Monitoring](monitoring.md) has a dashboard and alerts made of these.

Labels are `pool` (a model and its version, such as `resnet/1.0`), `endpoint`, and words of which there are few; all
their values are there from the start. Of models the first {pools} have their own label, of endpoints the first
{endpoints}; the others are `other` together. Names end in their unit.

{table}

With `processes` > 1, counters, histograms and most gauges are those of all processes together; of times and ratios the
largest is shown, and `ts_parity_processes` says how many processes accept requests. The usual metrics of processor
time, memory and descriptors (`process_cpu_seconds_total` and so on) are there as well, on Linux.

Histograms have {buckets} buckets, from {first:g} ms to {last:g} s. Queries and what they would have waited have
exemplars: the `request_id` of a late query, to look for in the [access log](behaviour.md#finding-one-request-again),
and its `trace_id` if it has [spans](monitoring.md#traces).
"""


def metrics() -> str:
    told = Metrics(_scheduler().snapshot, Policy())
    told.peers_alive, told.spans = lambda: 0, lambda: dict.fromkeys(("sent", "failed", "dropped"), 0)
    told.config = Reloader(Settings(), lambda _: asyncio.sleep(0, ())).families
    told.adopt(["resnet/1.0"], {"resnet@ts1": ("resnet/1.0", "deployed")})
    for _ in range(FEW):
        told.arrived("resnet@ts1", 0.05)
    rows = []
    for family in told._collected():
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        if name.startswith("ts_parity_"):
            rows.append((f"`{name}`", family.kind, _labels(family.written), _plain(family.text)))
    head = MADE.format("the families that the proxy itself exposes")
    table = markdown(("metric", "kind", "labels", "what it is"), rows)
    return METRICS.format(head=head, table=table, pools=MOST_POOLS, endpoints=MOST_ENDPOINTS, buckets=len(WIDE_S),
                          first=WIDE_S[0] * 1000, last=WIDE_S[-1])  # fmt: skip


def _scheduler() -> Scheduler:
    """Of one model on one machine, protected by a student that is launched late: every family has a sample."""
    endpoints = [
        Endpoint("resnet@ts1", "ts1", "resnet/1.0", None, 1),
        Endpoint("resnet-student@ts1", "ts1", "resnet/1.0", 0, 1),
    ]
    pool = Pool("resnet/1.0", make_code("student", 2, 1))
    return Scheduler(Fleet((Instance("ts1", 1, "ts1"),), tuple(endpoints), (pool,)), Policy())


def _labels(lines: Iterable[str]) -> str:
    values: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, value in re.findall(r'(\w+)="([^"]*)"', line):
            if name != "le":
                values.setdefault(name, {})[value] = None
    shown = []
    for name, some in values.items():
        words = "" if name in OPEN else f" ({', '.join(value for value in some if value != 'other')})"
        shown.append(f"`{name}`{words}")
    return "; ".join(shown)


# ---- HTTP --------------------------------------------------------------------------------------------------------

ASKED = {
    wire.EXACT: ("`1`", "never an approximate answer; an `exact` protection's is the model's own, and may be given"),
    wire.LEAST_CONFIDENCE: (
        "0 to 1",
        "a rebuilt answer only if at least this share of those that look like it are the deployed model's own",
    ),
    wire.DEADLINE_MS: ("milliseconds", "504, or the configured default answer, after so long"),
}
TOLD = {
    wire.SOURCE: (
        "`deployed`, `reconstructed`, `hedged`, `default`",
        "where a prediction came from: the model; a protection; a second copy; the configured default answer",
    ),
    wire.CONFIDENCE: ("0 to 1", "of a rebuilt answer: how often one that looks like it is the deployed model's own"),
}
WITHIN = {wire.OP, wire.SECRET, wire.RAW, wire.PEER, wire.FORWARDED, wire.SPAN}
"""Between proxy and workers, or between proxies."""

HTTP = """\
# HTTP: ports, headers, errors

{head}

## The inference port

Clients call it as they call the instances, with the same paths, bodies and answers. A prediction of a model that an
instance hosts goes through the queue; everything else is passed through unchanged
([what reaches an instance](behaviour.md#what-reaches-an-instance)).

### What a client may send

{asked}

A value that is none of these is answered with 400. Other request headers that begin with `{prefix}` are for proxies and
workers alone, and are removed.

### What an answer says

{told}

`x-request-id` is the client's own, or one that TorchServe or the proxy made. `Retry-After` is on a 503 that says when
to come again.

### Errors that the proxy makes

They have TorchServe's own shape: a JSON object with `code`, `type` and `message`. Errors of instances are passed on as
they came.

{errors}

Requests that could be read in two ways, or are too large, get 400, 405, 408, 413, 417 or 431
([all of them](behaviour.md#malformed-and-unusual-requests-and-answers)).

## The admin port

On the loopback interface unless `admin_host` says otherwise, in plain http. The port of `metrics_address` has {second}
alone, and takes no action.

{routes}

An action (`POST`) needs `Content-Type: application/json` or, with `admin_token`, `Authorization: Bearer TOKEN`. Who may
ask, and by which names: [the admin port](behaviour.md#the-admin-port).
"""


class _Doors(AdminServer):
    """Listens nowhere: tells which routes it would have."""

    async def _listen(self, door: Any, host: str, port: int, flag: str) -> int:
        self.doors = [*getattr(self, "doors", []), door]
        return 0


def http() -> str:
    needed = [each for each in inspect.signature(AdminServer).parameters.values() if each.default is each.empty]
    doors = _Doors(*(lambda *_: None for _ in needed))
    asyncio.run(doors.start(Settings(metrics_address="0.0.0.0:9090")))
    second, first = doors.doors
    routes = [*_routes("GET", first._reads), *_routes("POST", first._actions)]
    return HTTP.format(
        head=MADE.format("the code that answers"),
        asked=markdown(("request header", "value", "what it asks for"), _headers(ASKED)),
        prefix=wire.CONTROL_PREFIX,
        told=markdown(("header of an answer", "value", "what it says"), _headers(TOLD)),
        errors=markdown(("status", "type", "when"), _errors()),
        second=", ".join(f"`{path}`" for path in second._reads),
        routes=markdown(("request", "answer"), routes),
    )


def _headers(told: dict[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
    return [(f"`{name}`", value, what) for name, (value, what) in told.items()]


def _routes(method: str, routes: dict[str, Callable[..., Any]]) -> list[tuple[str, str]]:
    return [(f"`{method} {path}`", " ".join((inspect.getdoc(route) or "").split())) for path, route in routes.items()]


def _errors() -> list[tuple[str, str, str]]:
    made = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TsParityError)]
    seen = [each for each in made if each.status != TsParityError.status and not issubclass(each, errors.WireError)]
    ordered = sorted(seen, key=lambda each: each.status)
    return [(str(each.status), f"`{each.kind}`", _plain((each.__doc__ or "").strip())) for each in ordered]


# ---- the engine's policy -----------------------------------------------------------------------------------------


POLICY = """\
# The engine's policy

{head}

One value holds every number that decides what happens to a late query. Proxy, demo, simulator and planner run the same
policy. What each rule does, when it helps and what it is worth is in [Policy](policy.md).

Users may [set](settings.md#policy) {settings}. The others are the rules' own numbers. They are no settings, because
nobody has shown a fleet that needs other values; simulations and benchmarks vary them. Durations are in seconds, and
`auto` is derived from what is measured. Rules that are named here, such as `speed`, have a file of that name in
`ts_parity/engine`.

{table}
"""


def engine_policy() -> str:
    explained = _explained(policy)
    rows = []
    for item in fields(Policy):
        if "text" in item.metadata:
            continue  # a setting
        default = "auto" if item.default is None else item.default
        rows.append((f"`{item.name}`", f"`{default}`", _plain(explained.get(item.name, ""))))
    settings = ", ".join(f"`{item.name}`" for item in fields(Policy) if "text" in item.metadata)
    head = MADE.format("the fields of `Policy` in `ts_parity/engine/policy.py`")
    return POLICY.format(head=head, settings=settings, table=markdown(("number", "default", "what it decides"), rows))


def _explained(module: Any) -> dict[str, str]:
    """Field of the first dataclass -> the text that stands below it."""
    tree = ast.parse(inspect.getsource(module))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Policy"]
    told = {}
    for field, after in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            text = " ".join(str(after.value.value).split())
            told[ast.unparse(field.target)] = text.replace("None:", "auto:").replace(
                "(docs/policy.md)", "([Policy](policy.md))"
            )
    return told


PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands,
    "metrics.md": metrics,
    "http.md": http,
    "engine-policy.md": engine_policy,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
