"""The public helpers of ts_parity.scenarios."""

import pytest

from ts_parity.scenarios import ManualClock


def test_a_manual_clock_stands_still_until_told():
    clock = ManualClock(5.0)
    assert clock() == clock() == 5.0
    clock.advance(0.5)
    assert clock() == 5.5
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-1.0)
