import pandas as pd
import pytest

from hvs_lib.evaluation.outcomes import OUTCOMES
from hvs_lib.report.card import model_card


@pytest.fixture
def card():
    params = {
        "rows_train": "1000", "hazard_rows_train": "10", "events_train": "4", "rows_test": "500",
        "hazard_rows_test": "5", "events_test": "2", "n_features": "113", "rows_fitted": "300",
        "normal_stride": "18", "missed_event_costs": "0.0",
        "max_nuisance_alarms_per_site_day": "1.0", "modules_per_site": "64.0",
        "alarm_threshold": "0.25", "alarm_k": "5", "alarm_n": "8",
        "alarm_refractory_min": "30.0", "calibration": "platt", "limit_power": "0.0",
        "drop_sensors": "0.0", "build_up": "normal",
    }  # fmt: skip
    tags = {
        "data_sha256": "d" * 64, "imbalance_technique": "none", "git_commit": "c0ffee",
        "git_dirty": "false", "workbook_version": "0.1.0", "split": "rack",
    }  # fmt: skip
    metrics = {"event_recall": 0.5, "event_recall_low": 0.1, "event_recall_high": 0.9}
    metrics |= {"cv_event_recall_5min": 0.4, "event_recall_10min": 0.3}
    metrics |= {"nuisance_alarms_per_site_day": 0.125, "cv_fault_alarms_per_site_day": 2.5}
    by_cause = pd.DataFrame({"test racks": ["0 of 2"]}, index=["<script>|x"])

    def write(missed=("hot_joint",), version="3", stopped_by="", **changed):
        return model_card(
            name="XGBoost", run_id="f" * 32, version=version, reason="it leads.", tags=tags,
            stopped_by=stopped_by,
            params=params | changed, metrics=metrics, by_cause=by_cause, missed=missed,
            sets=pd.DataFrame({"threshold": ["0.125"]}, index=["no gas"]),
        )  # fmt: skip

    return write


def test_the_card_of_a_model_that_is_not_registered_says_why(card):
    text = card(version="", stopped_by="label given away")
    assert "# XGBoost, version none" in text
    assert "no version of it is registered: label given away." in text
    assert "It is the champion" not in text
    assert "It is the champion because it leads." in card()


def test_limits_and_dropped_sensors_are_in_the_card(card):
    text = card(limit_power="3.0", drop_sensors="0.04", build_up="left out")
    assert "dropped from 4% of them" in text
    assert "to the power 3 (" in text
    assert "before its label window, in fitting: left out" in text


@pytest.mark.parametrize(
    "said",
    [
        "# XGBoost, version 3",
        "d" * 64,
        "test racks: 500 rows, 5 of them hazardous, 2 events",
        "commit `c0ffee`",
        "| event recall | – | 0.50 [0.10, 0.90] |",
        "| event recall at least 5 min ahead | 0.40 | – |",
        "| event recall at least 10 min ahead | – | 0.30 |",
        "| nuisance alarms per site-day | – | 0.12 |",
        "| fault alarms per site-day | 2.50 | – |",
        *(f"\n- {outcome}: " for outcome in OUTCOMES),
        "hot_joint: fewer than half of its events are caught",
        "at or above 0.25 in 5 of the last 8 samples",
        "each kind of sensor dropped from 0% of them",
        "|  | threshold |\n| --- | --- |\n| no gas | 0.125 |",
        "to the power 0 (",
        "no other alarm of that module for 30 min",
        "calibration of the scores: platt",
        "at most 1 nuisance alarms per site-day",
        "must never replace one",
        "hvs reproduce " + "f" * 32,
        "models:/hvs-fire-prediction@champion",
    ],
)
def test_the_card_says_what_a_safety_engineer_asks(card, said):
    assert said in card()


def test_braces_of_the_data_are_no_places_to_fill_in(card):
    assert "- {name}: fewer" in card(missed=["{name}"])


def test_what_is_logged_under_a_name_of_the_card_leaves_it_as_it_is(card):
    """Anyone may tag a run in the MLflow UI."""
    assert card(status="mine", uri="mine", goal="mine") == card()


def test_a_card_without_weak_causes_says_so(card):
    assert "no cause in the data has fewer than half" in card(missed=[])


def test_costs_take_the_budgets_place(card):
    text = card(missed_event_costs="20.0")
    assert "a missed event counts as 20 nuisance alarms" in text
    assert "at most" not in text


def test_names_from_the_data_stay_text(card):
    assert "<script>" not in card()
    assert "&lt;script>\\|x" in card()


def test_causes_from_the_data_are_neither_html_nor_links(card):
    text = card(missed=["<img src=x onerror=alert(1)>", "[x](javascript:alert(1))"])
    assert "<img" not in text
    assert "](javascript" not in text
