import numpy as np
import pandas as pd

from hvs_lib import columns as col
from hvs_lib.report.tables import (
    HEADLINES,
    alarmed_by_kind,
    at_budgets,
    caught_by_cause,
    results_table,
    weak_causes,
)


def test_results_show_the_interval_where_there_is_one_and_a_dash_where_there_is_nothing():
    table = results_table(
        {"a model": {"cv_pr_auc": 0.5, "cv_pr_auc_low": 0.25, "cv_pr_auc_high": 0.75}}
    )
    assert table.loc["a model", "cv AP"] == "0.50 [0.25, 0.75]"
    assert table.loc["a model", "event recall"] == "–"


def test_results_fit_a_terminal_and_tell_nuisances_from_faults():
    wide = {metric: 88.88 for _, metric, _ in HEADLINES}
    metrics = {"event_recall_5min": 0.25, "nuisance_alarms_per_site_day": 0.125,
               "fault_alarms_per_site_day": 2.5, "lead_time_median_min": 11.04}  # fmt: skip
    table = results_table({"a": wide | metrics})
    assert len(table.columns) == 8
    assert max(map(len, table.columns)) <= len("0.50 [0.25, 0.75]"), "no heading widens the table"
    assert table.iloc[0, -4:].tolist() == ["0.25", "0.12", "2.50", "11.0"]


EVENTS = pd.DataFrame(
    {
        col.EVENT_TYPE: ["short", "short", "heat", None, "short"],
        "caught": [True, False, True, False, False],
    }
)


def test_events_are_counted_by_cause():
    table = caught_by_cause({"all": EVENTS, "first": EVENTS[:1]})
    assert table["all"].to_dict() == {"heat": "1 of 1", "short": "1 of 3", "unknown": "0 of 1"}
    assert table["first"].to_dict() == {"heat": "–", "short": "1 of 1", "unknown": "–"}


def others(alarms):
    causes = [("short", True), ("short", True), ("hot_day", False)]
    return pd.DataFrame(causes, columns=[col.EVENT_TYPE, "is_fault"]).assign(alarms=alarms)


def test_kinds_count_once_however_many_alarms_they_raise():
    table = alarmed_by_kind({"a": others([3, 0, 0]), "b": others([1, 1, 2])[2:]})
    assert table["a"].to_dict() == {
        ("fault", "short"): "1 of 2",
        ("look-alike", "hot_day"): "0 of 1",
    }
    assert table["b"].tolist() == ["–", "1 of 1"]


def test_telemetry_without_names_has_no_kinds():
    assert alarmed_by_kind({"a": others([0, 0, 0])[:0]}).empty


def test_causes_with_less_than_half_of_their_events_caught_are_weak():
    assert weak_causes(EVENTS) == ["short", "unknown"]
    assert weak_causes(EVENTS[:2]) == [], "half is not fewer than half"


def test_a_budget_buys_the_most_events_within_it_at_the_earliest_warning():
    curve = pd.DataFrame(
        {
            "nuisance_alarms_per_site_day": [0.0, 0.0, 0.0, 0.5, 2.0, 20.0],
            "event_recall": [0.0, 0.5, 0.5, 0.9, 0.8, 1.0],
            "event_recall_5min": [0.0, 0.1, 0.3, 0.9, 0.8, 1.0],
            "lead_time_median_min": [np.nan, 3.0, 6.0, 12.0, 15.0, 20.0],
        }
    )
    found = at_budgets(curve, n_events=10)
    assert found["0.1 a day"] == found["0.3 a day"] == "0.50 [0.19, 0.81], 6 min"
    assert found["1 a day"] == found["3 a day"] == "0.90 [0.55, 1.00], 12 min"
    assert at_budgets(curve[:1], n_events=10)["10 a day"] == "0.00 [0.00, 0.31]"
