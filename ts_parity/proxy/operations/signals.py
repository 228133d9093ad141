"""What each signal means to a proxy.

    SIGTERM, SIGINT, SIGQUIT   the first drains, the second cuts
    SIGHUP                     reload the configuration, certificates, keys, the fleet and the access log; drain if a
                               terminal has gone
    SIGUSR1                    reopen the access log
    SIGUSR2                    nothing

Without a handler each of them would end the process and cut the requests in flight.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from ts_parity.startup import asked_to_end


def install_handlers(end: Callable[[], None], reload: Callable[[], None], reopen: Callable[[], None]) -> None:
    """Handle signals from now on. A SIGTERM that came before there was an event loop counts."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        loop.add_signal_handler(number, end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        loop.add_signal_handler(signal.SIGHUP, end if os.isatty(0) else reload)
    loop.add_signal_handler(signal.SIGUSR1, reopen)
    loop.add_signal_handler(signal.SIGUSR2, _nothing)
    if asked_to_end():
        end()


def _nothing() -> None:
    pass
