"""Whose errors are its own: an endpoint that answers errors where its peers answer well.

A handler's error is an answer: nearly always the client's body is bad, and any endpoint would say the same. But an
endpoint that fails whatever it gets is always idle, so it draws the traffic. Two steps tell the one from the other:

    suspicion   its share of errors is higher than its peers' by more than chance. It costs nothing and looks at shares
                only, so a burst of bad clients, which reaches all alike, and a model that fails everywhere are nothing
                to it, and one that fails a twentieth of all queries is found as well as one that fails all.
    proof       while it is suspect, or where the error is a doubtful one, a query to which it answers an error is tried
                elsewhere. If a peer answers it well,
                that counts against the endpoint; if a peer answers an error too, the query was bad and the endpoint is
                cleared. So clients of a suspect endpoint have good answers meanwhile, as far as the retry budget goes.

`PROOFS` of them eject it. It comes back as every endpoint does, by a probe, is ejected again by one more proof,
and is above suspicion after `WELL` good answers in a row.

Knows one endpoint's counts. Knows nothing of queries, times, or which may be ejected.
"""

from __future__ import annotations

import math
from typing import Final, final

SUSPICION: Final = 4.0
"""Of the log-likelihood ratio of two shares of errors against a common one. Twice that is chi-squared with one degree
of freedom: by chance 1 in 200. A suspicion in vain costs one more execution."""
PROOFS: Final = 3
WELL: Final = 50
"""An endpoint that fails a twentieth of all queries gives this many good answers in a row in 8 of 100 cases."""
WINDOW: Final = 1024.0
"""Answers after which the older ones count half."""


@final
class ErrorRecord:
    """What one endpoint has answered, in the long run and since it became suspect."""

    __slots__ = ("_proofs", "_well", "answers", "errors", "suspect")

    def __init__(self) -> None:
        self.answers = 0.0
        self.errors = 0.0
        self.suspect = False
        self._proofs = 0
        self._well = 0

    def answered(self) -> None:
        """Well, by all that is known."""
        self.answers += 1.0
        if self.suspect:
            self._well += 1
            if self._well >= WELL:
                self.clear()
        elif self.answers >= WINDOW:
            self._halve()

    def erred(self, peer_answers: float, peer_errors: float) -> bool:
        """-> whether it is suspect now. The peers' counts are sums over the others of its pool."""
        self.answers += 1.0
        self.errors += 1.0
        self._well = 0
        if not self.suspect:
            worse = self.errors * peer_answers > peer_errors * self.answers
            self.suspect = worse and _evidence(self.answers, self.errors, peer_answers, peer_errors) >= SUSPICION
        if self.answers >= WINDOW:
            self._halve()
        return self.suspect

    @property
    def share(self) -> float:
        """Of errors."""
        return self.errors / self.answers if self.answers else 0.0

    def proved(self, doubtful: bool = False) -> bool:
        """A peer has answered well what this endpoint answered with an error. -> whether that is enough. `doubtful`:
        the error was no sure sign of the client's fault, so it is evidence by itself.
        """
        self.suspect = self.suspect or doubtful
        if not self.suspect:
            return False
        self._proofs = min(self._proofs + 1, PROOFS)
        return self._proofs == PROOFS

    def clear(self) -> None:
        """Its error was the query's, or it has done well for long: its count starts again."""
        self.answers = self.errors = 0.0
        self.suspect = False
        self._proofs = self._well = 0

    def _halve(self) -> None:
        self.answers /= 2.0
        self.errors /= 2.0


def _evidence(answers: float, errors: float, peer_answers: float, peer_errors: float) -> float:
    """Log-likelihood ratio of two shares of errors against a common one: half the G statistic of the 2 x 2 table."""
    everybody, all_errors = answers + peer_answers, errors + peer_errors
    sums = 0.0
    for count, row, column in (
        (errors, answers, all_errors),
        (answers - errors, answers, everybody - all_errors),
        (peer_errors, peer_answers, all_errors),
        (peer_answers - peer_errors, peer_answers, everybody - all_errors),
    ):
        if count > 0.0:
            sums += count * math.log(count * everybody / (row * column))
    return sums
