"""A trained backbone for people who have never heard of this package."""

from selfdistill.export.backbone import FORMATS, export_backbone
from selfdistill.export.card import Facts, run_facts, source_name

__all__ = ["FORMATS", "Facts", "export_backbone", "run_facts", "source_name"]
