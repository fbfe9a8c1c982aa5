"""The projectors and predictors of all methods, as one class."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

__all__ = ["MLP", "Activation", "Norm"]

Norm = Literal["batch", "batch_affine_free", "layer"]
Activation = Literal["relu", "gelu"]


class MLP(nn.Module):
    """Linear layers with a norm and an activation after each but the last: [..., in_dim] -> [..., out_dim].

    The heads of the papers as their authors' code builds them, with the hidden and output sizes published:

    - BYOL, projector and predictor, 4096 -> 256: `output_bias=False`
    - SimSiam, projector, 2048 -> 2048: `layers=3, bias=False, output_bias=False` and
      `output_norm="batch_affine_free"`
    - SimSiam, predictor, 512 -> 2048: `bias=False`
    - MoCo v2, 2048 -> 128, and ReSSL, 4096 -> 512: `norm=None`
    - MoCo v3, projector, 4096 -> 256: as SimSiam's for a ViT, and with `layers=2` for a ResNet
    - MoCo v3, predictor, 4096 -> 256: the same with `layers=2`; for a ResNet also `output_norm=None`
    - SwAV, 2048 -> 128: the defaults
    - MSN, 2048 -> 256: `layers=3, activation="gelu", init_std=0.02`
    - DINO, iBOT and DINOv2 before the prototypes, 2048 -> 256: MSN's with `norm=None` (see `DINOHead`)
    - data2vec, regressor: `layers=1`

    Batch norm takes its statistics over all leading dimensions together.

    Args:
        in_dim: features of the input.
        hidden_dim: features of the hidden layers; not used if `layers` is 1.
        out_dim: features of the output.
        layers: number of linear layers; 1 is a plain linear layer.
        norm: norm after each hidden linear layer.
        activation: after each hidden norm.
        bias: whether the hidden linear layers have a bias.
        output_bias: whether the last linear layer has one.
        output_norm: norm after the last linear layer. "batch_affine_free" has no learnt scale and shift.
        init_std: standard deviation of truncated normal initial weights, with biases at 0; None is torch's
            initialisation.

    Raises:
        ValueError: a size below 1, an unknown norm or activation, or an input of another width.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        out_dim: int,
        *,
        layers: int = 2,
        norm: Norm | None = "batch",
        activation: Activation = "relu",
        bias: bool = True,
        output_bias: bool = True,
        output_norm: Norm | None = None,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_dim": in_dim, "hidden_dim": hidden_dim, "out_dim": out_dim, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: got {size}, allowed are whole numbers from 1")
        _check_choice("norm", norm, (*get_args(Norm), None))
        _check_choice("activation", activation, get_args(Activation))
        _check_choice("output_norm", output_norm, (*get_args(Norm), None))
        self.in_dim, self.out_dim = in_dim, out_dim

        widths = [in_dim] + [hidden_dim] * (layers - 1)
        stack: list[nn.Module] = []
        for width in widths[:-1]:
            stack.append(nn.Linear(width, hidden_dim, bias=bias))
            if norm is not None:
                stack.append(_make_norm(norm, hidden_dim))
            stack.append(nn.ReLU() if activation == "relu" else nn.GELU())
        stack.append(nn.Linear(widths[-1], out_dim, bias=output_bias))
        if output_norm is not None:
            stack.append(_make_norm(output_norm, out_dim))
        self.layers = nn.Sequential(*stack)

        if init_std is not None:
            for module in self.layers:
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=init_std)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_dim:
            raise ValueError(f"x: got shape {tuple(x.shape)}, allowed is [..., in_dim = {self.in_dim}]")
        leading = x.shape[:-1]
        output: Tensor = self.layers(x.reshape(-1, self.in_dim))
        return output.view(*leading, self.out_dim)


def _make_norm(kind: Norm, features: int) -> nn.Module:
    if kind == "layer":
        return nn.LayerNorm(features)
    return nn.BatchNorm1d(features, affine=kind == "batch")


def _check_choice(name: str, given: str | None, allowed: Sequence[str | None]) -> None:
    if given not in allowed:
        raise ValueError(f"{name}: got {given!r}, allowed are {', '.join(map(str, allowed))}")
