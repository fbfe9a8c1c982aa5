import pytest
import torch
from torch import Tensor

from selfdistill.targets import Center, Queue, StagedState


class Recorder(StagedState):
    """Keeps what reached `_merge`."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[list[float]] = []

    def _stage(self, batch: Tensor) -> Tensor:
        return batch * 2

    def _merge(self, staged: list[Tensor]) -> None:
        self.commits.append([float(part) for part in staged])


def test_commit_applies_once_what_was_observed_in_order():
    state = Recorder()
    for value in (1.0, 2.0):
        state.observe(torch.tensor(value))
    assert state.commits == []
    state.commit()
    state.commit()
    assert state.commits == [[2.0, 4.0]]


def test_discard_drops_only_what_is_pending():
    state = Recorder()
    state.observe(torch.tensor(1.0))
    state.discard()
    state.commit()
    state.observe(torch.tensor(3.0))
    state.commit()
    assert state.commits == [[6.0]]


def test_eval_mode_observes_nothing_and_keeps_what_is_pending():
    state = Recorder()
    state.observe(torch.tensor(1.0))
    state.eval()
    state.observe(torch.tensor(2.0))
    state.train()
    state.commit()
    assert state.commits == [[2.0]]


def test_a_failed_commit_is_not_applied_again():
    class Failing(Recorder):
        def _merge(self, staged: list[Tensor]) -> None:
            super()._merge(staged)
            raise RuntimeError("collective failed")

    state = Failing()
    state.observe(torch.tensor(1.0))
    with pytest.raises(RuntimeError):
        state.commit()
    state.commit()
    assert len(state.commits) == 1


@pytest.mark.parametrize("state", [Center(3), Queue(4, 3)], ids=["center", "queue"])
def test_observing_keeps_no_graph_and_nothing_in_the_checkpoint(state: StagedState):
    before = list(state.state_dict())
    state.observe(torch.ones(2, 3, requires_grad=True) * 2)
    assert not any(part.requires_grad for part in state._staged)
    assert list(state.state_dict()) == before


@pytest.mark.parametrize("state", [Center(3), Queue(4, 3)], ids=["center", "queue"])
def test_observed_memory_may_be_reused_before_the_commit(state: StagedState):
    batch = torch.ones(2, 3)
    state.observe(batch)
    batch.fill_(float("nan"))
    state.commit()
    assert all(buffer.isfinite().all() for buffer in state.buffers())
