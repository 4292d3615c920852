"""The parent run of a notebook, which its cells log to."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hvs_lib import __version__
from hvs_lib.evaluation.metrics import undefined_metrics
from hvs_lib.evaluation.protocol import Assessment, Protocol
from hvs_lib.progress import STEP, log_line
from hvs_lib.project import EXECUTION, FINGERPRINT, FRESH, StoreError
from hvs_lib.telemetry.files import READ_ERRORS, sha256_of_file
from hvs_lib.tracking.children import ChildRun, ModelToLog, keep_unlogged, log_child
from hvs_lib.tracking.contents import (
    AUDIT,
    RAW_CV_SCORES,
    alarm_params,
    chosen_params,
    git_tags,
    model_params,
    package_versions,
    protocol_params,
    read_scores,
    to_metrics,
    to_params,
    to_tags,
    write_artifacts,
)
from hvs_lib.tracking.executions import close_killed_runs, this_process
from hvs_lib.tracking.model_files import ModelError, load_model
from hvs_lib.tracking.store import (
    EXPERIMENTS,
    STORE_FAILURES,
    check_experiments,
    connect,
    ensure_experiment,
    search_runs,
    store_failures_told,
)

import joblib
import pandas as pd
from imblearn.pipeline import Pipeline
from IPython import get_ipython
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException


def start(
    notebook: str,
    *,
    stage: str,
    params: Mapping,
    data_path: str | Path | None = None,
    data_sha256: str | None = None,
    split: str = "rack",
) -> NotebookRun:
    """Start the parent run of a notebook, after closing the runs of killed processes.

    Parameters
    ----------
    notebook : its name, ``01_baseline``.
    stage : a key of `EXPERIMENTS`.
    params : all of the notebook's parameters.
    data_path : the telemetry file, hashed as a whole; or
    data_sha256 : the digest, where only the runs are read.
    split : ``rack`` or ``row``.
    """
    started = time.perf_counter()
    connect()
    check_experiments()
    close_killed_runs()
    if (left := _watch(None)) is not None:  # this cell is run again
        left.abandon()
    if data_path is not None:
        data_sha256 = sha256_of_file(data_path)
    tags = {
        "stage": stage,
        "split": split,
        "data_sha256": data_sha256 or "none",
        "workbook_version": __version__,
        "process": this_process(),
        "execution_id": os.environ.get(EXECUTION, "interactive"),
        "mlflow.source.name": f"notebooks/{notebook}.ipynb",
        "mlflow.source.type": "NOTEBOOK",
        "packages": json.dumps(package_versions()),
        **git_tags(),
    }
    if os.environ.get(FINGERPRINT):
        tags["fingerprint"] = os.environ[FINGERPRINT]
    client = MlflowClient()
    run = client.create_run(
        ensure_experiment(EXPERIMENTS[stage]), run_name=notebook, tags=tags | {"role": "parent"}
    )
    client.log_batch(run.info.run_id, params=to_params(params))
    notebook_run = NotebookRun(run, tags, started=started)
    _watch(notebook_run)
    return notebook_run


class NotebookRun:
    """The parent run of one execution of a notebook; `start` makes it.

    It is FAILED while the last cell raised an error, and FINISHED after `finish`.
    """

    def __init__(self, run: Run, tags: dict[str, str], *, started: float):
        self.run_id = run.info.run_id
        self.experiment_id = run.info.experiment_id
        self._client = MlflowClient()
        self._tags = tags
        self._started = started
        self._seconds_tracking = time.perf_counter() - started

    @contextmanager
    def _clock(self):
        """Add to the time spent on tracking, which the runner reports as a share."""
        start = time.perf_counter()
        try:
            with store_failures_told():
                yield
        finally:
            self._seconds_tracking += time.perf_counter() - start

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log numbers of the notebook as a whole."""
        with self._clock():
            self._client.log_batch(self.run_id, metrics=to_metrics(metrics))

    def log_figure(self, figure: Figure, name: str) -> None:
        """Log a figure of the notebook as a PNG artifact."""
        with self._clock():
            self._client.log_figure(self.run_id, figure, name)

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        """Log a table of the notebook as a CSV artifact."""
        with self._clock():
            self._client.log_text(self.run_id, table.to_csv(index=False), name)

    def log_audit(self, audit: pd.DataFrame) -> None:
        """Log the leakage audit of the notebook's telemetry, for `read_audit`."""
        self.log_table(audit, AUDIT)
        self.set_tags({"audited": "true"})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tag the parent run."""
        with self._clock():
            self._client.log_batch(self.run_id, tags=to_tags(tags))

    def log_candidate(
        self,
        name: str,
        candidate: Pipeline,
        metrics: Mapping[str, float],
        *,
        model_name: str,
        imbalance_technique: str = "none",
    ) -> str:
        """Log one finished candidate of a search as a child run; callable from any thread.

        Parameters
        ----------
        name : of the run.
        candidate : the pipeline, unfitted, with all its parameters.
        metrics : its scores.
        model_name, imbalance_technique : tags, as for `log_assessment`.

        Returns
        -------
        str, the child's Run ID.
        """
        tags = self._child_tags(
            role="candidate", model_name=model_name, imbalance_technique=imbalance_technique
        )
        return self._log_child(ChildRun(name, tags, model_params(candidate), dict(metrics)))

    def scored_candidates(self) -> list[tuple[dict[str, str], dict[str, float]]]:
        """Return parameters and metrics of the candidates that this notebook has scored before.

        That is, in another execution with the same fingerprint, see `hvs_lib.resume`, whether it
        was stopped or not. There is none in an interactive session, nor under ``hvs run --fresh``.
        """
        return [(run.data.params, run.data.metrics) for run in self._done_before("candidate")]

    def assessed_before(
        self,
        pipeline: Pipeline,
        protocol: Protocol,
        *,
        model_name: str,
        imbalance_technique: str = "none",
    ) -> Assessment | None:
        """Take over a model that another execution of this notebook has logged.

        Which executions count is as for `scored_candidates`.

        Parameters
        ----------
        pipeline, protocol : of the assessment; all that is logged of them must agree.
        model_name, imbalance_technique : as for `log_assessment`.

        Returns
        -------
        Assessment, equal to the bit; None where there is no such run, or its files are gone.
        """
        tags = {"model_name": model_name, "imbalance_technique": imbalance_technique}
        params = chosen_params(pipeline) | protocol_params(protocol)
        params = {param.key: param.value for param in to_params(params)}
        for run in self._done_before("model"):
            if tags.items() <= run.data.tags.items() and params.items() <= run.data.params.items():
                return self._take_over(run, protocol)
        return None

    def _take_over(self, run: Run, protocol: Protocol) -> Assessment | None:
        run_id, seconds = run.info.run_id, run.data.metrics["seconds"]
        try:
            with self._clock():
                deployable, _ = load_model(f"runs:/{run_id}/model")
                raw_cv_scores = read_scores(run_id, RAW_CV_SCORES)["y_score"].to_numpy()
        except (ModelError, StoreError, *READ_ERRORS):
            return None  # fitted again
        log_line(f"{STEP}{run.info.run_name}: taken over from Run ID {run_id}")
        found = protocol.assess_again(deployable, raw_cv_scores, seconds=seconds)
        return replace(found, taken_over_from=run_id)

    def _done_before(self, role: str) -> list[Run]:
        if "fingerprint" not in self._tags or os.environ.get(FRESH):
            return []
        same = {name: self._tags[name] for name in ("fingerprint", "data_sha256")} | {"role": role}
        with self._clock():
            found = search_runs(
                " and ".join(
                    [
                        "attributes.status = 'FINISHED'",
                        *(f"tags.{name} = '{value}'" for name, value in same.items()),
                    ]
                )
            )
        return [run for run in found if run.data.tags["mlflow.parentRunId"] != self.run_id]

    def log_assessment(
        self,
        assessment: Assessment,
        protocol: Protocol,
        *,
        model_name: str,
        imbalance_technique: str = "none",
        params: Mapping | None = None,
    ) -> str:
        """Log one assessed model, or reference, as a child run with all its artifacts.

        Parameters
        ----------
        assessment : from ``protocol.assess`` or ``protocol.assess_reference``.
        protocol : it was assessed with.
        model_name, imbalance_technique : tags that tell the runs of a stage apart.
        params : beyond those of the model and the split.

        Returns
        -------
        str, the child's Run ID.
        """
        role = "reference" if assessment.model is None else "model"
        child_tags = self._child_tags(
            role=role,
            model_name=model_name,
            imbalance_technique=imbalance_technique,
            split=protocol.split.kind,
            leaky=str(protocol.split.kind == "row").lower(),
        )
        missing = undefined_metrics(assessment.metrics)
        missing += undefined_metrics(assessment.metrics, prefix="cv_")
        if missing:
            child_tags["undefined_metrics"] = ",".join(missing)
        if assessment.taken_over_from:
            child_tags["taken_over_from"] = assessment.taken_over_from
        digests = dict(protocol.digests)
        if assessment.model is not None:
            digests["digest_model"] = joblib.hash(assessment.model)
        words = [f"{name.removeprefix('digest_')} {value}" for name, value in digests.items()]
        log_line(f"digests of {model_name}, {imbalance_technique}: {', '.join(words)}")
        child_tags |= digests
        logged = model_params(assessment.model) | alarm_params(assessment)
        logged |= protocol_params(protocol) | dict(params or {})
        title = f"{model_name}, {imbalance_technique}" if role == "model" else model_name
        metrics = assessment.metrics | {"seconds": assessment.seconds}
        with tempfile.TemporaryDirectory() as folder:
            write_artifacts(Path(folder), assessment, protocol, title=model_name)
            model = None
            if assessment.model is not None:
                example = protocol.X.iloc[protocol.split.test[:100]]
                metadata = alarm_params(assessment) | {"interval_s": protocol.interval_s}
                model = ModelToLog(assessment.deployable(), example, metadata)
            child = ChildRun(title, child_tags, logged, metrics, Path(folder), model)
            return self._log_child(child)

    def _log_child(self, child: ChildRun) -> str:
        """Log a child run; where the store does not take it, keep it for `push_unlogged`."""
        try:
            with self._clock():
                return log_child(self.experiment_id, child)
        except StoreError as error:
            try:
                folder = keep_unlogged(child, EXPERIMENTS[self._tags["stage"]])
            except (OSError, MlflowException, ModelError) as full:
                raise StoreError(f"{error}\nNor can the run be kept: {full}") from error
            raise StoreError(
                f"{error}\nThe run {child.name!r} is kept in {folder}: `hvs push "
                f"{folder.parents[1]}` logs it when the store answers."
            ) from error

    def finish(self) -> None:
        """Close the parent run as FINISHED."""
        metrics = {
            "seconds": time.perf_counter() - self._started,
            "seconds_tracking": self._seconds_tracking,
        }
        with self._clock():
            self._client.log_batch(self.run_id, metrics=to_metrics(metrics))
            self._client.set_terminated(self.run_id)
        _watch(None)

    def abandon(self) -> None:
        """Close the parent run as KILLED: another one takes its place."""
        with suppress(*STORE_FAILURES):  # somebody may have deleted it
            self._client.set_terminated(self.run_id, "KILLED")

    def _child_tags(self, **tags: str) -> dict[str, str]:
        return self._tags | {"mlflow.parentRunId": self.run_id} | tags

    def _after_cell(self, result) -> None:
        """Let the run's status follow the last cell's."""
        error = result.error_before_exec or result.error_in_exec
        with suppress(*STORE_FAILURES):  # the next start closes what stays open
            self._follow(error)

    def _follow(self, error: BaseException | None) -> None:
        if error is not None:
            self._client.set_tag(self.run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            self._client.set_terminated(self.run_id, "FAILED")
        elif "error" in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, "error")
            self._client.update_run(self.run_id, status="RUNNING")


def _watch(run: NotebookRun | None) -> NotebookRun | None:
    """Watch the cells of this kernel for the given run and no other; return the one before."""
    shell, before = get_ipython(), None
    if shell is None:
        return None
    for callback in list(shell.events.callbacks["post_run_cell"]):
        if isinstance(getattr(callback, "__self__", None), NotebookRun):
            before = callback.__self__
            shell.events.unregister("post_run_cell", callback)
    if run is not None:
        shell.events.register("post_run_cell", run._after_cell)
    return before
