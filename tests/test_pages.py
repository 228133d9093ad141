"""The look that all pages share, and what no page can be made to do."""

from xml.etree import ElementTree

import pytest

from ts_parity.pages import TableCell, bar, listed, page, pairs, section, sentence, table, text, typed

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title></table>",
    "&lt;b&gt; & <!-- --> <![CDATA[",
    "javascript:alert(1)",
    "nul \0, escape \x1b[31m, bell \a, half a pair \ud800, not a character \uffff",
    "turned \u202egnp.exe, isolated \u2067abc",
    "{body} {0} %s",
]


def parsed(written):
    """Well formed, the doctype aside; what holds no half of a surrogate pair can be written to a file."""
    written.encode()
    return ElementTree.fromstring(written.split("\n", 1)[1])


@pytest.mark.parametrize("nasty", NASTY)
def test_whatever_is_shown_does_nothing(nasty):
    written = page(
        nasty,
        [
            section(nasty, listed([nasty]), pairs([(nasty, nasty)]), typed(nasty)),
            table(nasty, [nasty, nasty], [("", [TableCell(text(nasty)), TableCell(text(nasty))])]),
        ],
    )
    root = parsed(written)
    assert not root.findall(".//script")
    assert not root.findall(".//img")
    shown = "".join(root.itertext())
    for sign in ("\x1b", "\0", "\u202e", "\u2067", "\ufffe"):
        assert sign not in shown
    if nasty.isprintable():
        assert root.find(".//li").text == root.find(".//dd").text == root.find(".//caption").text == nasty


def test_a_page_asks_nobody_for_anything():
    root = parsed(page("what", ["<p>said</p>"]))
    policy = root.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    assert not root.findall(".//link")
    assert "url(" not in root.find(".//style").text
    assert "@import" not in root.find(".//style").text
    assert root.get("lang") == "en"
    assert root.find(".//meta[@name='viewport']") is not None


def test_a_table_tells_heads_from_cells_on_any_screen():
    root = ElementTree.fromstring(
        table("of what", ["one", "other", "none"], [("take", [TableCell("a"), TableCell("b", "bars"), TableCell("")])])
    )
    assert [head.text for head in root.findall(".//th[@scope='col']")] == ["one", "other", "none"]
    assert "".join(root.find(".//th[@scope='row']").itertext()) == "a"
    assert [cell.get("data-head") for cell in root.findall(".//td")] == ["other", "none"]
    assert [cell.get("class") for cell in root.findall(".//td")] == ["bars", "none"]
    assert root.find("caption").text == "of what"


def test_a_command_is_copied_as_it_is():
    command = "ts-parity serve \\\n    --extra-work 0.05  --code 'a <b>'"
    assert "".join(ElementTree.fromstring(typed(command)).itertext()) == command


def test_a_sentence_shows_commands_as_such_and_no_flag_is_divided():
    shown = sentence("Try --steps 800, not `ts-parity serve --k 2`; a--b <i>, x --")
    root = ElementTree.fromstring(f"<p>{shown}</p>")
    assert ["".join(each.itertext()) for each in root.findall("code")] == ["--steps 800", "ts-parity serve --k 2"]
    assert [each.text for each in root.findall("code/span")] == ["--steps", "800", "ts-parity", "serve", "--k", "2"]
    assert "".join(root.itertext()) == "Try --steps 800, not ts-parity serve --k 2; a--b <i>, x --"


def test_bars_stay_within_their_track_and_what_is_long_is_cut():
    assert "left: 0.0%; width: 100.0%" in bar(5.0, -3.0, 400.0, 10.0)
    assert 'class="zero"' not in bar(5.0, 3.0, 7.0, 10.0)
    below = bar(-5.0, -10.0, 0.0, 10.0, least=-10.0)
    assert 'class="zero" style="left: 50.0%"' in below
    assert "left: 25.0%; width: 25.0%" in below
    assert "left: 0.0%; width: 50.0%" in below
    assert text("abcdef", 4) == "abc…"
    assert section("nothing to say", "", "") == ""
