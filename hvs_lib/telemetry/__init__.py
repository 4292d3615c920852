"""Telemetry files: read, validate and summarise them; simulate the fleet when there is none.

Every function that returns telemetry returns the same table: sorted by site, rack, module and
time, ids as categories, sensors as float32, the label as int8, time in UTC without a zone.
"""

from hvs_lib.telemetry.codes import event_codes, module_codes, rack_codes
from hvs_lib.telemetry.files import DataError, sha256_of_file
from hvs_lib.telemetry.loading import load_telemetry
from hvs_lib.telemetry.quality import describe, sampling_interval_s
from hvs_lib.telemetry.saving import save_telemetry
from hvs_lib.telemetry.simulated import simulated_fleet_path
from hvs_lib.telemetry.streaming import read_racks
from hvs_lib.telemetry.summary import format_summary, summarize

__all__ = [
    "DataError",
    "describe",
    "event_codes",
    "format_summary",
    "load_telemetry",
    "module_codes",
    "rack_codes",
    "read_racks",
    "sampling_interval_s",
    "save_telemetry",
    "sha256_of_file",
    "simulated_fleet_path",
    "summarize",
]
