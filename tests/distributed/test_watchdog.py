"""The watchdog ends its process, so that it is tested with runs, in tests/dist/test_guards.py."""

import pytest
import torch.distributed as dist

from n2n_dist.distributed.watchdog import peer_lost


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:31234"
        ),
        RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 4000ms for recv operation"),
        dist.DistBackendError("NCCL error ... ncclRemoteError: A call failed possibly due to a network error"),
        dist.DistNetworkError("The client socket has timed out after 60000ms while trying to connect to (a, 1)."),
        dist.DistStoreError("Timed out after 61 seconds waiting for clients. 1/2 clients joined."),
    ],
)
def test_what_the_libraries_say_of_a_process_that_is_gone(error: Exception) -> None:
    lost = peer_lost(error)
    assert str(lost).startswith("another process of this run was lost (")
    assert str(error)[:40] in str(lost)
    assert str(lost).endswith("the same command continues after the last checkpoint")
    assert "\n" not in str(lost)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA out of memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied; the file was closed"),
        ValueError("gloo: timed out"),
        dist.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert peer_lost(error) is None
