"""Execute the notebooks with papermill, in order, and say where the time went."""

from __future__ import annotations

import ast
import contextlib
import difflib
import inspect
import logging
import os
import re
import reprlib
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hvs_lib.progress import LOG_FILE, LogReader, log_file, log_line
from hvs_lib.project import (
    EXECUTION,
    FINGERPRINT,
    FRESH,
    StoreError,
    environment,
    project_root,
    whole_file,
)

import nbformat
import papermill as pm
import yaml
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

if TYPE_CHECKING:
    from mlflow.entities import Run

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
_RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")
_WIDGET = "application/vnd.jupyter.widget-view+json"
PROFILES = ("smoke", "default", "full")
COMPARISON = "04_comparison"
_BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}


class _WholeFiles(LocalHandler):
    """Keeps the notebook as of the last cell where a disk is too full for the next."""

    def write(self, buf: str, path: str) -> None:
        with whole_file(Path(path)) as unfinished:
            unfinished.write_text(buf, encoding="utf-8")


class RunError(Exception):
    """A run that was refused or has failed; its text is for the user."""


@dataclass(frozen=True)
class Timing:
    """Where the time of one executed notebook went [s].

    Attributes
    ----------
    total : from the call of papermill to its return, and the logging of the notebook.
    startup : kernel start and papermill: what no cell accounts for.
    imports : the cell with the imports.
    tracking : MLflow calls.
    """

    notebook: str
    total: float
    startup: float
    imports: float
    tracking: float

    @property
    def work(self) -> float:
        """What is left for data, models and figures [s]."""
        return self.total - self.startup - self.imports - self.tracking


def notebooks() -> dict[str, Path]:
    """Return the workbook's notebooks by name, in the order they run."""
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return {path.stem: path for path in paths}


def plan(
    names: list[str], *, profile: str = "default", parameters: Mapping[str, object] | None = None
) -> dict[str, dict[str, object]]:
    """Check what the user asks for, and give each notebook the parameters that it has.

    Parameters
    ----------
    names : of notebooks, in any order; none means all.
    profile : one of `PROFILES`.
    parameters : to override; each must belong to one of the notebooks at least. Text is read as
        a value of the type of the notebook's default.

    Returns
    -------
    dict, the name of each notebook to run, in order, to its parameters.

    Raises
    ------
    RunError
        For an unknown name, with the nearest one, or a value of another type or out of range.
    """
    known = notebooks()
    for name in names:
        if name not in known:
            raise RunError(f"there is no notebook {name!r}. {_nearest(name, known)}")
    if profile not in PROFILES:
        raise RunError(f"there is no profile {profile!r}. {_nearest(profile, PROFILES)}")
    defaults = {name: _defaults(known[name]) for name in known if not names or name in names}
    everywhere = {parameter for of_one in defaults.values() for parameter in of_one}
    for parameter in parameters or {}:
        if parameter not in everywhere:
            hint = _nearest(parameter, everywhere)
            raise RunError(f"{', '.join(defaults)} has no parameter {parameter!r}. {hint}")
    chosen = _profile(profile) | dict(parameters or {})
    planned = {
        name: {
            parameter: _typed(parameter, value, of_one[parameter])
            for parameter, value in chosen.items()
            if parameter in of_one
        }
        for name, of_one in defaults.items()
    }
    for name, of_one in defaults.items():
        _check_values(of_one | planned[name])
    return planned


def check_telemetry(planned: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Refuse a telemetry file of the user's own before a kernel starts, as the notebooks would.

    Parameters
    ----------
    planned : from `plan`.

    Returns
    -------
    list of str, what is doubtful about it.

    Raises
    ------
    DataError
        With all that is wrong.
    RunError
        Where a treatment of the imbalance cannot work on it.
    """
    from hvs_lib import columns as col
    from hvs_lib.evaluation.splits import check_labels, split_by_rack, thin_normal_rows
    from hvs_lib.features import check_interval
    from hvs_lib.samplers import check_folds
    from hvs_lib.telemetry.read import load_telemetry
    from hvs_lib.telemetry.summary import summarize

    uses = {
        name: _defaults(notebooks()[name]) | dict(parameters)
        for name, parameters in planned.items()
        if parameters.get("data_path")
    }
    if not uses:
        return []
    first = next(iter(uses.values()))
    telemetry = load_telemetry(first["data_path"], keep_fill_values=first["keep_fill_values"])
    check_labels(telemetry)
    summary = summarize(telemetry)
    warnings = summary["warnings"] + check_interval(summary["interval_s"])
    of_split = ("test_size", "n_folds", "seed", "split")
    for parameters in uses.values():
        if not set(of_split) <= set(parameters):
            continue
        split = split_by_rack(telemetry, **{name: parameters[name] for name in of_split})
        try:
            stride = parameters["normal_stride"]
            kept = [thin_normal_rows(telemetry, rows, stride) for rows, _ in split.folds]
            if "sampling_strategy" in parameters:
                labels = [telemetry[col.LABEL].to_numpy()[rows] for rows in kept]
                check_folds(labels, parameters["sampling_strategy"], stride)
        except ValueError as error:
            raise RunError(str(error)) from error
    return warnings


def execute(
    planned: Mapping[str, Mapping[str, object]],
    *,
    say: Callable[[str], None],
    in_place: bool = False,
    fresh: bool = False,
) -> list[Timing]:
    """Execute the planned notebooks in order, into a new folder ``runs/<time>/``.

    A notebook that has been executed before, and everything it follows from is the same, is not
    executed again but copied from its run; the comparison always is. One that was stopped takes
    over the models and candidates that it has logged.

    Parameters
    ----------
    planned : from `plan`.
    say : is given each line for the user, those of the steps within a notebook too; they are also
        in the folder's ``run.log``, with the time.
    in_place : also keep the outputs in ``notebooks/``, see `keep_outputs`.
    fresh : execute what has been executed before, too.

    Returns
    -------
    list of Timing, of the notebooks that were executed.

    Raises
    ------
    RunError
        With the failing cell's error and the path of the partial notebook.
    """
    # Imported here so that a refused call does not wait for MLflow.
    from hvs_lib import tracking

    tracking.connect()
    tracking.check_experiments()
    folder = _new_folder()
    papermill_io.register(str(folder), _WholeFiles())
    with environment({LOG_FILE: str(folder / "run.log")}):
        timings = _execute_all(planned, folder, say, fresh=fresh)
    if in_place:  # all or none: the committed notebooks belong together
        for name in planned:
            keep_outputs(folder / f"{name}.ipynb", notebooks()[name])
    return timings


def _execute_all(
    planned: Mapping[str, Mapping[str, object]],
    folder: Path,
    say: Callable[[str], None],
    *,
    fresh: bool,
) -> list[Timing]:
    def tell(text: str) -> None:
        log_line(text)
        say(text)

    tell(f"Executed notebooks go to {folder}")
    timings = []
    for number, (name, parameters) in enumerate(planned.items(), 1):
        place, output = f"[{number}/{len(planned)}] {name}", folder / f"{name}.ipynb"
        known = _fingerprint(name, parameters)
        run_id = None if fresh or name == COMPARISON else _copy_executed(known, output)
        if run_id is not None:
            tell(f"{place} done before, Run ID {run_id}; --fresh executes it again")
            continue
        tell(f"{place} ...")
        variables = {FINGERPRINT: known, FRESH: "1" if fresh else ""}
        with LogReader(log_file(), say), environment(variables):
            timing = _execute_one(name, parameters, output)
        tell(f"{place} done in {timing.total:.0f} s")
        timings.append(timing)
    return timings


def keep_outputs(executed: Path, notebook: Path) -> None:
    """Write an executed notebook over the committed one, without what differs from run to run.

    Run IDs are masked, and papermill's times, progress bars, widgets (which are dead without a
    kernel) and empty outputs are left out.
    """
    cleaned = nbformat.read(executed, 4)
    cleaned.metadata.pop("papermill", None)
    cleaned.metadata.pop("widgets", None)
    for cell in cleaned.cells:
        for noise in ("papermill", "execution", "status"):
            cell.metadata.pop(noise, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = _for_reading(cell.outputs)
    text = nbformat.writes(cleaned)
    with whole_file(notebook) as unfinished:
        unfinished.write_text(_RUN_ID.sub("<run id>", text) + "\n", encoding="utf-8")


def _for_reading(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Show streams as a terminal would: a carriage return takes back what stands before it."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if _WIDGET in output.get("data", {}):
            continue
        if kept and output.output_type == "stream" and output.name == kept[-1].get("name"):
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r", "", output.text)
    return [output for output in kept if output.get("text") != ""]


def timing_report(timings: list[Timing]) -> str:
    """Write the seconds of each notebook, and the share that is not work, as a table."""
    parts = ("startup", "imports", "tracking", "work", "total")
    lines = [f"{'seconds':<16}" + "".join(f"{part:>10}" for part in parts)]
    for timing in timings:
        numbers = "".join(f"{getattr(timing, part):>10.1f}" for part in parts)
        lines.append(f"{timing.notebook:<16}{numbers}")
    total = sum(timing.total for timing in timings)
    shares = {part: sum(getattr(t, part) for t in timings) / total for part in parts}
    lines.append(f"{'share':<16}" + "".join(f"{shares[part]:>10.1%}" for part in parts))
    return "\n".join(lines)


def _execute_one(name: str, parameters: Mapping[str, object], output: Path) -> Timing:
    execution_id = uuid.uuid4().hex
    start = time.perf_counter()
    with environment({EXECUTION: execution_id}):
        failure = _failure_of(notebooks()[name], output, parameters)
    # What follows from another file or code than at the start is not done for good.
    known = os.environ.get(FINGERPRINT, "")
    completed = known if not failure and _fingerprint(name, parameters) == known else ""
    parent, not_closed = _close(execution_id, output, completed=completed)
    failure = failure or not_closed
    if failure:
        kept = f"\nThe notebook up to there: {output}" if output.exists() else ""
        raise RunError(f"{name} {failure}{kept}")
    tracked = parent.data.metrics.get("seconds_tracking", 0.0) if parent else 0.0
    return _timing(name, output, total=time.perf_counter() - start, tracked=tracked)


def _failure_of(notebook: Path, output: Path, parameters: Mapping[str, object]) -> str:
    """Execute a notebook and say what went wrong; empty where all is well."""
    # papermill only logs what an execution lacks; `plan` and the exceptions below say it better.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    # Another environment's kernel spec may be named python3, too; this path is searched first.
    places = [f"{sys.prefix}/share/jupyter", os.environ.get("JUPYTER_PATH")]
    try:
        with environment({"JUPYTER_PATH": os.pathsep.join(filter(None, places))}):
            pm.execute_notebook(
                notebook,
                output,
                parameters=dict(parameters),
                kernel_name="python3",
                progress_bar=False,  # the steps say more than a count of cells
                extra_arguments=["--log-level=CRITICAL"],  # the kernel's own advice
            )
    except PapermillExecutionError as error:
        return f"failed in cell {error.exec_count}: {error.ename}: {error.evalue}"
    except KeyboardInterrupt:
        return "was stopped; start it again to go on"
    except RuntimeError as error:
        if isinstance(error, DeadKernelError) or "Kernel died" in str(error):  # as it started
            return "failed: its kernel died"
        return f"failed: {_first_line(error)}"
    except OSError as error:
        return f"failed: {_first_line(error)}"
    return ""


def _fingerprint(name: str, parameters: Mapping[str, object]) -> str:
    from hvs_lib.resume import fingerprint

    return fingerprint(notebooks()[name], _defaults(notebooks()[name]) | dict(parameters))


def _close(execution_id: str, output: Path, *, completed: str) -> tuple[Run | None, str]:
    """Log the notebook with its run and close what dead processes left.

    Returns
    -------
    The parent run, if there is one, and what went wrong; empty where all is well.
    """
    from hvs_lib import tracking

    parent = None
    try:
        with tracking.store_failures_told():
            parent = tracking.parent_of_execution(execution_id)
            if parent is not None:
                tracking.log_notebook(parent.info.run_id, output, completed=completed)
            tracking.close_killed_runs()
    except StoreError as error:
        return parent, f"was executed, but its run could not be closed: {error}"
    return parent, ""


def _copy_executed(fingerprint: str, output: Path) -> str | None:
    """Copy the notebook of an earlier execution, and return the Run ID; None if there is none."""
    from hvs_lib import tracking

    with tracking.store_failures_told():
        found = tracking.executed_before(fingerprint, output.stem)
    if found is None:
        return None
    run_id, executed = found
    shutil.copy(executed, output)
    return run_id


def _timing(name: str, executed: Path, *, total: float, tracked: float) -> Timing:
    cells = [cell for cell in nbformat.read(executed, 4).cells if cell.cell_type == "code"]
    seconds = {"imports": 0.0, "all": 0.0}
    for cell in cells:
        duration = cell.metadata.get("papermill", {}).get("duration") or 0.0
        seconds["all"] += duration
        if "imports" in cell.metadata.get("tags", []):
            seconds["imports"] += duration
    return Timing(
        name,
        total=total,
        startup=total - seconds["all"],
        imports=seconds["imports"],
        tracking=tracked,
    )


def _defaults(notebook: Path) -> dict[str, object]:
    """Read the names and default values of a notebook's parameters."""
    inspected = pm.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(found["default"]) for name, found in inspected.items()}


def _check_values(parameters: Mapping[str, object]) -> None:
    """Hand a notebook's parameters to the checks of the functions that will get them."""
    from hvs_lib.evaluation.protocol import check_protocol
    from hvs_lib.evaluation.splits import check_split
    from hvs_lib.samplers import check_sampling
    from hvs_lib.search import check_search
    from hvs_lib.telemetry.simulated import check_fleet
    from hvs_lib.tracking.champion import check_policy

    checks = (check_fleet, check_split, check_protocol, check_search, check_sampling, check_policy)
    for check in checks:
        names = inspect.signature(check).parameters
        if names.keys() <= parameters.keys():
            try:
                check(**{name: parameters[name] for name in names})
            except ValueError as error:
                raise RunError(str(error)) from error


def _profile(name: str) -> dict[str, object]:
    if name == "default":
        return {}
    text = (NOTEBOOKS / "params" / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def _typed(parameter: str, value: object, default: object) -> object:
    """Read a value as the type of the parameter's default."""
    kind, typed = type(default), value
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        if isinstance(value, str) and kind is bool:
            typed = _BOOLEANS[value.lower()]
        elif isinstance(value, str) or (kind is float and type(value) is int):
            typed = kind(value)
    if type(typed) is not kind:
        raise RunError(
            f"parameter {parameter!r} must be {kind.__name__}, as its default {default!r} is, "
            f"got {reprlib.repr(value)}."
        )
    return typed


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(known))}."


def _new_folder() -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"_{k}" for k in range(2, 100))):
        folder = project_root() / "runs" / f"{stamp}{suffix}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"cannot make a new folder {folder}: remove old ones from runs/.")
