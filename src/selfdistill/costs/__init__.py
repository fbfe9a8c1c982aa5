"""What a run costs, before it is made: memory, FLOPs, and what many GPUs say to each other."""

from selfdistill.costs.fleet import Share, Units, ddp, fsdp2, units_of
from selfdistill.costs.step import Part, StepCost, meta_views, step_cost

__all__ = ["Part", "Share", "StepCost", "Units", "ddp", "fsdp2", "meta_views", "step_cost", "units_of"]
