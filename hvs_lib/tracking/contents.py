"""What a run is made of: parameters, versions and artifacts of an assessed model."""

import hashlib
import json
import math
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from hvs_lib import __version__
from hvs_lib import columns as col
from hvs_lib.evaluation.metrics import AlarmRule
from hvs_lib.evaluation.protocol import Assessment, Protocol
from hvs_lib.project import project_root
from hvs_lib.report import plots
from hvs_lib.telemetry.codes import event_codes

import matplotlib.pyplot as plt
import mlflow
import numpy as np
import pandas as pd
import skops.io
from imblearn.pipeline import Pipeline
from mlflow.entities import Metric, Param, RunTag
from sklearn.metrics import classification_report

# What a logged model needs to be loaded elsewhere; inferring it costs seconds for each model.
MODEL_PACKAGES = (
    "mlflow",
    "scikit-learn",
    "imbalanced-learn",
    "xgboost",
    "numpy",
    "pandas",
    "skops",
)
_PACKAGES = (*MODEL_PACKAGES, "scipy", "numba", "pyarrow")
RAW_CV_SCORES = "raw_cv_scores.parquet"  # before calibration, in the order of the training rows
AUDIT = "leakage_audit.csv"


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that the metrics depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def code_version() -> dict[str, str]:
    """Return the tags ``git_commit``, ``git_dirty`` and ``workbook_version`` of this code."""
    git = {name: value for name, value in git_tags().items() if name.startswith("git_")}
    return git | {"workbook_version": __version__}


def git_tags() -> dict[str, str]:
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


def protocol_params(protocol: Protocol) -> dict[str, object]:
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
        "interval_s": protocol.interval_s,
        **goal,
        "rows_fitted": len(protocol.fitting_rows(split.train)),
        "protocol_digest": digest[:16],
    }
    for name, rows in {"train": split.train, "test": split.test}.items():
        described[f"rows_{name}"] = len(rows)
        described[f"hazard_rows_{name}"] = int(y[rows].sum())
        described[f"events_{name}"] = len(set(events[rows]) - {-1})
    return described


def alarm_params(assessment: Assessment) -> dict[str, object]:
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


def model_params(model: Pipeline | None) -> dict[str, object]:
    """Name every scalar parameter of the pipeline's steps; those left at None say nothing."""
    if model is None:
        return {}
    params = chosen_params(model)
    # XGBoost trains on the CPU with only a warning where a CUDA device is asked for and absent.
    if "classify__device" in params:
        config = json.loads(model.named_steps["classify"].get_booster().save_config())
        params["classify__device"] = config["learner"]["generic_param"]["device"]
    return params


def chosen_params(model: Pipeline) -> dict[str, object]:
    """Name the scalar parameters as they were chosen, fitted or not."""
    scalars = (str, int, float, bool, np.number)
    return {
        name: value
        for name, value in model.get_params().items()
        if "__" in name
        and isinstance(value, scalars)
        and value == value  # NaN: XGBoost's `missing`
    }


def write_artifacts(
    folder: Path, assessment: Assessment, protocol: Protocol, *, title: str
) -> None:
    """Write the figures, scores and other files of an assessment into a folder."""
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
        raw = pd.DataFrame({"y_score": assessment.raw_cv_scores})
        raw.to_parquet(folder / RAW_CV_SCORES, index=False)
        skops.io.dump(assessment.model.named_steps["scale"], folder / "scaler.skops")
        _check_rows(assessment, protocol).to_parquet(folder / "check_rows.parquet")


def _check_rows(assessment: Assessment, protocol: Protocol, *, count: int = 200) -> pd.DataFrame:
    """Keep test rows from quiet to hazardous, with their scores, to check a loaded model by."""
    scores = assessment.test_scores["y_score"].to_numpy()
    chosen = np.argsort(scores, kind="stable")[np.linspace(0, len(scores) - 1, count).astype(int)]
    return protocol.X.iloc[protocol.split.test[chosen]].assign(y_score=scores[chosen])


def read_scores(run_id: str, name: str = "test_scores.parquet") -> pd.DataFrame:
    """Read a scores frame, shape (n_samples, ...), that a run has logged."""
    return pd.read_parquet(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name))


def to_metrics(values: Mapping[str, float]) -> list[Metric]:
    """Turn numbers into MLflow's metrics, without those that are not finite."""
    now = int(time.time() * 1000)
    return [Metric(k, float(v), now, 0) for k, v in values.items() if math.isfinite(v)]


def to_params(values: Mapping) -> list[Param]:
    """Turn values into MLflow's parameters."""
    return [Param(name, str(value)) for name, value in values.items()]


def to_tags(values: Mapping[str, str]) -> list[RunTag]:
    """Turn texts into MLflow's tags."""
    return [RunTag(name, str(value)) for name, value in values.items()]
