"""What is said where shards cannot be written or read: torch's error for that is none that `except Exception` sees."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import filesystem

from alphapo_cli.errors import AlphapoError
from alphapo_cli.training.training_state import read, write

# One process is enough for what one process says.
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(filesystem, "_write_item", refuse)
    with pytest.raises(
        AlphapoError, match=r"shards: the shards cannot be written \(process 0: No space left on device"
    ):
        write({"weights/a": torch.ones(3)}, tmp_path / "shards")


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_shards_that_are_not_there(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    write({"weights/a": torch.arange(1000.0)}, folder)
    (file,) = folder.glob("*.distcp")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:600])
    found = {"weights/a": torch.zeros(1000)}
    with pytest.raises(AlphapoError, match=r"shards: the shards cannot be read \(process 0: "):
        read(found, folder)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write({"weights/a": torch.arange(1000.0)}, tmp_path / "shards")
    found = {"weights/a": torch.zeros(1000)}
    read(found, tmp_path / "shards")
    assert torch.equal(found["weights/a"], torch.arange(1000.0))
