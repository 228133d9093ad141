"""`ts-parity record`: pairs of requests and answers of a running proxy, sampled into a file. Parse, ask, write, print.

Knows the admin port and the limits that end a recording. What is sampled, the proxy decides (`serving/recording`).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ts_parity import output
from ts_parity.arguments import A_KEY, count, is_key, key, number, to_write
from ts_parity.errors import FAILED, ConfigError, Unreachable
from ts_parity.proxy.commands import TOKEN_VARIABLE, add_admin

if TYPE_CHECKING:
    from ts_parity.pairs import Pair

MOST_S = 24 * 3600.0
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_UNITS_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def add_parsers(subparsers: argparse._SubParsersAction[Any]) -> None:
    parser = subparsers.add_parser(
        "record",
        help="record requests and answers of a running proxy, to train a student from",
        description="Ask a running proxy for a sample of what clients send and what the deployed model answers, and "
        "write it to a file that `ts-parity train --from-pairs` takes. The proxy keeps nothing, and no query waits for "
        "it. THE FILE HOLDS WHAT CLIENTS HAVE SENT, personal data if they send any: only you may read it (mode 0600), "
        "no header but the content type is in it, and it is yours to delete. Ctrl-C ends a recording early.",
        examples=(
            "ts-parity record --out pairs.jsonl",
            "ts-parity record --admin http://10.0.0.5:8090 --token KEY --model resnet --share 0.05 --for 30m "
            "--out pairs.jsonl",
        ),
    )
    given = parser.add_argument_group("what is recorded")
    add_admin(given)
    given.add_argument("--token", type=key, metavar="KEY", help=f"its admin_token; or set {TOKEN_VARIABLE}")
    given.add_argument("--model", default="", metavar="NAME[/VERSION]", help="one model's; default: of all models")
    given.add_argument(
        "--share", type=number(above=0, most=1), default=0.01, metavar="SHARE", help="of the queries that are answered"
    )
    limits = parser.add_argument_group("when it ends, whichever comes first")
    limits.add_argument("--most", type=count(), default=10_000, metavar="N", help="after so many pairs")
    limits.add_argument(
        "--most-bytes", type=_size, default="1G", metavar="SIZE", help="once the file is so large: 500M, 2G"
    )
    limits.add_argument(
        "--for", type=_duration, default="10m", dest="seconds", metavar="TIME", help="after this time: 90s, 10m, 2h"
    )
    made = parser.add_argument_group("what is written")
    made.add_argument("--out", type=to_write(), required=True, metavar="FILE", help="a new file of pairs, JSON lines")
    output.add_force(made)
    made.add_argument("--json", action="store_true", help="print what was recorded as JSON")
    parser.set_defaults(run=run_record)


def _duration(text: str) -> float:
    read = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    seconds = float(read[1]) * _UNITS_S[read[2]] if read else 0.0
    if not 0 < seconds <= MOST_S:
        raise argparse.ArgumentTypeError(f"must be a time of at most a day, as in 90s, 10m, 2h, not {text!r}")
    return seconds


def _size(text: str) -> int:
    read = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([kmg]?)b?", text.lower())
    size = int(float(read[1]) * _UNITS_BYTES[read[2]]) if read else 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"must be a size, as in 500M or 2G, not {text!r}")
    return size


def run_record(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from ts_parity.admin_client import stream
    from ts_parity.pairs import Pair, PairWriter

    token = args.token or os.environ.get(TOKEN_VARIABLE, "")
    if token and not is_key(token):
        raise ConfigError(f"{TOKEN_VARIABLE} must be {A_KEY}")
    output.check_free(args.out, args.force)
    url = f"{args.admin}/record"
    wanted = {"share": args.share, "seconds": args.seconds, "model": args.model}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    said = stream(url, headers, json.dumps(wanted).encode())
    writer = PairWriter(args.out, {"share": args.share, "model": args.model}, args.force)
    _warn(args)
    counts: dict[str, int] = {}
    begun_at, pairs, ended = time.monotonic(), 0, ""
    with said, tqdm(total=args.most, unit="pair", file=sys.stderr) as bar:
        try:
            for told in _told(url, said):
                if not isinstance(told, Pair):
                    counts, ended = told.get("counts", counts), told.get("ended", ended)
                    continue
                writer.add(told)
                pairs += 1
                bar.update()
                bar.set_postfix_str(f"{writer.bytes / 1e6:.1f} MB", refresh=False)
                if pairs >= args.most:
                    ended = f"{pairs} pairs are recorded"
                    break
                if writer.bytes >= args.most_bytes:
                    ended = f"the file has {writer.bytes / 1e6:.1f} MB"
                    break
        except KeyboardInterrupt:
            ended = "it was interrupted"
        finally:
            writer.close()
    if not ended:
        raise Unreachable(f"{url}: the proxy has ended without a word; the {pairs} pairs before that are in {args.out}")
    recorded = {
        "out": str(args.out), "pairs": pairs, "bytes": writer.bytes,
        "seconds": round(time.monotonic() - begun_at, 1), "ended": ended, **counts,
    }  # fmt: skip
    print(json.dumps(recorded) if args.json else _summary(recorded))
    return 0 if pairs else FAILED


def _warn(args: argparse.Namespace) -> None:
    of = args.model or "every model"
    print(
        f"recording {args.share:.2%} of what clients send to {of}, and the answers, into {args.out}: the file may hold "
        "personal data, which only you may read (mode 0600); delete it when the student is trained. Ctrl-C ends it.",
        file=sys.stderr,
    )


def _told(url: str, said: http.client.HTTPResponse) -> Iterator[Pair | dict[str, Any]]:
    """Raise Unreachable if the proxy falls silent or breaks off."""
    from ts_parity.admin_client import unreachable
    from ts_parity.pairs import frames

    try:
        yield from frames(said)
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise unreachable(url, error) from None


def _summary(recorded: dict[str, Any]) -> str:
    lines = [
        f"{recorded['pairs']} pairs, {recorded['bytes'] / 1e6:.1f} MB, in {recorded['out']} "
        f"({recorded['seconds']:.0f} s: {recorded['ended']})"
    ]
    if "seen" in recorded:
        lines.append(f"answers of the deployed model seen meanwhile: {recorded['seen']}")
    if recorded.get("unfit"):
        lines.append(f"sampled, but no good whole answer to a body, or compressed: {recorded['unfit']}")
    if recorded.get("left_out"):
        lines.append(f"sampled, but left out because this command took them too slowly: {recorded['left_out']}")
    if not recorded["pairs"]:
        none = "no query was answered" if not recorded.get("seen") else "none was sampled: give a larger --share"
        lines.append(f"nothing is recorded: {none}, or record for longer (--for)")
    return "\n".join(lines)
