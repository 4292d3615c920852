"""What every notebook logs in the same way, besides MLflow's own calls, and how to read it back."""

import atexit
import hashlib
import json
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
from imblearn.pipeline import Pipeline
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.models import infer_signature
from sklearn.base import clone
from sklearn.metrics import classification_report

from hvs_lib import cache
from hvs_lib import columns as col
from hvs_lib.evaluation.alarms import Alarm, AlarmRule
from hvs_lib.evaluation.audit import FEWEST_EVENTS, GIVEAWAY, STOPPING
from hvs_lib.evaluation.calibration import CalibratedClassifier
from hvs_lib.evaluation.metrics import undefined_metrics
from hvs_lib.evaluation.protocol import Assessment, Protocol
from hvs_lib.evaluation.splits import Split
from hvs_lib.progress import STEP, log_line
from hvs_lib.project import EXECUTION, MODEL_PACKAGES, code_version, package_versions
from hvs_lib.report import plots
from hvs_lib.telemetry.fleet import Fleet
from hvs_lib.tracking.model_files import load_model, types_to_trust
from hvs_lib.tracking.store import as_store_errors, connect, make_experiments, search_runs

# ---- the run of a notebook ---------------------------------------------------------------------


def prepare() -> None:
    """Connect to the store, create the experiments, and close runs that were left unfinished.

    These are the runs of dead processes and, if the notebook's first cells are run again, its own
    earlier run.

    Raises
    ------
    StoreError
        If the store does not respond, or an experiment is deleted.

    Examples
    --------
    >>> prepare()
    >>> mlflow.get_experiment_by_name("HVS_Fire_Prediction_Baseline").name
    'HVS_Fire_Prediction_Baseline'
    """
    connect()
    make_experiments()
    with as_store_errors():
        close_killed_runs()
    _close_active()
    atexit.register(_close_active)  # MLflow would mark it FINISHED
    if foreign := os.environ.pop("MLFLOW_RUN_ID", ""):  # MLflow would log into that run
        log_line(f"{STEP}MLFLOW_RUN_ID={foreign} is ignored: each notebook has runs of its own")


def tags_of(notebook: str, *, data_sha256: str = "none", split: str = "") -> dict[str, str]:
    """Return the tags that trace the numbers of a notebook, such as ``01_baseline``.

    Examples
    --------
    >>> tags_of("01_baseline", split="site")["stage"]
    'baseline'
    """
    code = code_version()
    return {
        "role": "parent",
        "stage": notebook.split("_", 1)[1],
        "split": split,
        "data_sha256": data_sha256,
        "packages": json.dumps(package_versions()),
        "process": _name_of(os.getpid()),
        "execution_id": os.environ.get(EXECUTION, "interactive"),
        "mlflow.source.name": f"notebooks/{notebook}.ipynb",
        "mlflow.source.type": "NOTEBOOK",
        **code,
        "mlflow.source.git.commit": code["git_commit"],  # MLflow does not find it in a kernel
    }


def close_killed_runs() -> None:
    """Close as KILLED the runs that dead processes of this machine left RUNNING."""
    for run in search_runs("attributes.status = 'RUNNING'"):
        process = run.data.tags.get("process")
        if process and _is_dead(process):
            MlflowClient().set_terminated(run.info.run_id, "KILLED")


def close_execution(execution_id: str, executed: Path, *, status: str, error: str) -> None:
    """Log an executed notebook, complete or not, to its run; close the run if it failed."""
    connect()
    with as_store_errors():
        client = MlflowClient()
        for run in search_runs(f"tags.execution_id = '{execution_id}' and tags.role = 'parent'"):
            if executed.exists():
                client.log_artifact(run.info.run_id, str(executed))
            if error:
                client.set_tag(run.info.run_id, "error", error[:5000])
                client.set_terminated(run.info.run_id, status)
        close_killed_runs()


def _close_active() -> None:
    """Close as KILLED the runs that this process left active."""
    while mlflow.active_run():
        with suppress(Exception):  # it was deleted meanwhile, or the store is down
            mlflow.end_run("KILLED")


def _name_of(pid: int) -> str:
    """Name a process so that a later one with the same id is not mistaken for it."""
    return f"{platform.node()} {pid} {psutil.Process(pid).create_time():.0f}"


def _is_dead(process: str) -> bool:
    """Return whether a process named by `_name_of` has ended; False for those of other machines."""
    node, pid, _ = process.rsplit(" ", 2)
    try:
        return node == platform.node() and _name_of(int(pid)) != process
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
    """Log one assessed model, or reference, as a child of the active run; return its Run ID.

    All its artifacts are logged too. The tags `model_name` and `imbalance_technique` distinguish
    the runs of a stage; `params` are added to those of the model, the alarm and the protocol.

    Examples
    --------
    >>> with mlflow.start_run(tags=tags_of("01_baseline", data_sha256=fleet.sha256)):
    ...     run_id = log_assessment(assessment, protocol, model_name="XGBoost")
    >>> mlflow.get_run(run_id).data.params["alarm_k"]
    '2'
    """
    model, fits = assessment.model, assessment.fits
    tags = {
        "role": "reference" if model is None else "model",
        "model_name": model_name,
        "imbalance_technique": imbalance_technique,
        "split": protocol.split.kind,
        "leaky": str(protocol.split.kind == "row").lower(),
        **protocol.digests,
    }
    if model is not None:  # of its scores: a hash of the model itself depends on its history
        tags["digest_model"] = joblib.hash(assessment.test_scores["y_score"].to_numpy())
    missing = undefined_metrics(assessment.metrics)
    missing += undefined_metrics(assessment.metrics, prefix="cv_")
    if missing:
        tags["undefined_metrics"] = ",".join(missing)
    title = model_name if model is None else f"{model_name}, {imbalance_technique}"
    words = [f"{name.removeprefix('digest_')} {tags[name]}" for name in tags if "digest_" in name]
    log_line(f"digests of {model_name}, {imbalance_technique}: {', '.join(words)}")
    described = _alarm_params(assessment) | _protocol_params(protocol) | dict(params or {})
    with tempfile.TemporaryDirectory() as folder:
        _write_artifacts(Path(folder), assessment, protocol, title=model_name)
        if model is not None:
            described |= {"build_up": fits.build_up, "rows_fitted": fits.n_rows}
            described |= _model_params(model)
            to_log = _model_to_log(assessment, protocol)
        with _child(title, tags) as run_id:
            mlflow.log_params(described)
            mlflow.log_metrics(assessment.metrics | {"seconds": fits.seconds})
            mlflow.log_artifacts(folder)
            if model is not None:
                mlflow.sklearn.log_model(name="model", **to_log)
    return run_id


def log_candidate(
    name: str, candidate: Pipeline, metrics: Mapping[str, float], *, model_name: str
) -> str:
    """Log an unfitted candidate of a search as a child of the active run; return its Run ID.

    Examples
    --------
    >>> metrics = {"cv_pr_auc": 0.7}
    >>> with mlflow.start_run(tags=tags_of("02_tuning", data_sha256=fleet.sha256)):
    ...     run_id = log_candidate("no. 1", assessment.model, metrics, model_name="XGBoost")
    >>> mlflow.get_run(run_id).data.metrics
    {'cv_pr_auc': 0.7}
    """
    tags = {"role": "candidate", "model_name": model_name, "imbalance_technique": "none"}
    with _child(name, tags) as run_id:
        mlflow.log_params(_model_params(candidate))
        mlflow.log_metrics(metrics)
    return run_id


@contextmanager
def _child(name: str, tags: Mapping[str, str]) -> Iterator[str]:
    """Start a child of the active run, with its parent's tags; yield its Run ID."""
    parent = mlflow.active_run()
    # After the last cell, MLflow starts a run of its own for anything logged.
    if parent is None or parent.data.tags.get("role") != "parent":
        raise RuntimeError("the notebook's run must be active: run the cell with start_run again.")
    shared = {
        name: value
        for name, value in parent.data.tags.items()
        if not name.startswith("mlflow.") or name.startswith("mlflow.source.")
    }
    with (
        as_store_errors(),
        mlflow.start_run(run_name=name, nested=True, tags=shared | tags) as run,
        as_store_errors(),  # acts first: do not wait again for a store that is down
    ):
        yield run.info.run_id


def _model_to_log(assessment: Assessment, protocol: Protocol) -> dict[str, object]:
    """Return what ``mlflow.sklearn.log_model`` needs to write the model without a pickle."""
    model, example = assessment.deployable(), protocol.training.X.head(100)
    budget = {"max_nuisance_alarms_per_site_day": protocol.max_nuisance_alarms_per_site_day}
    return {
        "sk_model": model,
        "signature": infer_signature(example, model.predict_proba(example)),
        "input_example": example.head(3),
        "skops_trusted_types": types_to_trust(model),
        "pyfunc_predict_fn": "predict_proba",
        "pip_requirements": [f"{name}=={version(name)}" for name in MODEL_PACKAGES],
        "metadata": _alarm_params(assessment)
        | {
            "intervals_s": protocol.intervals_s,
            "fault_types": json.dumps(protocol.faults),
            "training_ranges": protocol.ranges,
            "data_sha256": protocol.fleet.sha256,
            **({} if protocol.missed_event_costs else budget),
        },
    }


def _protocol_params(protocol: Protocol) -> dict[str, object]:
    """Describe the rows that a model was fitted and judged on."""
    split, y = protocol.split, protocol.y
    goal = {
        "max_nuisance_alarms_per_site_day": protocol.max_nuisance_alarms_per_site_day,
        "missed_event_costs": protocol.missed_event_costs,
        "fault_types": json.dumps(protocol.faults),
    }
    judged_by = [split.to_dict(), goal, [asdict(rule) for rule in protocol.rules]]
    digest = hashlib.sha256(json.dumps(judged_by, sort_keys=True).encode()).hexdigest()
    names = ("normal_stride", "hazard_stride", "drop_sensors", "max_rows_in_memory")
    names += ("modules_per_site", "interval_s")
    described = goal | {name: getattr(protocol, name) for name in names}
    described |= {"n_features": protocol.training.X.shape[1], "protocol_digest": digest[:16]}
    for name, rows in {"train": split.train, "test": split.test}.items():
        described[f"rows_{name}"] = len(rows)
        described[f"hazard_rows_{name}"] = int(y[rows].sum())
        described[f"events_{name}"] = split.parts[name]["events"]
    return described


def _alarm_params(assessment: Assessment) -> dict[str, object]:
    """Describe the alarm: what a live system needs besides the model's scores."""
    alarm = assessment.alarm
    return {
        "alarm_threshold": alarm.threshold,
        **{f"alarm_{name}": value for name, value in asdict(alarm.rule).items()},
        "calibration": assessment.calibration,
        "limit_power": assessment.fits.limit_power,
    }


def _model_params(model: Pipeline) -> dict[str, object]:
    """Return every scalar parameter of the pipeline's steps, except those left at None."""
    params = {
        name: value
        for name, value in model.get_params().items()
        if "__" in name
        and isinstance(value, (str, int, float, bool, np.number))
        and value == value  # NaN: XGBoost's `missing`
    }
    # XGBoost trains on the CPU, with only a warning, if the requested CUDA device is absent.
    if "classify__device" in params and model[-1].__sklearn_is_fitted__():
        config = json.loads(model[-1].get_booster().save_config())
        params["classify__device"] = config["learner"]["generic_param"]["device"]
    return params


def _write_artifacts(
    folder: Path, assessment: Assessment, protocol: Protocol, *, title: str
) -> None:
    """Write the figures, scores and other files of an assessment into a folder."""
    import skops.io  # takes half a second

    test, threshold = assessment.test_scores, assessment.alarm.threshold
    figures = {
        "confusion_matrix.png": plots.confusion_matrix(test, threshold=threshold, title=title),
        "pr_curve.png": plots.precision_recall({title: test}, title="Test racks"),
    }
    for name, figure in figures.items():
        figure.savefig(folder / name)
        plt.close(figure)
    cells = (test["y_score"] >= threshold).groupby(test[col.LABEL]).value_counts()
    y_true, y_pred = (cells.index.get_level_values(level) for level in (0, 1))
    report = classification_report(
        y_true, y_pred.astype(int), sample_weight=cells.to_numpy(), labels=[0, 1],
        target_names=["normal", "hazard"], digits=4, zero_division=0,
    )  # fmt: skip
    (folder / "classification_report.txt").write_text(report.replace(".0\n", "\n"))  # counts
    (folder / "splits.json").write_text(json.dumps(protocol.split.to_dict(), indent=1))
    test.to_parquet(folder / "test_scores.parquet", index=False)
    assessment.cv_scores.to_parquet(folder / "cv_scores.parquet", index=False)
    if assessment.model is not None:
        skops.io.dump(assessment.model.named_steps["scale"], folder / "scaler.skops")


# ---- read back ---------------------------------------------------------------------------------


def read_alarm(params: Mapping) -> Alarm:
    """Return the alarm from a run's parameters or a model's metadata."""
    k, n, refractory_min = (params[f"alarm_{name}"] for name in ("k", "n", "refractory_min"))
    rule = AlarmRule(int(k), int(n), float(refractory_min))
    return Alarm(rule, float(params["alarm_threshold"]))


def read_scores(run_id: str, name: str = "test_scores.parquet") -> pd.DataFrame:
    """Read a scores frame logged by a run, shape (n_samples, ...).

    Examples
    --------
    >>> "y_score" in read_scores(run_id)
    True
    """
    return pd.read_parquet(_artifact(run_id, name))


def comparable_runs(*, data_sha256: str = "") -> pd.DataFrame:
    """List the finished model and reference runs that were judged alike: same rows, same alarm.

    Of runs with the same name and parameters, only the newest is listed. Leaky runs are listed too,
    although they necessarily have other test rows.

    Parameters
    ----------
    data_sha256 : str
        SHA-256 of the telemetry; empty for that of the newest run.

    Returns
    -------
    DataFrame
        One row per run, with ``name``, ``run_id``, ``stage``, ``model_name``,
        ``imbalance_technique``, ``role``, ``split``, ``leaky``, ``data_sha256``,
        ``protocol_digest``, ``alarm`` and all metrics.

    Raises
    ------
    ValueError
        If there is no such run yet.

    Examples
    --------
    >>> comparable_runs(data_sha256=fleet.sha256)[["name", "role"]]
                name   role
    0  XGBoost, none  model
    """
    wanted = "attributes.status = 'FINISHED' and params.protocol_digest LIKE '_%'"
    wanted += f" and tags.data_sha256 = '{data_sha256}'" if data_sha256 else ""
    runs = pd.DataFrame([row_of(run) for run in search_runs(wanted)])
    if runs.empty:
        raise ValueError("there is no run to compare: run 01_baseline, 02_tuning, 03_smote first.")
    runs = runs.sort_values(["started", "run_id"])
    runs = runs[runs["data_sha256"] == runs["data_sha256"].iloc[-1]]
    leaky, digest = runs["leaky"] == "true", runs["protocol_digest"]
    if leaky.all():
        raise ValueError(
            "the runs on this telemetry are all on a random row split, which leaks, so none can be "
            'chosen: run 01_baseline with split="rack", on telemetry with more events.'
        )
    runs = runs[leaky | (digest == digest[~leaky].iloc[-1])]
    same = ["model_name", "imbalance_technique", "params"]  # one entry, whichever notebook ran it
    runs = runs.drop_duplicates(same, keep="last").drop(columns=["params", "started"])
    return _with_names(runs.reset_index(drop=True))


def row_of(run: Run) -> dict[str, object]:
    """Put a run's identifying values and its metrics into one row."""
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
    """Name each run by its model and treatment; add its stage if that is ambiguous."""
    plain = runs["model_name"].where(
        runs["role"] == "reference", runs["model_name"] + ", " + runs["imbalance_technique"]
    )
    named = plain.where(~plain.duplicated(keep=False), plain + " (" + runs["stage"] + ")")
    again = named.groupby(named).cumcount() + 1
    named = named.where(again == 1, named + " #" + again.astype(str))
    return runs.assign(name=named)


def fit_again(
    run_id: str, fleet: Fleet, *, n_jobs: int = -1
) -> tuple[Protocol, list[CalibratedClassifier]]:
    """Return a logged model's protocol and, for each fold, the calibrated model fitted without it.

    Fits that the logging notebook made on this fleet are taken from the cache.

    Examples
    --------
    >>> same_protocol, without_fold = fit_again(run_id, fleet)
    >>> len(without_fold)
    2
    """
    params, split = mlflow.get_run(run_id).data.params, _artifact(run_id, "splits.json")
    split = Split.from_dict(json.loads(Path(split).read_text()), fleet.rows)
    names = ("max_nuisance_alarms_per_site_day", "missed_event_costs", "drop_sensors")
    options = {name: float(params[name]) for name in names}
    names = ("normal_stride", "hazard_stride", "max_rows_in_memory")
    options |= {name: int(params[name]) for name in names}
    options["fault_types"] = tuple(json.loads(params["fault_types"]))
    protocol = Protocol(
        fleet, split, **options, seed=split.seed, n_jobs=n_jobs, memory=cache.memory()
    )
    model, _ = load_model(f"runs:/{run_id}/model")
    logged = model.estimator.estimator
    fits = protocol.fit(clone(logged.classifier), build_up=params["build_up"])
    calibrated = (logged.calibrator, logged.limit_power)
    return protocol, [CalibratedClassifier(each, *calibrated) for each in fits.models[:-1]]


def read_audit(data_sha256: str) -> pd.DataFrame | None:
    """Read the newest leakage audit logged by 01_baseline for this telemetry, if any.

    Examples
    --------
    >>> read_audit(fleet.sha256) is None
    True
    """
    runs = search_runs(f"tags.data_sha256 = '{data_sha256}' and tags.audited = 'true'")
    return pd.read_csv(_artifact(runs[0].info.run_id, "leakage_audit.csv")) if runs else None


def stops_registration(run_id: str) -> list[str]:
    """Return why a model must not be registered, whatever its rank; empty if it may be.

    The reasons: the audits of its telemetry, in 01_baseline and 00_data, found a leak, or its test
    part holds only one event.

    Examples
    --------
    >>> stops_registration(run_id)
    []
    """
    run = mlflow.get_run(run_id)
    sha256, events = run.data.tags["data_sha256"], int(run.data.params["events_test"])
    audited = read_audit(sha256)
    leaks = [] if audited is None else audited[audited["result"].isin(STOPPING)].itertuples()
    reasons = [f"{leak.result} ({leak.check}: {leak.found:g})" for leak in leaks]
    finished = f"attributes.status = 'FINISHED' and tags.data_sha256 = '{sha256}'"
    looked_at = search_runs(f"{finished} and tags.stage = 'data'")
    found = looked_at[0].data.metrics.get("single_column_pr_auc_max", 0.0) if looked_at else 0.0
    if found > GIVEAWAY:
        reasons.append(f"leak suspected (single column of 00_data: {found:.3f})")
    if events < FEWEST_EVENTS:
        reasons.append(f"the test part holds {events} event: that is too few to judge a model")
    return reasons


def last_trial() -> str:
    """Return the verdict of the last finished 05_field_trial, empty if there is none."""
    with as_store_errors():
        runs = search_runs("attributes.status = 'FINISHED' and tags.stage = 'field_trial'")
        return runs[0].data.tags.get("verdict", "") if runs else ""


def last_comparison() -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the leaderboard and the tags of the last finished 04_comparison."""
    with as_store_errors():
        run = search_runs("attributes.status = 'FINISHED' and tags.stage = 'comparison'")[0]
        return pd.read_csv(_artifact(run.info.run_id, "leaderboard.csv")), run.data.tags


def _artifact(run_id: str, name: str) -> str:
    return mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name)
