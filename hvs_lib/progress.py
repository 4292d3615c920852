"""Progress of long work: a bar with the time left, and lines in a log file."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Self

from hvs_lib.project import project_root

from tqdm import tqdm

LOG_FILE = "HVS_LOG_FILE"  # environment variable: another file than `runs/hvs.log`
STEP = "  "  # before the lines of a step, so that they stand under those of their notebook
_LINES = 20  # of a bar at most
_PAUSE_S = 1.0  # between two lines at least
_TIME = "%Y-%m-%d %H:%M:%S "  # before each line
_STAMP = len(time.strftime(_TIME))


class ProgressBar(tqdm):
    """A bar that vanishes when it is closed, and leaves a line in the log for each step.

    It writes to standard output, since a notebook shows standard error as a warning; to a terminal
    or a notebook only.

    Parameters
    ----------
    total : steps, or any unit of work. Each is a line in the log; of more than twenty a
        twentieth part is, and of those that take less than a second only some are.
    unit : what is counted, in the plural.

    Attributes
    ----------
    done : counted so far.
    """

    def __init__(self, total: float, unit: str):
        ipython = sys.modules.get("IPython")
        in_notebook = hasattr(ipython and ipython.get_ipython(), "kernel")
        super().__init__(
            total=total, unit=f" {unit}", file=sys.stdout, leave=False, mininterval=1, ncols=80,
            disable=False if in_notebook else None,
        )  # fmt: skip
        self._unit = unit
        self._start = self._told = time.monotonic()
        self.done = 0.0
        self._of = total

    def update(self, n: float = 1) -> None:
        """Count n more."""
        super().update(n)
        part = self._part()
        self.done += n
        now = time.monotonic()
        waited = self.done >= self._of or now - self._told >= _PAUSE_S
        if self._part() > part and waited:
            self._told = now
            left = (now - self._start) * max(self._of - self.done, 0) / self.done
            log_line(f"{STEP}{self.done:g} of {self._of:g} {self._unit}, {_in_words(left)} left")

    def _part(self) -> int:
        return int(self.done * min(_LINES / self._of, 1)) if self._of else 0


def steps(items: Iterable, unit: str, *, total: int | None = None) -> Iterator:
    """Yield the items under a `ProgressBar`; `total` is for items that have no length."""
    with ProgressBar(len(items) if total is None else total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def log_file() -> Path:
    """Return the file that lines of progress go to."""
    return Path(os.environ.get(LOG_FILE) or project_root() / "runs" / "hvs.log")


def log_line(text: str) -> None:
    """Append a line with the time; a log that cannot be written stops no work."""
    with contextlib.suppress(OSError):
        path = log_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime(_TIME)}{text}\n")


class LogReader:
    """Hands the lines of the steps in a log on as they come, from a thread.

    Use it as a context manager: at its end everything is handed on.

    Parameters
    ----------
    path : of the log, which may not be there yet.
    say : called with each line of a step, without its time.
    """

    def __init__(self, path: Path, say: Callable[[str], None]):
        self._path = path
        self._say = say
        self._place = path.stat().st_size if path.exists() else 0
        self._lock = Lock()
        self._at_end = Event()
        self._thread = Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._at_end.set()
        self._thread.join()
        self.catch_up()

    def catch_up(self) -> None:
        """Hand on what has been written by now."""
        with self._lock, contextlib.suppress(OSError), open(self._path, "rb") as file:
            file.seek(self._place)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # being written
                self._place += len(line)
                text = line.decode("utf-8", errors="replace").rstrip("\n")[_STAMP:]
                if text.startswith(STEP):
                    self._say(text)

    def _follow(self) -> None:
        while not self._at_end.wait(0.5):
            self.catch_up()


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
