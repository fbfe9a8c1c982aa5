import pytest
import torch
from torch import Tensor

import selfdistill.evaluation.moments as moments
from selfdistill.evaluation.geometry import (
    FeatureMoments,
    PrototypeUsage,
    effective_rank,
    feature_std,
    mean_cosine,
    prototype_entropy,
    rankme,
)


def gaussian(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def assert_measures(found: FeatureMoments, x: Tensor) -> None:
    assert found.count == len(x)
    torch.testing.assert_close(found.effective_rank(), effective_rank(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.rankme(), rankme(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.feature_std(), feature_std(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean_cosine(), mean_cosine(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("n", "d"), [(90, 12), (7, 40), (1, 4)])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_batches_give_the_measures_of_all_rows(n: int, d: int, offset: float) -> None:
    x = gaussian(n, d) * torch.linspace(0.1, 2, d) + offset
    stream = FeatureMoments(d)
    for batch in x.split(4):
        stream.update(batch)
    assert_measures(stream, x)


def test_merging_equals_seeing_both() -> None:
    x = gaussian(50, 6)
    assert_measures(FeatureMoments(6).update(x[:13]).merge(FeatureMoments(6).update(x[13:])), x)


def test_all_reduce_sums_ranks_and_leaves_the_own_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(50, 6) + 1
    mine, theirs = FeatureMoments(6).update(x[:20]), FeatureMoments(6).update(x[20:])
    sent: list[Tensor] = []

    def record(tensor: Tensor) -> Tensor:
        sent.append(tensor)
        return tensor

    monkeypatch.setattr(moments, "all_reduce_sum", record)
    theirs.all_reduce()
    monkeypatch.setattr(moments, "all_reduce_sum", lambda tensor: tensor + sent[0])
    assert_measures(mine.all_reduce(), x)
    assert_measures(mine, x[:20])
    assert len(sent) == 1


@pytest.mark.parametrize("x", [torch.zeros(4, 3), torch.full((5, 3), 0.1), torch.full((5, 3), 0.1).bfloat16()])
def test_constant_features_are_collapsed(x: Tensor) -> None:
    stream = FeatureMoments(3).update(x[:2]).update(x[2:])
    assert stream.effective_rank().item() == 1
    assert stream.rankme().item() == pytest.approx(1, abs=1e-5)
    assert stream.feature_std().item() == pytest.approx(0, abs=1e-6)


def test_the_last_bit_of_bfloat16_is_no_variation() -> None:
    x = torch.where(gaussian(40, 8) > 0, 1.0, 1.0078125)
    assert FeatureMoments(8).update(x.bfloat16()).effective_rank().item() == 1
    assert FeatureMoments(8).update(x).effective_rank().item() > 4


def test_nothing_seen_is_finite_and_divergence_is_nan() -> None:
    empty = FeatureMoments(3)
    values = [empty.effective_rank(), empty.rankme(), empty.feature_std(), empty.mean_cosine()]
    assert [v.item() for v in values] == pytest.approx([1, 1, 0, 1], abs=1e-5)
    empty.update(torch.full((2, 3), torch.nan))
    assert empty.effective_rank().isnan()
    assert empty.feature_std().isnan()


def test_moments_keep_no_graph_and_refuse_other_widths() -> None:
    stream = FeatureMoments(3).update(torch.ones(2, 3, requires_grad=True))
    assert not stream.outer.requires_grad
    with pytest.raises(ValueError, match="4 dimensions"):
        stream.update(torch.ones(2, 4))
    with pytest.raises(ValueError, match="other has 4"):
        stream.merge(FeatureMoments(4))


def test_prototype_usage_streams_over_batches_and_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = gaussian(60, 7) * 4
    expected = prototype_entropy(logits, temperature=0.3)
    usage = PrototypeUsage(7)
    for batch in logits.split(11):
        usage.update(batch, temperature=0.3)
    torch.testing.assert_close(usage.entropy(), expected)
    # A second rank that answers with one prototype only.
    other = PrototypeUsage(7).update(1000 * torch.eye(7)[[2] * 60])
    monkeypatch.setattr(moments, "all_reduce_sum", lambda tensor: tensor + other._sums)
    both = usage.all_reduce().entropy()
    p = torch.cat([(logits / 0.3).softmax(1), torch.eye(7)[[2] * 60]])
    torch.testing.assert_close(both, prototype_entropy(p, probabilities=True))
    torch.testing.assert_close(usage.entropy(), expected)


def test_prototype_usage_before_the_first_answer() -> None:
    assert [v.item() for v in PrototypeUsage(5).entropy()] == [0, 0]
