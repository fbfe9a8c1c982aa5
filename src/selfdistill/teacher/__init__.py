"""The teacher: how it is made (``make_teacher``), how it moves (``ema_update``), and when (``TeacherUpdate``)."""

from selfdistill.teacher.ema import EMA, ema_update, make_teacher
from selfdistill.teacher.policy import TeacherPolicy
from selfdistill.teacher.update import TeacherUpdate

__all__ = ["EMA", "TeacherPolicy", "TeacherUpdate", "ema_update", "make_teacher"]
