"""Telemetry as it comes: changes to a table that must be assessed or refused, never fail.

The table is that of `build_telemetry`, with look-alikes and with events in its first racks. It has
one site, and events without build-up: their labels begin with their Event_ID.
"""

from hvs_lib import columns as col


def without(*names):
    return lambda made: made.drop(columns=list(names))


def with_build_up(made):
    """Each event's id begins 20 rows before its label."""
    codes = made[col.EVENT_ID].astype(object).where(made[col.EVENT_ID].notna())
    early = codes.bfill(limit=20)
    kinds = made[col.EVENT_TYPE].astype(object).bfill(limit=20)
    return made.assign(**{col.EVENT_ID: early, col.EVENT_TYPE: kinds})


def late_ids(made):
    """Each event's id begins 4 rows after its label."""
    known = made[col.EVENT_ID].notna()
    late = known & known.shift(4, fill_value=False)
    ids = [col.EVENT_ID, col.EVENT_TYPE]
    return made.assign(**{name: made[name].astype(object).where(late) for name in ids})


def labels_first(made):
    """Each module has its rows in the reverse order: labels are on its first ones."""
    back = made.iloc[::-1].sort_values(col.KEYS[:3], kind="stable")
    return made[col.KEYS].join(back.drop(columns=col.KEYS).set_axis(made.index))


def racks_with_events(number):
    return lambda made: made[made[col.RACK].isin(sorted(set(made[col.RACK]))[:number])]


ODD = {
    "as it is": lambda made: made,
    "no site": without(col.SITE),
    "no event id": without(col.EVENT_ID),
    "no event type": without(col.EVENT_TYPE),
    "no id, no type": without(col.EVENT_ID, col.EVENT_TYPE),
    "build-up": with_build_up,
    "late ids": late_ids,
    "labels first": labels_first,
    "labels first, no id": lambda made: labels_first(made).drop(columns=col.EVENT_ID),
    "no look-alikes": lambda made: made[~made[col.EVENT_ID].astype("str").str.startswith("L")],
    "one sensor": without(*(name for name in col.SENSORS if name != col.TEMP_MAX)),
    "site of another rate": lambda made: made[
        (made[col.RACK] != "RackA2") | (made.groupby(col.MODULE, observed=True).cumcount() % 2 == 0)
    ],
    "4 racks": racks_with_events(4),
    "3 racks": racks_with_events(3),
    "2 racks": racks_with_events(2),
}
