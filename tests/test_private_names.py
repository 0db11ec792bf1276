"""Private names of dependencies that the package uses: a new version may drop each of them without a word."""

import ast
import pydoc

import pytest
from support.processes import ROOT

USED = {
    "torch.cpu._is_avx512_bf16_supported": (
        "whether bfloat16 is fast on this processor; torch.cpu.get_capabilities() says it in public, which the oldest "
        "torch that pyproject.toml allows does not have"
    ),
    "torch.cpu._is_amx_tile_supported": "as above",
    "torch._standard_gamma": (
        "gamma noise from a generator of the sample's own; torch.distributions.Gamma takes none. Instead: the method "
        "of Marsaglia and Tsang (2000) over torch.randn and torch.rand, which changes the noise"
    ),
    "torch.UntypedStorage._new_shared": (
        "shared memory of which only what is used is ever taken; share_memory_() copies all of a storage first"
    ),
    "torch.distributed.distributed_c10d._get_default_store": (
        "ranks that do not answer are found by the store of the process group. Instead: make the store with "
        "torch.distributed.rendezvous and give it to init_process_group, before Accelerate does without"
    ),
    "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer._lazy_init_hp_params_optimizer_state": (
        "makes the optimiser's state reachable before the first step, so that a checkpoint can be loaded into it. "
        "Instead: one throw-away step"
    ),
}
"""What each is used for, and what could take its place."""

PUBLIC = {"_exit"}
"""Documented, whatever its name looks like: os._exit."""


def test_private_names_of_dependencies_are_known() -> None:
    own, used = set(PUBLIC), set()
    for path in (ROOT / "n2n_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                (own if isinstance(node.ctx, ast.Store) else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("n2n_dist"):
                used |= {alias.name for alias in node.names if is_private(alias.name)}
    assert used - own == {name.rpartition(".")[2] for name in USED}


@pytest.mark.parametrize("name", USED)
def test_a_private_name_is_still_there(name: str) -> None:
    pytest.importorskip(name.partition(".")[0])
    assert pydoc.locate(name) is not None, f"{name} is gone; it was for: {USED[name]}"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
