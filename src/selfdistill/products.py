"""Matrix products that need no gradient, by the quickest way there is."""

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def row_products(rows: Tensor, others: Tensor) -> Tensor:
    """``rows @ others.T`` in the type of both: ``[N, D], [M, D] -> [N, M]``, without gradient."""
    one_dnn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    if rows.device.type == "cpu" and rows.dtype == others.dtype == torch.float32 and one_dnn:
        # Through oneDNN: half the time of the plain product on an AMD EPYC, to float32's rounding; not tried on Intel.
        return F.linear(rows.to_mkldnn(), others).to_dense()
    return rows @ others.T
