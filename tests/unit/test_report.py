import pandas as pd

from hvs_lib import columns as col
from hvs_lib.report.tables import caught_by_cause, results_table, weak_causes


def test_results_show_the_interval_where_there_is_one_and_a_dash_where_there_is_nothing():
    table = results_table({"a model": {"pr_auc": 0.5, "pr_auc_low": 0.25, "pr_auc_high": 0.75}})
    assert table.loc["a model", "AP"] == "0.50 [0.25, 0.75]"
    assert table.loc["a model", "event recall"] == "–"


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


def test_causes_with_less_than_half_of_their_events_caught_are_weak():
    assert weak_causes(EVENTS) == ["short", "unknown"]
    assert weak_causes(EVENTS, least=0.3) == ["unknown"]
