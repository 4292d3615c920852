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

LOG_FILE = "HVS_LOG_FILE"  # environment variable: log file in place of `runs/hvs.log`
STEP = "  "  # indents the lines of a step under those of their notebook
_LINES, _PAUSE_S = 20, 1.0  # most log lines of a bar, least time between two [s]
_TIME = "%Y-%m-%d %H:%M:%S "  # before each line


class ProgressBar(tqdm):
    """A bar that vanishes when closed, and leaves a line in the log for each step.

    The bar is shown only in a terminal or notebook, on standard output, since a notebook shows
    standard error as a warning. `total` is the whole work in any `unit`, given in the plural;
    `done` is the count so far.
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
    """Yield the items under a `ProgressBar`; `total` is for items without a length.

    Examples
    --------
    >>> for model in steps(["forest", "XGBoost"], "models"):
    ...     print(model)
    forest
    XGBoost
    """
    with ProgressBar(len(items) if total is None else total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def log_file() -> Path:
    """Return the path of the progress log."""
    return Path(os.environ.get(LOG_FILE) or project_root() / "runs" / "hvs.log")


def log_line(text: str) -> None:
    """Append a line with the time; a log that cannot be written is ignored."""
    with contextlib.suppress(OSError):
        path = log_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{time.strftime(_TIME)}{text}\n")


@contextlib.contextmanager
def followed(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Pass on the lines of steps in a log as they are written, from a thread.

    `say` gets each line of a step, without its time, and all of them by the end. The log need not
    exist yet.
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
                new = new[: new.rfind(b"\n") + 1]  # the last line may be incomplete
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
