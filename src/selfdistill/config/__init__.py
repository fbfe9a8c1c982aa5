"""Composing and checking a configuration before anything is made: no torch, no folder, one line an error."""

from selfdistill.config.compose import CONF, Checked, check, hydra_kept, resolved
from selfdistill.config.errors import UserError
from selfdistill.config.ranges import check_values, flatten

__all__ = ["CONF", "Checked", "UserError", "check", "check_values", "flatten", "hydra_kept", "resolved"]
