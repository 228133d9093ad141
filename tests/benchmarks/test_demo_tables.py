"""The demo's tables in the docs are the script's own output from the kept runs."""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "demo.py"


def test_the_docs_say_what_was_measured():
    spec = importlib.util.spec_from_file_location("demo_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    runs = json.loads(module.RESULTS.read_text())["runs"]
    assert [run["seed"] for run in runs] == [0, 1, 2, 3]
    assert all(run["arms"].keys() == module.ARMS.keys() for run in runs)
    assert module.first_table(runs) in module.README.read_text()
    assert module.all_tables(runs) in module.DOCS.read_text()
