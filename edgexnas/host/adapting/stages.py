"""What an adaptation keeps, so that one that was stopped goes on with what had ended."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from edgexnas.errors import ConfigurationError, SourceError
from edgexnas.host.data.peak_dataset import PeakDataset
from edgexnas.whole_files import whole_file, write_whole

if TYPE_CHECKING:
    from torch import nn
    from typing_extensions import Self

    from edgexnas.frames import FrameSeries

__all__ = [
    "Stages",
    "as_json",
    "named_frames",
    "read_labels",
    "stages_folder",
    "write_labels",
    "write_weights",
]

_NAME = "stages.json"

Made = TypeVar("Made")


class Stages:
    """The stages of an adaptation that have ended, in a folder beside its output.

    As a context manager it lets go of the folder in the end, which is one adaptation's alone.

    Parameters
    ----------
    output
        The bundle that is made.
    agreed
        What a run that goes on must have in common with the one that was stopped, as JSON takes it.
    resume
        Whether what is there is taken; else there must be nothing.

    Attributes
    ----------
    folder
        Where they are kept: NAME.adapting.
    taken
        Seconds that the stages took that had ended before.

    Raises
    ------
    ConfigurationError
        If stages are there and are not to be taken, cannot be read, are of something else, or
        another adaptation is about them, or if something else has their place.
    """

    def __init__(self, output: Path, agreed: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = stages_folder(output)
        self._agreed = dict(agreed)
        self._took: dict[str, float] = {}
        self._digests: dict[str, str] = {}
        self._file = self.folder / _NAME
        self._held: int | None = None
        try:
            self._find(resume=resume)
        except BaseException:
            self._let_go()
            raise
        self.taken = sum(self._took.values())

    def _find(self, *, resume: bool) -> None:
        if self.folder.is_dir():
            self._hold()
        if self._file.exists():
            if not resume:
                raise ConfigurationError(
                    f"{self.folder} keeps what an adaptation had done when it was stopped; specify "
                    "resume=True (--resume), or delete the folder to begin anew"
                )
            self._took, self._digests = self._read()
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            # It is deleted in the end.
            raise ConfigurationError(
                f"{self.folder} is there and is of no adaptation; move it, or specify another "
                "output"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._let_go()

    def __contains__(self, name: str) -> bool:
        return name in self._took

    def stage(
        self,
        name: str,
        make: Callable[[], Made],
        *,
        write: Callable[[Made, Path], object],
        read: Callable[[Path], Made],
    ) -> Made:
        """Read what a stage gave, or make it, which takes time, and keep it.

        Parameters
        ----------
        name
            File in the folder.
        write, read
            Write whole files of this name, whatever their suffix, and read them.

        Raises
        ------
        ConfigurationError
            If another adaptation has made the folder meanwhile.
        SourceError
            If what is kept is no longer what was written.
        """
        path = self.folder / name
        if name in self._took:
            if self._digest(path) != self._digests.get(name):
                raise SourceError(
                    f"{path} is not as it was written; delete {self.folder} to begin anew"
                )
            return read(path)
        began = time.monotonic()
        made = make()
        if self._held is None:
            try:
                self.folder.mkdir()
            except FileExistsError:
                raise self._in_use() from None
            self._hold()
        if not self._file.exists():
            # First of all, so that the folder is known for what it is.
            self._write()
        write(made, path)
        self._took[name] = time.monotonic() - began
        self._digests[name] = self._digest(path)
        self._write()
        return made

    def remove(self) -> None:
        """Delete the folder, unless it is another adaptation's."""
        if self._held is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _hold(self) -> None:
        # Of the folder itself, so that no file remains; the system lets go with the process.
        self._held = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Some file systems cannot lock.
            if isinstance(error, BlockingIOError):
                self._let_go()
                raise self._in_use() from None

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _in_use(self) -> ConfigurationError:
        return ConfigurationError(
            f"{self.folder} is in use by another adaptation; wait for it, or specify another output"
        )

    def _digest(self, path: Path) -> str:
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob(f"{path.stem}*")):
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def _write(self) -> None:
        state = {"agreed": self._agreed, "took": self._took, "digests": self._digests}
        write_whole(self._file, json.dumps(state).encode())

    def _read(self) -> tuple[dict[str, float], dict[str, str]]:
        try:
            state = json.loads(self._file.read_bytes())
            took = {str(name): float(seconds) for name, seconds in state["took"].items()}
            digests, before = dict(state["digests"]), dict(state["agreed"])
            if not all(0 <= seconds < float("inf") for seconds in took.values()):
                raise ValueError(f"stages took {list(took.values())} s")
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigurationError(
                f"{self._file} cannot be read ({error}); delete {self.folder} to begin anew"
            ) from None
        # Those that are not given now, too.
        for name in {**self._agreed, **before}:
            then, now = before.get(name), self._agreed.get(name)
            if then != now:
                raise ConfigurationError(
                    f"{self.folder} is of an adaptation with {name} {then!r}, and now it is "
                    f"{now!r}; specify what it was, or delete the folder to begin anew"
                )
        return took, digests


def stages_folder(output: Path) -> Path:
    """Say where the stages of an adaptation are kept."""
    return output.parent / f"{output.stem}.adapting"


def as_json(value: Any) -> Any:
    """Give an option as JSON takes it; of an array its digest."""
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def named_frames(frames: str | Path | FrameSeries) -> str:
    """Tell frames from others, without reading them: files by their size and last change."""
    if not isinstance(frames, (str, Path)):
        return f"{frames.source}, {len(frames)} of {frames.shape}"
    path = Path(frames).resolve()
    files = path.iterdir() if path.is_dir() else [path]
    # What is missing is named where frames are opened.
    stats = [file.stat() for file in files if file.is_file()]
    size, changed = sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(changed // 10**9))
    return f"{path}, {size} bytes, changed {when}.{changed % 10**9:09d}"


def write_weights(model: nn.Module, path: Path) -> None:
    """Write the weights of a network."""
    with whole_file(path) as draft:
        torch.save(model.state_dict(), draft)


def write_labels(labelled: tuple[PeakDataset, int], path: Path) -> None:
    """Write what `label_in_time` gives."""
    labels, guard = labelled
    labels.save(path)
    write_whole(path.with_suffix(".guard"), str(guard).encode())


def read_labels(path: Path) -> tuple[PeakDataset, int]:
    """Read what `label_in_time` gave."""
    return PeakDataset.load(path), int(path.with_suffix(".guard").read_text())
