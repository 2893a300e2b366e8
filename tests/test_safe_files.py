"""The container of files: whole or not written, checked when read."""

import errno
import hashlib
import io
import json
import os
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_happo.common import safe_files
from sb3_happo.common.safe_files import (
    SafeFileError,
    atomic_write,
    read_manifest,
    read_safe_file,
    write_safe_file,
)

CONTENT: dict[str, Any] = {
    "attributes": {"gamma": 0.9, "seed": None, "obs": np.arange(3.0)},
    "parameters": {"w": th.ones(2, 3), "shared": th.ones(1).expand(4)},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.zip"
    write_safe_file(path, "model", CONTENT, "HSPO", "HAPPO", {"attributes": ["gamma"]})
    return path


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_members(path: Path, members: dict[str, bytes], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_manifest(members: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, with checksums that agree again."""
    described = json.loads(members["manifest.json"])
    change(described)
    rest = {key: own for key, own in described.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True).encode()
    described["sha256"] = hashlib.sha256(text).hexdigest()
    members["manifest.json"] = json.dumps(described).encode()


def test_content_comes_back(path: Path) -> None:
    file = read_safe_file(path, "model")
    assert file.manifest.saved_by == "HSPO" and file.manifest.algorithm == "HAPPO"
    assert file.manifest.info == {"attributes": ["gamma"]}
    attributes = file.value("attributes")
    assert attributes["gamma"] == 0.9 and (attributes["obs"] == np.arange(3.0)).all()
    parameters = file.value("parameters", without=["w"])
    assert list(parameters) == ["shared"] and th.equal(parameters["shared"], th.ones(4))
    assert file.value("attributes", {"seed": 3})["seed"] == 3
    with pytest.raises(SafeFileError, match=r"file\.zip holds a file .*HSPO.*without 'x'"):
        file.value("x")
    assert read_manifest(path) == file.manifest


def test_open_files(path: Path) -> None:
    memory = io.BytesIO()
    write_safe_file(memory, "agent", CONTENT)
    memory.seek(0)
    assert read_safe_file(memory).manifest.kind == "agent"
    assert memory.tell() == 0
    with path.open("rb") as file:
        assert read_safe_file(file).manifest.kind == "model"
    with pytest.raises(FileNotFoundError):
        read_safe_file(path.with_name("other"))


def test_files_need_no_class_of_ours(path: Path) -> None:
    """JSON and safetensors, which other programs read."""
    from safetensors.torch import load

    members = members_of(path)
    assert json.loads(members["data.json"])["attributes"]["gamma"] == 0.9
    tensors = load(members["tensors.safetensors"])
    assert set(tensors) == {"attributes.obs", "parameters.w", "parameters.shared"}


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = th.arange(6.0)
    content = {"p": {"a": whole[:3], "b": whole[3:], "c": whole, "d": whole, "e": whole[::2]}}
    write_safe_file(tmp_path / "f", "model", content)
    again = read_safe_file(tmp_path / "f").value("p")
    for name, tensor in content["p"].items():
        assert th.equal(again[name], tensor)


# ---------------------------------------------------------------- whole or not at all


def test_a_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            OSError, match="disk is full; the file of this name is as before"
        ) as info:
            write_safe_file(path, "model", CONTENT)
        assert info.value.errno == errno.ENOSPC and str(path) in str(info.value)
        with pytest.raises(OSError, match="disk is full") as info:
            write_safe_file(path.with_name("new"), "model", CONTENT)
        assert "as before" not in str(info.value)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name], "no leftovers"


def test_a_failing_rename_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(KeyboardInterrupt):
            write_safe_file(path, "model", {})
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_leftovers_of_killed_processes_are_removed(path: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        # Dies between writing and renaming, as after `kill -9`
        def replace(*_: Any) -> None:
            os._exit(0)

        os.replace = replace  # type: ignore[assignment]
        atomic_write(path, b"new")
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert len(os.listdir(tmp_path)) == 2
    other = tmp_path / f".file.zip.elsewhere-{child}-0.tmp"
    other.touch()
    atomic_write(path, b"newer")
    assert sorted(os.listdir(tmp_path)) == sorted([other.name, "file.zip"])
    assert path.read_bytes() == b"newer"


def test_rights_links_and_folders(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(path)
    atomic_write(link, b"x")
    assert link.is_symlink() and path.read_bytes() == b"x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    plain = tmp_path / "plain"
    plain.touch()
    atomic_write(tmp_path / "fresh", b"")
    assert (tmp_path / "fresh").stat().st_mode == plain.stat().st_mode, "the user's umask"
    with pytest.warns(UserWarning, match="does not exist. Will create it"):
        atomic_write(tmp_path / "a" / "b", b"y")
    with pytest.raises(OSError):
        atomic_write(tmp_path, b"")
    atomic_write("/dev/null", b"y")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atomic_write(tmp_path / ("n" * 240), b"z")


# ---------------------------------------------------------------- checked


def test_changed_members_are_refused(path: Path) -> None:
    other = path.with_name("other.zip")
    changed = {"attributes": CONTENT["attributes"], "parameters": {"w": th.zeros(2, 3)}}
    write_safe_file(other, "model", changed, "HSPO", "HAPPO")
    mine, theirs = members_of(path), members_of(other)
    for name in ("tensors.safetensors", "data.json", "manifest.json"):
        write_members(path, mine | {name: theirs[name]})
        with pytest.raises(SafeFileError, match=r"file\.zip holds a .*HSPO.*of another file"):
            read_safe_file(path)


def test_wrong_archives_are_refused(path: Path, tmp_path: Path) -> None:
    members = members_of(path)
    wrong = tmp_path / "wrong.zip"
    for change in (
        {"../../evil.py": b"x"},
        {"/etc/passwd": b"x"},
        {"data.pkl": b"x"},
    ):
        with pytest.raises(SafeFileError, match=r"wrong\.zip is no whole file"):
            read_safe_file(write_members(wrong, members | change))
    for name in ("data.json", "tensors.safetensors"):
        fewer = {key: own for key, own in members.items() if key != name}
        with pytest.raises(SafeFileError, match=r"wrong\.zip is no whole file"):
            read_safe_file(write_members(wrong, fewer))
    without = {key: own for key, own in members.items() if key != "manifest.json"}
    assert read_manifest(write_members(wrong, without)) is None
    with pytest.raises(SafeFileError, match="has no manifest"):
        read_safe_file(wrong)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with zipfile.ZipFile(wrong, "w") as archive:
            for name in (*members, "data.json"):
                archive.writestr(name, members[name])
    with pytest.raises(SafeFileError, match="is no whole file"):
        read_safe_file(wrong)
    for text in (b"", b"PK", b"hello" * 100):
        wrong.write_bytes(text)
        with pytest.raises(SafeFileError, match=r"wrong\.zip"):
            read_safe_file(wrong)


def test_zip_bombs_are_refused(path: Path, tmp_path: Path) -> None:
    members = members_of(path) | {"data.json": b" " * 10**7}
    bomb = write_members(tmp_path / "bomb.zip", members, zipfile.ZIP_DEFLATED)
    with pytest.raises(SafeFileError, match=r"bomb\.zip.*compressed"):
        read_safe_file(bomb)


def test_newer_and_other_formats_are_refused(path: Path) -> None:
    members = members_of(path)
    with_manifest(members, lambda own: own.update(format_version=99, version="9.9"))
    write_members(path, members)
    with pytest.raises(SafeFileError, match=r"written by sb3_happo 9\.9 in format 99.*Install"):
        read_safe_file(path)
    with_manifest(members, lambda own: own.update(format="other"))
    write_members(path, members)
    with pytest.raises(SafeFileError, match="of another program"):
        read_safe_file(path)


def test_other_kinds_are_refused(path: Path) -> None:
    with pytest.raises(SafeFileError, match=r"'model' of HSPO, .*not one of the kind 'agent'"):
        read_safe_file(path, "agent")


@pytest.mark.parametrize(
    "change",
    [
        lambda own: own["members"].update({"data.json": {"size": 10**15, "sha256": "0" * 64}}),
        lambda own: own["members"].update({"data.json": {"size": -1, "sha256": "0" * 64}}),
        lambda own: own["members"].pop("data.json"),
        lambda own: own.update(members=3),
        lambda own: own.update(format_version="1"),
        lambda own: own.pop("kind"),
    ],
)
def test_crafted_manifests_are_refused(
    path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    members = members_of(path)
    with_manifest(members, change)
    write_members(path, members)
    with pytest.raises(SafeFileError, match=r"file\.zip"):
        read_safe_file(path)


def test_every_flipped_byte_is_found_or_harmless(path: Path) -> None:
    """Bytes of names, sizes and content are checked; those of dates and the like do not count."""
    whole = path.read_bytes()
    expected = read_safe_file(path)
    random = np.random.default_rng(0)
    refused = 0
    for position in random.integers(len(whole), size=100).tolist():
        changed = bytearray(whole)
        changed[position] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            file = read_safe_file(path)
        except SafeFileError as error:
            refused += 1
            named = str(path) in str(error)
            assert named, error  # noqa: PT017
            continue
        assert file.plain == expected.plain and file.manifest == expected.manifest
        assert all(th.equal(own, file.tensors[key]) for key, own in expected.tensors.items())
    assert refused > 80


def test_huge_settings_are_refused_when_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_files, "MAX_DATA", 100)
    with pytest.raises(ValueError, match=r"settings of this HAPPO take \d+ bytes"):
        write_safe_file(path, "model", {"a": "x" * 200}, "HAPPO")
