"""What turns raw teacher outputs into targets, and the state that this takes."""

from selfdistill.targets.center import Center
from selfdistill.targets.layers import average_layers
from selfdistill.targets.queue import Queue
from selfdistill.targets.sinkhorn import sinkhorn
from selfdistill.targets.state import StagedState

__all__ = ["Center", "Queue", "StagedState", "average_layers", "sinkhorn"]
