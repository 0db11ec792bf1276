import os

import pytest

from n2n_dist.distributed.environment import launched_world_size, remove_leftovers
from n2n_dist.errors import UserError


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"WORLD_SIZE": "2"},
            "^WORLD_SIZE=2: set without RANK, so it is left over .*; unset WORLD_SIZE",
        ),
        ({"RANK": "3"}, "^RANK=3: set without WORLD_SIZE"),
        ({"WORLD_SIZE": "two"}, "^WORLD_SIZE=two: not a number; unset it"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "set without MASTER_PORT"),
    ],
)
def test_variables_left_over_from_another_program_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        launched_world_size()


@pytest.mark.parametrize("variables", [{}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_one_process_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_world_size() == 1


def test_what_a_launcher_has_set_stays_and_the_rest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "")
    for name in ("LOCAL_RANK", "ACCELERATE_DYNAMO_BACKEND"):
        monkeypatch.setenv(name, "1")
    remove_leftovers()
    assert not os.environ.keys() & {"WORLD_SIZE", "LOCAL_RANK", "ACCELERATE_DYNAMO_BACKEND"}
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    remove_leftovers()
    assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("2", "1")
