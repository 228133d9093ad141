"""The report's page as a browser lays it out, on a telephone and on a wide screen. Needs chromium."""

import json
import shlex
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from tests.training.test_page import SUM, body, classes, disagreement, made, png, report, sure
from ts_parity.training.page import report_page
from ts_parity.training.steps import next_steps

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine"),
]
WIDTHS = (320, 400, 1600)
LONG = "n" * 60
NAMES = [LONG, " ".join(["name"] * 12), "ひらがな漢字" * 10, "अनुवाद " * 8, "مرحبا بالعالم " * 5, "<b>bold</b>" * 6]
OUT = Path("/srv") / ("folder-without-a-blank-" * 5) / "protected"

MEASURE = """
<!doctype html><meta charset="utf-8"/><body>FRAMES<pre id="said"></pre><script>
const own = (place, size) => {
  for (let up = place.parentElement; up; up = up.parentElement)
    if (getComputedStyle(up).overflowX != "visible" || getComputedStyle(up).clipPath != "none") return null;
  return size;
};
onload = () => {
  const said = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, wide = page.documentElement.clientWidth, letters = [], beyond = [];
    for (const each of page.querySelectorAll("body *")) {
      const box = each.getBoundingClientRect();
      if (box.width > 1 && (box.right > wide + 1 || box.left < -1) && own(each, box))
        beyond.push(each.tagName + " " + each.className + " " + box.left + " " + box.right);
      if ([...each.childNodes].some((node) => node.nodeType == 3 && node.data.trim())) {
        const drawn = each.closest("svg[role]");
        const scale = drawn ? drawn.getBoundingClientRect().width / drawn.viewBox.baseVal.width : 1;
        letters.push(scale * parseFloat(frame.contentWindow.getComputedStyle(each).fontSize));
      }
    }
    const choice = frame.contentWindow.getSelection(), copied = [];
    for (const each of page.querySelectorAll("ol pre, section > pre")) {
      choice.selectAllChildren(each);
      copied.push(choice.toString());
    }
    const tops = [...page.querySelectorAll(".tile dd")].map((each) => each.getBoundingClientRect().top);
    return {wide, scrolls: page.documentElement.scrollWidth, beyond, letters: Math.min(...letters), copied, tops};
  });
  document.getElementById("said").textContent = JSON.stringify(said);
};
</script></body>
"""


def hostile():
    """Everything at its longest: names, numbers, answers, warnings, many candidates."""
    hundred = [{**each, "name": NAMES[n % len(NAMES)]} for n, each in enumerate(classes(100))]
    odd = [
        disagreement(
            row,
            body=f"{name}/{name}.png",
            deployed=name,
            rebuilt=name,
            label=name,
            answer=json.dumps({name: 0.123456789}),
            rebuilt_answer="y" * 500,
        )
        for row, name in enumerate(NAMES)
    ]
    nets = [
        made("student", k, 0.005 * k, 1.2, confidence=sure(), archives=[f"{LONG}-student-k{k}.mar"]) for k in (2, 4)
    ]
    nets[0] |= {"classes": hundred, "disagreements": odd, "architecture": f"{LONG}.py:function"}
    nets[0] |= {"over_seeds": {"score": 0.985, "score_spread": 0.004}, "packed_seed": 2, "seeds": 3}
    more = {
        "deployed": {"model": LONG, "version": "1.0", "weights": None},
        "archive": f"/models/{LONG}.mar",
        "command": ["ts-parity", "train", "--archive", f"/models of a/{LONG}.mar", "--code", "student"],
        "hashes": {f"{LONG}-student-k2.mar": "sha256:" + "ab" * 32},
        "warnings": [f"{LONG * 3} is odd"],
        "refused_bodies": [f"{LONG}/{LONG}.png: {LONG}"],
        "scored_on": f"1500 bodies of {LONG}",
    }
    told = report(*nets, SUM, **more)
    shown = {row: body(png(), "image/png", name) for row, name in enumerate(NAMES)}
    shown[1] = body(b"<script>document.body.innerHTML = ''</script>" + b"x" * 300, "text/plain")
    return told, report_page(told, OUT, shown)


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a browser makes of the page: one dict for each of WIDTHS."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "report.html").write_text(hostile()[1], encoding="utf-8")
    frames = "".join(
        f'<iframe src="report.html" style="border: 0; height: 900px; width: {w}px"></iframe>' for w in WIDTHS
    )
    (folder / "around.html").write_text(MEASURE.replace("FRAMES", frames), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
    ran = subprocess.run(
        ["chromium", *flags, f"--user-data-dir={folder / 'profile'}", (folder / "around.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    said = ran.stdout.split('<pre id="said">')[1].split("</pre>")[0]
    return dict(zip(WIDTHS, json.loads(unescape(said)), strict=True))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(seen, width):
    assert seen[width]["wide"] >= width - 20  # a scroll bar
    assert seen[width]["beyond"] == []
    assert seen[width]["scrolls"] <= seen[width]["wide"]


@pytest.mark.parametrize("width", WIDTHS)
def test_letters_are_large_enough_to_be_read(seen, width):
    assert seen[width]["letters"] >= (11 if width < 400 else 12)


def test_commands_are_copied_as_they_are_typed(seen):
    told, _ = hostile()
    typed = [step.command for step in next_steps(told, OUT)] + [shlex.join(told["command"])]
    for width in WIDTHS:
        assert seen[width]["copied"] == typed


def test_the_numbers_on_top_stand_in_one_line(seen):
    assert len({round(top) for top in seen[1600]["tops"]}) == 1
