import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.errors import UserError
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.training.optim import OptimSettings, learning_rate, make_optimizer, update_ema


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    settings = OptimSettings(lr=1.0, warmup=100)
    rates = [learning_rate(settings, step, 10_000) for step in range(10_000)]
    assert rates[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert rates[100] == 1.0
    assert rates[5050] == pytest.approx(0.5)  # the middle of the cosine
    assert rates[-1] == pytest.approx(0, abs=1e-6)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[100:]))


@given(steps=st.integers(1, 100_000), warmup=st.integers(0, 1000), data=st.data())
def test_learning_rate_is_above_zero_and_at_most_the_peak(steps: int, warmup: int, data: st.DataObject) -> None:
    step = data.draw(st.integers(0, steps - 1))
    settings = OptimSettings(lr=2e-3, warmup=warmup)
    assert 0 < learning_rate(settings, step, steps) <= 2e-3
    assert learning_rate(settings, step, steps) == learning_rate(settings, step, steps)


def test_warm_up_takes_at_most_a_tenth_of_the_steps() -> None:
    settings = OptimSettings(lr=1.0, warmup=200)
    assert learning_rate(settings, 9, 100) == 1.0
    assert learning_rate(settings, 8, 100) == pytest.approx(0.9)
    assert learning_rate(settings, 0, 1) == 1.0


def test_more_steps_stretch_the_cosine() -> None:
    settings = OptimSettings(lr=1.0, warmup=10)
    assert learning_rate(settings, 900, 1000) < learning_rate(settings, 900, 2000)


def test_only_weights_of_convolutions_decay() -> None:
    model = ResUNet(ResUNetSettings(width=8, depths=[1, 1]))
    optimizer = make_optimizer(model, OptimSettings(weight_decay=0.5))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") else 0.5), name

    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # no gradient: what moves is decay alone
    for name, tensor in model.state_dict().items():
        kept = 1.0 if name.endswith("bias") else 1 - 0.5 * 1e-3
        torch.testing.assert_close(tensor, before[name] * kept)


def test_ema_follows_fast_when_young_and_then_with_its_decay() -> None:
    model, ema = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    expected = torch.tensor(0.0)
    torch.nn.init.zeros_(ema.weight)
    for step in range(50):
        torch.nn.init.constant_(model.weight, float(step))
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        update_ema(ema, model, 0.8, step)
        torch.testing.assert_close(ema.weight.squeeze(), expected)


def test_ema_of_zero_is_the_weights_themselves() -> None:
    model, ema = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    update_ema(ema, model, 0.0, 7)
    assert torch.equal(ema.weight, model.weight)
    assert torch.equal(ema.bias, model.bias)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", float("inf")),
        ("lr", float("nan")),
        ("warmup", -1),
        ("weight_decay", -1e-4),
        ("clip", float("nan")),
        ("clip", -1.0),
        ("ema", 1.0),
        ("ema", -0.1),
        ("ema", float("nan")),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"optim\.{name} {value}: must be"):
        OptimSettings(**{name: value})
