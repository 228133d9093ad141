"""What README and docs name exists, and the numbers they promise are those in the code."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import pytest

from ts_parity.arguments import subcommands
from ts_parity.cli import build_parser
from ts_parity.config import load_settings
from ts_parity.engine import members, trust
from ts_parity.proxy import app
from ts_parity.proxy.fleet import peers
from ts_parity.proxy.fleet.torchserve import discovery
from ts_parity.proxy.http import access, descriptors, request_reader, server
from ts_parity.proxy.http.messages import MAX_HEAD_BYTES, MAX_HEADERS
from ts_parity.proxy.operations import processes
from ts_parity.proxy.serving import service
from ts_parity.torchserve import mar

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("README.md"))]
BEHAVIOUR = " ".join((ROOT / "docs/behaviour.md").read_text().split())


def commands() -> dict[str, set[str]]:
    """Subcommand -> its options, and those of its own subcommands."""
    return {
        name: {option for each in (parser, *subcommands(parser).values()) for option in each._option_string_actions}
        for name, parser in subcommands(build_parser()).items()
    }


TYPED = [page for page in PAGES if page.name != "commands.md"]  # made of the parsers, whose own examples are tested


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_docs_have_the_options_they_are_given(page: Path) -> None:
    known = commands()
    text = page.read_text().replace("\\\n", " ")
    for words in re.findall(r"(?:^ +|`)ts-parity ([^`\n]+)", text, re.MULTILINE):
        command, *rest = shlex.split(words, comments=True)
        assert command in known, words
        for word in rest:
            if word in ("&&", "|", ">", "&"):
                break
            if word.startswith("--"):
                assert word.partition("=")[0] in known[command], words


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs/behaviour.md"], ids=lambda page: page.name)
def test_settings_fields_and_metrics_that_the_docs_name_are_in_the_code(page: Path) -> None:
    code = "".join(file.read_text() for file in (ROOT / "ts_parity").rglob("*.py"))
    code += "max_request_size startupTimeout token_expiration_min model_version"  # TorchServe's own
    code += "latency_ms"  # a handler's
    code += "tcp_migrate_req"  # the kernel's
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", span):
            named = name in code or name.removesuffix("_total") in code
            family = name.removeprefix("ts_parity_")
            assert named or family in code, f"{page.name} speaks of {name}"


def test_every_attribute_of_a_span_is_documented() -> None:
    code = (ROOT / "ts_parity/proxy/serving/spans.py").read_text()
    section = (ROOT / "docs/monitoring.md").read_text().partition("## Traces")[2].partition("\n## ")[0]
    named = r"(?:ts_parity|http|url|server|error|user_agent)\.[a-z_.-]+"
    used, told = set(re.findall(rf'"({named})"', code)), set(re.findall(rf"`({named})`", section))
    assert len(used) > 15
    assert used == told


def test_every_field_of_the_access_log_is_documented() -> None:
    text = (ROOT / "docs/behaviour.md").read_text()
    section = text.partition("## Finding one request again")[2].partition("\n## ")[0]
    requests, _, tasks = section.partition("| `task` |")
    for part, fields in ((requests, access.FIELDS), (f"| `task` |{tasks}", access.TASK_FIELDS)):
        told = [name for row in re.findall(r"^\| (`.+?) \|", part, re.MULTILINE) for name in re.findall(r"\w+", row)]
        assert set(fields) - set(told) <= {"version"}
        assert set(told) - set(fields) <= {"forwarded_by"}
    assert f"| of the lines, {access.VERSION}." in section


def test_the_configuration_that_the_page_shows_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs/behaviour.md").read_text()
    (block,) = re.findall(r"(?:^    .*\n|^\n)+(?=^Without `tls_ca`)", text, re.MULTILINE)
    file = tmp_path / "ts-parity.toml"
    file.write_text(textwrap.dedent(block))
    https, unix = load_settings(file, {}, {}).instances
    assert (https.management, https.tls_ca) == ("https://ts1:8444", "/etc/ts-parity/fleet-ca.pem")
    assert unix.inference == "unix:/run/torchserve/inference.sock"


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page.name} links to {target}"


MAP = (ROOT / "docs/design.md").read_text().partition("## The map\n")[2].partition("\n## ")[0]
PACKAGE = ROOT / "ts_parity"
FOLDERS = sorted({file.parent for file in PACKAGE.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_the_map_names_each_file_once_and_none_that_is_not_there(folder: Path) -> None:
    """Of a file that is added, renamed or deleted, the map in docs/design.md says so."""
    _, heading, table = MAP.partition(f"### `{folder.relative_to(ROOT)}`\n")
    assert heading, f"docs/design.md has no heading for {folder.relative_to(ROOT)}"
    firsts = re.findall(r"^\|(.*?)\|", table.partition("\n### ")[0], re.MULTILINE)
    named = sorted(name for first in firsts for name in re.findall(r"`(\w+)`", first))
    assert named == sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")


def test_the_questions_of_the_map_lead_to_files() -> None:
    paths = re.findall(r"`([\w/]+\.py)`", MAP)
    assert len(paths) > 30
    assert [path for path in paths if not any((base / path).exists() for base in (ROOT, PACKAGE))] == []


PATIENCE = server.ClientTimeouts()
PROMISES = [
    f"over {PATIENCE.head_s:.0f} s for its headers, or stops for {PATIENCE.body_s:.0f} s in a body",
    f"an idle connection is closed after {PATIENCE.idle_s:.0f} s",
    f"slow with its handshake ({PATIENCE.handshake_s:.0f} s)",
    f"takes nothing of its answer for {PATIENCE.body_s:.0f} s",
    f"headers of over {MAX_HEAD_BYTES >> 10} KB",
    f"over {MAX_HEADERS} headers in one head",
    f"whose chunk headers are over {request_reader._OVERHEAD_BYTES >> 10} KB",
    f"read ahead up to {server._PIPELINED} requests or {server._PIPELINED_BYTES >> 10} KB",
    f"at most every {app._DISCOVERY_GAP_S} s, for at most {service._DISCOVERY_WAIT_S:.0f} s",
    f"a copy of a query goes there every {service._WARMED_EVERY_S:.0f} s",
    f"never yet or for {discovery._COLD_AFTER_S:.0f} s",
    f"sends something unreadable, or over {discovery._MAX_BYTES >> 20} MB",
    f"for about {trust.TRIAL} early queries",
    f"On trial again after {trust.FIRST_PAUSE_S:.0f} s, later {trust.LONGEST_PAUSE_S / 60:.0f} min",
    f"tried again after {trust.LONGEST_PAUSE_S / 60:.0f} min",
    "started again after {:.0f}, {:.0f}, {:.0f}, {:.0f}, then every {:.0f} s".format(*processes.PAUSES_S),
    f"waits for `drain_delay_s` + `drain_s` + {processes._GRACE_S:.0f} s".replace("waits", "must wait"),
    f"to {descriptors._MOST_FILES:,} at most",
    f"a sixteenth of the limit, 8 to {descriptors._BURST:,}",
    f"expand to {mar._MOST_EXPANSION} times its size (and over {mar._ALWAYS_FINE >> 20} MB)",
    f"a manifest or config over {mar.LARGEST_TEXT >> 20} MB",
    f"a table of contents over {mar._LARGEST_DIRECTORY >> 20} MB",
    f"{access.STATUS_LEFT}: it left before",
    f"resolved again every {peers._RESOLVE_S:.0f} s",
    f"it stands by for {members.STANDBY_S:.0f} s, then owns",
    f"trusted again after {members.PAUSE_S:.0f} s, then 2, 4 ... {members.LONGEST_PAUSE_S:.0f} s",
    {1.0: "the same after a second of silence"}[members.SILENT_S],
    {2.0: "its connection is read for two seconds more"}[server._LINGER_S],
    {10: "a protection fails ten times in a row"}[trust.FAILURES],
    {2: "after two differing second copies there are no more"}[trust.CONTRADICTIONS],
    {600.0: "served plainly for ten minutes"}[app._FIRST_UNCODED_S],
]


@pytest.mark.parametrize("promise", PROMISES)
def test_the_numbers_of_the_page_are_those_of_the_code(promise: str) -> None:
    assert promise in BEHAVIOUR
