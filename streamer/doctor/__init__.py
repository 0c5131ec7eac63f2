"""The doctor: tries every connection and privilege, and says what mends each that is missing.

Owns the checks and their words. It changes nothing anywhere: what it says to run, a person runs.
"""

from streamer.doctor.check import Check, Level, Report
from streamer.doctor.examine import examine

__all__ = ["Check", "Level", "Report", "examine"]
