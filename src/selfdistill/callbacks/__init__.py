"""Callbacks: what watches a run, what stops it cleanly, what moves the teacher."""

from selfdistill.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from selfdistill.callbacks.collapse_monitor import CollapseError, CollapseMonitor
from selfdistill.callbacks.collapse_signs import Thresholds
from selfdistill.callbacks.collapse_verdict import Alarm
from selfdistill.callbacks.cost import CostMeter
from selfdistill.callbacks.history import History
from selfdistill.callbacks.interrupt import GracefulInterrupt, TrainingInterrupted
from selfdistill.callbacks.median_stop import MedianStop
from selfdistill.callbacks.online_evaluation import OnlineKNN
from selfdistill.callbacks.online_probe import OnlineProbe
from selfdistill.callbacks.progress import EpochLines, ProgressBar
from selfdistill.callbacks.random_state import RandomState
from selfdistill.callbacks.temperatures import TemperatureLog
from selfdistill.teacher import TeacherUpdate

__all__ = [
    "Alarm",
    "BestCheckpoint",
    "CollapseError",
    "CollapseMonitor",
    "CostMeter",
    "EpochLines",
    "GracefulInterrupt",
    "History",
    "LastCheckpoint",
    "MedianStop",
    "OnlineKNN",
    "OnlineProbe",
    "ProgressBar",
    "RandomState",
    "TeacherUpdate",
    "TemperatureLog",
    "Thresholds",
    "TrainingInterrupted",
]
