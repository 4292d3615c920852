"""The registered model: whose run it is, its alias and its card."""

import tempfile
from pathlib import Path

from hvs_lib.progress import STEP, log_line
from hvs_lib.project import StoreError
from hvs_lib.tracking.comparison import row_of
from hvs_lib.tracking.store import one_at_a_time, search_runs

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

REGISTERED_MODEL = "hvs-fire-prediction"
CHAMPION = "champion"
MODEL_CARD = "model_card.md"


def incumbent() -> pd.Series | None:
    """Return the run of the registered champion, as a row of `comparable_runs`.

    None where no champion is registered, or its run has been deleted.
    """
    client = MlflowClient()
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        return None
    if CHAMPION not in client.get_registered_model(REGISTERED_MODEL).aliases:
        return None
    run_id = client.get_model_version_by_alias(REGISTERED_MODEL, CHAMPION).run_id
    runs = search_runs(f"attributes.run_id = '{run_id}'")  # none where it is in the trash, or gone
    if not runs:
        log_line(
            f"{STEP}the run of the registered champion, {run_id}, is deleted: it no longer counts"
        )
        return None
    row = pd.Series(row_of(runs[0]))
    return pd.concat([row, pd.Series({"name": f"{row.model_name}, {row.imbalance_technique}"})])


def register_champion(run_id: str) -> str:
    """Register the run's model, unless it is registered, and point the alias at it.

    Returns
    -------
    str, the version of the registered model.
    """
    client = MlflowClient()
    with one_at_a_time():
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
    model_id = _logged_model_id(client, run_id)
    if not client.search_registered_models(f"name = '{REGISTERED_MODEL}'"):
        client.create_registered_model(REGISTERED_MODEL)
    return client.create_model_version(
        REGISTERED_MODEL, source=f"models:/{model_id}", run_id=run_id, model_id=model_id
    )


def _logged_model_id(client: MlflowClient, run_id: str) -> str:
    model_id = client.get_run(run_id).outputs.model_outputs[0].model_id
    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        raise StoreError(
            f"the model of run {run_id} is deleted: delete the run too, so that the next in rank "
            "takes its place, or run its notebook again with --fresh."
        ) from error
    return model_id
