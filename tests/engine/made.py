"""Endpoints and groups for tests of one rule alone: no scheduler, no fleet."""

from ts_parity.codes import make_code
from ts_parity.engine import CodingGroup, Endpoint, Instance, Query, Task, plain
from ts_parity.engine.capacity import EndpointSet, EndpointState, InstanceState, PoolShare
from ts_parity.engine.events import Kind


def endpoints(number=3, *, domains=None, places=1, row=None):
    """Each on a machine of its own, `d0` and so on, which is its failure domain unless `domains` are given."""
    made = []
    for i in range(number):
        host = InstanceState(Instance(f"d{i}", places, domains[i] if domains else f"d{i}"))
        state = EndpointState(Endpoint(f"d{i}", f"d{i}", "m", row, places), host, plain())
        host.endpoints.append(state)
        PoolShare().add(state)
        made.append(state)
    return EndpointSet(made)


def sent(query, place, number=1, now=0.0):
    """A task of the query takes a place there."""
    task = Task(number, Kind.DEPLOYED, query, None, None, None, place, now)
    place.take_place(task, now)
    query.in_flight += 1
    query.avoid |= place.only
    query.domain = place.domain
    return task


def group_of(*domains, code="sum", k=2, key="key"):
    """An open group with a member in each of these domains."""
    group = CodingGroup(1, key, make_code(code, k, 1), closes_at=1.0)
    for number, domain in enumerate(domains):
        group.join(Query(number, "m", key), domain)
    return group
