"""Reading the configuration again while the proxy runs: all of it takes effect, or nothing does.

One reload at a time: another waits for its turn and then reads what the file says by then. Whatever is wrong, the old
configuration goes on, and the result says what and where. Knows configurations and results, and counts them. Knows
nothing of fleets, engines or processes: who runs the new settings is passed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from ts_parity.config import ConfigSource, Configuration, Settings, changes, configuration_json, kept_running
from ts_parity.errors import TsParityError
from ts_parity.proxy.serving.exposition import ExposedFamily, written_labels

log = logging.getLogger(__name__)

CHANGED: Final = "changed"
UNCHANGED: Final = "unchanged"
REFUSED: Final = "refused"
RESULTS: Final = (CHANGED, UNCHANGED, REFUSED)
RELOADS: Final = "ts_parity_config_reloads"
RELOADS_TEXT: Final = "Times that the configuration was read again, by what came of it. Refused: it went on as before."
SUCCESS: Final = "ts_parity_config_last_reload_successful"
SUCCESS_TEXT: Final = "Whether the last attempt to read the configuration succeeded; 0: an older one is running."
SUCCESS_AT: Final = "ts_parity_config_last_reload_success_timestamp_seconds"
SUCCESS_AT_TEXT: Final = "When the configuration was last read and good, in seconds since 1970; at the start, too."


class NotNow(TsParityError):
    """Nothing can be reloaded at this moment, whatever the configuration says."""

    status = 409


class NoAnswer(TsParityError):
    """One of several processes gives no answer, so none of them reloads."""

    status = 503


@dataclass(frozen=True)
class ReloadResult:
    """`changed`: sentences, of what is in force now. `restart`: of what waits for a restart. `problems`: why nothing
    has changed. `status`: of HTTP.
    """

    result: str
    changed: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    status: int = 200
    at: float = 0.0

    def json(self) -> dict[str, Any]:
        return {
            "result": self.result,
            "changed": list(self.changed),
            "needs_restart": list(self.restart),
            "problems": list(self.problems),
        }


class Reloader:
    """The configuration that runs, and what came of reading it again."""

    def __init__(
        self,
        settings: Settings,
        adopt: Callable[[Settings], Awaitable[tuple[str, ...]]],
        source: ConfigSource | None = None,
        found: Configuration | None = None,
    ) -> None:
        """`found`: what `source` said at the start, which is `settings`. `adopt` makes settings run, and says what else
        has changed with them, such as the content of a file; if it raises TsParityError, nothing has.
        """
        self.counts = dict.fromkeys(RESULTS, 0)
        self.succeeded_at = time.time()
        self.last: ReloadResult | None = None
        self._pending: tuple[str, ...] = ()
        self._adopt = adopt
        self._source = source
        self._running = found or Configuration(
            settings, (), {}, tuple({} for _ in settings.instances), tuple({} for _ in settings.models)
        )
        self._turn = asyncio.Lock()

    @property
    def has_source(self) -> bool:
        return self._source is not None

    async def reload(self, refusal: Callable[[], str] = lambda: "") -> ReloadResult:
        """Read it again and let it run. `refusal`: why that cannot be now, asked when its turn has come."""
        async with self._turn:
            try:
                result = await self._reloaded(refusal())
            except TsParityError as error:
                result = ReloadResult(REFUSED, problems=(str(error),), status=_status(error))
            except Exception as error:
                log.exception("the configuration could not be reloaded")
                result = ReloadResult(REFUSED, problems=(f"{type(error).__name__}: see the proxy's log",), status=500)
            self._note(replace(result, at=time.time()))
            return result

    async def _reloaded(self, refusal: str) -> ReloadResult:
        if refusal:
            raise NotNow(refusal)
        if self._source is None:
            raise NotNow("this proxy was given its settings by a program, and there is nothing to read again")
        wanted = self._source.read()
        if wanted.settings is None:
            return ReloadResult(REFUSED, problems=tuple(str(problem) for problem in wanted.problems), status=422)
        assert self._running.settings is not None
        found = changes(self._running.settings, wanted.settings)
        running = kept_running(self._running, wanted)
        assert running.settings is not None
        besides = await self._adopt(running.settings)
        self._running, self._pending = running, found.restart
        changed = (*found.at_once, *besides)
        return ReloadResult(CHANGED if changed else UNCHANGED, changed, found.restart)

    def _note(self, result: ReloadResult) -> None:
        self.last = result
        self.counts[result.result] += 1
        if result.result == REFUSED:
            for problem in result.problems:
                log.error("configuration not reloaded, the old one goes on: %s", problem)
            return
        self.succeeded_at = result.at
        told = "; ".join(result.changed) or "nothing in it has changed"
        log.warning("configuration reloaded: %s", told)
        for line in result.restart:
            log.warning("needs a restart: %s", line)

    def families(self) -> list[ExposedFamily]:
        """For Prometheus."""
        reloads = ExposedFamily(RELOADS, "counter", RELOADS_TEXT)
        for result, number in self.counts.items():
            reloads.add(written_labels(("result",), (result,)), number)
        successful = ExposedFamily(SUCCESS, "gauge", SUCCESS_TEXT)
        successful.add("", float(self.last is None or self.last.result != REFUSED))
        succeeded_at = ExposedFamily(SUCCESS_AT, "gauge", SUCCESS_AT_TEXT)
        succeeded_at.add("", round(self.succeeded_at, 3))
        return [reloads, successful, succeeded_at]

    def configuration(self) -> dict[str, Any]:
        """What runs, each value with where it came from, and what waits for a restart. No secrets."""
        assert self._running.settings is not None
        return {**configuration_json(self._running, self._running.settings), "needs_restart": list(self._pending)}

    def status(self) -> dict[str, Any]:
        file = self._source.file if self._source is not None else None
        last = {**self.last.json(), "at": round(self.last.at, 3)} if self.last is not None else None
        return {
            "file": None if file is None else str(file),
            "read_at": round(self.succeeded_at, 3),
            "reloads": dict(self.counts),
            "last_reload": last,
        }

    def problems(self) -> list[str]:
        if self.last is None or self.last.result != REFUSED:
            return []
        more = f" (and {len(self.last.problems) - 1} more)" if len(self.last.problems) > 1 else ""
        return [f"the configuration was not reloaded, and the old one goes on: {self.last.problems[0]}{more}"]


def _status(error: TsParityError) -> int:
    return error.status if isinstance(error, NotNow | NoAnswer) else 422
