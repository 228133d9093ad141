"""Tables for a terminal and for docs."""

from ts_parity.tables import columns, markdown


def test_columns_are_as_wide_as_their_widest_cell():
    assert columns([("policy", "p99"), ("a", "1234.5"), ("longest name", "")]) == [
        "policy        p99",
        "a             1234.5",
        "longest name",
    ]


def test_numbers_stand_to_the_right_of_their_column():
    assert columns([("arm", "p99", "errors"), ("ours", "41.5", "0")], numbers=True) == [
        "arm    p99  errors",
        "ours  41.5       0",
    ]


def test_markdown():
    assert (
        markdown(("k", "A_d"), [("2", "98 %"), ("4", "95 %")]) == "| k | A_d |\n|---|---|\n| 2 | 98 % |\n| 4 | 95 % |"
    )
    assert markdown(("k",), []) == "| k |\n|---|"
