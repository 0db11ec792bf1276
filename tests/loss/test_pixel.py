import math

import pytest
import torch

from n2n_dist.loss.pixel import LOSSES


def test_values_by_hand() -> None:
    prediction, target = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), torch.tensor([[[[1.0, 1.0], [0.0, 3.0]]]])
    assert LOSSES["l1"](prediction, target).item() == pytest.approx((1 + 2) / 4)
    assert LOSSES["l2"](prediction, target).item() == pytest.approx((1 + 4) / 4)
    smooth = (math.sqrt(1 + 1e-6) + math.sqrt(4 + 1e-6) + 2 * 1e-3) / 4
    assert LOSSES["charbonnier"](prediction, target).item() == pytest.approx(smooth)


@pytest.mark.parametrize(("name", "expected"), [("l1", 1.0), ("l2", 3.25), ("charbonnier", 1.0)])
def test_l1_learns_the_median_and_l2_the_mean(name: str, expected: float) -> None:
    targets = torch.tensor([0.0, 1.0, 1.0, 11.0])
    values = torch.arange(0, 11, 0.01)
    losses = torch.stack([LOSSES[name](value.expand(4), targets) for value in values])
    assert values[losses.argmin()].item() == pytest.approx(expected, abs=0.011)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_finite_where_prediction_and_target_agree(name: str) -> None:
    prediction = torch.zeros(1, 1, 2, 2, requires_grad=True)
    LOSSES[name](prediction, torch.zeros(1, 1, 2, 2)).backward()
    assert prediction.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_mean_over_micro_batches_is_that_of_the_batch(name: str) -> None:
    prediction, target = torch.rand(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = [LOSSES[name](p, t) for p, t in zip(prediction.chunk(2), target.chunk(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), LOSSES[name](prediction, target))
