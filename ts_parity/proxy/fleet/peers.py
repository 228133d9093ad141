"""The other proxies in front of the same instances: finds them by name or list, and asks each of them who it is.

A heartbeat is a request to a peer's inference port, where forwarded queries go too, with a random number. Its answer is
believed only with a proof over that number, made with the shared secret: who replays, forges or relays changes nothing,
no clock is compared, and a client cannot pose as a peer. Whoever asks learns; whoever is asked learns nothing.

Knows names, addresses and proofs. `engine.members` decides what follows from what was heard; `serving.forwarding` sends
queries there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from hashlib import blake2b
from typing import Any
from urllib.parse import urlsplit

from ts_parity.config import UNIX, InstanceSettings, Settings
from ts_parity.engine import Cause
from ts_parity.engine.members import BEAT_S, SILENT_S, Members, PeerState, Word
from ts_parity.proxy.http.certificates import Tls, peer_side
from ts_parity.proxy.http.messages import Request, Response, header
from ts_parity.proxy.http.streams import Stream
from ts_parity.proxy.http.upstream import Address, NoResponse, Result, Upstream
from ts_parity.wire import FORWARDED, PEER

log = logging.getLogger(__name__)

HEARTBEAT = "/ts-parity/heartbeat"
VERSION = 1
"""Of what peers say to each other. With one of another version a proxy shares nothing."""
_RESOLVE_S = 5.0
_NEVER_S = 1e6
_MAX_BYTES = 1 << 20
_LONGEST_NAME = 64
_MOST_REMEMBERED = 64


def new_member() -> str:
    """A name for this proxy, other than any that it had before: what it knew is gone."""
    return secrets.token_hex(8)


class Peers:
    """Create, `start`, in the end `close`. `members` is what is known of them."""

    def __init__(
        self,
        settings: Settings,
        member: str,
        serves: Callable[[], frozenset[str]],
        is_draining: Callable[[], bool],
        on_lost: Callable[[str, frozenset[str] | None], object],
    ) -> None:
        """`serves`: the pools that this proxy can serve now. `on_lost` is called with the address of a peer and the
        pools of which it will not answer even what it has; None: all. Raise ConfigError.
        """
        self.members = Members(member)
        self.adopt(settings.instances)
        self._configured = settings.peers
        self._resolved: dict[str, list[str]] = {url: [] for url in self._configured}
        self._unresolved: dict[str, str] = {}
        """Configured address -> why its name has no addresses."""
        self._key = settings.secret.encode()
        self._serves = serves
        self._is_draining = is_draining
        self._on_lost = on_lost
        self._tls_of = {
            url: peer_side(settings, urlsplit(url).hostname or "") for url in self._configured if _is_https(url)
        }
        # A forwarded query has its own time limit.
        self.upstream = Upstream(min(settings.connect_timeout_s, SILENT_S), _NEVER_S)
        self._forwarding_proof = f"{member} {self._proof('forward', member)}"
        self._forwarders: dict[str, str] = {}
        """What the members that have forwarded queries here have shown, and who they are."""
        self._asking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def tls(self) -> list[Tls]:
        return [*self._tls_of.values()]

    def adopt(self, instances: Sequence[InstanceSettings]) -> None:
        """What this proxy says of its fleet. Who was given other instances shares nothing with it, until it has these
        too.
        """
        self.members.fleet = _digest(*sorted(instance.name for instance in instances))

    async def start(self) -> None:
        """Ask everyone once, so that the first query finds who is there."""
        self._spawn(self._keep_resolving())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._resolve(), SILENT_S)
        await asyncio.gather(*(self._ask(address) for address in self.members.peers))
        self._spawn(self._keep_asking())

    async def close(self) -> None:
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.upstream.close()

    def lost(self, address: str, reason: str) -> None:
        """A query was forwarded there, and no member has answered."""
        if self.members.lost(address, reason, asyncio.get_running_loop().time()):
            log.warning("peer %s is lost: %s", address, reason)

    # ---- what others ask -------------------------------------------------------------------------------------------

    def answer(self, request: Request) -> Response | None:
        """The answer to a heartbeat; None if it is none, or comes from nobody who has the secret."""
        proof = header(request.controls, PEER)
        if proof is None or request.target != HEARTBEAT:
            return None
        nonce, _, shown = proof.partition(" ")
        if len(nonce) > _LONGEST_NAME or not self._is_proof(shown, "ask", nonce):
            return None
        word = {
            "version": VERSION,
            "member": self.members.own,
            "fleet": self.members.fleet,
            "serves": sorted(self._serves()),
            "draining": self._is_draining(),
        }
        body = json.dumps(word).encode()
        said = (PEER, self._proof("say", nonce, body.decode()))
        headers = (("content-type", "application/json"), ("content-length", str(len(body))), said)
        return Response(200, "", headers, body)

    @property
    def forwarding_header(self) -> tuple[str, str]:
        """What a query bears that this proxy forwards."""
        return FORWARDED, self._forwarding_proof

    def forwarded_by(self, request: Request) -> str | None:
        """The member that forwards this request; None if it is a client's own, whatever it claims.

        Replayed by a client, it would only keep the client's query from being forwarded.
        """
        shown = header(request.controls, FORWARDED)
        if shown is None:
            return None
        if (known := self._forwarders.get(shown)) is not None:
            return known
        member, _, proof = shown.partition(" ")
        if len(member) > _LONGEST_NAME or not self._is_proof(proof, "forward", member):
            return None
        if len(self._forwarders) >= _MOST_REMEMBERED:
            self._forwarders.clear()
        self._forwarders[shown] = member
        return member

    def _proof(self, *what: str) -> str:
        return hmac.new(self._key, "\0".join(what).encode("utf-8", "surrogateescape"), "sha256").hexdigest()

    def _is_proof(self, shown: str, *what: str) -> bool:
        return hmac.compare_digest(shown.encode("utf-8", "surrogateescape"), self._proof(*what).encode())

    # ---- what is asked of others -----------------------------------------------------------------------------------

    async def _keep_asking(self) -> None:
        while True:
            try:
                self._beat()
            except Exception:  # if this loop ended, whoever was alive would be so for ever
                log.exception("the peers could not be asked")
            await asyncio.sleep(BEAT_S)

    def _beat(self) -> None:
        for address in self.members.tick(asyncio.get_running_loop().time()):
            log.warning("peer %s: %s; what it has is served here", address, self.members.peers[address].reason)
            self._on_lost(address, None)
        self.members.serve(self._serves())
        for address in self.members.peers:
            if address not in self._asking:
                self._spawn(self._ask(address))

    async def _ask(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        before, asked_at, nonce = self.members.state(address), loop.time(), secrets.token_hex(16)
        asked = (PEER, f"{nonce} {self._proof('ask', nonce)}")
        self._asking.add(address)
        try:
            result = await self.upstream.exchange(
                Address(address), Request("GET", HEARTBEAT, (asked,), b""), SILENT_S, _MAX_BYTES
            )
        finally:
            self._asking.discard(address)
        if isinstance(result, NoResponse) and result.cause is Cause.ERROR:
            return  # no answer in time: it is its silence that counts, which `tick` measures
        try:
            word = self._read(result, nonce)
        except ValueError as error:
            self.lost(address, str(error))
            return
        if withdrawn := self.members.heard(address, word, asked_at, loop.time()):
            self._on_lost(address, withdrawn)
        if (after := self.members.state(address)) is not before:
            level = logging.WARNING if before is PeerState.RETURNING else logging.INFO
            log.log(level, "peer %s: %s", address, after.value)

    def _read(self, result: Result, nonce: str) -> Word:
        """Raise ValueError, with the reason, for whatever no member would say."""
        if isinstance(result, NoResponse):
            raise ValueError(result.reason)
        if isinstance(result, Stream):
            result.close()
            raise ValueError("it answers as no proxy does")
        body, shown = result.body.decode("utf-8", "replace"), header(result.controls, PEER)
        if shown is None or not self._is_proof(shown, "say", nonce, body):
            raise ValueError("it answers as no proxy with the same secret does")
        word: Any = json.loads(body)
        try:
            if word["version"] != VERSION:
                raise ValueError(f"it speaks version {word['version']!r} of the heartbeat, and this proxy {VERSION}")
            serves = frozenset(map(str, word["serves"]))
            return Word(str(word["member"]), serves, str(word["fleet"]), bool(word["draining"]))
        except (LookupError, TypeError) as error:
            raise ValueError(f"its heartbeat cannot be read: {error!r}") from None

    # ---- where they are --------------------------------------------------------------------------------------------

    async def _keep_resolving(self) -> None:
        while True:
            await asyncio.sleep(_RESOLVE_S)
            try:
                await self._resolve()
            except Exception:
                log.exception("the peers' names could not be resolved; their last addresses stay in use")

    async def _resolve(self) -> None:
        """A name that cannot be resolved keeps its last addresses."""
        await asyncio.gather(*(self._resolve_one(url) for url in self._configured))
        found = [*dict.fromkeys(address for url in self._configured for address in self._resolved[url])]
        if found == [*self.members.peers]:
            return
        gone = [address for address in self.members.peers if address not in found]
        for address in self.members.adopt(found):
            log.warning("peer %s is gone: its name no longer has this address", address)
        for address in gone:
            self.upstream.forget(address)

    async def _resolve_one(self, url: str) -> None:
        if url.startswith(UNIX):
            self._resolved[url] = [url]
            return
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self._unresolved[url] = f"peer {url}: its name has no address: {why}"
            return
        self._unresolved.pop(url, None)
        hosts = dict.fromkeys(str(address[0]) for _, _, _, _, address in found)
        self._resolved[url] = [
            f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host in sorted(hosts)
        ]
        if (tls := self._tls_of.get(url)) is not None:
            self.upstream.adopt(dict.fromkeys(self._resolved[url], tls))

    def _spawn(self, story: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(story)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- for operators ---------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        return {
            "member": self.members.own,
            "peers": [
                {
                    "name": peer.address,
                    "state": peer.state.value,
                    "member": peer.word.member,
                    "reason": peer.reason,
                    "serves": sorted(peer.word.serves),
                }
                for peer in self.members.peers.values()
            ],
        }

    def problems(self) -> list[str]:
        """Of an address that a name stands for, nothing is said while another of its addresses is alive."""
        problems = [*self._unresolved.values()]
        for url, addresses in self._resolved.items():
            peers = [self.members.peers[address] for address in addresses if address in self.members.peers]
            strange = [peer for peer in peers if peer.state is PeerState.STRANGER]
            fine = [peer for peer in peers if peer.state in (PeerState.ALIVE, PeerState.SELF, PeerState.RETURNING)]
            for peer in strange or ([] if fine else peers):
                where = peer.address if peer.address == url else f"{peer.address} ({url})"
                problems.append(f"peer {where}: {peer.reason}; queries are not forwarded to it")
        return problems


def _is_https(url: str) -> bool:
    return urlsplit(url).scheme == "https"


def _digest(*names: str) -> str:
    return blake2b("\0".join(names).encode(), digest_size=8).hexdigest()
