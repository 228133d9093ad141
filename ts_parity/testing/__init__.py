"""Public help for tests, ours and those of people who build on ts_parity: fake instances, and races in virtual time."""

from ts_parity.testing.fakes import Canned, FakeModel, FakeTorchServe, Received, protection
from ts_parity.testing.model_servers import TRAITS, FakeFunction, FakeModelServer
from ts_parity.testing.races import OUTCOMES, POOL, Run, fleet, scenario

__all__ = (
    "Canned",
    "FakeFunction",
    "FakeModel",
    "FakeModelServer",
    "FakeTorchServe",
    "Received",
    "TRAITS",
    "protection",
    "OUTCOMES",
    "POOL",
    "Run",
    "fleet",
    "scenario",
)
