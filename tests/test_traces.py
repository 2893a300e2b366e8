"""Trainings end with the recorded parameters: moves of code change no number."""

import pytest

from tests import traces

MACHINE, RECORDED = traces.read()


def test_every_case_is_recorded() -> None:
    assert list(RECORDED) == traces.NAMES, "record them with `python -m tests.traces --record`"


@pytest.mark.parametrize("name", traces.NAMES)
def test_trace(name: str) -> None:
    new = traces.trace(name)
    old = RECORDED[name]
    assert traces.difference(old, new) <= traces.ROUNDING
    if traces.machine() == MACHINE:
        assert new.hash == old.hash, "`python -m tests.traces` prints what changed"
