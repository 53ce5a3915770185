"""Muon: the update of each matrix is its orthogonalised momentum (arXiv 2502.16982).

torch.optim.Muon always computes in bfloat16. On a CPU without bfloat16 arithmetic that takes longer than the rest of a
training step. Here the dtype is the one that the device multiplies fastest.
"""

import torch

from minigptv2.train.precision import best_dtype

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of X <- aX + b(XX^T)X + c(XX^T)^2 X
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions. A convolution [out, in, height, width] is the matrix [out, in * height *
    width].

    Updates are scaled to a root mean square of 0.2, as AdamW's, times the `scale` of the parameter group, so that Muon
    and AdamW use the same lr. With several processes, whose gradients must be equal, rank r orthogonalises every
    world_size-th matrix, and the results are summed over the ranks.
    """

    def __init__(self, params, lr: float, weight_decay: float):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "scale": 1.0})

    @torch.no_grad()
    def step(self) -> None:
        """Update all weights that have a gradient."""
        params = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        updates = []
        for p, _ in params:
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            momentum = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
            updates.append(p.grad.lerp(momentum, MOMENTUM).flatten(1))  # Nesterov momentum
        for (p, group), update in zip(params, _orthogonalize_all(updates)):
            lr = group["lr"] * group["scale"]
            p.mul_(1 - lr * group["weight_decay"])
            p.add_(update.view(p.shape), alpha=-lr * 0.2 * max(update.shape) ** 0.5)


def _orthogonalize_all(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """`orthogonal` of each matrix. The work is divided among the ranks; every rank gets all results."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    for i, matrix in enumerate(matrices):
        mine = i % world == rank
        matrices[i] = orthogonal(matrix, best_dtype(matrix.device)) if mine else torch.zeros_like(matrix)
    if world == 1 or not matrices:
        return matrices
    flat = torch.cat([m.flatten() for m in matrices])
    torch.distributed.all_reduce(flat)
    return [part.view_as(m) for m, part in zip(matrices, flat.split([m.numel() for m in matrices]))]


def orthogonal(matrix: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[M, N] -> [M, N] with the same singular vectors and with singular values of about 0.7 to 1.2.

    Newton-Schulz iteration, computed in `dtype`; the result has the matrix's dtype.
    """
    x = matrix.to(dtype)
    x = x.T if x.shape[0] > x.shape[1] else x  # at most as tall as wide, for the smaller Gram matrix
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.T if matrix.shape[0] > matrix.shape[1] else x
    return x.to(matrix.dtype)
