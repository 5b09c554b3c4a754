"""Measure this machine, check a GPU's kernels on it, and write the file that `backend="auto"` chooses by."""

from .run import CalibrationReport as CalibrationReport
from .run import calibrate as calibrate
