"""Callbacks: what watches a run, what stops it cleanly, what moves the teacher."""

from selfdistill.callbacks.collapse_monitor import CollapseMonitor
from selfdistill.callbacks.interrupt import GracefulInterrupt, TrainingInterrupted
from selfdistill.callbacks.online_evaluation import OnlineKNN
from selfdistill.callbacks.progress import EpochLines, ProgressBar
from selfdistill.callbacks.random_state import RandomState
from selfdistill.teacher import TeacherUpdate

__all__ = [
    "CollapseMonitor",
    "EpochLines",
    "GracefulInterrupt",
    "OnlineKNN",
    "ProgressBar",
    "RandomState",
    "TeacherUpdate",
    "TrainingInterrupted",
]
