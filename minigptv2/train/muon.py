"""Muon: the momentum of each matrix, made orthogonal, is its update (arXiv 2502.16982).

torch has it too, but computes in bfloat16 whatever the machine: on a CPU that does not multiply it that takes longer
than the rest of a training step together. Here products are computed in what the machine multiplies fastest.
"""

import torch

from minigptv2.train.precision import best_dtype

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of X <- aX + b(XX^T)X + c(XX^T)^2 X
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions; a convolution's [out, in, height, width] counts as the matrix
    [out, in * height * width]. The update has the root mean square of AdamW's, .2, times the group's `scale`, so that
    all take one lr. Processes, whose gradients must be the same, share the work: each makes every so manieth matrix
    orthogonal."""

    def __init__(self, params, lr: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "scale": 1.0})

    @torch.no_grad()
    def step(self) -> None:
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        aims = []
        for p, _ in moved:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            momentum = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
            aims.append(p.grad.lerp(momentum, MOMENTUM).flatten(1))  # Nesterov's
        for (p, group), update in zip(moved, _all_orthogonal(aims)):
            rate = group["lr"] * group["scale"]
            p.mul_(1 - rate * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-rate * 0.2 * max(update.shape) ** 0.5)


def _all_orthogonal(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonal` of each, in every process."""
    shared = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if shared else (0, 1)
    for i, matrix in enumerate(matrices):
        own = i % world == rank
        matrices[i] = orthogonal(matrix, best_dtype(matrix.device)) if own else torch.zeros_like(matrix)
    if world == 1 or not matrices:
        return matrices
    flat = torch.cat([m.flatten() for m in matrices])
    torch.distributed.all_reduce(flat)
    return [part.view_as(m) for m, part in zip(matrices, flat.split([m.numel() for m in matrices]))]


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[M, N] -> [M, N] with the same singular vectors and singular values between about .7 and 1.2."""
    x = matrix.to(dtype)
    x = x.T if x.shape[0] > x.shape[1] else x  # the smaller Gram matrix
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    return x.to(matrix.dtype)
