"""Racks stay whole, every part has an event, and what cannot be split says why."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from hvs_lib import columns as col
from hvs_lib.evaluation.splits import split_by_rack, thin_normal_rows
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes
from hvs_lib.telemetry.files import DataError


def check_partition(split, n_rows: int) -> None:
    """Train and test are all rows; the validation rows are all training rows."""
    assert np.array_equal(np.sort(np.concatenate([split.train, split.test])), np.arange(n_rows))
    valid = np.concatenate([valid for _, valid in split.folds])
    assert np.array_equal(np.sort(valid), split.train)
    for fit_rows, valid_rows in split.folds:
        both = np.concatenate([fit_rows, valid_rows])
        assert np.array_equal(np.sort(both), split.train)
        assert (np.diff(fit_rows) > 0).all() and (np.diff(valid_rows) > 0).all()


@settings(max_examples=30, deadline=None)
@given(
    sites=st.integers(1, 2),
    racks=st.integers(4, 12),
    event_racks=st.sets(st.integers(0, 23), min_size=3),
    test_size=st.floats(0.1, 0.6),
    n_folds=st.integers(2, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_racks_stay_whole(make_telemetry, sites, racks, event_racks, test_size, n_folds, seed):
    event_racks = {rack for rack in event_racks if rack < sites * racks}
    n_test = round(test_size * len(event_racks))
    assume(n_test >= 1 and len(event_racks) - n_test >= n_folds)
    telemetry = make_telemetry(
        sites=sites, racks=racks, rows=4, event_rows=2, event_racks=tuple(event_racks)
    )
    split = split_by_rack(telemetry, test_size=test_size, n_folds=n_folds, seed=seed)
    check_partition(split, len(telemetry))
    codes, events = rack_codes(telemetry), event_codes(telemetry)
    for one, other in [(split.train, split.test), *split.folds]:
        assert not set(codes[one]) & set(codes[other])
        assert (events[one] >= 0).any() and (events[other] >= 0).any()
    assert len(split.folds) == n_folds
    assert len(set(codes[split.test][events[split.test] >= 0])) == n_test


def test_quiet_racks_are_dealt_out_like_those_with_events(make_telemetry):
    telemetry = make_telemetry(racks=20, rows=4, event_rows=2, event_racks=tuple(range(8)))
    table = split_by_rack(telemetry, test_size=0.25, n_folds=3).table()
    assert list(table.index) == ["fold 1", "fold 2", "fold 3", "train", "test"]
    assert list(table.columns) == ["racks", "modules", "rows", "events", "prevalence"]
    assert table.loc["test", ["racks", "modules", "rows", "events"]].to_list() == [5, 10, 40, 2]
    assert table.loc["train", "racks"] == 15 and table.loc["train", "events"] == 6
    assert (table["events"][:3] == 2).all() and (table["racks"][:3] == 5).all()
    assert table.loc["test", "prevalence"] == pytest.approx(2 * 2 / 40)


def test_the_same_rack_name_in_two_sites_is_two_racks(make_telemetry):
    telemetry = make_telemetry(sites=2, racks=4, rows=4, event_rows=2, event_racks=range(8))
    split = split_by_rack(telemetry, test_size=0.25)
    assert split.table().loc["test", "racks"] == 2
    assert split.table().loc["train", "racks"] == 6


def test_seed_decides_and_argument_is_unchanged(make_telemetry):
    telemetry = make_telemetry(racks=12, event_racks=range(8))
    before = telemetry.copy(deep=True)
    first, again, other = (split_by_rack(telemetry, seed=seed) for seed in (1, 1, 2))
    assert_frame_equal(telemetry, before)
    assert np.array_equal(first.test, again.test)
    for one, two in zip(first.folds, again.folds, strict=True):
        assert np.array_equal(one[1], two[1])
    assert not np.array_equal(first.test, other.test)


def test_split_does_not_depend_on_the_global_seed(make_telemetry):
    telemetry = make_telemetry()
    np.random.seed(1)  # noqa: NPY002
    first = split_by_rack(telemetry).test
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(split_by_rack(telemetry).test, first)


def test_all_racks_with_events_and_few_quiet_ones_warn_of_nothing(make_telemetry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for racks in (4, 5, 6):
            split_by_rack(make_telemetry(racks=racks))


def test_unsorted_index_is_no_matter(make_telemetry):
    telemetry = make_telemetry()
    moved = telemetry.set_index(telemetry.index[::-1])
    assert np.array_equal(split_by_rack(moved).test, split_by_rack(telemetry).test)


def test_row_split_deals_out_rows_by_label(make_telemetry):
    telemetry = make_telemetry()
    split = split_by_rack(telemetry, split="row", test_size=0.25)
    check_partition(split, len(telemetry))
    assert split.kind == "row"
    assert len(split.test) == len(telemetry) / 4
    table = split.table()
    assert np.allclose(table["prevalence"], telemetry[col.LABEL].mean())
    assert (table["racks"] == 6).all()  # the leak: every rack is on both sides


def test_row_split_takes_a_single_event(make_telemetry):
    telemetry = make_telemetry(event_racks=(2,))
    assert (split_by_rack(telemetry, split="row").table()["events"] == 1).all()


def test_to_dict_is_json_and_names_the_racks(make_telemetry):
    split = split_by_rack(make_telemetry(sites=2, racks=4, event_racks=range(8)), seed=7)
    told = json.loads(json.dumps(split.to_dict()))
    assert told["kind"] == "rack" and told["seed"] == 7 and told["n_folds"] == 3
    parts = told["parts"]
    train, test = parts["train"]["racks"], parts["test"]["racks"]
    assert sorted(train + test) == [f"Site0{s}/RackA{r}" for s in (1, 2) for r in range(1, 5)]
    valid = [rack for i in (1, 2, 3) for rack in parts[f"fold {i}"]["racks"]]
    assert sorted(valid) == sorted(train)
    assert parts["test"]["rows"] == len(split.test)


def test_split_is_frozen(make_telemetry):
    with pytest.raises(AttributeError):
        split_by_rack(make_telemetry()).kind = "row"


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"test_size": 0}, r"test_size must be between 0 and 1, got 0\."),
        ({"test_size": 1.5}, r"test_size must be between 0 and 1, got 1\.5\."),
        ({"test_size": float("nan")}, "test_size must be between 0 and 1, got nan"),
        ({"n_folds": 1}, "n_folds must be a whole number of at least 2, got 1"),
        ({"n_folds": 2.5}, r"n_folds must be a whole number of at least 2, got 2\.5"),
        ({"split": "module"}, "split must be one of rack, row, got 'module'"),
    ],
)
def test_parameters_out_of_range(make_telemetry, options, found):
    with pytest.raises(ValueError, match=found):
        split_by_rack(make_telemetry(), **options)


def test_a_single_event_is_explained(make_telemetry):
    with pytest.raises(DataError, match=r'got 1 event in 1 rack: .* or use split="row"') as caught:
        split_by_rack(make_telemetry(event_racks=(2,)))
    assert len(caught.value.problems) == 1


def test_many_events_of_one_rack_are_still_one_rack(make_telemetry):
    telemetry = make_telemetry(modules=8, event_racks=(), event_ids=False)
    last = telemetry.groupby(module_codes(telemetry)).cumcount() > 50
    telemetry[col.LABEL] = ((rack_codes(telemetry) == 0) & last).astype(np.int8)
    with pytest.raises(DataError, match="got 8 events in 1 rack:"):
        split_by_rack(telemetry)


def test_too_few_racks_with_events_offer_fewer_folds(make_telemetry):
    telemetry = make_telemetry(event_racks=(0, 1, 2))
    with pytest.raises(DataError, match=r"at least 4 racks .* got 3 events in 3 racks.*n_folds=2"):
        split_by_rack(telemetry, n_folds=3)
    assert len(split_by_rack(telemetry, n_folds=2).folds) == 2


@pytest.mark.parametrize(("test_size", "n_test"), [(0.05, 0), (0.7, 4)])
def test_a_part_without_an_event_is_refused(make_telemetry, test_size, n_test):
    telemetry = make_telemetry(racks=8, event_racks=(0, 1, 2, 3, 4, 5))
    with pytest.raises(DataError, match=f"got {n_test} of 6 such racks.*between 0.167 and 0.5"):
        split_by_rack(telemetry, test_size=test_size)


@pytest.mark.parametrize("split", ["rack", "row"])
def test_no_event_at_all_is_refused(make_telemetry, split):
    with pytest.raises(DataError, match="must hold events, Hazard_Label is 0 in every row"):
        split_by_rack(make_telemetry(event_racks=()), split=split)


@pytest.mark.parametrize("split", ["rack", "row"])
def test_no_label_is_refused(make_telemetry, split):
    with pytest.raises(DataError, match="Hazard_Label must be a column, it is absent"):
        split_by_rack(make_telemetry(label=False), split=split)


def test_row_split_of_too_few_labelled_rows_is_refused(make_telemetry):
    telemetry = make_telemetry(event_racks=(0,), event_rows=3)
    with pytest.raises(DataError, match="rows of both labels in each, got 3 rows with label 1"):
        split_by_rack(telemetry, split="row")


def test_row_split_of_labelled_rows_alone_is_refused(make_telemetry):
    telemetry = make_telemetry().assign(**{col.LABEL: np.int8(1)})
    with pytest.raises(DataError, match="It must hold rows without a hazard"):
        split_by_rack(telemetry, split="row")


# --- thinning ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(stride=st.integers(1, 12), seed=st.integers(0, 1000))
def test_thinning_keeps_labelled_rows_and_every_stride_th_other(make_telemetry, stride, seed):
    telemetry = make_telemetry(racks=5, modules=3)
    rows = np.random.default_rng(seed).permutation(len(telemetry))[:700]
    kept = thin_normal_rows(telemetry, rows, stride)
    label = telemetry[col.LABEL].to_numpy()
    assert set(rows[label[rows] == 1]) <= set(kept)
    place = {row: i for i, row in enumerate(rows)}
    assert (np.diff([place[row] for row in kept]) > 0).all()
    modules = module_codes(telemetry)
    normal = pd.Series(modules[rows[label[rows] == 0]]).value_counts()
    left = pd.Series(modules[kept[label[kept] == 0]]).value_counts()
    share = left.reindex(normal.index, fill_value=0) - normal / stride
    assert (share.abs() < 1).all()


def test_thinning_by_one_keeps_all(make_telemetry):
    telemetry = make_telemetry()
    rows = np.arange(100, 500)
    assert np.array_equal(thin_normal_rows(telemetry, rows, 1), rows)


def test_thinned_modules_start_at_different_rows(make_telemetry):
    telemetry = make_telemetry(event_racks=())
    kept = thin_normal_rows(telemetry, np.arange(len(telemetry)), 6)
    assert telemetry[col.TIMESTAMP].iloc[kept].nunique() == 60
    first = pd.Series(kept).groupby(module_codes(telemetry)[kept]).min() % 60
    assert sorted(first.unique()) == [0, 1, 2, 3, 4, 5]


def test_thinning_refuses_a_stride_below_one(make_telemetry):
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        thin_normal_rows(make_telemetry(), np.arange(5), 0)
