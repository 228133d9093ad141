"""The page that `train` writes: what a reader finds on it, and what it can never do."""

import io
import itertools
import json
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from ts_parity.cli import build_parser
from ts_parity.training import FOLDERS, TrainSettings
from ts_parity.training.bodies import RequestBody
from ts_parity.training.charts import BOTTOM, HEIGHT, TOP
from ts_parity.training.page import MOST_SHOWN, report_page
from ts_parity.training.previews import MOST_BYTES, preview
from ts_parity.training.recommend import recommend
from ts_parity.training.steps import command_of, next_steps

NASTY = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
OUT = Path("/srv/made for you/protected")


def made(code, k, loss, cost, labelled=True, **more):
    told = {
        "code": code, "k": k, "r": 1, "family": "parity" if code in ("sum", "concat") else "backup",
        "metric": "accuracy", "architecture": "cnn", "seeds": 1, "archives": [f"net-1.0-{code}-k{k}.mar"],
        "cost": cost, "multiplications": 1.0,
        "score": 1 - 1.5 * loss, "agreement": 1 - 1.5 * loss, "error": 0.1, "loss": loss,
        "loss_of": "accuracy" if labelled else "agreement",
        "intervals": {"loss": [loss - 0.008, loss + 0.008], "score": [0.97 - 1.5 * loss, min(1.0, 1.01 - 1.5 * loss)]},
    }  # fmt: skip
    if labelled:
        told |= {"A_a": 0.93, "A_d": 0.93 - loss, "A_default": 0.1}
        told["intervals"] |= {"A_a": [0.92, 0.94], "A_d": [0.92 - loss, 0.94 - loss]}
    return {**told, **more}


def beside(**more):
    told = made("exact", 2, 0.0, 2.0, **more)
    return {name: told[name] for name in ("code", "k", "r", "family", "metric", "architecture", "loss", "cost")}


def classes(count, labelled=True):
    return [
        {
            "class": n, "name": f"class {n}", "bodies": 150, "loss": 0.05 / (n + 1), "agreement": 1 - 0.06 / (n + 1),
            "intervals": {"loss": [0.05 / (n + 1) - 0.01, 0.05 / (n + 1) + 0.01]},
        }
        for n in range(count)
    ]  # fmt: skip


def sure():
    points = [
        {
            "share": s,
            "released": s,
            "agreement": 0.999 - 0.05 * s**4,
            "agreement_95": [0.99 - 0.05 * s**4, 1 - 0.04 * s**4],
        }
        for s in (0.95, 0.9, 0.8, 0.7, 0.5)
    ]
    return {"agreement": 0.949, "agreement_95": [0.94, 0.958], "surest": points}


def report(*candidates, **more):
    told = {
        "package": "0.1.0", "made_at": "2026-11-27 08:30 UTC", "archive": "/models/net.mar",
        "command": ["ts-parity", "train", "--archive", "/models/net.mar", "--code", "student"],
        "deployed": {"model": "net", "version": "1.0", "weights": None}, "bodies": 9876, "seed": 0, "torch": "2.12",
        "machine": "x86-64", "device": "cpu",
        "split": {"learn": 7000, "choose": 1376, "score": 1500, "repeated": 12, "scored_repeated": 0},
        "hyperparameters": {"steps": 2000, "peak_rate": 0.003, "vary": []}, "budget": 1.0, "seconds": 612.5,
        "metric": "accuracy",
        "scored_on": "1500 held-out bodies of photos", "scored_groups": 2000, "warnings": [], "refused": [],
        "outputs": {"kind": "classes", "why": "the largest of several outputs decides"}, "candidates": list(candidates),
        "hashes": {"net-1.0-student-k2.mar": "sha256:" + "ab" * 32}, "archives": {"deployed": "net.mar"},
        "beside": [beside()],
    }  # fmt: skip
    told |= more
    return {"recommendation": recommend(told), **told}


def page_of(*candidates, bodies=None, **more):
    written = report_page(report(*candidates, **more), OUT, bodies)
    return written, ElementTree.fromstring(written.split("\n", 1)[1])


def words(element):
    return " ".join(" ".join(element.itertext()).split())


def png(width=28, height=28, noise=False, seed=0):
    image, written = Image.new("RGB", (width, height), (200, 40, 40)), io.BytesIO()
    if noise:
        image.putdata([tuple(random.Random(seed).randbytes(3)) for seed in range(width * height)])
    image.save(written, "PNG")
    return written.getvalue()


def body(data, content_type="application/octet-stream", name="a"):
    return RequestBody(name, content_type, lambda: data)


def disagreement(row, **more):
    return {"body": f"photos/{row}.png", "row": row, "deployed": "cat", "rebuilt": "dog", **more}


STUDENT, SUM = made("student", 2, 0.005, 1.2), made("sum", 2, 0.04, 1.1)


def test_a_reader_finds_what_to_take_what_it_is_worth_and_how_it_was_made():
    written, root = page_of(
        {**STUDENT, "classes": classes(3), "confidence": sure()}, SUM, made("student", 4, 0.02, 1.3)
    )
    told = words(root)
    for said in (
        "What a rebuilt answer of net 1.0 is worth",
        "What is written in capitals is yours to fill in.",
        "Take student with k=2: loses 0.50 points of accuracy",
        "95 % interval -0.30 to 1.30",
        "2026-11-27 08:30 UTC",
        "7,000 to learn from, 1,376 to choose the best weights, 1,500 to score",
        "2,000 steps a network",
        "archive sha256 net-1.0-student-k2.mar " + "ab" * 32,
        "ts-parity train --archive /models/net.mar --code student",
        "It does not detect bodies of another kind",
    ):
        assert said in told
    assert [head.text for head in root.findall(".//h3")] == ["Loss and work", "Overall accuracy", "Confidence"]
    assert len(root.findall(".//{http://www.w3.org/2000/svg}svg[@role='img']")) == 3
    commands = ["".join(each.itertext()) for each in root.findall(".//ol//pre")]
    assert commands[0].startswith("ts-parity plan --service-log LOG --rate RATE --workers N --report ")
    assert commands[1:4] == [
        "cp '/srv/made for you/protected/net-1.0-student-k2.mar' MODEL_STORE/",
        "ts-parity register --management http://INSTANCE:8081 '/srv/made for you/protected/net-1.0-student-k2.mar'",
        "ts-parity serve --endpoint http://INSTANCE:8080",
    ]
    assert root.findall(".//table")[1].find("caption").text.startswith("student with k=2, by the class of the label")
    assert len(written) < 60_000


def test_a_single_candidate_has_no_plot_of_a_single_dot():
    _, root = page_of(STUDENT)
    assert [head.text for head in root.findall(".//h3")] == ["Overall accuracy"]
    _, root = page_of(made("student", 2, 0.005, 1.2, labelled=False), beside=[])
    assert "Loss and work" not in [head.text for head in root.findall(".//h3")]


def test_exact_alone_is_not_compared_with_anything():
    exact = {name: told for name, told in beside().items() if name != "cost"} | {"archives": ["net-1.0-exact-k2.mar"]}
    told = report(exact, beside=[])
    for name in ("scored_on", "scored_groups", "outputs", "split", "hyperparameters", "metric"):
        del told[name]
    root = ElementTree.fromstring(report_page({**told, "recommendation": recommend(told)}, OUT).split("\n", 1)[1])
    assert [head.text for head in root.findall(".//h2")] == ["What to do next", "How it was made"]


def test_what_answers_better_than_the_model_is_drawn_too():
    """A student may be right more often: its line goes up, and no plot is empty."""
    gains = [made("student", k, -0.045, 1.2, A_a=0.726, A_d=0.771) for k in (2, 4)]
    _, root = page_of(*gains)
    _, overall = root.findall(".//{http://www.w3.org/2000/svg}svg[@role='img']")
    for line in overall.findall(".//{http://www.w3.org/2000/svg}path")[:2]:
        heights = [float(y) for y in re.findall(r"[ML][\d.]+ (-?[\d.]+)", line.get("d"))]
        assert TOP <= heights[-1] < heights[0] <= HEIGHT - BOTTOM
    assert "points of accuracy lost by a rebuilt answer; what is below 0 is gained" in words(root)


def test_no_axis_says_more_than_a_hundred_per_cent():
    _, root = page_of(*(made("student", k, 0.0, 1.2, A_a=1.0, A_d=1.0, score=1.0, confidence=sure()) for k in (2, 4)))
    _, *shares = root.findall(".//{http://www.w3.org/2000/svg}svg[@role='img']")
    assert len(shares) == 2
    for drawn in shares:
        ticks = [each.text for each in drawn.findall("{http://www.w3.org/2000/svg}text[@text-anchor='end']")]
        assert max(map(float, ticks)) == 100.0


def test_bars_of_classes_show_what_is_gained():
    rows = classes(2)
    rows[1] |= {"loss": -0.03, "intervals": {"loss": [-0.05, -0.01]}}
    _, root = page_of({**STUDENT, "classes": rows})
    bars = [each.get("style") for each in root.findall(".//span") if (each.get("class") or "").startswith("bar ")]
    assert bars == ["left: 45.5%; width: 45.5%", "left: 18.2%; width: 27.3%"]
    assert len([each for each in root.findall(".//span") if each.get("class") == "zero"]) == 2


def test_curves_of_one_code_are_told_apart():
    _, root = page_of(*(made("student", k, 0.01 * k, 1.2) for k in (2, 3, 4, 6)), beside=[])
    overall = root.findall(".//{http://www.w3.org/2000/svg}svg[@role='img']")[1]
    lines = [each.get("class") for each in overall.iter("{http://www.w3.org/2000/svg}path")]
    assert len(set(lines[:4])) == 4
    style = root.find(".//style").text
    assert all(f"svg .{each.split()[2]} {{ stroke-dasharray" in style for each in lines[1:4])


def test_which_seed_was_packed_is_said():
    packed = {"seeds": 3, "packed_seed": 0, "over_seeds": {"score": 0.985, "score_spread": 0.004}}
    _, root = page_of({**STUDENT, **packed}, SUM)
    assert "3, packed: seed 0 agreement 98.50% ± 0.40" in words(root)
    assert "seeds one, 0" in words(page_of(STUDENT)[1])
    assert "packed: seed" not in words(page_of(STUDENT)[1])


def test_an_answer_is_shown_in_few_digits():
    odd = disagreement(0, answer='{\n "cat": 0.36044025421,\n "dog": 12}', rebuilt_answer="dog, said at 0.123456789")
    _, root = page_of({**STUDENT, "disagreements": [odd]})
    codes = [each.text for each in root.findall(".//li//code")]
    assert '{"cat": 0.3604, "dog": 12}' in codes
    assert "dog, said at 0.123456789" in codes


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (1, "They are all answers to one body, shown here as the client sends them:"),
        (3, "They are all answers to 3 bodies, shown here as the client sends them:"),
        (12, "Here are 12 of the bodies, drawn at random, as the client sends them:"),
    ],
)
def test_whether_all_that_differ_are_shown_is_said(shown, told):
    counts = {"answers": 4000, "differ": 40, "own_right": 26, "rebuilt_right": 14}
    _, root = page_of({**STUDENT, "differing": counts, "disagreements": [disagreement(n) for n in range(shown)]})
    assert "In 26 of these the model is right, in 14 the rebuilt answer is, and both are wrong in none." in words(root)
    assert told in words(root)


def test_the_table_says_what_is_recommended_and_what_never_is():
    _, root = page_of(STUDENT, made("sum", 4, 0.38, 1.1))
    first, second, third = (words(row.find("th")) for row in root.findall(".//table")[0].findall("tr")[1:])
    assert first == "student k=2 recommended cnn"
    assert second == "sum k=4 loses too much cnn"
    assert third == "exact k=2 for comparison only"


def test_without_labels_nothing_is_called_accuracy():
    one = made("student", 2, 0.005, 1.2, labelled=False, classes=classes(3), confidence=sure())
    other = made("sum", 2, 0.04, 1.1, labelled=False)
    written, root = page_of(one, other, warnings=["the outputs are logits"])
    assert "accuracy" not in written.lower()
    assert "A_a" not in written
    assert "points of agreement" in words(root)


def test_numbers_are_no_shares_and_the_furthest_off_are_shown():
    numbers = {"metric": "mae", "loss_of": "the outputs' variance", "score": 9.87, "spread": 76.2, "disagreements": [
        {"body": "a.json", "row": 0, "deployed": "151.2", "rebuilt": "188"}]}  # fmt: skip
    surest = [{**each, "score": 8.0} for each in sure()["surest"]]
    numbers["confidence"] = {"agreement": 0.9, "agreement_95": [0.8, 0.95], "surest": surest}
    candidates = [made("student", k, 0.017, 1.2, labelled=False, **numbers) for k in (2, 4)]
    asked = {"metric": "mae", "outputs": {"kind": "numbers", "why": "one output"}, "beside": []}
    _, root = page_of(*candidates, bodies={0: body(b'{"rooms": 3}', "application/json")}, **asked)
    told = words(root)
    assert "agreement" not in told
    assert "their spread is 76.2" in told
    assert "the bodies on which a rebuilt answer is furthest off" in told
    assert '{"rooms": 3}' in told
    assert "151.2" in told


@pytest.mark.parametrize(
    ("loss", "said"),
    [(0.5, "Train again with more."), (0.02, "Register sum with k=2 on instances of its own.")],
)
def test_what_to_type_next_goes_with_what_is_recommended(loss, said):
    _, root = page_of(made("sum", 2, loss, 1.1), beside=[])
    assert said in words(root)
    commands = ["".join(each.itertext()) for each in root.findall(".//ol//pre")]
    if loss > 0.1:
        assert commands[0].startswith(
            "ts-parity train --archive /models/net.mar --code student --code student --steps 8000"
        )
        assert commands[0].endswith(" --force")
        assert commands[1] == "ts-parity serve --endpoint http://INSTANCE:8080"
    else:
        assert commands[2] == (
            "ts-parity register --management http://DEPLOYED:8081 --replace '/srv/made for you/protected/net.mar'"
        )


def test_exact_that_was_only_compared_with_is_packaged():
    _, root = page_of(made("sum", 2, 0.5, 1.1))
    commands = ["".join(each.itertext()) for each in root.findall(".//ol//pre")]
    assert commands[1] == (
        "ts-parity package --archive /models/net.mar --role parity --code exact --k 2 "
        "--out '/srv/made for you/protected'"
    )
    assert commands[2:] == [
        "cp '/srv/made for you/protected/net-1.0-exact-k2.mar' MODEL_STORE/",
        "ts-parity register --management http://INSTANCE:8081 '/srv/made for you/protected/net-1.0-exact-k2.mar'",
        "ts-parity serve --endpoint http://INSTANCE:8080",
        "ts-parity status",
    ]


def test_what_a_body_a_name_or_an_answer_holds_does_nothing():
    one = made("student", 2, 0.005, 1.2, architecture=NASTY, classes=[{**each, "name": NASTY} for each in classes(3)])
    one["disagreements"] = [
        {
            "body": NASTY,
            "row": row,
            "deployed": NASTY,
            "rebuilt": NASTY,
            "label": NASTY,
            "answer": NASTY,
            "rebuilt_answer": "x",
        }
        for row in range(4)
    ]
    bodies = {
        0: body(NASTY.encode(), "text/html", NASTY),
        1: body(json.dumps({NASTY: NASTY}).encode(), "application/json", NASTY),
        2: body(b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "image/svg+xml", NASTY),
        3: body(png(), "image/png", NASTY),
    }
    more = {
        "warnings": [NASTY],
        "refused": [NASTY],
        "refused_bodies": [NASTY],
        "deployed": {"model": NASTY, "version": NASTY, "weights": None},
    }
    written, root = page_of(one, bodies=bodies, **more)
    assert "<script" not in written
    assert not root.findall(".//script")
    [picture] = root.findall(".//img")
    assert picture.get("src").startswith("data:image/png;base64,")
    assert picture.get("alt") == NASTY
    assert not [e for e in root.iter() for name in e.attrib if name.startswith("on")]


def test_it_asks_nobody_for_anything():
    one = made("student", 2, 0.005, 1.2, disagreements=[disagreement(0)], classes=classes(30))
    _, root = page_of(one, SUM, bodies={0: body(png(), "image/png")})
    for element in root.iter():
        for name in ("href", "src", "srcset", "action", "data", "poster", "background"):
            assert element.get(name, "data:").startswith("data:"), (element.tag, name)
    assert not root.findall(".//link")


def test_who_cannot_see_it_is_told_the_same():
    one = made("student", 2, 0.005, 1.2, disagreements=[disagreement(0)], classes=classes(3), confidence=sure())
    _, root = page_of(one, SUM, bodies={0: body(png(), "image/png", "photos/0.png")})
    svg = "{http://www.w3.org/2000/svg}svg"
    for drawn in root.findall(f".//{svg}"):
        assert drawn.get("aria-label") or drawn.get("aria-hidden") == "true"
    assert "student k=2 loses 0.50 points and adds 60%" in root.find(f".//{svg}").get("aria-label")
    assert root.find(".//img").get("alt") == "photos/0.png"
    for table in root.findall(".//table"):
        assert table.find("caption").text
        assert all(row.find("th").get("scope") for row in table.findall("tr"))
    levels = [int(e.tag[1]) for e in root.iter() if e.tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))


def test_of_many_classes_the_worst_are_shown():
    _, root = page_of(made("student", 2, 0.005, 1.2, classes=classes(1000)))
    assert len(root.findall(".//table")[1].findall("tr")) == 25
    assert "976 more classes lose 0.2 points or less each." in words(root)


@pytest.mark.long
@pytest.mark.slow
def test_the_page_stays_small_whatever_the_bodies_are():
    """Of large pictures a small copy; of what has no more room its name."""
    big = png(400, 400, noise=True)
    assert len(big) > 4 * MOST_BYTES
    shown = preview(body(big, "image/png", "big.png"))
    assert len(shown) < 1.5 * MOST_BYTES
    one = made("student", 2, 0.005, 1.2, disagreements=[disagreement(row, answer="y" * 10**5) for row in range(200)])
    one["classes"] = classes(1000)
    more = {"warnings": ["w" * 30_000] * 1000, "refused_bodies": ["r" * 30_000] * 1000, "recommendation": "Take it."}
    written, root = page_of(one, bodies=dict.fromkeys(range(200), body(big, "image/png", "n" * 10**4)), **more)
    assert len(written) < MOST_SHOWN + 400_000
    assert 10 < len(root.findall(".//img")) < 200
    assert "(not shown)" in words(root)
    assert "and 970 more, which report.json names" in words(root)


def test_the_command_that_made_it_can_be_typed_again(tmp_path):
    archive, bodies = tmp_path / "a b.mar", tmp_path / "bodies"
    archive.touch()
    bodies.mkdir()
    settings = TrainSettings(
        archive, bodies, tmp_path / "out", ("sum", "student"), (2, 4), budget=0.5, vary=("flip",), secret="hidden",
        declaration={"model": "self.net", "input": "args.0"}, force=True, progress=False,
    )  # fmt: skip
    words = command_of(settings)
    assert "hidden" not in words
    args = build_parser().parse_args(words[1:])
    assert (args.codes, args.ks, args.budget, args.vary) == (["sum", "student"], [2, 4], 0.5, ["flip"])
    assert (args.model, args.model_input, args.archive) == ("self.net", "args.0", archive)


def test_the_commands_hold_wherever_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = TrainSettings(
        Path("net.mar"), Path("bodies.zip/train"), Path("out"), labels=Path(FOLDERS), score=Path("more"),
        architecture="nets.py:small", content_type="multipart/form-data; name=data",
    )  # fmt: skip
    assert command_of(settings)[2:] == [
        *("--archive", f"{tmp_path}/net.mar", "--inputs", f"{tmp_path}/bodies.zip/train", "--out", f"{tmp_path}/out"),
        *("--labels", "folders", "--score", f"{tmp_path}/more", "--content-type", "multipart/form-data; name=data"),
        *("--architecture", f"{tmp_path}/nets.py:small"),
    ]
    [_, package, *_] = next_steps(report(made("sum", 2, 0.5, 1.1), archive="net.mar"), Path("out"))
    assert package.command.startswith(f"ts-parity package --archive {tmp_path}/net.mar ")
    assert package.command.endswith(f" --out {tmp_path}/out")


FORM = "multipart/form-data; boundary=xyz"


def part(name, data, file=None, kind=None):
    head = f'--xyz\r\nContent-Disposition: form-data; name="{name}"' + (f'; filename="{file}"' if file else "")
    return head.encode() + (f"\r\nContent-Type: {kind}" if kind else "").encode() + b"\r\n\r\n" + data + b"\r\n"


@pytest.mark.parametrize(
    ("data", "kind", "shown", "pictures"),
    [
        (b"a small text, \xc3\xa4 and \xe2\x82\xac", "text/plain", "a small text, ä and €", 0),
        (b"[0.25, -1.5, 3]", "application/json", "[0.25, -1.5, 3]", 0),
        (b'{"broken": ', "application/json", '{"broken":', 0),
        (b"", "image/png", "(empty)", 0),
        (b"\x00\xff\x12" * 40, "application/octet-stream", "(120 bytes of application/octet-stream)", 0),
        (b"\x89PNG\r\n\x1a\n and then nothing", "image/png", "bytes of image/png)", 0),
        (png(), "image/png", "", 1),
        (png(), None, "", 1),
        (png(600, 400), "image/png", "", 1),
        (part("image", png(), "a.png", "image/png") + part("top_k", b"3") + b"--xyz--\r\n", FORM, "image top_k 3", 1),
        (b"text=hello+you&top_k=3", "application/x-www-form-urlencoded", "text hello you top_k 3", 0),
        (b"no form at all", FORM, "(cannot be read: the multipart body has no closing boundary)", 0),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav", "", 0),
    ],
)
def test_a_body_is_shown_as_what_it_is(data, kind, shown, pictures):
    root = ElementTree.fromstring(f"<div>{preview(body(data, kind))}</div>")
    assert shown in words(root)
    assert len(root.findall(".//img")) == pictures
    assert len(root.findall(".//audio")) == (kind == "audio/wav")


def test_an_image_within_json_is_shown():
    import base64

    request = {"instances": [{"data": {"b64": base64.b64encode(png()).decode()}}]}
    assert preview(body(json.dumps(request).encode(), "application/json")).count("<img") == 1


def test_a_picture_of_more_pixels_than_memory_is_not_opened(monkeypatch):
    monkeypatch.setattr("ts_parity.training.previews._MOST_PIXELS", 100)
    assert "<img" not in preview(body(png(), "image/png"))


def test_a_body_that_is_gone_has_its_name():
    def gone():
        raise FileNotFoundError("no such file")

    assert "cannot be read: no such file" in preview(RequestBody("a", None, gone))
