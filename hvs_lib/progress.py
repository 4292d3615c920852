"""Progress of long work: a bar with the time left, and lines in a log file."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from threading import Event, Thread

from tqdm import tqdm

from hvs_lib.project import project_root

LOG_FILE = "HVS_LOG_FILE"  # environment variable: another file than `runs/hvs.log`
STEP = "  "  # before the lines of a step, so that they stand under those of their notebook
_LINES, _PAUSE_S = 20, 1.0  # of a bar in the log: how many at most, how far apart at least
_TIME = "%Y-%m-%d %H:%M:%S "  # before each line


class ProgressBar(tqdm):
    """A bar that vanishes when it is closed, and leaves a line in the log for each step.

    The bar goes to a terminal or a notebook only, on standard output, since a notebook shows
    standard error as a warning. `total` is all of the work, in any `unit`, which is named in the
    plural; `done` is what was counted so far.
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

    def update(self, n: float = 1) -> None:
        """Count n more."""
        super().update(n)
        per_line = max(self.total / _LINES, 1)
        lines, self.done = self.done // per_line, self.done + n
        now = time.monotonic()
        waited = self.done >= self.total or now - self._told >= _PAUSE_S
        if self.done // per_line > lines and waited:
            self._told = now
            seconds = (now - self._start) * max(self.total - self.done, 0) / self.done
            left = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
            log_line(f"{STEP}{self.done:g} of {self.total:g} {self._unit}, {left} left")


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


@contextlib.contextmanager
def followed(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hand on the lines of the steps in a log while they are written, from a thread.

    `say` gets each line of a step, without its time; at the end it has got them all. The log need
    not be there yet.
    """
    place = path.stat().st_size if path.exists() else 0
    at_end = Event()

    def follow() -> None:
        nonlocal place
        last = False
        while not last:
            last = at_end.wait(0.5)
            with contextlib.suppress(OSError):
                new = path.read_bytes()[place:]
                new = new[: new.rfind(b"\n") + 1]  # the last line may be being written
                place += len(new)
                for line in new.decode("utf-8", errors="replace").split("\n"):
                    text = line[len(time.strftime(_TIME)) :]
                    if text.startswith(STEP):
                        say(text)

    thread = Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        at_end.set()
        thread.join()
