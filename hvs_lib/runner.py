"""Execute the notebooks with papermill, in order, and report where the time went."""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import itertools
import logging
import os
import re
import reprlib
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import papermill as pm
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io
from PIL import Image

from hvs_lib import cache
from hvs_lib.progress import LOG_FILE, followed, log_file, log_line
from hvs_lib.project import (
    EXECUTION,
    HvsError,
    StoreError,
    did_you_mean,
    environment,
    project_root,
    whole_file,
)

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
PROFILES = ("smoke", "default", "full")
COMPARISON, FIELD_TRIAL = "04_comparison", "05_field_trial"
# Without the kernel's own advice, and with the environment set before a cell loads a package.
_SET = "from hvs_lib.project import set_environment; set_environment()"
_KERNEL = ["--log-level=CRITICAL", f"--IPKernelApp.exec_lines={_SET}"]
_PNG = "image/png"
_WIDGET = "application/vnd.jupyter.widget-view+json"


class _WholeFiles(LocalHandler):
    """Handler that keeps the notebook as of the last cell if the disk is too full for the next."""

    def write(self, buf: str, path: str) -> None:
        with whole_file(Path(path)) as unfinished:
            unfinished.write_text(buf, encoding="utf-8")


class RunError(HvsError):
    """A run that was refused or has failed."""


def notebooks() -> dict[str, Path]:
    """Return the workbook's notebooks by name, in the order they run."""
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    return {path.stem: path for path in paths}


def plan(
    names: list[str], *, profile: str = "default", parameters: Mapping[str, object] | None = None
) -> dict[str, dict[str, object]]:
    """Check the user's request, and give each notebook the parameters that it has.

    Parameters
    ----------
    names : list of str
        Notebooks in any order; empty means all.
    profile : {"smoke", "default", "full"}
    parameters : mapping of str to object
        Values to set; each must belong to at least one of the notebooks. Text is converted to the
        type of the notebook's default.

    Raises
    ------
    RunError
        For an unknown name (suggests the closest), or a value of the wrong type or out of range.
    """
    known, given = notebooks(), dict(parameters or {})
    for name in names:
        _check_known("there is no notebook", name, known)
    _check_known("there is no profile", profile, PROFILES)
    defaults = {name: _defaults(known[name]) for name in known if not names or name in names}
    everywhere = {parameter for of_one in defaults.values() for parameter in of_one}
    for each in given:
        _check_known(f"{', '.join(defaults)} has no parameter", each, everywhere)
    if profile != "default":
        path = NOTEBOOKS / "params" / f"{profile}.yaml"
        given = yaml.safe_load(path.read_text(encoding="utf-8")) | given
    planned = {}
    for name, of_one in defaults.items():
        own = [each for each in given if each in of_one]
        planned[name] = {each: _typed(each, given[each], of_one[each]) for each in own}
        _check_values(of_one | planned[name])
    return planned


def check_telemetry(planned: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Refuse telemetry that the notebooks would refuse, before a kernel starts.

    It is the user's file or, if `sampling_strategy` is set, the simulated fleet, on which 03_smote
    may be unable to reach that ratio. Returns warnings about the file; raises a DataError with
    every problem, or a RunError if a treatment of the imbalance cannot work on it.
    """
    from hvs_lib.evaluation.splits import check_labels
    from hvs_lib.features import check_interval
    from hvs_lib.telemetry.fleet import load_fleet
    from hvs_lib.telemetry.summary import summarize

    known = {name: _defaults(notebooks()[name]) | dict(planned[name]) for name in planned}
    uses = {name: own for name, own in known.items() if own.get("data_path") or own.get("columns")}
    if not uses:
        for name, own in known.items():
            if "sampling_strategy" in planned[name]:
                simulated = {key: own[key] for key in ("sites", "seed", "battery")}
                _check_folds(load_fleet(**simulated).rows, own)
        return []
    first, is_learnt = next(iter(uses.values())), {*uses} != {FIELD_TRIAL}
    source = {key: first[key] for key in ("data_path", "columns", "keep_fill_values")}
    fleet = load_fleet(**source, require_label=is_learnt)
    if is_learnt:
        check_labels(fleet.rows)
    summary = summarize(fleet.rows, missing=fleet.missing)
    warnings = summary["warnings"] + check_interval(summary["interval_s"])
    for parameters in uses.values():
        _check_folds(fleet.rows, parameters)
    return warnings


def _check_folds(rows: pd.DataFrame, parameters: Mapping[str, object]) -> None:
    """Refuse a split, strides or resampling ratio that the labels do not allow."""
    from hvs_lib import columns as col
    from hvs_lib.evaluation.splits import rows_to_fit, split_fleet
    from hvs_lib.samplers import check_folds

    if "n_folds" not in parameters:
        return
    names = ("test_size", "n_folds", "seed", "split")
    split = split_fleet(rows, **{name: parameters[name] for name in names})
    strides = {name: parameters[name] for name in ("normal_stride", "hazard_stride")}
    try:
        chosen = rows_to_fit(rows, split, **strides)
        if "sampling_strategy" in parameters:
            y, fold = rows[col.LABEL].to_numpy()[chosen], split.fold[chosen]
            labels = [y[fold != number] for number in range(split.n_folds)]
            thinning = strides["normal_stride"] / strides["hazard_stride"]
            check_folds(labels, parameters["sampling_strategy"], thinning)
    except ValueError as error:
        raise RunError(str(error)) from error


def execute(
    planned: Mapping[str, Mapping[str, object]],
    *,
    say: Callable[[str], None],
    in_place: bool = False,
    fresh: bool = False,
) -> pd.DataFrame:
    """Execute the planned notebooks in order, into a new folder ``runs/<time>/``.

    Models in this project's cache are not fitted again, unless `fresh`. With `in_place`, the
    outputs are also written into ``notebooks/``, see `keep_outputs`.

    Parameters
    ----------
    planned : dict of str to dict
        From `plan`.
    say : callable
        Called with each line for the user, including those of the steps within a notebook; they
        are also in the folder's ``run.log``, with the time.

    Returns
    -------
    DataFrame, shape (n_notebooks, 4)
        Time of each notebook [s]: ``startup`` of kernel and papermill, ``imports``, ``work``
        (data, models, figures and their logging), and ``total``.

    Raises
    ------
    RunError
        With the failing cell's error and the path of the partial notebook.
    """
    # Imported here so that a refused call does not wait for MLflow.
    from hvs_lib.tracking.champion import champion_is_registered
    from hvs_lib.tracking.runs import prepare

    def tell(text: str) -> None:
        log_line(text)
        say(text)

    prepare()
    if fresh:
        cache.clear()
    folder = _new_folder()
    papermill_io.register(str(folder), _WholeFiles())
    seconds = {}
    with environment({LOG_FILE: str(folder / "run.log")}):
        tell(f"Executed notebooks go to {folder}")
        for number, (name, parameters) in enumerate(planned.items(), 1):
            place = f"[{number}/{len(planned)}] {name}"
            if name == FIELD_TRIAL and seconds and not champion_is_registered():
                tell(f"{place} left out: no champion is registered")
                continue
            tell(f"{place} ...")
            with followed(log_file(), say):
                seconds[name] = _execute_one(name, parameters, folder / f"{name}.ipynb")
            tell(f"{place} done in {seconds[name]['total']:.0f} s")
    if in_place:  # all or none: the committed notebooks belong together
        for name in seconds:
            keep_outputs(folder / f"{name}.ipynb", notebooks()[name])
    return pd.DataFrame.from_dict(seconds, orient="index")


def keep_outputs(executed: Path, notebook: Path) -> None:
    """Write an executed notebook over the committed one, without what differs from run to run.

    Run IDs are masked, and papermill's times, progress bars, widgets (which are dead without a
    kernel) and empty outputs are left out. Figures get 256 colours, for a third of the bytes.
    """
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor  # takes seconds to load

    kept, _ = CoalesceStreamsPreprocessor().preprocess(nbformat.read(executed, 4), {})
    for noise in ("papermill", "widgets"):
        kept.metadata.pop(noise, None)
    for cell in kept.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = output.text.rstrip(" \r")  # left by a progress bar
                if _PNG in output.get("data", {}):
                    output.data[_PNG] = _with_few_colours(output.data[_PNG])
            cell.outputs = [
                output for output in cell.outputs
                if output.get("text") != "" and _WIDGET not in output.get("data", {})
            ]  # fmt: skip
    with whole_file(notebook) as unfinished:
        text = re.sub(r"\b[0-9a-f]{32}\b", "<run id>", nbformat.writes(kept))
        unfinished.write_text(text + "\n", encoding="utf-8")


def _with_few_colours(png: str) -> str:
    """Return a base64 image reduced to 256 colours."""
    packed = io.BytesIO()
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    image.quantize(256).save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode()


def timing_report(seconds: pd.DataFrame) -> str:
    """Format what `execute` returns as a table, with the share of each part."""
    table = seconds.map("{:.1f}".format)
    table.loc["share"] = (seconds.sum() / seconds["total"].sum()).map("{:.1%}".format)
    return table.rename_axis(columns="seconds").to_string()


def _execute_one(name: str, parameters: Mapping[str, object], output: Path) -> dict[str, float]:
    """Execute a notebook and close its run; return the time of its parts [s]."""
    from hvs_lib.tracking.runs import close_execution

    execution_id = uuid.uuid4().hex
    start = time.perf_counter()
    with environment({EXECUTION: execution_id}):
        status, error, told = _call_papermill(notebooks()[name], output, parameters)
    try:
        close_execution(execution_id, output, status=status, error=error)
    except StoreError as failure:
        told = told or f"was executed, but its run could not be closed: {failure}"
    if told:
        kept = f"\nThe notebook up to there: {output}" if output.exists() else ""
        raise RunError(f"{name} {told}{kept}")
    total = time.perf_counter() - start
    in_cells = imports = 0.0
    for cell in nbformat.read(output, 4).cells:
        duration = cell.metadata.get("papermill", {}).get("duration") or 0.0
        in_cells += duration
        imports += duration if "imports" in cell.metadata.get("tags", []) else 0.0
    work = in_cells - imports
    return {"startup": total - in_cells, "imports": imports, "work": work, "total": total}


def _call_papermill(
    notebook: Path, output: Path, parameters: Mapping[str, object]
) -> tuple[str, str, str]:
    """Return the status and error of the notebook's run, and the message to the user on failure."""
    from hvs_lib.tracking.store import first_line, without_password

    # papermill only logs problems; `plan` and the exceptions below report them better.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    # Another environment's kernel spec may also be named python3; this path is searched first.
    places = [f"{sys.prefix}/share/jupyter", os.environ.get("JUPYTER_PATH")]
    try:
        with environment({"JUPYTER_PATH": os.pathsep.join(filter(None, places))}):
            pm.execute_notebook(
                notebook,
                output,
                parameters=dict(parameters),
                kernel_name="python3",
                progress_bar=False,  # the steps say more than a count of cells
                extra_arguments=_KERNEL,
            )
    except PapermillExecutionError as error:
        text = without_password(f"{error.ename}: {error.evalue}")
        return "FAILED", text, f"failed in cell {error.exec_count}: {text}"
    except KeyboardInterrupt:
        return "KILLED", "interrupted", "was interrupted: run it again; what was fitted is reused"
    except (RuntimeError, OSError) as error:
        if isinstance(error, DeadKernelError) or "Kernel died" in str(error):  # at start-up
            return "KILLED", "its kernel died", "failed: its kernel died"
        return "FAILED", first_line(error), f"failed: {first_line(error)}"
    return "FINISHED", "", ""


def _defaults(notebook: Path) -> dict[str, object]:
    """Read the names and default values of a notebook's parameters."""
    inspected = pm.inspect_notebook(str(notebook))
    return {name: ast.literal_eval(found["default"]) for name, found in inspected.items()}


def _check_values(parameters: Mapping[str, object]) -> None:
    """Check a notebook's parameters with the checks of the functions that will get them."""
    from hvs_lib.evaluation.protocol import Protocol
    from hvs_lib.evaluation.splits import check_split
    from hvs_lib.samplers import check_sampling
    from hvs_lib.search import check_search
    from hvs_lib.simulator.battery import check_fleet
    from hvs_lib.tracking.champion import check_policy

    protocol = ("normal_stride", "hazard_stride", "max_nuisance_alarms_per_site_day")
    protocol += ("missed_event_costs", "drop_sensors", "max_rows_in_memory")
    trial = ("trial_sites", "trial_seed", "trial_battery")
    checks = {
        ("sites", "seed", "battery"): check_fleet,
        trial: check_fleet,
        ("test_size", "n_folds", "split"): check_split,
        protocol: partial(Protocol, None, None),  # checks its settings before it uses telemetry
        ("n_jobs",): partial(Protocol, None, None),
        ("scoring", "n_iter"): check_search,
        ("smote_k_neighbors", "sampling_strategy"): check_sampling,
        ("policy", "min_precision"): check_policy,
    }
    for names, check in checks.items():
        if parameters.keys() >= set(names):  # the notebook has them
            try:
                check(**{name.removeprefix("trial_"): parameters[name] for name in names})
            except ValueError as error:
                where = "in the field trial, " if names == trial else ""
                raise RunError(f"{where}{error}") from error


def _typed(parameter: str, value: object, default: object) -> object:
    """Convert a value to the type of the parameter's default."""
    kind, typed = type(default), value
    with contextlib.suppress(ValueError, KeyError, OverflowError):
        if isinstance(value, str) and kind is bool:
            typed = {"true": True, "yes": True, "false": False, "no": False}[value.lower()]
        elif isinstance(value, str) or (kind is float and type(value) is int):
            typed = kind(value)
    if type(typed) is not kind:
        raise RunError(
            f"parameter {parameter!r} must be {kind.__name__}, as its default {default!r} is, "
            f"got {reprlib.repr(value)}."
        )
    return typed


def _check_known(refusal: str, name: str, known: Collection[str]) -> None:
    """Refuse an unknown name, and suggest the closest known one."""
    if name not in known:
        cure = did_you_mean(name, known, f"there are: {', '.join(sorted(known))}.")
        raise RunError(f"{refusal} {name!r}. {cure[0].upper()}{cure[1:]}")


def _new_folder() -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for number in itertools.count(1):
        folder = project_root() / "runs" / (stamp if number == 1 else f"{stamp}_{number}")
        with contextlib.suppress(FileExistsError):  # by a run started in the same second
            folder.mkdir(parents=True)
            return folder
