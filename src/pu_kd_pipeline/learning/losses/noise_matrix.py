"""The objective `noisy_kd`: distillation beside pseudo-labels whose noise a learned matrix explains (DFND).

Chen et al. 2021 (CVPR, "Learning Student Networks in the Wild") distill with the pool images on which the teacher is
most confident, though many of its labels there are wrong. Where each part is from:

- the paper, of which the abstract was at hand: a matrix learned with the student corrects the noise of the teacher's
  labels;
- the released code (DFND in huawei-noah/Efficient-Computing; DFNDLoss of open-mmlab/mmrazor has the same matrix): the
  student's probabilities at T = 1 times the matrix, scored by the negative log-likelihood of the teacher's argmax, plus
  T^2 KL at T = 4, both with weight 1. The diagonal is held at the teacher's test accuracy (.9523 for CIFAR-10, .7774
  for CIFAR-100); of each row only the distribution of the rest is learned, from the uniform one, by Adam at a constant
  1e-3 without weight decay;
- ours: a diagonal that may be learned too, the weight of the pseudo-labels, `kd_loss` in place of the divergence (the
  gradient is the same), and sums of probabilities taken in logarithms.

A matrix between true and observed labels on top of softmax is older: Sukhbaatar et al. 2015 (arXiv:1406.2080),
Goldberger & Ben-Reuven 2017 (ICLR). Which images are taken, and the training loop, are elsewhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.losses.distillation import kd_loss


class NoiseMatrix(nn.Module):
    """The matrix Q of P(pseudo-label j | class k), learned: Q_kk = d_k, and Q_kj = (1 - d_k) softmax_{j != k}(v_k)_j.

    It starts uniform beside the diagonal. Held, as in the released code, the diagonal says how often the teacher is
    wrong. Learned, it can only say how often the student cannot follow: the teacher's argmax is a function of the
    image, a student that has learned that function needs no noise, and Q tends to the identity.

    Args:
        n_classes: K >= 2.
        initial_diagonal: d, the share of right pseudo-labels, in (1/K, 1): the teacher's accuracy.
        learns_diagonal: whether d_k = sigmoid(a_k) is learned as well, from this value.

    Raises:
        ValueError: n_classes or initial_diagonal is out of range.
    """

    diagonal_logits: Tensor
    _is_diagonal: Tensor

    def __init__(
        self, n_classes: int, initial_diagonal: float, *, learns_diagonal: bool = False
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes!r}")
        if not 1.0 / n_classes < initial_diagonal < 1.0:
            raise ValueError(
                f"initial_diagonal must lie between 1/{n_classes}, where pseudo-labels say nothing, and 1, "
                f"got {initial_diagonal!r}"
            )
        self.off_diagonal_logits = nn.Parameter(torch.zeros(n_classes, n_classes))
        diagonal_logits = torch.full(
            (n_classes,), math.log(initial_diagonal / (1.0 - initial_diagonal))
        )
        if learns_diagonal:
            self.diagonal_logits = nn.Parameter(diagonal_logits)
        else:  # out of reach of any weight decay
            self.register_buffer("diagonal_logits", diagonal_logits)
        self.register_buffer(
            "_is_diagonal", torch.eye(n_classes, dtype=torch.bool), persistent=False
        )

    def forward(self) -> Tensor:
        """Return Q, (K, K) float32, positive, with rows that sum to 1."""
        diagonal = torch.sigmoid(self.diagonal_logits)[:, None]
        others = torch.softmax(
            self.off_diagonal_logits.masked_fill(self._is_diagonal, -math.inf), dim=1
        )
        return torch.where(self._is_diagonal, diagonal, (1.0 - diagonal) * others)


def pseudo_label_loss(
    student_logits: Tensor, teacher_logits: Tensor, noise_matrix: Tensor
) -> Tensor:
    """Return mean_i -log sum_k softmax(z_s,i)_k Q_k,y_i with y_i = argmax z_t,i.

    The identity gives the plain cross-entropy with the teacher's classes. Any other matrix bounds the loss of a label
    that the student does not believe at all, as -log Q_kj. Summing in logarithms keeps loss and gradient finite where
    probabilities underflow, and leaves autocast no product to round.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype; no gradient flows to it.
        noise_matrix: Q, (K, K) float on the same device, row-stochastic (not checked).

    Returns:
        () float32 (float64 for float64 students), non-negative.

    Raises:
        ValueError: the shapes do not fit.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher logits must have one shape, got {tuple(student_logits.shape)} "
            f"and {tuple(teacher_logits.shape)}"
        )
    n_classes = student_logits.shape[1]
    if noise_matrix.shape != (n_classes, n_classes):
        raise ValueError(
            f"noise_matrix must be ({n_classes}, {n_classes}), got {tuple(noise_matrix.shape)}"
        )
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    log_probabilities = torch.log_softmax(student_logits.to(dtype), dim=1)
    matrix = noise_matrix.to(dtype)
    log_matrix = matrix.clamp_min(
        torch.finfo(dtype).tiny
    ).log()  # a zero has a logarithm, and no gradient
    log_columns = log_matrix.index_select(
        1, teacher_logits.argmax(dim=1)
    ).T  # of the observed labels, (N, K)
    return -torch.logsumexp(log_probabilities + log_columns, dim=1).mean()


def noisy_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    noise_matrix: Tensor,
    temperature: float,
    pseudo_label_weight: float,
) -> dict[str, Tensor]:
    """Return `kd_loss` + pseudo_label_weight * `pseudo_label_loss`, and its parts.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype; no gradient flows to it.
        noise_matrix: Q, (K, K), what a `NoiseMatrix` returns; it learns from the second term.
        temperature: T > 0 of the first term; 4 in the released code.
        pseudo_label_weight: >= 0; 1 in the released code.

    Returns:
        "loss", () differentiable, and detached "kd_loss", "pseudo_label_loss" and "diagonal", the mean of Q_kk.

    Raises:
        ValueError: the shapes do not fit, temperature is not positive or pseudo_label_weight is negative.
    """
    if not pseudo_label_weight >= 0.0:
        raise ValueError(f"pseudo_label_weight must be at least 0, got {pseudo_label_weight!r}")
    distilled = kd_loss(student_logits, teacher_logits, temperature)
    labeled = pseudo_label_loss(student_logits, teacher_logits, noise_matrix)
    return {
        "loss": distilled + pseudo_label_weight * labeled,
        "kd_loss": distilled.detach(),
        "pseudo_label_loss": labeled.detach(),
        "diagonal": noise_matrix.detach().diagonal().mean(),
    }
