from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.processes import ROOT

from benchmarks import same_bits


def test_the_digest_of_weights_depends_on_shapes_and_contents_and_not_on_names(tmp_path: Path) -> None:
    one, two = torch.rand(2, 3), torch.rand(6)

    def digest(**tensors: torch.Tensor) -> str:
        safetensors.torch.save_file(tensors, tmp_path / "weights")
        return same_bits.weights_digest(tmp_path / "weights")

    assert digest(a=one, b=two) == digest(b=one, a=two)
    assert digest(a=one, b=two) != digest(a=one.reshape(3, 2), b=two)
    assert digest(a=one, b=two) != digest(a=one, b=torch.nextafter(two, torch.ones(6)))


@pytest.mark.slow
def test_a_run_gives_the_same_bits_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    printed = []
    for _ in range(2):
        command = ["same_bits.py", "--repo", str(ROOT), "--cases", "captures", "--backends", "one"]
        monkeypatch.setattr("sys.argv", command)
        same_bits.main()
        printed.append(capsys.readouterr().out)
    lines = printed[0].splitlines()
    assert [line.split()[:4] for line in lines if "train/total" in line] == [
        ["captures", "one", "train/total", str(step)] for step in range(1, 21)
    ]
    assert lines[-1].startswith("captures one weights ")
    assert printed[0] == printed[1]
