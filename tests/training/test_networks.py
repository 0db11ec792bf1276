from pathlib import Path

import pytest
import torch

from n2n_dist.distributed.backend import Backend
from n2n_dist.errors import UserError
from n2n_dist.models.resunet import ResUNet, ResUNetSettings
from n2n_dist.models.weights import save_model
from n2n_dist.objective import LossSettings
from n2n_dist.training.networks import Networks, build_networks, initialise
from n2n_dist.training.precision import TrainSettings

SETTINGS = ResUNetSettings(width=8, depths=[1, 1])


def built(backend: Backend, perceptual: float = 0.0, channels_last: bool = True) -> Networks:
    train = TrainSettings(channels_last=channels_last, compile="off")
    return build_networks(SETTINGS, 32, LossSettings(perceptual=perceptual), train, backend)


def test_the_average_is_not_trained_and_features_are_loaded_where_the_loss_has_them(backend: Backend) -> None:
    nets = built(backend)
    assert all(parameter.requires_grad for parameter in nets.network.parameters())
    assert not any(parameter.requires_grad for parameter in nets.ema.parameters())
    assert not nets.ema.training
    assert nets.features is None
    assert built(backend, perceptual=0.1).features is not None


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_example_is_a_micro_batch_in_the_layout_of_the_images(backend: Backend, channels_last: bool) -> None:
    example = built(backend, channels_last=channels_last).example(5)
    assert example.shape == (5, 3, 32, 32)
    assert example.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_weights_are_those_that_the_seed_draws_for_network_and_average(backend: Backend) -> None:
    one, again, other = (built(backend) for _ in range(3))
    for nets, seed in ((one, 1), (again, 1), (other, 2)):
        initialise(nets, seed, None)
    for name, tensor in one.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name])
        assert torch.equal(tensor, one.ema.state_dict()[name])
    first = "stem_conv.weight"
    assert not torch.equal(one.network.state_dict()[first], other.network.state_dict()[first])


def test_a_run_starts_from_given_weights_of_the_same_network(backend: Backend, tmp_path: Path) -> None:
    torch.manual_seed(7)
    model = ResUNet(SETTINGS, crop=32)
    save_model(tmp_path / "start.safetensors", model)
    nets = built(backend)
    initialise(nets, 0, str(tmp_path / "start.safetensors"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(nets.network.state_dict()[name], tensor)
        assert torch.equal(nets.ema.state_dict()[name], tensor)
    save_model(tmp_path / "wide.safetensors", ResUNet(ResUNetSettings(width=16, depths=[1, 1]), crop=32))
    with pytest.raises(UserError, match=r"run.init .*wide.safetensors: weights of another network \(width is 16 there"):
        initialise(nets, 0, str(tmp_path / "wide.safetensors"))
