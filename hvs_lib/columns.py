"""The vocabulary of the telemetry table: column names, in the order they are written."""

TIMESTAMP = "Timestamp"
SITE = "Site_ID"
RACK = "Rack_ID"
MODULE = "Module_ID"

TEMP_AVG = "Module_Avg_Surface_Temp_C"
TEMP_MAX = "Module_Max_Surface_Temp_C"
VOLTAGE = "Module_Voltage_V"
CURRENT = "Module_Current_A"
SOC = "Module_SoC_percent"
CO = "Sim_OffGas_CO_ppm_proxy"
H2 = "Sim_OffGas_H2_ppm_proxy"
VOC = "Sim_OffGas_VOC_ppm_proxy"
AMBIENT = "Ambient_Temp_Rack_C"

LABEL = "Hazard_Label"
EVENT_ID = "Event_ID"
EVENT_TYPE = "Event_Type"
PNR = "PNR"  # the point of no return of the row's event

SENSORS = [TEMP_AVG, TEMP_MAX, VOLTAGE, CURRENT, SOC, CO, H2, VOC, AMBIENT]
KEYS = [SITE, RACK, MODULE, TIMESTAMP]
TELEMETRY = [TIMESTAMP, SITE, RACK, MODULE, *SENSORS, LABEL, EVENT_ID, EVENT_TYPE, PNR]

# The label window, unless the telemetry says otherwise: an event is labelled from LABEL_FROM_MIN to
# LABEL_UNTIL_S before its point of no return (PNR), to which lead times count. In simulated
# telemetry the label lasts LABEL_FROM_MIN, so it starts LABEL_UNTIL_S earlier.
LABEL_FROM_MIN = 20.0
LABEL_UNTIL_S = 30.0
