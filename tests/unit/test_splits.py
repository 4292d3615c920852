"""Sites or racks stay whole, every part has an event, and what cannot be split says why."""

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
from hvs_lib.evaluation.splits import TEST, split_fleet, thin_rows
from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes, site_codes
from hvs_lib.telemetry.files import DataError


def check_partition(split, n_rows: int) -> None:
    """Each row is of one fold or of the test set; train and test are ascending."""
    assert split.fold.shape == (n_rows,)
    assert set(split.fold) == {TEST, *range(split.n_folds)}
    assert np.array_equal(np.sort(np.concatenate([split.train, split.test])), np.arange(n_rows))
    assert (split.fold[split.test] == TEST).all() and (split.fold[split.train] != TEST).all()
    assert (np.diff(split.train) > 0).all() and (np.diff(split.test) > 0).all()


def parts_of(split) -> list[np.ndarray]:
    """Rows of the test set and of each fold."""
    return [np.flatnonzero(split.fold == number) for number in np.unique(split.fold)]


def check_whole(split, codes, events) -> None:
    """No two parts share a site or rack, and each has an event."""
    parts = [set(codes[rows]) for rows in parts_of(split)]
    assert sum(map(len, parts)) == len(set(codes))
    assert all((events[rows] >= 0).any() for rows in parts_of(split))


@pytest.mark.slow
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
    options = {"test_size": test_size, "n_folds": n_folds, "seed": seed}
    split = split_fleet(telemetry, **options)
    check_partition(split, len(telemetry))
    codes, events = rack_codes(telemetry), event_codes(telemetry)
    check_whole(split, codes, events)
    assert (split.kind, split.n_folds) == ("rack", n_folds)
    assert len(set(codes[split.test][events[split.test] >= 0])) == n_test
    assert np.array_equal(split_fleet(telemetry, split="rack", **options).fold, split.fold)


@pytest.mark.parametrize("with_event", [12, 13, 15])
def test_sites_stay_whole_where_a_dozen_have_an_event(make_telemetry, with_event):
    telemetry = make_telemetry(
        sites=16, racks=2, rows=4, event_rows=2, event_racks=range(0, 2 * with_event, 2)
    )
    split = split_fleet(telemetry, test_size=0.25, n_folds=3)
    check_partition(split, len(telemetry))
    check_whole(split, site_codes(telemetry), event_codes(telemetry))
    assert (split.kind, split.n_folds) == ("site", 3)
    assert np.array_equal(split_fleet(telemetry, split="site").fold, split.fold)
    n_test = round(0.25 * with_event) + round(0.25 * (16 - with_event))
    test = split.table().loc["test"]
    assert test[["sites", "racks", "modules", "rows"]].tolist() == [
        n_test, 2 * n_test, 4 * n_test, 16 * n_test,
    ]  # fmt: skip
    assert test["events"] == round(0.25 * with_event)
    assert split_fleet(telemetry, split="rack").kind == "rack"


def test_fewer_sites_with_an_event_are_split_fleet(make_telemetry):
    """Sixteen sites, of which eleven have an event; two events in one site are one site."""
    telemetry = make_telemetry(
        sites=16, racks=2, rows=4, event_rows=2, event_racks=[*range(0, 22, 2), 1, 3]
    )
    split = split_fleet(telemetry)
    assert split.kind == "rack"
    check_whole(split, rack_codes(telemetry), event_codes(telemetry))
    assert split_fleet(telemetry, split="site").kind == "site"


def test_too_few_sites_with_an_event_are_refused(make_telemetry):
    telemetry = make_telemetry(sites=3, racks=4, rows=4, event_rows=2, event_racks=range(12))
    found = (
        "at least 4 sites with an event, got 12 events in 3 sites: .*"
        "bring telemetry of more sites with events, use n_folds=2, or use split="
    )
    with pytest.raises(DataError, match=found):
        split_fleet(telemetry, split="site")
    assert split_fleet(telemetry, split="site", n_folds=2).n_folds == 2
    assert split_fleet(telemetry).kind == "rack"


def test_quiet_racks_are_dealt_out_like_those_with_events(make_telemetry):
    telemetry = make_telemetry(racks=20, rows=4, event_rows=2, event_racks=tuple(range(8)))
    table = split_fleet(telemetry, test_size=0.25, n_folds=3).table()
    assert list(table.index) == ["fold 1", "fold 2", "fold 3", "train", "test"]
    counts = ["sites", "racks", "modules", "rows", "events"]
    assert list(table.columns) == [*counts, "prevalence"]
    assert table.loc["test", counts].to_list() == [1, 5, 10, 40, 2]
    assert table.loc["train", "racks"] == 15 and table.loc["train", "events"] == 6
    assert (table["events"][:3] == 2).all() and (table["racks"][:3] == 5).all()
    assert table.loc["test", "prevalence"] == pytest.approx(2 * 2 / 40)


def test_the_same_rack_name_in_two_sites_is_two_racks(make_telemetry):
    telemetry = make_telemetry(sites=2, racks=4, rows=4, event_rows=2, event_racks=range(8))
    split = split_fleet(telemetry, test_size=0.25)
    assert split.table().loc["test", "racks"] == 2
    assert split.table().loc["train", "racks"] == 6


def test_seed_decides_and_argument_is_unchanged(make_telemetry):
    telemetry = make_telemetry(racks=12, event_racks=range(8))
    before = telemetry.copy(deep=True)
    first, again, other = (split_fleet(telemetry, seed=seed) for seed in (1, 1, 2))
    assert_frame_equal(telemetry, before)
    assert np.array_equal(first.test, again.test)
    assert np.array_equal(first.fold, again.fold)
    assert not np.array_equal(first.test, other.test)


def test_split_does_not_depend_on_the_global_seed(make_telemetry):
    telemetry = make_telemetry()
    np.random.seed(1)  # noqa: NPY002
    first = split_fleet(telemetry).test
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(split_fleet(telemetry).test, first)


def test_all_racks_with_events_and_few_quiet_ones_warn_of_nothing(make_telemetry):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for racks in (4, 5, 6):
            split_fleet(make_telemetry(racks=racks))


def test_unsorted_index_is_no_matter(make_telemetry):
    telemetry = make_telemetry()
    moved = telemetry.set_index(telemetry.index[::-1])
    assert np.array_equal(split_fleet(moved).test, split_fleet(telemetry).test)


def test_row_split_deals_out_rows_by_label(make_telemetry):
    telemetry = make_telemetry()
    split = split_fleet(telemetry, split="row", test_size=0.25)
    check_partition(split, len(telemetry))
    assert split.kind == "row"
    assert len(split.test) == len(telemetry) / 4
    table = split.table()
    assert np.allclose(table["prevalence"], telemetry[col.LABEL].mean())
    assert (table["racks"] == 6).all()  # the leak: every rack is on both sides


def test_row_split_takes_a_single_event(make_telemetry):
    telemetry = make_telemetry(event_racks=(2,))
    assert (split_fleet(telemetry, split="row").table()["events"] == 1).all()


def test_to_dict_is_json_and_names_the_racks(make_telemetry):
    split = split_fleet(make_telemetry(sites=2, racks=4, event_racks=range(8)), seed=7)
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
        split_fleet(make_telemetry()).kind = "row"


# --- refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"test_size": 0}, r"test_size must be between 0 and 1, got 0\."),
        ({"test_size": 1.5}, r"test_size must be between 0 and 1, got 1\.5\."),
        ({"test_size": float("nan")}, "test_size must be between 0 and 1, got nan"),
        ({"n_folds": 1}, "n_folds must be a whole number from 2 to 100, got 1"),
        ({"n_folds": 2.5}, r"n_folds must be a whole number from 2 to 100, got 2\.5"),
        ({"n_folds": 129}, "n_folds must be a whole number from 2 to 100, got 129"),
        ({"split": "module"}, "split must be one of auto, site, rack, row, got 'module'"),
    ],
)
def test_parameters_out_of_range(make_telemetry, options, found):
    with pytest.raises(ValueError, match=found):
        split_fleet(make_telemetry(), **options)


def test_a_single_event_is_explained(make_telemetry):
    with pytest.raises(DataError, match=r'got 1 event in 1 rack: .* or use split="row"') as caught:
        split_fleet(make_telemetry(event_racks=(2,)))
    assert len(caught.value.problems) == 1


def test_many_events_of_one_rack_are_still_one_rack(make_telemetry):
    telemetry = make_telemetry(modules=8, event_racks=(), event_ids=False)
    last = telemetry.groupby(module_codes(telemetry)).cumcount() > 50
    telemetry[col.LABEL] = ((rack_codes(telemetry) == 0) & last).astype(np.int8)
    with pytest.raises(DataError, match="got 8 events in 1 rack:"):
        split_fleet(telemetry)


def test_too_few_racks_with_events_offer_fewer_folds(make_telemetry):
    telemetry = make_telemetry(event_racks=(0, 1, 2))
    with pytest.raises(DataError, match=r"at least 4 racks .* got 3 events in 3 racks.*n_folds=2"):
        split_fleet(telemetry, n_folds=3)
    assert split_fleet(telemetry, n_folds=2).n_folds == 2


@pytest.mark.parametrize(("test_size", "n_test"), [(0.05, 0), (0.7, 4)])
def test_a_part_without_an_event_is_refused(make_telemetry, test_size, n_test):
    telemetry = make_telemetry(racks=8, event_racks=(0, 1, 2, 3, 4, 5))
    with pytest.raises(DataError, match=f"got {n_test} of 6 such racks.*between 0.167 and 0.5"):
        split_fleet(telemetry, test_size=test_size)


@pytest.mark.parametrize("split", ["auto", "site", "rack", "row"])
def test_no_event_at_all_is_refused(make_telemetry, split):
    with pytest.raises(DataError, match="must hold events, but Hazard_Label is 0 in every row"):
        split_fleet(make_telemetry(event_racks=()), split=split)


@pytest.mark.parametrize("split", ["auto", "site", "rack", "row"])
def test_no_label_is_refused(make_telemetry, split):
    with pytest.raises(DataError, match="Hazard_Label must be a column, but is absent"):
        split_fleet(make_telemetry(label=False), split=split)


def test_row_split_of_too_few_labelled_rows_is_refused(make_telemetry):
    telemetry = make_telemetry(event_racks=(0,), event_rows=3)
    with pytest.raises(DataError, match="rows of both labels in each, got 3 rows with label 1"):
        split_fleet(telemetry, split="row")


def test_row_split_of_labelled_rows_alone_is_refused(make_telemetry):
    telemetry = make_telemetry().assign(**{col.LABEL: np.int8(1)})
    with pytest.raises(DataError, match="It must hold normal rows, but Hazard"):
        split_fleet(telemetry, split="row")


# --- thinning ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(strides=st.tuples(st.integers(1, 12), st.integers(1, 5)), seed=st.integers(0, 1000))
def test_thinning_keeps_a_share_of_each_module_and_label(make_telemetry, strides, seed):
    telemetry = make_telemetry(racks=5, modules=3)
    rows = np.sort(np.random.default_rng(seed).permutation(len(telemetry))[:700])
    kept = thin_rows(telemetry, rows, normal_stride=strides[0], hazard_stride=strides[1])
    assert (np.diff(kept) > 0).all() and set(kept) <= set(rows)
    label, modules = telemetry[col.LABEL].to_numpy(), module_codes(telemetry)
    for value, stride in enumerate(strides):
        there = pd.Series(modules[rows[label[rows] == value]]).value_counts()
        left = pd.Series(modules[kept[label[kept] == value]]).value_counts()
        share = left.reindex(there.index, fill_value=0) - there / stride
        assert (share.abs() < 1).all()


def test_thinning_by_one_keeps_all(make_telemetry):
    telemetry = make_telemetry()
    rows = np.arange(100, 500)
    assert np.array_equal(thin_rows(telemetry, rows, normal_stride=1, hazard_stride=1), rows)


def test_thinned_modules_start_at_different_rows(make_telemetry):
    telemetry = make_telemetry(event_racks=())
    kept = thin_rows(telemetry, np.arange(len(telemetry)), normal_stride=6, hazard_stride=3)
    assert telemetry[col.TIMESTAMP].iloc[kept].nunique() == 60
    first = pd.Series(kept).groupby(module_codes(telemetry)[kept]).min() % 60
    assert sorted(first.unique()) == [0, 1, 2, 3, 4, 5]


def test_modules_are_thinned_in_time_whatever_their_interval(make_telemetry):
    often = make_telemetry(racks=2, modules=3, rows=1200, interval_s=1.0, event_racks=(0,))
    usual = make_telemetry(racks=9, modules=3, rows=1200, event_racks=(0,))
    seldom = make_telemetry(racks=2, modules=3, rows=120, interval_s=60.0, event_racks=(0,))
    parts = {"often": often, "seldom": seldom, "usual": usual}
    sites = [part.assign(**{col.SITE: name}) for name, part in parts.items()]
    telemetry = pd.concat(sites, ignore_index=True)
    strides, everything = {"normal_stride": 30, "hazard_stride": 2}, np.arange(len(telemetry))
    kept = thin_rows(telemetry, everything, **strides)
    site, label = telemetry[col.SITE].to_numpy()[kept], telemetry[col.LABEL].to_numpy()[kept]
    assert (label[site == "seldom"] == 1).sum() == seldom[col.LABEL].sum()  # every row, of 60 s
    assert (label[site == "often"] == 1).sum() == pytest.approx(often[col.LABEL].sum() / 20, abs=1)
    counts = pd.Series(site[label == 0]).value_counts()
    assert counts["usual"] / counts["often"] == pytest.approx(9 / 2 * 10, rel=0.1)
    assert counts["usual"] / counts["seldom"] == pytest.approx(9 / 2 * 10 / 6, rel=0.1)


@pytest.mark.parametrize("name", ["normal_stride", "hazard_stride"])
@pytest.mark.parametrize(
    ("stride", "found"), [(0, "must be at least 1, got 0"), (999, "must leave rows .* got 999")]
)
def test_thinning_refuses_a_stride_that_is_none_or_leaves_nothing(
    make_telemetry, name, stride, found
):
    telemetry = make_telemetry(racks=4)
    strides = {"normal_stride": 1, "hazard_stride": 1} | {name: stride}
    chosen = np.arange(60, len(telemetry))  # the first module would keep its first row
    with pytest.raises(ValueError, match=f"{name} {found}"):
        thin_rows(telemetry, chosen, **strides)
