from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from selfdistill.heads import MLP, DINOHead, MultiHead, Prototypes, SwAVPrototypes


def weight_norm_head(head: DINOHead) -> nn.Module:
    """The same head with torch's weight norm: original0 is the length, original1 the direction."""
    last = weight_norm(nn.Linear(head.last_layer.in_dim, head.out_dim, bias=False), dim=0)
    last.to(head.last_layer.weight)
    with torch.no_grad():
        last.parametrizations.weight.original1.copy_(head.last_layer.weight)
        scale = head.last_layer.scale
        last.parametrizations.weight.original0.copy_(torch.ones(head.out_dim, 1) if scale is None else scale)

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp, self.last = copy.deepcopy(head.mlp), last

        def forward(self, x: Tensor) -> Tensor:
            z = self.mlp(x)
            return self.last(z / z.norm(dim=-1, keepdim=True))

    return Reference()


@pytest.mark.parametrize("trainable_scale", [False, True])
def test_dino_head_equals_torch_weight_norm(trainable_scale: bool) -> None:
    torch.manual_seed(0)
    head = DINOHead(6, hidden_dim=10, bottleneck_dim=5, prototypes=7, trainable_scale=trainable_scale).double()
    if trainable_scale:
        with torch.no_grad():
            head.last_layer.scale.uniform_(0.5, 2)
    reference = weight_norm_head(head)
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    ours, theirs = head(x), reference(x)
    assert ours.shape == (3, 4, 7)
    torch.testing.assert_close(ours, theirs)

    direction = torch.randn_like(ours)
    ours.backward(direction)
    theirs.backward(direction)
    original = reference.last.parametrizations.weight
    torch.testing.assert_close(head.last_layer.weight.grad, original.original1.grad)
    if trainable_scale:
        torch.testing.assert_close(head.last_layer.scale.grad, original.original0.grad)
    for p, q in zip(head.mlp.parameters(), reference.mlp.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_parameters() -> None:
    fixed, learnt = Prototypes(4, 9), Prototypes(4, 9, trainable_scale=True)
    assert {name: tuple(p.shape) for name, p in fixed.named_parameters()} == {"weight": (9, 4)}
    assert {name: tuple(p.shape) for name, p in learnt.named_parameters()} == {"weight": (9, 4), "scale": (9, 1)}
    head = DINOHead(6, hidden_dim=10, bottleneck_dim=4, prototypes=9)
    assert {name for name, _ in head.named_parameters() if name.startswith("last_layer")} == {"last_layer.weight"}
    assert head.in_dim == 6
    assert head.out_dim == 9


def test_logits_are_cosines() -> None:
    torch.manual_seed(0)
    head = Prototypes(4, 9)
    x = 100 * torch.randn(5, 4)
    expected = F.cosine_similarity(x[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head.rows().norm(dim=1), torch.ones(9))
    # The gradient has no part along a row, so a step of plain gradient descent cannot shorten it.
    head(x).square().sum().backward()
    torch.testing.assert_close((head.weight.grad * head.weight).sum(1), torch.zeros(9), atol=1e-5, rtol=0)


def test_start_is_that_of_a_linear_layer() -> None:
    torch.manual_seed(0)
    weight = Prototypes(256, 2000).weight.detach()
    assert weight.abs().max() <= 1 / 16
    assert weight.norm(dim=1).mean().item() == pytest.approx(3**-0.5, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [0.0, 1e-7, 1e-4, 1.0, 1e4])
def test_any_feature_size_in_any_precision(dtype: torch.dtype, size: float) -> None:
    torch.manual_seed(0)
    head = Prototypes(128, 5).to(dtype)
    # At the largest size the length alone is beyond float16.
    x = (size * torch.randn(3, 128)).to(dtype).requires_grad_()
    logits = head(x)
    assert logits.dtype == dtype
    (1e-3 * logits.float().sum()).backward()
    for tensor in (logits, x.grad, head.weight.grad):
        assert tensor.isfinite().all()
    if size >= 1e-4:
        exact = F.normalize(x.detach().double(), dim=-1) @ F.normalize(head.weight.detach().double(), dim=-1).T
        torch.testing.assert_close(logits.double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=0)


def test_autocast() -> None:
    torch.manual_seed(0)
    head = DINOHead(6, hidden_dim=10, bottleneck_dim=4, prototypes=9)
    x = torch.randn(5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(x)
    torch.testing.assert_close(logits.float(), head(x), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "head",
    [
        DINOHead(6, hidden_dim=10, bottleneck_dim=4, prototypes=9, trainable_scale=True),
        SwAVPrototypes(6, 9),
        MultiHead([MLP(6, 10, 4, norm=None), Prototypes(6, 9)]),
    ],
    ids=lambda head: type(head).__name__,
)
def test_copies_pickles_averages_and_compiles(head: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6)

    def outputs(module: nn.Module) -> Tensor:
        y = module(x)
        return torch.cat(y, dim=1) if isinstance(y, list) else y

    before = outputs(head)
    # After a forward with gradients, when non-leaf attributes would refuse to be copied.
    teacher = copy.deepcopy(head)
    assert torch.equal(outputs(teacher), before)
    assert torch.equal(outputs(pickle.loads(pickle.dumps(head))), before)

    student = copy.deepcopy(head)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
        torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.25)
        for p, old, new in zip(teacher.parameters(), head.parameters(), student.parameters(), strict=True):
            torch.testing.assert_close(p, 0.75 * old + 0.25 * new)
    assert not torch.allclose(outputs(teacher), before)

    compiled = torch.compile(head, backend="eager", fullgraph=True)
    assert torch.equal(outputs(compiled), before)


def test_no_tokens() -> None:
    head = DINOHead(6, hidden_dim=10, bottleneck_dim=4, prototypes=9)
    logits = head(torch.zeros(0, 6))
    assert logits.shape == (0, 9)
    logits.sum().backward()
    assert not head.last_layer.weight.grad.any()


def test_swav_commit() -> None:
    torch.manual_seed(0)
    head = SwAVPrototypes(4, 9)
    ones = torch.ones(9)
    torch.testing.assert_close(head.weight.norm(dim=1), ones)
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0)
    x = torch.randn(5, 4)
    head(x).square().sum().backward()
    optimizer.step()
    stepped = head.weight.detach().clone()
    assert not torch.allclose(stepped.norm(dim=1), ones)

    head.observe()
    head.discard()
    assert torch.equal(head.weight, stepped)
    head.commit()
    torch.testing.assert_close(head.weight.detach(), stepped / stepped.norm(dim=1, keepdim=True))
    assert head.weight.requires_grad
    # The parameter is the same object: the optimizer goes on with it.
    assert optimizer.param_groups[0]["params"][0] is head.weight
    torch.testing.assert_close(head(x), F.cosine_similarity(x[:, None], stepped[None], dim=-1))


def test_swav_gradient_is_that_of_a_plain_linear_layer() -> None:
    torch.manual_seed(0)
    head = SwAVPrototypes(4, 9)
    plain = nn.Linear(4, 9, bias=False)
    plain.weight.data.copy_(head.weight.data)
    x = torch.randn(5, 4)
    direction = torch.randn(5, 9)
    head(x).backward(direction)
    plain(F.normalize(x, dim=-1)).backward(direction)
    torch.testing.assert_close(head.weight.grad, plain.weight.grad)


def test_multi_head() -> None:
    torch.manual_seed(0)
    heads = [Prototypes(4, 9), MLP(4, 8, 3)]
    multi = MultiHead(heads).eval()
    x = torch.randn(5, 4)
    outputs = multi(x)
    assert [tuple(y.shape) for y in outputs] == [(5, 9), (5, 3)]
    for head, y in zip(heads, outputs, strict=True):
        assert torch.equal(head(x), y)
    assert len(list(multi.parameters())) == sum(len(list(head.parameters())) for head in heads)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Prototypes(0, 4), "in_dim: got 0"),
        (lambda: SwAVPrototypes(4, 0), "count: got 0"),
        (lambda: DINOHead(4, prototypes=-1), "count: got -1"),
        (lambda: MultiHead([]), "heads: got none"),
    ],
)
def test_bad_arguments(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
