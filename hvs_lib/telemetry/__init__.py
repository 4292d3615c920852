"""Telemetry files: read, validate and summarise them; simulate the fleet when there is none.

Every function that returns telemetry returns the same table: sorted by site, rack, module and
time, ids as categories, sensors as float32, the label as int8, time in UTC without a zone.
"""
