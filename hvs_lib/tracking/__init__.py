"""MLflow: one parent run for a notebook, a child run for each model and each search candidate."""

from hvs_lib.tracking.children import push_unlogged
from hvs_lib.tracking.comparison import comparable_runs, read_audit, verdict
from hvs_lib.tracking.contents import code_version, package_versions, read_alarm, read_scores
from hvs_lib.tracking.executions import (
    close_killed_runs,
    executed_before,
    log_notebook,
    parent_of_execution,
)
from hvs_lib.tracking.notebook_run import NotebookRun, start
from hvs_lib.tracking.registry import (
    CHAMPION,
    REGISTERED_MODEL,
    incumbent,
    log_model_card,
    register_champion,
)
from hvs_lib.tracking.store import (
    EXPERIMENTS,
    check_experiments,
    connect,
    mlflow_command,
    store_failures_told,
)

__all__ = [
    "CHAMPION",
    "EXPERIMENTS",
    "REGISTERED_MODEL",
    "NotebookRun",
    "check_experiments",
    "close_killed_runs",
    "code_version",
    "comparable_runs",
    "connect",
    "executed_before",
    "incumbent",
    "log_model_card",
    "log_notebook",
    "mlflow_command",
    "package_versions",
    "parent_of_execution",
    "push_unlogged",
    "read_alarm",
    "read_audit",
    "read_scores",
    "register_champion",
    "start",
    "store_failures_told",
    "verdict",
]
