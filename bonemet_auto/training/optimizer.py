"""Muon for the matrices of the network, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bonemet_auto.model.precision import has_bfloat16
from bonemet_auto.plan_schema import TrainingPlan

MUON_RATE = 10.0
"""Muon's learning rate over AdamW's; docs/adr/0009-muon.md."""

LEAST_ROWS = 8
"""Matrices with fewer outputs (logits, deltas) are left to AdamW."""

_LARGE = 96
"""Rows and columns from which on bfloat16 outruns float32 on a CPU."""

_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of a quintic that lifts small singular values fastest; from Jordan et al. 2024."""


@torch.no_grad()
def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix (R, C) with its singular values brought to about one (.7 to 1.2).

    Newton-Schulz iteration: products only, no decomposition. Large matrices in bfloat16, where the
    hardware has it: the iteration is not exact anyway. Source: Jordan et al. 2024, "Muon: an
    optimizer for hidden layers in neural networks".
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrix / matrix.norm().clamp_min(1e-7)
    if min(x.shape) >= _LARGE and has_bfloat16(x.device):
        x = x.bfloat16()
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(steps):
        square = wide @ wide.T
        wide = a * wide + (b * square + c * square @ square) @ wide
    return (wide if x.shape[0] <= x.shape[1] else wide.T).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: every direction of a matrix learns at one speed.

    A convolution counts as the matrix (C_out, C_in x kernel), a transposed one, as torch stores it,
    as (C_in, C_out x kernel). Decay is decoupled, as in AdamW.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__([{"params": list(params)}], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group["lr"], group["weight_decay"])

    def _update(self, weight: Tensor, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        nesterov = torch.lerp(gradient, momentum, _MOMENTUM).flatten(1)
        # A tall matrix of orthonormal columns is larger in effect than it is in norm.
        scale = max(1.0, nesterov.shape[0] / nesterov.shape[1]) ** 0.5
        weight.mul_(1 - rate * decay)
        weight.add_(orthogonalise(nesterov).view(weight.shape), alpha=-rate * scale)


class MuonAdamW:
    """Both optimisers as one.

    Args:
        model: network to train.
        plan: peak learning rate (of AdamW; Muon's is `MUON_RATE` times that) and weight decay.
    """

    def __init__(self, model: nn.Module, plan: TrainingPlan) -> None:
        weights = list(model.parameters())
        matrices = [p for p in weights if is_matrix(p)]
        rest = [p for p in weights if not is_matrix(p)]
        self.muon = Muon(matrices, plan.learning_rate * MUON_RATE, plan.weight_decay)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in rest if p.ndim > 1], "weight_decay": plan.weight_decay},
                {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=plan.learning_rate,
            betas=_BETAS,
            fused=True,
        )

    @property
    def learning_rate(self) -> float:
        """AdamW's, now."""
        rate: float = self.adamw.param_groups[0]["lr"]
        return rate

    def step(self, learning_rate: float) -> None:
        """Update all parameters at a learning rate (AdamW's)."""
        for optimizer, rate in (
            (self.muon, learning_rate * MUON_RATE),
            (self.adamw, learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        self.muon.zero_grad(set_to_none=True)
        self.adamw.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])


def is_matrix(weight: Tensor) -> bool:
    """Whether Muon takes it: mixes channels, and is no small output layer.

    Depthwise kernels (C, 1, ...) mix none; norms, biases and GRN (1-D) are not decayed either.
    """
    return weight.ndim > 1 and weight.shape[0] >= LEAST_ROWS and weight.shape[1] > 1
