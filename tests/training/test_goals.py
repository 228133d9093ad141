"""What a network is to learn, a step at a time."""

import pytest
import torch

from ts_parity.codes import make_code
from ts_parity.training.goals import Goal
from ts_parity.training.semantics import CLASSES


@pytest.mark.parametrize("code", ["sum", "concat"])
def test_slots_that_nobody_is_in_teach_nothing(code):
    """The second member is missing: what F says of the input that stands in its slot makes no difference."""
    goal = Goal(make_code(code, 2), 0)
    dice = torch.Generator().manual_seed(0)
    said, targets = torch.randn(3, 1, 5, generator=dice), torch.randn(3, 2, 1, 5, generator=dice)
    present = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    changed = targets.clone()
    changed[:2, 1] += torch.randn(2, 1, 5, generator=dice)

    def loss(of):
        return float(goal.loss(said, of, present, torch.ones(()), 0.1, CLASSES))

    assert loss(changed) == pytest.approx(loss(targets))
    changed[2, 1] += 1.0 * torch.arange(5)
    assert loss(changed) != pytest.approx(loss(targets))
