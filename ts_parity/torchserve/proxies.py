"""What running proxies have seen of the instances, so that a rollout knows when it may go on.

Knows the admin port's `/status`, and of it only how old a proxy's view of an instance is and whom it sends queries to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ts_parity import admin_client
from ts_parity.errors import Unreachable


@dataclass(frozen=True)
class ProxyView:
    """`ages`: by management address, how many seconds ago the last look at the instance began that was answered.
    `used`: by NAME/VERSION, the instances that its queries are sent to. `fit`: those of them that are not ejected.
    """

    ages: Mapping[str, float]
    used: Mapping[str, frozenset[str]]
    fit: Mapping[str, frozenset[str]]

    def missing(self, changed: Mapping[str, float], wanted: Iterable[tuple[str, str]], now: float) -> str:
        """Which change the proxy has not seen yet; empty: it has seen all. `changed`: when each instance was changed.
        `wanted`: instances that must be in use, each with its model.
        """
        for instance, changed_at in changed.items():
            if instance in self.ages and self.ages[instance] >= now - changed_at:
                return f"what was changed on {instance}"
        for instance, model in wanted:
            if instance in self.ages and instance not in self.used.get(model, ()):
                return f"that {instance} serves {model} again"
        return ""

    def alone(self, instance: str, model: str, others: Iterable[str]) -> str:
        """What must be seen before `model` goes from `instance`: one of `others`, which have it too, in its place.
        Empty: another instance answers queries, all that might are ejected, it has none of these, or it does not use
        this instance.
        """
        known = sorted(self.ages.keys() & set(others))
        if known and frozenset({instance}) in (self.used.get(model), self.fit.get(model)):
            return f"that {' or '.join(known)} serves {model}"
        return ""


def ask(admin: str) -> ProxyView:
    """Raise Unreachable."""
    url = f"{admin}/status"
    try:
        return _proxy_view(admin_client.ask(url))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Unreachable(f"{url} says nothing of what it has seen; is this the admin port of a proxy?") from None


def _proxy_view(status: Any) -> ProxyView:
    managed = {each["name"]: str(each["management"]).rstrip("/") for each in status["instances"]}
    serving = {
        name: [each for each in pool["endpoints"] if each["row"] is None] for name, pool in status["pools"].items()
    }
    used, fit = (
        {name: frozenset(managed[each["instance"]] for each in some if fits(each)) for name, some in serving.items()}
        for fits in (lambda each: True, lambda each: each.get("health", "in") == "in")
    )
    return ProxyView({managed[each["name"]]: float(each["seen_s"]) for each in status["instances"]}, used, fit)
