"""There is one recipe: `serve` by itself, the demo's arms, `default` in simulations, and what documentation shows."""

import argparse
from dataclasses import replace
from pathlib import Path

import ablation
import pytest

from ts_parity.cli import parsed
from ts_parity.config import GROUPS, REMOVED, given_flags, load_settings
from ts_parity.engine import Policy
from ts_parity.lab.demo import POLICIES
from ts_parity.lab.rivals import PATIENT, SERVICE_S, arrange, serve_flags
from ts_parity.proxy.app import policy_of

ROOT = Path(__file__).parents[1]
ENDPOINT = ("--endpoint", "http://127.0.0.1:8080")
ARMS = ("copies", "coded", "coded_shared", "default")


def served(*flags: str) -> Policy:
    args: argparse.Namespace = parsed(["serve", *ENDPOINT, *flags])
    return policy_of(load_settings(flags=given_flags(args), endpoints=args.endpoint))


def test_serve_without_a_flag_runs_the_recipe() -> None:
    assert served() == Policy()


@pytest.mark.parametrize("arm", ["hedge", "exact", "default"])
def test_the_demo_shows_the_recipe(arm: str) -> None:
    assert served(*POLICIES[arm]) == Policy()


@pytest.mark.parametrize("name", ARMS)
def test_what_is_simulated_is_the_recipe(name: str) -> None:
    """In service times, and nobody gives up."""
    flags = serve_flags(name)
    assert flags is not None
    assert served(*flags) == Policy()
    for service_s in (SERVICE_S, 0.004):
        made = arrange(name, code="student" if name == "default" else "sum", service_s=service_s).policy
        assert made == replace(Policy().in_units(service_s), **PATIENT)


def test_the_ablation_takes_rules_from_the_recipe() -> None:
    assert ablation.RULES["all"] == {}
    for changes in (*ablation.RULES.values(), *ablation.OF_COPIES.values()):
        for name, value in changes.items():
            assert getattr(Policy(), name) != value, "so the row says what the rule is worth"


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*/README.md"))]


NO_COPIES = {"sentences/README.md": "extra_work"}
"""It shows a student's answer, which a second copy would forestall, and says so."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_nobody_is_told_to_type_a_recipe(page: Path) -> None:
    """Where a page starts a proxy, it says nothing of its policy."""
    policy = [item.name for title, items in GROUPS.items() if title.startswith("policy") for item in items]
    shown = NO_COPIES.get(f"{page.parent.name}/{page.name}", "")
    typed = [f"--{name.replace('_', '-')} " for name in (*policy, *REMOVED) if name != shown]
    lines = page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    for line in (line for line in lines if "ts-parity serve" in line):
        assert not [flag for flag in typed if flag in f"{line} "], line
