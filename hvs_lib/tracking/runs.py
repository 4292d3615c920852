"""What every notebook logs in the same way, beside MLflow's own calls, and how to read it back."""

import atexit
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import psutil
import skops.io
from imblearn.pipeline import Pipeline
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from sklearn.metrics import classification_report

from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.calibration import METHODS
from hvs_lib.evaluation.metrics import undefined_metrics
from hvs_lib.evaluation.protocol import Assessment, Protocol
from hvs_lib.evaluation.splits import TEST
from hvs_lib.features import build_features
from hvs_lib.progress import STEP, log_line
from hvs_lib.project import EXECUTION, MODEL_PACKAGES, code_version, package_versions
from hvs_lib.report import plots
from hvs_lib.tracking.model_files import types_to_trust
from hvs_lib.tracking.store import connect, make_experiments, search_runs, store_failures_told

AUDIT = "leakage_audit.csv"

# ---- the run of a notebook ---------------------------------------------------------------------


def prepare() -> None:
    """Connect to the store, make the experiments, and close runs that were left unfinished.

    These are the runs of dead processes, and the one that this notebook has started before where
    its first cells are run again.

    Raises
    ------
    StoreError
        Where the store does not answer, or an experiment is deleted.
    """
    connect()
    make_experiments()
    with store_failures_told():
        close_killed_runs()
    while mlflow.active_run():
        with suppress(MlflowException):  # it was deleted meanwhile
            mlflow.end_run("KILLED")
    atexit.register(_close_unfinished)
    if foreign := os.environ.pop("MLFLOW_RUN_ID", ""):  # MLflow would log into that run
        log_line(f"{STEP}MLFLOW_RUN_ID={foreign} is ignored: each notebook has runs of its own")


def tags_of(
    notebook: str,
    *,
    data_sha256: str = "none",
    split: str = "",
) -> dict[str, str]:
    """Return the tags of a notebook's run, which say where its numbers come from.

    Parameters
    ----------
    notebook : str
        Its name, ``01_baseline``.
    data_sha256 : str
        Of the telemetry.
    split : str
        ``site``, ``rack`` or ``row``, where there is one.
    """
    code = code_version()
    return {
        "role": "parent",
        "stage": notebook.split("_", 1)[1],
        "split": split,
        "data_sha256": data_sha256,
        "packages": json.dumps(package_versions()),
        "process": _this_process(),
        "execution_id": os.environ.get(EXECUTION, "interactive"),
        "mlflow.source.name": f"notebooks/{notebook}.ipynb",
        "mlflow.source.type": "NOTEBOOK",
        **code,
        "mlflow.source.git.commit": code["git_commit"],  # MLflow does not find it in a kernel
    }


def close_killed_runs() -> None:
    """Close, as KILLED, the runs that this machine's dead processes left RUNNING."""
    for run in search_runs("attributes.status = 'RUNNING'"):
        process = run.data.tags.get("process")
        if process and _is_dead(process):
            MlflowClient().set_terminated(run.info.run_id, "KILLED")


def close_execution(execution_id: str, executed: Path, *, status: str, error: str) -> None:
    """Log an executed notebook with its run; say there what went wrong, if anything did.

    Parameters
    ----------
    execution_id : str
        What the runner gave the kernel in its environment.
    executed : Path
        The notebook as far as it came, if it did.
    status, error : str
        ``FINISHED`` and nothing; or ``FAILED`` or ``KILLED`` and the error.

    Raises
    ------
    StoreError
        Where the store does not answer.
    """
    connect()
    with store_failures_told():
        client = MlflowClient()
        for run in search_runs(f"tags.execution_id = '{execution_id}' and tags.role = 'parent'"):
            if executed.exists():
                client.log_artifact(run.info.run_id, str(executed))
            if error:
                client.set_tag(run.info.run_id, "error", error[:5000])
                client.set_terminated(run.info.run_id, status)
        close_killed_runs()


def _close_unfinished() -> None:
    """Close what is active as the process ends; MLflow would call it FINISHED."""
    with suppress(Exception):
        while mlflow.active_run():
            mlflow.end_run("KILLED")


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


# ---- its children ------------------------------------------------------------------------------


def log_assessment(
    assessment: Assessment,
    protocol: Protocol,
    *,
    model_name: str,
    imbalance_technique: str = "none",
    params: Mapping | None = None,
) -> str:
    """Log one assessed model, or reference, as a child of the active run, with all its artifacts.

    Parameters
    ----------
    assessment : Assessment
        From ``protocol.assess`` or ``protocol.assess_all``.
    protocol : Protocol
        It was assessed with.
    model_name, imbalance_technique : str
        Tags that tell the runs of a stage apart.
    params : mapping
        Beyond those of the model and the split.

    Returns
    -------
    str
        The child's Run ID.
    """
    model = assessment.model
    tags = {
        "role": "reference" if model is None else "model",
        "model_name": model_name,
        "imbalance_technique": imbalance_technique,
        "split": protocol.split.kind,
        "leaky": str(protocol.split.kind == "row").lower(),
        **protocol.digests,
    }
    if model is not None:  # what it says about the test racks; its own hash follows its history
        tags["digest_model"] = joblib.hash(assessment.test_scores["y_score"].to_numpy())
    missing = undefined_metrics(assessment.metrics)
    missing += undefined_metrics(assessment.metrics, prefix="cv_")
    if missing:
        tags["undefined_metrics"] = ",".join(missing)
    title = model_name if model is None else f"{model_name}, {imbalance_technique}"
    words = [f"{name.removeprefix('digest_')} {tags[name]}" for name in tags if "digest_" in name]
    log_line(f"digests of {model_name}, {imbalance_technique}: {', '.join(words)}")
    with tempfile.TemporaryDirectory() as folder:
        write_artifacts(Path(folder), assessment, protocol, title=model_name)
        to_log = {} if model is None else _model_to_log(assessment, protocol)
        with _child(title, tags) as run_id:
            described = model_params(model) | alarm_params(assessment) | protocol_params(protocol)
            mlflow.log_params(described | dict(params or {}))
            mlflow.log_metrics(_finite(assessment.metrics | {"seconds": assessment.seconds}))
            mlflow.log_artifacts(folder)
            if model is not None:
                mlflow.sklearn.log_model(name="model", **to_log)
    return run_id


def log_candidate(
    name: str, candidate: Pipeline, metrics: Mapping[str, float], *, model_name: str
) -> str:
    """Log one candidate of a search as a child of the active run.

    Parameters
    ----------
    name : str
        Of the run.
    candidate : Pipeline
        Unfitted, with all its parameters.
    metrics : mapping of str to float
        Its scores.
    model_name : str
        A tag, as for `log_assessment`.

    Returns
    -------
    str
        The child's Run ID.
    """
    tags = {"role": "candidate", "model_name": model_name, "imbalance_technique": "none"}
    with _child(name, tags) as run_id:
        mlflow.log_params(model_params(candidate))
        mlflow.log_metrics(_finite(metrics))
    return run_id


@contextmanager
def _child(name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Start a child of the active run, which has its tags too; yield its Run ID."""
    parent = mlflow.active_run()
    # After the last cell, MLflow starts a run of its own for whatever is logged.
    if parent is None or parent.data.tags.get("role") != "parent":
        raise RuntimeError("the notebook's run must be active: run the cell with start_run again.")
    shared = {
        name: value
        for name, value in parent.data.tags.items()
        if not name.startswith("mlflow.") or name.startswith("mlflow.source.")
    }
    with (
        store_failures_told(),
        mlflow.start_run(run_name=name, nested=True, tags=shared | tags) as run,
        store_failures_told(),  # first, so that a store that is away is not waited for again
    ):
        yield run.info.run_id


def _model_to_log(assessment: Assessment, protocol: Protocol) -> dict[str, object]:
    """Return what ``mlflow.sklearn.log_model`` needs to write the model without a pickle."""
    model = assessment.deployable()
    example = protocol.training.X.head(100)
    return {
        "sk_model": model,
        "signature": infer_signature(example, model.predict_proba(example)),
        "input_example": example.head(3),
        "skops_trusted_types": types_to_trust(model),
        "pyfunc_predict_fn": "predict_proba",
        "pip_requirements": [f"{name}=={version(name)}" for name in MODEL_PACKAGES],
        "metadata": alarm_params(assessment)
        | {"interval_s": protocol.interval_s, "fault_types": json.dumps(protocol.faults)},
    }


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def protocol_params(protocol: Protocol) -> dict[str, object]:
    """Describe the rows that a model was fitted and judged on."""
    split, y = protocol.split, protocol.y
    goal = {
        "max_nuisance_alarms_per_site_day": protocol.max_nuisance_alarms_per_site_day,
        "missed_event_costs": protocol.missed_event_costs,
        "fault_types": json.dumps(protocol.faults),
    }
    judged_by = [split.to_dict(), goal, [asdict(rule) for rule in protocol.rules]]
    digest = hashlib.sha256(json.dumps(judged_by, sort_keys=True).encode()).hexdigest()
    described = {
        "n_features": protocol.training.X.shape[1],
        "normal_stride": protocol.normal_stride,
        "hazard_stride": protocol.hazard_stride,
        "modules_per_site": protocol.modules_per_site,
        "interval_s": protocol.interval_s,
        **goal,
        "rows_fitted": len(protocol.training.y),
        "protocol_digest": digest[:16],
    }
    for name, rows in {"train": split.train, "test": split.test}.items():
        described[f"rows_{name}"] = len(rows)
        described[f"hazard_rows_{name}"] = int(y[rows].sum())
        described[f"events_{name}"] = split.parts[name]["events"]
    return described


def alarm_params(assessment: Assessment) -> dict[str, object]:
    """Describe the alarm: what a live system needs beside the model's scores."""
    alarm = assessment.alarm
    return {
        "alarm_threshold": alarm.threshold,
        "alarm_k": alarm.rule.k,
        "alarm_n": alarm.rule.n,
        "alarm_refractory_min": alarm.rule.refractory_min,
        "calibration": assessment.calibration.method,
    }


def model_params(model: Pipeline | None) -> dict[str, object]:
    """Name every scalar parameter of the pipeline's steps; those left at None say nothing."""
    if model is None:
        return {}
    params = {
        name: value
        for name, value in model.get_params().items()
        if "__" in name
        and isinstance(value, (str, int, float, bool, np.number))
        and value == value  # NaN: XGBoost's `missing`
    }
    # XGBoost trains on the CPU with only a warning where a CUDA device is asked for and absent.
    if "classify__device" in params:
        config = json.loads(model.named_steps["classify"].get_booster().save_config())
        params["classify__device"] = config["learner"]["generic_param"]["device"]
    return params


def write_artifacts(
    folder: Path, assessment: Assessment, protocol: Protocol, *, title: str
) -> None:
    """Write the figures, scores and other files of an assessment into a folder."""
    test, threshold = assessment.test_scores, assessment.alarm.threshold
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
    """Keep test rows of one partition, from quiet to hazardous, to check a loaded model by."""
    first = protocol.split.test[0]
    telemetry = protocol.fleet.telemetry(protocol.fleet.partition_of(first))
    X = build_features(telemetry)
    X = X[protocol.split.fold[X.index] == TEST]
    place = np.searchsorted(protocol.split.test, X.index)
    scores = assessment.test_scores["y_score"].to_numpy()[place]
    chosen = np.argsort(scores, kind="stable")[np.linspace(0, len(scores) - 1, count).astype(int)]
    return X.iloc[chosen].assign(y_score=scores[chosen])


# ---- read back ---------------------------------------------------------------------------------


def read_alarm(params: Mapping) -> Alarm:
    """Return the alarm from a run's parameters or a model's metadata."""
    rule = AlarmRule(
        int(params["alarm_k"]), int(params["alarm_n"]), float(params["alarm_refractory_min"])
    )
    return Alarm(rule, float(params["alarm_threshold"]))


def read_scores(run_id: str, name: str = "test_scores.parquet") -> pd.DataFrame:
    """Read a scores frame, shape (n_samples, ...), that a run has logged."""
    return pd.read_parquet(_artifact(run_id, name))


def comparable_runs(*, data_sha256: str = "") -> pd.DataFrame:
    """List the finished model and reference runs that were judged alike: same rows, same alarm.

    Parameters
    ----------
    data_sha256 : str
        Of the telemetry; empty takes that of the newest run.

    Returns
    -------
    DataFrame
        One row for each run, with ``name``, ``run_id``, ``stage``, ``model_name``,
        ``imbalance_technique``, ``role``, ``split``, ``leaky``, ``data_sha256``,
        ``protocol_digest``, ``alarm`` and all metrics. Of runs with the same name and parameters
        the newest is listed. Leaky runs have other test rows by their nature and are listed beside.

    Raises
    ------
    ValueError
        Where there is none yet.
    """
    found = search_runs("attributes.status = 'FINISHED' and params.protocol_digest LIKE '_%'")
    runs = pd.DataFrame([row_of(run) for run in found if is_current(run)])
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


def is_current(run: Run) -> bool:
    """Tell whether this version can load what an earlier one may have logged."""
    return run.data.params["calibration"] in METHODS


def row_of(run: Run) -> dict[str, object]:
    """Put what tells a run apart, and its metrics, into one row."""
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


def read_audit(data_sha256: str) -> pd.DataFrame | None:
    """Read the newest leakage audit that 01_baseline has logged for this telemetry, if any."""
    runs = search_runs(f"tags.data_sha256 = '{data_sha256}' and tags.audited = 'true'")
    if not runs:
        return None
    return pd.read_csv(_artifact(runs[0].info.run_id, AUDIT))


def last_comparison() -> tuple[pd.DataFrame, dict[str, str]]:
    """Return what the last finished comparison found.

    Returns
    -------
    leaderboard : DataFrame
        As 04_comparison has logged it.
    champion : dict of str to str
        Its ``name``, ``run_id`` and registered ``version``.
    """
    with store_failures_told():
        runs = search_runs("attributes.status = 'FINISHED' and tags.stage = 'comparison'")
        tags = runs[0].data.tags
        path = _artifact(runs[0].info.run_id, "leaderboard.csv")
    champion = {name: tags[f"champion_{name}"] for name in ("name", "run_id", "version")}
    return pd.read_csv(path), champion


def _artifact(run_id: str, name: str) -> str:
    return mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)
