"""The names that the examples in docstrings start from."""

import re

import pytest

FROM_FLEET = re.compile(r"\b(fleet|protocol|assessment|run_id|runs|champion|prepare)\b")


def examples_of(item):
    """Return the code of a docstring's examples; empty for any other test."""
    test = getattr(item, "dtest", None)
    return "".join(example.source for example in test.examples) if test else ""


def pytest_collection_modifyitems(items):
    for item in items:
        if FROM_FLEET.search(examples_of(item)):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def names(request, tmp_path_factory, doctest_namespace):
    """Give examples their names, and a project of their own."""
    examples = examples_of(request.node)
    # No `monkeypatch`: for every other test it would then be undone last, after its fixtures.
    with pytest.MonkeyPatch.context() as patch:
        if examples:
            patch.setenv("HVS_PROJECT_ROOT", str(tmp_path_factory.getbasetemp() / "examples"))
            for name in ("TRACKING_URI", "REGISTRY_URI", "EXPERIMENT_ID"):  # MLflow sets them, too
                patch.setenv(f"MLFLOW_{name}", "")
                patch.delenv(f"MLFLOW_{name}")
            doctest_namespace.update(request.getfixturevalue("rack"))
        if FROM_FLEET.search(examples):
            import mlflow

            from hvs_lib.tracking import runs

            runs.prepare()  # other tests have other stores
            mlflow.set_experiment("HVS_Fire_Prediction_Baseline")
            doctest_namespace.update(request.getfixturevalue("logged"), runs=runs, mlflow=mlflow)
        yield


@pytest.fixture(scope="session")
def rack(pytestconfig):
    """Load a rack with one event, and score it by the fixed thresholds."""
    import numpy as np

    from hvs_lib.evaluation.alarms import (
        Alarm,
        AlarmRule,
        alarm_curve,
        event_table,
        other_table,
        raise_alarms,
    )
    from hvs_lib.evaluation.scores import scores_frame
    from hvs_lib.features import build_features
    from hvs_lib.models import fixed_threshold_score
    from hvs_lib.telemetry.read import load_telemetry

    telemetry = load_telemetry(pytestconfig.rootpath / "data" / "sample" / "rack_with_event.csv")
    X = build_features(telemetry)
    scores = scores_frame(telemetry, np.arange(len(telemetry)), fixed_threshold_score(X))
    alarm = Alarm(AlarmRule(), threshold=1.0)
    return {
        "telemetry": telemetry,
        "scores": scores,
        "alarm": alarm,
        "alarms": raise_alarms(scores, alarm),
        "events": event_table(scores, alarm),
        "others": other_table(scores, alarm),
        "curve": alarm_curve(scores, alarm.rule),
    }


@pytest.fixture(scope="session")
def logged():
    """Assess a model on a simulated site, log it to the store in use, make it the champion."""
    import mlflow
    from xgboost import XGBClassifier

    from hvs_lib.evaluation.protocol import Protocol
    from hvs_lib.evaluation.splits import split_fleet
    from hvs_lib.models import make_pipeline
    from hvs_lib.score import load_champion
    from hvs_lib.telemetry.fleet import load_fleet
    from hvs_lib.tracking import runs
    from hvs_lib.tracking.champion import promote, register_version

    fleet = load_fleet(sites=1)
    protocol = Protocol(fleet, split_fleet(fleet.rows, n_folds=2))
    small = XGBClassifier(n_estimators=20, max_depth=3, n_jobs=1, random_state=42)
    assessment = protocol.assess(make_pipeline(small))
    tags = runs.tags_of("01_baseline", data_sha256=fleet.sha256)
    with mlflow.start_run(run_name="01_baseline", tags=tags):
        run_id = runs.log_assessment(assessment, protocol, model_name="XGBoost")
    promote(register_version(run_id), {}, "# The card")
    found = {"fleet": fleet, "protocol": protocol, "assessment": assessment, "run_id": run_id}
    return found | {"champion": load_champion()}
