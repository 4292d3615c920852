import re
import time
from types import SimpleNamespace

import IPython
import pytest

from hvs_lib import progress
from hvs_lib.progress import LOG_FILE, STEP, ProgressBar, followed, log_file, log_line, steps


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Return a function that reads the lines of the log, without their times."""
    path = tmp_path / "folder" / "hvs.log"
    monkeypatch.setenv(LOG_FILE, str(path))
    stamp = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")
    return lambda: [stamp.sub("", line, count=1) for line in path.read_text().splitlines()]


def test_each_step_is_a_line_with_the_time_left(log, monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 600.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(steps("abc", "models")) == ["a", "b", "c"]
    assert log() == [
        "  1 of 3 models, 20 s left",
        "  2 of 3 models, 10 s left",
        "  3 of 3 models, 0 s left",
    ]


def test_long_times_are_told_in_minutes(log, monkeypatch):
    clock = iter([0.0, 600.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    ProgressBar(3, "racks").update()
    assert log() == ["  1 of 3 racks, 20 min left"]


def test_many_steps_are_twenty_lines_at_most(log, monkeypatch):
    clock = iter(range(0, 100000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with ProgressBar(1000, "racks") as bar:
        for _ in range(1000):
            bar.update()
    assert len(log()) == 20
    assert log()[-1] == "  1000 of 1000 racks, 0 s left"


@pytest.mark.parametrize("count", [10, 1000])
def test_quick_steps_are_one_line(log, count):
    list(steps(range(count), "racks"))
    assert log() == [f"  {count} of {count} racks, 0 s left"]


def test_items_without_a_length(log):
    assert list(steps(iter("ab"), "sites", total=2)) == ["a", "b"]
    assert log()[-1] == "  2 of 2 sites, 0 s left"


@pytest.mark.slow
def test_the_lines_of_steps_are_handed_on_in_order_as_they_come(tmp_path, log):
    seen, path = [], log_file()
    log_line(f"{STEP}of an earlier notebook")
    with followed(path, seen.append):
        log_line("the runner's own")
        log_line(f"{STEP}one")
        with open(path, "a") as file:
            file.write("2026-01-01 00:00:00   half")
        for _ in range(100):
            if seen:
                break
            time.sleep(0.1)
        assert seen == ["  one"]
        with open(path, "a") as file:
            file.write(" a line\n")
        log_line(f"{STEP}two")
    assert seen == ["  one", "  half a line", "  two"]


def test_a_log_may_be_followed_before_it_is_there(tmp_path):
    seen, path = [], tmp_path / "later.log"
    with followed(path, seen.append):
        path.write_text("2026-01-01 00:00:00   one\n")
    assert seen == ["  one"]


def test_log_is_in_runs_unless_named(project, monkeypatch):
    monkeypatch.delenv(LOG_FILE, raising=False)
    assert log_file() == project / "runs" / "hvs.log"


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(LOG_FILE, str(tmp_path / "file" / "hvs.log"))
    log_line("lost")


def test_bar_goes_to_standard_output_of_a_notebook_and_vanishes(log, capsys, monkeypatch):
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=1))
    with ProgressBar(3, "candidates") as bar:
        bar.update(2)
        bar.refresh()
    printed = capsys.readouterr()
    assert "2/3" in printed.out
    assert printed.out.endswith("\r")
    assert printed.err == ""


def test_no_bar_in_a_file(log, capsys):
    list(steps("abc", "models"))
    assert capsys.readouterr() == ("", "")
    assert len(log()) == 1
