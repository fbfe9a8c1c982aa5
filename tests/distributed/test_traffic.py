"""What the cost table says that FSDP2 sends, beside what two ranks send in steps of a Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import traffic
from processes import run_ranks


@pytest.mark.slow
def test_ranks_send_what_the_cost_table_says(tmp_path: Path) -> None:
    """With crops of several sizes, several micro-batches, those of ``accumulate=exact``, and what runs again."""
    run_ranks(Path(traffic.__file__), 2, [str(tmp_path), "2", *traffic.CASES])
    for name in traffic.CASES:
        found = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert len(found["measured"]) == 2
        # shards are padded to whole rows
        assert found["measured"] == pytest.approx([found["predicted"]] * 2, rel=2e-3), name
