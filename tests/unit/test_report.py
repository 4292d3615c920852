from hvs_lib.report import results_table


def test_cells_show_the_interval_where_there_is_one():
    found = {"pr_auc": 0.614, "pr_auc_low": 0.5, "pr_auc_high": 0.7, "event_recall": 0.5}
    table = results_table({"a": found})
    assert table.loc["a", "AP"] == "0.61 [0.50, 0.70]"
    assert table.loc["a", "event recall"] == "0.50"
    assert table.loc["a", "median lead [min]"] == "–"
