"""Early warning of thermal runaway in high-voltage battery storage: the workbook's library.

Examples in docstrings start from what `conftest.py` makes: the rack of data/sample with the alarms
of the fixed thresholds, and a simulated site with a model that is assessed, logged and registered.
"""

from importlib.metadata import version

__version__ = version("hvs-workbook")
