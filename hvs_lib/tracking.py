"""MLflow: one parent run for a notebook, a child run for each model and each search candidate."""

import hashlib
import json
import math
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from hvs_lib import __version__, plots
from hvs_lib import columns as col
from hvs_lib.data import event_codes, sha256_of_file
from hvs_lib.metrics import AlarmRule, undefined_metrics
from hvs_lib.model_files import ModelError, load_model, types_to_trust
from hvs_lib.progress import log_file
from hvs_lib.project import (
    EXECUTION,
    FINGERPRINT,
    FRESH,
    MAX_STORE_WAIT_S,
    STORE_WAIT,
    StoreError,
    environment,
    project_root,
    whole_file,
)
from hvs_lib.protocol import Assessment, Protocol

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import psutil
import skops.io
from filelock import FileLock
from imblearn.pipeline import Pipeline
from IPython import get_ipython
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from mlflow.store.db.db_types import DATABASE_ENGINES
from sklearn.base import BaseEstimator
from sklearn.metrics import classification_report
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

EXPERIMENTS = {
    "data": "HVS_Fire_Prediction_Data",
    "baseline": "HVS_Fire_Prediction_Baseline",
    "tuning": "HVS_Fire_Prediction_Tuning",
    "smote": "HVS_Fire_Prediction_SMOTE",
    "comparison": "HVS_Fire_Prediction_Comparison",
}
REGISTERED_MODEL = "hvs-fire-prediction"
CHAMPION = "champion"
AUDIT = "leakage_audit.csv"
MODEL_CARD = "model_card.md"
UNLOGGED = "unlogged"  # folder of what a store did not take

# What a logged model needs to be loaded elsewhere; inferring it costs seconds for each model.
_MODEL_PACKAGES = (
    "mlflow",
    "scikit-learn",
    "imbalanced-learn",
    "xgboost",
    "numpy",
    "pandas",
    "skops",
)
_PACKAGES = (*_MODEL_PACKAGES, "scipy", "numba", "pyarrow")

# What is raised where the store does not answer; requests' errors are OSErrors.
_STORE_FAILURES = (MlflowException, SQLAlchemyError, sqlite3.Error, OSError)
_RETRIES, _TIMEOUT = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"


@dataclass(frozen=True)
class ModelToLog:
    """A model with what its file says beside it.

    Attributes
    ----------
    model : with its calibration and threshold.
    example : frame, shape (n_rows, n_features), of which the signature is inferred.
    metadata : alarm settings.
    """

    model: BaseEstimator
    example: pd.DataFrame
    metadata: dict[str, object]


@dataclass(frozen=True)
class ChildRun:
    """All that a child run is made of; `artifacts` is a folder of files."""

    name: str
    tags: dict[str, str]
    params: dict[str, object]
    metrics: dict[str, float]
    artifacts: Path | None = None
    model: ModelToLog | None = None


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
            self._client.log_batch(self.run_id, metrics=_metrics(metrics))

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
            self._client.log_batch(self.run_id, tags=_tags(tags))

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
        return self._log_child(ChildRun(name, tags, _model_params(candidate), dict(metrics)))

    def scored_candidates(self) -> list[tuple[dict[str, str], dict[str, float]]]:
        """Return parameters and metrics of the candidates that the same search scored before.

        The same is one that the runner has started with this fingerprint, see `hvs_lib.resume`;
        there is none in an interactive session, nor after ``hvs run --fresh``.
        """
        if "fingerprint" not in self._tags or os.environ.get(FRESH):
            return []
        with self._clock():
            found = _search(
                f"attributes.status = 'FINISHED' and tags.role = 'candidate' and "
                f"tags.fingerprint = '{self._tags['fingerprint']}'"
            )
        return [(run.data.params, run.data.metrics) for run in found]

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
        logged = _model_params(assessment.model) | _alarm_params(assessment)
        logged |= _protocol_params(protocol) | dict(params or {})
        title = f"{model_name}, {imbalance_technique}" if role == "model" else model_name
        metrics = assessment.metrics | {"seconds": assessment.seconds}
        with tempfile.TemporaryDirectory() as folder:
            _write_artifacts(Path(folder), assessment, protocol, title=model_name)
            model = None
            if assessment.model is not None:
                example = protocol.X.iloc[protocol.split.test[:100]]
                model = ModelToLog(assessment.deployable(), example, _alarm_params(assessment))
            child = ChildRun(title, child_tags, logged, metrics, Path(folder), model)
            return self._log_child(child)

    def _log_child(self, child: ChildRun) -> str:
        """Log a child run; where the store does not take it, keep it for `push_unlogged`."""
        try:
            with self._clock():
                return _log_child(self.experiment_id, child)
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
            self._client.log_batch(self.run_id, metrics=_metrics(metrics))
            self._client.set_terminated(self.run_id)
        _watch(None)

    def _child_tags(self, **tags: str) -> dict[str, str]:
        return self._tags | {"mlflow.parentRunId": self.run_id} | tags

    def _after_cell(self, result) -> None:
        """Let the run's status follow the last cell's."""
        error = result.error_before_exec or result.error_in_exec
        with suppress(*_STORE_FAILURES):  # the next start closes what stays open
            self._follow(error)

    def _follow(self, error: BaseException | None) -> None:
        if error is not None:
            self._client.set_tag(self.run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            self._client.set_terminated(self.run_id, "FAILED")
        elif "error" in self._client.get_run(self.run_id).data.tags:
            self._client.delete_tag(self.run_id, "error")
            self._client.update_run(self.run_id, status="RUNNING")


@contextmanager
def store_failures_told() -> Iterator[None]:
    """Turn whatever MLflow raises where its store fails into a StoreError."""
    try:
        yield
    except (*_STORE_FAILURES, ModuleNotFoundError) as error:  # a database's driver
        raise _store_error(error) from error


def connect() -> None:
    """Point MLflow at the store, and make it ready if it is new.

    The store is ``MLFLOW_TRACKING_URI`` if set, else SQLite at the project root, whatever the
    working directory. A server is asked once whether it answers; what is logged later is tried
    again for ``HVS_STORE_WAIT_S`` seconds (60 if unset).

    Raises
    ------
    StoreError
        Where the store does not answer, or refuses.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"
    with store_failures_told():
        mlflow.set_tracking_uri(uri)
        folder = _sqlite_folder(uri)
        if folder is not None:
            _make_ready(uri, folder)
        else:
            _ask(uri)


def _make_ready(uri: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(uri.removeprefix("sqlite:///"))
    # Several processes that create the tables of a fresh file at once break it, and so does one
    # that is killed meanwhile.
    with _one_at_a_time():
        if not path.exists():
            for left in folder.glob(f".*.{path.name}*"):  # by one that was killed
                left.unlink()
            with whole_file(path) as unfinished:
                MlflowClient(f"sqlite:///{unfinished}").search_experiments(max_results=1)
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
        MlflowClient().search_experiments(max_results=1)


def _ask(uri: str) -> None:
    if re.split(r"[+:]", uri)[0] in DATABASE_ENGINES:
        with create_engine(uri).connect():  # MLflow would try for an hour
            pass
    with environment({_RETRIES: "0", _TIMEOUT: "10"}):
        MlflowClient().search_experiments(max_results=1)
    _wait_for_server()


def _wait_for_server() -> None:
    """Let MLflow try again for as long as the environment says.

    It waits 0, 4, 8, ... seconds between its tries, 2 ** (tries + 1) - 4 in all.
    """
    said = os.environ.get(STORE_WAIT) or "60"
    try:
        wait_s = float(said)
    except ValueError:
        wait_s = math.nan
    if not 0 <= wait_s <= MAX_STORE_WAIT_S:
        raise StoreError(
            f"{STORE_WAIT} must be a number of seconds from 0 to {MAX_STORE_WAIT_S}, got {said!r}."
        )
    os.environ[_RETRIES] = str(round(math.log2(wait_s + 4) - 1) if wait_s > 0 else 0)
    os.environ.setdefault(_TIMEOUT, "30")


def _store_error(error: Exception) -> StoreError:
    """Say that the store failed, and do not wait for it again in this process."""
    os.environ[_RETRIES] = "0"
    uri = re.sub(r"//[^/@]*@", "//", mlflow.get_tracking_uri())  # without a password
    reason = re.sub(r"//[^/@]*@", "//", str(error)).strip().split("\n", 1)[0]
    return StoreError(
        f"the tracking store {uri} failed: {reason}\nStart or mend it, or set "
        "MLFLOW_TRACKING_URI to another; unset, the store is mlflow.db in the project."
    )


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
    close_killed_runs()
    _watch(None)
    if data_path is not None:
        data_sha256 = sha256_of_file(data_path)
    tags = {
        "stage": stage,
        "split": split,
        "data_sha256": data_sha256 or "none",
        "workbook_version": __version__,
        "process": _this_process(),
        "execution_id": os.environ.get(EXECUTION, "interactive"),
        "mlflow.source.name": f"notebooks/{notebook}.ipynb",
        "mlflow.source.type": "NOTEBOOK",
        "packages": json.dumps(package_versions()),
        **_git_tags(),
    }
    if os.environ.get(FINGERPRINT):
        tags["fingerprint"] = os.environ[FINGERPRINT]
    client = MlflowClient()
    run = client.create_run(
        _experiment_id(EXPERIMENTS[stage]), run_name=notebook, tags=tags | {"role": "parent"}
    )
    client.log_batch(run.info.run_id, params=_params(params))
    notebook_run = NotebookRun(run, tags, started=started)
    _watch(notebook_run)
    return notebook_run


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the metrics depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def code_version() -> dict[str, str]:
    """Return the tags ``git_commit``, ``git_dirty`` and ``workbook_version`` of this code."""
    git = {name: value for name, value in _git_tags().items() if name.startswith("git_")}
    return git | {"workbook_version": __version__}


def close_killed_runs() -> list[str]:
    """Close, as KILLED, the runs that this machine's dead processes left RUNNING.

    Returns
    -------
    list of the Run IDs closed.
    """
    client = MlflowClient()
    closed = []
    for run in _search("attributes.status = 'RUNNING'"):
        process = run.data.tags.get("process")
        if process and _is_dead(process):
            client.set_terminated(run.info.run_id, "KILLED")
            closed.append(run.info.run_id)
    return closed


def parent_of_execution(execution_id: str) -> Run | None:
    """Find the parent run of one execution by the runner, if it came so far."""
    runs = _search(f"tags.execution_id = '{execution_id}' and tags.role = 'parent'")
    return runs[0] if runs else None


def comparable_runs(*, data_sha256: str = "") -> pd.DataFrame:
    """List the finished model and reference runs that were judged alike: same rows, same alarm.

    Parameters
    ----------
    data_sha256 : of the telemetry; empty takes that of the newest run.

    Returns
    -------
    DataFrame, one row for each run, with ``name``, ``run_id``, ``stage``, ``model_name``,
    ``imbalance_technique``, ``role``, ``split``, ``leaky``, ``data_sha256``, ``protocol_digest``,
    and all metrics. Of runs with the same name and parameters the newest is listed. Leaky runs
    have other test rows by their nature and are listed beside.

    Raises
    ------
    ValueError
        Where there is none yet.
    """
    found = _search("attributes.status = 'FINISHED' and params.protocol_digest LIKE '_%'")
    runs = pd.DataFrame([_row_of(run) for run in found])
    if data_sha256 and len(runs):
        runs = runs[runs["data_sha256"] == data_sha256]
    if runs.empty:
        raise ValueError("there is no run to compare: run 01_baseline, 02_tuning, 03_smote first.")
    runs = runs.sort_values(["started", "run_id"])
    runs = runs[runs["data_sha256"] == runs["data_sha256"].iloc[-1]]
    honest = runs[runs["leaky"] == "false"]
    if honest.empty:
        raise ValueError(
            "the runs on this telemetry are all on a random row split, which leaks, so none can be "
            'chosen: run 01_baseline with split="rack", on telemetry with more events.'
        )
    newest = honest.iloc[-1]
    runs = runs[(runs["protocol_digest"] == newest["protocol_digest"]) | (runs["leaky"] == "true")]
    same = ["model_name", "imbalance_technique", "params"]  # one entry, whichever notebook ran it
    runs = runs.drop_duplicates(same, keep="last")
    return _with_names(runs.drop(columns=["params", "started"]).reset_index(drop=True))


def _row_of(run: Run) -> dict[str, object]:
    tags = run.data.tags
    names = ("stage", "model_name", "imbalance_technique", "role", "split", "leaky", "data_sha256")
    return {
        "run_id": run.info.run_id,
        "started": run.info.start_time,
        "params": json.dumps(run.data.params, sort_keys=True),
        "protocol_digest": run.data.params["protocol_digest"],
        "alarm": read_alarm(run.data.params),
        "modules_per_site": float(run.data.params["modules_per_site"]),
        **{name: tags[name] for name in names},
        **run.data.metrics,
    }


def _with_names(runs: pd.DataFrame) -> pd.DataFrame:
    """Name each run by its model and treatment; by its stage too where that is not enough."""
    plain = runs["model_name"].where(
        runs["role"] == "reference", runs["model_name"] + ", " + runs["imbalance_technique"]
    )
    named = plain.where(~plain.duplicated(keep=False), plain + " (" + runs["stage"] + ")")
    again = named.groupby(named).cumcount() + 1
    named = named.where(again == 1, named + " #" + again.astype(str))
    return runs.assign(name=named)


def read_scores(run_id: str, name: str = "test_scores.parquet") -> pd.DataFrame:
    """Read a scores frame, shape (n_samples, ...), that a run has logged."""
    return pd.read_parquet(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))


def executed_before(fingerprint: str, notebook: str) -> tuple[str, Path] | None:
    """Find the newest execution of a notebook, if it is of this fingerprint and was completed.

    An older one does not count: the comparison looks at the newest runs.

    Parameters
    ----------
    fingerprint : from `hvs_lib.resume.fingerprint`.
    notebook : its name, ``01_baseline``.

    Returns
    -------
    The Run ID of the parent and a copy of the executed notebook; None if there is none.
    """
    runs = _search(f"tags.role = 'parent' and attributes.run_name = '{notebook}'")
    if not runs or runs[0].data.tags.get("completed") != fingerprint:
        return None
    run_id = runs[0].info.run_id
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=f"{notebook}.ipynb")
    return run_id, Path(path)


def log_notebook(run_id: str, executed: Path, *, completed: str = "") -> None:
    """Log an executed notebook as an artifact of its parent run.

    Parameters
    ----------
    run_id : of the parent.
    executed : its file, if it came so far.
    completed : fingerprint of what was executed to its end, for `executed_before`.
    """
    if executed.exists():
        MlflowClient().log_artifact(run_id, str(executed))
        if completed:
            MlflowClient().set_tag(run_id, "completed", completed)


def verdict() -> tuple[pd.DataFrame, dict[str, str]]:
    """Return what the last finished comparison found.

    Returns
    -------
    The leaderboard, and the champion's ``name``, ``run_id`` and registered ``version``.
    """
    with store_failures_told():
        runs = _search("attributes.status = 'FINISHED' and tags.stage = 'comparison'")
        tags = runs[0].data.tags
        path = mlflow.artifacts.download_artifacts(
            run_id=runs[0].info.run_id, artifact_path="leaderboard.csv"
        )
    champion = {name: tags[f"champion_{name}"] for name in ("name", "run_id", "version")}
    return pd.read_csv(path), champion


def read_audit(data_sha256: str) -> pd.DataFrame | None:
    """Read the newest leakage audit that 01_baseline has logged for this telemetry, if any."""
    runs = _search(f"tags.data_sha256 = '{data_sha256}' and tags.audited = 'true'")
    if not runs:
        return None
    run_id = runs[0].info.run_id
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=AUDIT)
    return pd.read_csv(path)


def incumbent() -> pd.Series | None:
    """Return the run of the registered champion, as a row of `comparable_runs`; None if none is."""
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return None
    if CHAMPION not in client.get_registered_model(REGISTERED_MODEL).aliases:
        return None
    run_id = client.get_model_version_by_alias(REGISTERED_MODEL, CHAMPION).run_id
    row = pd.Series(_row_of(client.get_run(run_id)))
    return pd.concat([row, pd.Series({"name": f"{row.model_name}, {row.imbalance_technique}"})])


def register_champion(run_id: str) -> str:
    """Register the run's model, unless it is registered, and point the alias at it.

    Returns
    -------
    str, the version of the registered model.
    """
    client = MlflowClient()
    with _one_at_a_time():
        known = client.search_model_versions(f"name = '{REGISTERED_MODEL}' and run_id = '{run_id}'")
        version = (known[0] if known else _register(client, run_id)).version
        client.set_registered_model_alias(REGISTERED_MODEL, CHAMPION, version)
    return str(version)


def log_model_card(version: str, card: str) -> None:
    """Log the card with the version's model and its run, and show it in the registry."""
    client = MlflowClient()
    registered = client.get_model_version(REGISTERED_MODEL, version)
    client.log_text(registered.run_id, card, MODEL_CARD)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL_CARD
        path.write_text(card, encoding="utf-8")
        client.log_model_artifact(_logged_model_id(client, registered.run_id), str(path))
    client.update_model_version(REGISTERED_MODEL, version, description=card)


def _register(client: MlflowClient, run_id: str) -> ModelVersion:
    # `mlflow.register_model` does the same and writes to standard error.
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        client.create_registered_model(REGISTERED_MODEL)
    model_id = _logged_model_id(client, run_id)
    return client.create_model_version(
        REGISTERED_MODEL, source=f"models:/{model_id}", run_id=run_id, model_id=model_id
    )


def _logged_model_id(client: MlflowClient, run_id: str) -> str:
    return client.get_run(run_id).outputs.model_outputs[0].model_id


def _write_artifacts(
    folder: Path, assessment: Assessment, protocol: Protocol, *, title: str
) -> None:
    test, threshold = assessment.test_scores, assessment.threshold
    figures = {
        "confusion_matrix.png": plots.confusion_matrix(test, threshold=threshold, title=title),
        "pr_curve.png": plots.precision_recall({title: test}, title="Test racks"),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
        plt.close(figure)
    report = classification_report(
        test[col.LABEL],
        test["y_score"] >= threshold,
        labels=[0, 1],
        target_names=["normal", "hazard"],
        digits=4,
        zero_division=0,
    )
    (folder / "classification_report.txt").write_text(report)
    (folder / "splits.json").write_text(json.dumps(protocol.split.to_dict(), indent=1))
    test.to_parquet(folder / "test_scores.parquet", index=False)
    assessment.cv_scores.to_parquet(folder / "cv_scores.parquet", index=False)
    if assessment.model is not None:
        skops.io.dump(assessment.model.named_steps["scale"], folder / "scaler.skops")
        _check_rows(assessment, protocol).to_parquet(folder / "check_rows.parquet")


def _check_rows(assessment: Assessment, protocol: Protocol, *, count: int = 200) -> pd.DataFrame:
    """Keep test rows from quiet to hazardous, with their scores, to check a loaded model by."""
    scores = assessment.test_scores["y_score"].to_numpy()
    chosen = np.argsort(scores, kind="stable")[np.linspace(0, len(scores) - 1, count).astype(int)]
    return protocol.X.iloc[protocol.split.test[chosen]].assign(y_score=scores[chosen])


def _log_child(experiment_id: str, child: ChildRun) -> str:
    client = MlflowClient()
    with mlflow.start_run(
        experiment_id=experiment_id,
        parent_run_id=child.tags["mlflow.parentRunId"],
        nested=True,
        run_name=child.name,
        tags=child.tags,
    ) as run:
        run_id = run.info.run_id
        client.log_batch(run_id, metrics=_metrics(child.metrics), params=_params(child.params))
        if child.artifacts is not None:
            client.log_artifacts(run_id, child.artifacts)
        if child.model is not None:
            mlflow.sklearn.log_model(name="model", **_for_mlflow(child.model))
    return run_id


def _for_mlflow(logged: ModelToLog) -> dict[str, object]:
    model, example = logged.model, logged.example
    return {
        "sk_model": model,
        "signature": infer_signature(example, model.predict_proba(example)),
        "input_example": example.head(3),
        "skops_trusted_types": types_to_trust(model),
        "pyfunc_predict_fn": "predict_proba",
        "pip_requirements": [f"{name}=={version(name)}" for name in _MODEL_PACKAGES],
        "metadata": logged.metadata,
    }


def keep_unlogged(child: ChildRun, experiment: str) -> Path:
    """Write a child run to a folder of its own below the log file's; return the folder."""
    folder = log_file().parent / UNLOGGED / uuid.uuid4().hex[:8]
    folder.mkdir(parents=True)
    if child.artifacts is not None:
        shutil.copytree(child.artifacts, folder / "artifacts")
    if child.model is not None:
        mlflow.sklearn.save_model(path=folder / "model", **_for_mlflow(child.model))
        child.model.example.to_parquet(folder / "example.parquet")
    values = {"name": child.name, "tags": child.tags, "metrics": child.metrics}
    values |= {"params": {name: str(value) for name, value in child.params.items()}}
    text = json.dumps(values | {"experiment": experiment}, indent=1)
    with whole_file(folder / "run.json") as unfinished:  # last: with it the folder is complete
        unfinished.write_text(text, encoding="utf-8")
    return folder


def push_unlogged(folder: Path) -> Iterator[str]:
    """Log the runs that a store did not take, and remove what was kept of them.

    Parameters
    ----------
    folder : of a run, ``runs/<time>``, which `keep_unlogged` has written to.

    Yields
    ------
    str, the new Run ID of each.

    Raises
    ------
    StoreError
        Where the store fails again; what is logged by then is removed, the rest stays.
    ModelError
        Where a model that was kept is damaged.
    """
    connect()
    for kept in sorted((folder / UNLOGGED).glob("*/run.json")):
        values = json.loads(kept.read_text(encoding="utf-8"))
        experiment = values.pop("experiment")
        artifacts, model = kept.with_name("artifacts"), None
        if kept.with_name("model").exists():
            loaded, metadata = load_model(kept.with_name("model"))
            example = pd.read_parquet(kept.with_name("example.parquet"))
            model = ModelToLog(loaded, example, metadata)
        child = ChildRun(**values, artifacts=artifacts if artifacts.exists() else None, model=model)
        with store_failures_told():
            run_id = _log_child(_experiment_id(experiment), child)
        shutil.rmtree(kept.parent)
        yield run_id


def _protocol_params(protocol: Protocol) -> dict[str, object]:
    """Describe the rows that a model was fitted and judged on."""
    split, y = protocol.split, protocol.y
    events = event_codes(protocol.telemetry)
    goal = {
        "max_false_alarms_per_site_day": protocol.max_false_alarms_per_site_day,
        "missed_event_costs": protocol.missed_event_costs,
    }
    judged_by = [split.to_dict(), goal, [asdict(rule) for rule in protocol.rules]]
    digest = hashlib.sha256(json.dumps(judged_by, sort_keys=True).encode()).hexdigest()
    described = {
        "n_features": protocol.X.shape[1],
        "normal_stride": protocol.normal_stride,
        "modules_per_site": protocol.modules_per_site,
        **goal,
        "rows_fitted": len(protocol.fitting_rows(split.train)),
        "protocol_digest": digest[:16],
    }
    for name, rows in {"train": split.train, "test": split.test}.items():
        described[f"rows_{name}"] = len(rows)
        described[f"hazard_rows_{name}"] = int(y[rows].sum())
        described[f"events_{name}"] = len(set(events[rows]) - {-1})
    return described


def _alarm_params(assessment: Assessment) -> dict[str, object]:
    """Describe the alarm: what a live system needs beside the model's scores."""
    return {
        "alarm_threshold": assessment.threshold,
        "alarm_k": assessment.rule.k,
        "alarm_n": assessment.rule.n,
        "alarm_refractory_min": assessment.rule.refractory_min,
        "calibration": assessment.calibration.method,
    }


def read_alarm(params: Mapping) -> dict[str, object]:
    """Return ``threshold`` and ``rule`` from a run's parameters or a model's metadata."""
    rule = AlarmRule(
        int(params["alarm_k"]), int(params["alarm_n"]), float(params["alarm_refractory_min"])
    )
    return {"threshold": float(params["alarm_threshold"]), "rule": rule}


def _model_params(model: Pipeline | None) -> dict[str, object]:
    """Name every scalar parameter of the pipeline's steps; those left at None say nothing."""
    if model is None:
        return {}
    scalars = (str, int, float, bool, np.number)
    params = {
        name: value
        for name, value in model.get_params().items()
        if "__" in name
        and isinstance(value, scalars)
        and value == value  # NaN: XGBoost's `missing`
    }
    # XGBoost trains on the CPU with only a warning where a CUDA device is asked for and absent.
    if "classify__device" in params:
        config = json.loads(model.named_steps["classify"].get_booster().save_config())
        params["classify__device"] = config["learner"]["generic_param"]["device"]
    return params


def _experiment_id(name: str) -> str:
    """Find or make an experiment, with artifacts beside a SQLite store and not in the cwd."""
    client = MlflowClient()
    folder = _sqlite_folder(mlflow.get_tracking_uri())
    if folder is None:
        return mlflow.set_experiment(name).experiment_id
    with _one_at_a_time():
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return client.create_experiment(name, artifact_location=(folder / "mlartifacts").as_uri())


def _one_at_a_time() -> AbstractContextManager:
    """Keep other processes off a SQLite store meanwhile; a server sees to that by itself."""
    folder = _sqlite_folder(mlflow.get_tracking_uri())
    return nullcontext() if folder is None else FileLock(folder / "mlflow.db.lock")


def _sqlite_folder(uri: str) -> Path | None:
    """Return the folder of a SQLite store's file; None for another kind of store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///")).resolve().parent


def _search(filter_string: str) -> list[Run]:
    """Search the runs of the workbook's experiments, without the client's limit of 1000."""
    experiments = mlflow.search_experiments(filter_string="name LIKE 'HVS_Fire_Prediction_%'")
    if not experiments:
        return []
    return mlflow.search_runs(
        [experiment.experiment_id for experiment in experiments],
        filter_string=filter_string,
        output_format="list",
    )


def _this_process() -> str:
    """Name this process so that a later one with the same number is not taken for it."""
    return f"{platform.node()} {os.getpid()} {psutil.Process().create_time():.0f}"


def _is_dead(process: str) -> bool:
    """Tell whether a process of `_this_process` has ended; of other machines we cannot know."""
    node, pid, created = process.rsplit(" ", 2)
    if node != platform.node():
        return False
    try:
        return f"{psutil.Process(int(pid)).create_time():.0f}" != created
    except psutil.NoSuchProcess:
        return True


def _git_tags() -> dict[str, str]:
    """Name the commit of the code; in a kernel MLflow does not find it by itself."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(project_root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.CalledProcessError):
        return {"git_commit": "none", "git_dirty": "unknown"}
    dirty = str(bool(changes)).lower()
    return {"git_commit": commit, "mlflow.source.git.commit": commit, "git_dirty": dirty}


def _watch(run: NotebookRun | None) -> None:
    """Watch the cells of this kernel for the given run, and for no other."""
    shell = get_ipython()
    if shell is None:
        return
    for callback in list(shell.events.callbacks["post_run_cell"]):
        if isinstance(getattr(callback, "__self__", None), NotebookRun):
            shell.events.unregister("post_run_cell", callback)
    if run is not None:
        shell.events.register("post_run_cell", run._after_cell)


def _metrics(values: Mapping[str, float]) -> list[Metric]:
    """Turn numbers into MLflow's metrics, without those that are not finite."""
    now = int(time.time() * 1000)
    return [Metric(k, float(v), now, 0) for k, v in values.items() if math.isfinite(v)]


def _params(values: Mapping) -> list[Param]:
    return [Param(name, str(value)) for name, value in values.items()]


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, str(value)) for name, value in values.items()]
