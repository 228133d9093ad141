"""The tables in the docs are the scripts' own output from the kept results: nobody typed them in."""

import importlib
import json

import pytest


@pytest.mark.parametrize(
    "script",
    [
        "ablation",
        "accuracy",
        "backends",
        "foretold",
        "frontier",
        "outages",
        "overhead",
        "paper",
        "policies",
        "proxies",
        "simulator",
        "soak",
        "target",
    ],
)
def test_the_docs_say_what_was_measured(script):
    module = importlib.import_module(script)
    document = json.loads(module.RESULTS.read_text())
    assert document["command"].startswith("python benchmarks/")
    sections = module.sections(document)
    assert sections
    for mark, text in sections.items():
        assert f"<!-- {mark} -->\n\n{text}\n\n<!-- end of {mark} -->" in module.DOCS.read_text()


def test_the_docs_show_every_part_of_the_data_path():
    """Targets beside what was reached, and a table for each kind of upstream."""
    import overhead

    document = json.loads(overhead.RESULTS.read_text())
    sections = overhead.sections(document)
    parts = [
        "overhead-targets", "overhead-summary", "overhead", "overhead-kinds", "overhead-torchserve", "overhead-half",
    ]  # fmt: skip
    assert list(sections) == parts
    verdicts, summary = sections.pop("overhead-targets"), sections.pop("overhead-summary")
    assert all(f"| {target.what} | " in verdicts for target in overhead.targets(document))
    for proxy in ("nginx", "haproxy", "aiohttp", "ts_parity, uncoded", "ts_parity, coded-sum, plain Python"):
        assert f"| {proxy}" in summary
    lines = [line for text in sections.values() for line in text.splitlines() if line.startswith("|")]
    heads = sum(line.startswith("|---") for line in lines)
    assert len(lines) - 2 * heads == len(document["rows"])


def test_the_readme_says_what_was_measured():
    import demo

    import overhead

    document = json.loads(overhead.RESULTS.read_text())
    runs = json.loads(demo.RESULTS.read_text())["runs"]
    page = demo.README.read_text()
    for mark, said in (("overhead", overhead.headline(document)), ("demo", demo.headline(runs))):
        assert f"<!-- {mark} -->\n\n{said}\n\n<!-- end of {mark} -->" in page


def test_the_demos_tables_are_of_several_seeds():
    import demo

    runs = json.loads(demo.RESULTS.read_text())["runs"]
    assert [run["seed"] for run in runs] == [*range(len(runs))]
    assert len(runs) > 1
    assert all(run["arms"].keys() == demo.ARMS.keys() for run in runs)
    assert demo.all_tables(runs) in demo.DOCS.read_text()
