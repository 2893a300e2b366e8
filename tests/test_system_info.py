"""Versions for bug reports."""

import pytest

import sb3_happo


def test_versions_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    versions = sb3_happo.print_system_info()
    assert versions["sb3_happo"] == sb3_happo.__version__
    assert versions["pettingzoo"] != "not installed"
    printed = capsys.readouterr().out
    for name, version in versions.items():
        assert f"- {name}: {version}" in printed
