"""Changed files are refused by name, or are the model that was saved; none takes the machine."""

from pathlib import Path

import pytest

from tests.mutations import MAX_BYTES, make_kinds, memory_peak, trials


def check(seed: int, number: int, folder: Path) -> None:
    before = memory_peak()
    faults = []
    for kind, change, result in trials(make_kinds(folder), seed, number, folder):
        if result not in ("refused", "same", "another file"):
            faults.append((kind, change, result))
    assert not faults
    assert memory_peak() - before < MAX_BYTES


def test_mutated_files(tmp_path: Path) -> None:
    check(0, 120, tmp_path)


@pytest.mark.slow
def test_many_mutated_files(tmp_path: Path) -> None:
    check(1, 2000, tmp_path)
