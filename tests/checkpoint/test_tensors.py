import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from n2n_dist.checkpoint.tensors import StagingBuffers, named_tensors, partition_by_size
from n2n_dist.models.resunet import ResUNet, ResUNetSettings

NAMES = st.dictionaries(st.text("abcdef.", min_size=1, max_size=6), st.integers(0, 1000), max_size=40)


@given(sizes=NAMES, world=st.integers(1, 9))
def test_every_tensor_has_one_owner_and_no_rank_more_than_an_even_share_and_one(
    sizes: dict[str, int], world: int
) -> None:
    shares = partition_by_size(sizes, world)
    assert len(shares) == world
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    heaviest = max(sum(sizes[name] for name in share) for share in shares)
    assert heaviest <= sum(sizes.values()) / world + max(sizes.values(), default=0)
    shuffled = dict(reversed(sizes.items()))
    assert partition_by_size(shuffled, world) == shares, "the order of the names does not matter"


@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_the_shares_of_a_network_are_even(world: int) -> None:
    with torch.device("meta"):
        network = ResUNet(ResUNetSettings())
    tensors = named_tensors(network, network, lambda parameter: {"exp_avg": parameter, "exp_avg_sq": parameter})
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert sum(sizes.values()) == 16 * parameters
    for share in partition_by_size(sizes, world):
        assert sum(sizes[name] for name in share) == pytest.approx(16 * parameters / world, rel=0.1)


def test_copies_stay_as_they_were_and_use_the_same_memory_again() -> None:
    buffers = StagingBuffers()
    assert buffers.bytes == 0
    tensors = {
        "a": torch.ones(2, 3),
        "b": torch.ones(5),
        "c": torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last),
    }
    first = buffers.copy(tensors.items(), {"a", "c"})
    assert first.keys() == {"a", "c"}
    assert buffers.bytes == 4 * (6 + 72)
    tensors["a"].zero_()
    assert first["a"].all()
    assert first["c"].is_contiguous()
    assert torch.equal(first["c"], tensors["c"])
    second = buffers.copy(tensors.items(), {"a", "c"})
    assert not second["a"].any()
    assert {name: copy.data_ptr() for name, copy in first.items()} == {n: copy.data_ptr() for n, copy in second.items()}
    assert buffers.bytes == 4 * (6 + 72)
