"""Child runs: logged as one, or kept on disk where the store does not take them."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hvs_lib.progress import STEP, log_file, log_line
from hvs_lib.project import whole_file
from hvs_lib.tracking.contents import MODEL_PACKAGES, to_metrics, to_params
from hvs_lib.tracking.model_files import load_model, types_to_trust
from hvs_lib.tracking.store import EXPERIMENTS, connect, ensure_experiment, store_failures_told

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.models import infer_signature
from sklearn.base import BaseEstimator

UNLOGGED = "unlogged"  # folder of what a store did not take


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


def log_child(experiment_id: str, child: ChildRun) -> str:
    """Log a child run as a whole; return its Run ID."""
    client = MlflowClient()
    if foreign := os.environ.pop("MLFLOW_RUN_ID", ""):  # MLflow would log into that run
        log_line(f"{STEP}MLFLOW_RUN_ID={foreign} is ignored: each notebook has runs of its own")
    with mlflow.start_run(
        experiment_id=experiment_id,
        parent_run_id=child.tags["mlflow.parentRunId"],
        nested=True,
        run_name=child.name,
        tags=child.tags,
    ) as run:
        run_id = run.info.run_id
        client.log_batch(run_id, metrics=to_metrics(child.metrics), params=to_params(child.params))
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
        "pip_requirements": [f"{name}=={version(name)}" for name in MODEL_PACKAGES],
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
    values = {"name": child.name, "tags": child.tags}
    values |= {"metrics": {name: float(value) for name, value in child.metrics.items()}}
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
    ValueError
        Where a file is not what `keep_unlogged` wrote; then nothing is logged.
    """
    connect()
    found = sorted((folder / UNLOGGED).glob("*/run.json"))
    all_values = [_read_kept(kept) for kept in found]  # before one is logged
    for kept, values in zip(found, all_values, strict=True):
        experiment = values.pop("experiment")
        artifacts, model = kept.with_name("artifacts"), None
        if kept.with_name("model").exists():
            loaded, metadata = load_model(kept.with_name("model"))
            example = pd.read_parquet(kept.with_name("example.parquet"))
            model = ModelToLog(loaded, example, metadata)
        child = ChildRun(**values, artifacts=artifacts if artifacts.exists() else None, model=model)
        with store_failures_told():
            run_id = log_child(ensure_experiment(experiment), child)
        shutil.rmtree(kept.parent)
        yield run_id


def _read_kept(kept: Path) -> dict[str, Any]:
    """Read what `keep_unlogged` wrote of a run; links could lead anywhere and are refused."""
    if kept.parent.is_symlink() or any(path.is_symlink() for path in kept.parent.rglob("*")):
        raise ValueError(f"{kept.parent} must hold no link, got one: move the folder away.")
    try:
        if not kept.is_file():
            raise ValueError("no regular file")
        values = json.loads(kept.read_text(encoding="utf-8"))
        kinds = {name: type(value) for name, value in values.items()}
        if kinds != {"name": str, "experiment": str, "tags": dict, "params": dict, "metrics": dict}:
            raise ValueError("other entries than those of a run")
        texts = [*values["tags"].values(), *values["params"].values()]
        numbers = values["metrics"].values()
        if not all(isinstance(v, str) for v in texts) or not all(type(v) is float for v in numbers):
            raise ValueError("a value of another type")
        if values["experiment"] not in EXPERIMENTS.values():
            raise ValueError(f"the experiment {values['experiment']!r}")
        if "mlflow.parentRunId" not in values["tags"]:
            raise ValueError("no parent run")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{kept} must be what the workbook kept of a run, got {error}: move its folder away."
        ) from error
    return values
