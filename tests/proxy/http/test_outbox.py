"""Small messages wait for the end of the loop's turn: in order, never after a close, never without end."""

import asyncio

from ts_parity.proxy.http.outbox import _MOST, Outbox


class Transport:
    def __init__(self):
        self.written = []
        self.closed = False

    def write(self, data):
        assert not self.closed
        self.written.append(data)

    def is_closing(self):
        return self.closed

    def abort(self):
        self.closed = True


async def turn():
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_what_is_written_in_one_turn_goes_out_at_its_end():
    outbox, one, other = Outbox(), Transport(), Transport()
    outbox.put(one, b"a")
    outbox.put(other, b"b")
    outbox.put(one, b"c")
    assert (one.written, other.written) == ([], [])
    await turn()
    assert (one.written, other.written) == ([b"a", b"c"], [b"b"])
    outbox.put(one, b"d")
    await turn()
    assert one.written == [b"a", b"c", b"d"]


async def test_who_is_about_to_write_or_close_flushes_first():
    outbox, one, other = Outbox(), Transport(), Transport()
    outbox.put(one, b"a")
    outbox.put(other, b"b")
    outbox.flush(Transport())
    assert one.written == [], "nothing waits for that one"
    outbox.flush(one)
    one.write(b"now")
    outbox.put(one, b"c")
    await turn()
    assert (one.written, other.written) == ([b"a", b"now", b"c"], [b"b"])
    outbox.flush(one)
    assert len(one.written) == 3, "nothing is written twice"


async def test_what_was_closed_meanwhile_takes_nothing_and_harms_nobody():
    outbox, gone, other = Outbox(), Transport(), Transport()
    outbox.put(gone, b"a")
    outbox.put(other, b"b")
    gone.closed = True
    await turn()
    assert (gone.written, other.written) == ([], [b"b"])
    outbox.put(gone, b"a")
    outbox.flush(gone)
    assert gone.written == []


async def test_trouble_with_one_is_nobody_elses(caplog):
    outbox, broken, other = Outbox(), Transport(), Transport()

    def refuse(data):
        raise RuntimeError("no")

    broken.write = refuse
    outbox.put(broken, b"a")
    outbox.put(other, b"b")
    await turn()
    assert broken.closed
    assert other.written == [b"b"]
    assert "given up" in caplog.text


async def test_much_goes_out_at_once():
    """Or a transport could not say that it is full."""
    outbox, one = Outbox(), Transport()
    half = b"x" * (_MOST // 2)
    outbox.put(one, half)
    outbox.put(one, half)
    assert one.written == []
    outbox.put(one, b"y")
    assert one.written == [half, half, b"y"]
    outbox.put(one, b"z")
    await turn()
    assert one.written == [half, half, b"y", b"z"]
