"""The objective `noisy_kd`: distillation plus pseudo-labels whose noise a learned matrix models.

Chen et al. 2021 (CVPR, "Learning Student Networks in the Wild", DFND) distill with the pool images
on which the teacher is most confident, though many of its labels there are wrong. Origin of each
part:

- the paper, of which the abstract was at hand: a matrix learned with the student corrects the noise
  of the teacher's labels;
- the released code (DFND in huawei-noah/Efficient-Computing; DFNDLoss of open-mmlab/mmrazor has the
  same matrix): the student's probabilities at T = 1 times the matrix, scored by the negative
  log-likelihood of the teacher's argmax, plus T^2 KL at T = 4, both with weight 1. The diagonal is
  fixed at the teacher's test accuracy (0.9523 for CIFAR-10, 0.7774 for CIFAR-100); of each row only
  the distribution of the rest is learned, from the uniform one, by Adam at a constant 1e-3 without
  weight decay;
- ours: a diagonal that can be learned too, the weight of the pseudo-labels, `kd_loss` instead of
  the divergence (the gradient is the same), and sums of probabilities taken in logarithms.

A matrix between true and observed labels on top of softmax is older: Sukhbaatar et al. 2015
(arXiv:1406.2080), Goldberger & Ben-Reuven 2017 (ICLR).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pu_kd_pipeline.learning.losses.distillation import kd_loss


class NoiseMatrix(nn.Module):
    """The learned matrix Q of P(pseudo-label j | class k).

    Q_kk = d_k, and Q_kj = (1 - d_k) softmax_{j != k}(v_k)_j, which starts uniform off the diagonal.

    Args:
        n_classes: K >= 2.
        initial_diagonal: d, the share of correct pseudo-labels, in (1/K, 1): the teacher's
            accuracy.
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
                f"initial_diagonal must lie between 1/{n_classes}, where pseudo-labels carry no "
                f"information, and 1, got {initial_diagonal!r}"
            )
        self.off_diagonal_logits = nn.Parameter(torch.zeros(n_classes, n_classes))
        logit = math.log(initial_diagonal / (1.0 - initial_diagonal))
        diagonal_logits = torch.full((n_classes,), logit)
        # Fixed, as in the released code, the diagonal models how often the teacher is wrong.
        # Learned, it can only model how often the student cannot follow: the teacher's argmax is
        # a function of the image, so a student that has learned it drives Q to the identity.
        if learns_diagonal:
            self.diagonal_logits = nn.Parameter(diagonal_logits)
        else:  # a buffer is out of reach of any weight decay
            self.register_buffer("diagonal_logits", diagonal_logits)
        is_diagonal = torch.eye(n_classes, dtype=torch.bool)
        self.register_buffer("_is_diagonal", is_diagonal, persistent=False)

    def forward(self) -> Tensor:
        """Return Q, (K, K) float32, positive, with rows that sum to 1."""
        # (K, 1): the share of a row that stays on the diagonal
        diagonal = torch.sigmoid(self.diagonal_logits)
        diagonal = diagonal[:, None]

        # The softmax of a row leaves out its diagonal, whose share is fixed above.
        masked_logits = self.off_diagonal_logits.masked_fill(self._is_diagonal, -math.inf)
        others = torch.softmax(masked_logits, dim=1)
        off_diagonal = (1.0 - diagonal) * others
        return torch.where(self._is_diagonal, diagonal, off_diagonal)


def pseudo_label_loss(
    student_logits: Tensor, teacher_logits: Tensor, noise_matrix: Tensor
) -> Tensor:
    """Return mean_i -log sum_k softmax(z_s,i)_k Q_k,y_i with y_i = argmax z_t,i.

    The identity gives the plain cross-entropy with the teacher's classes. Any other matrix bounds
    the loss of a label to which the student gives no probability at all, by -log Q_kj.

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
    # Clamped, so that a zero of Q has a logarithm; it gets no gradient.
    tiny = torch.finfo(dtype).tiny
    positive_matrix = noise_matrix.to(dtype).clamp_min(tiny)
    log_matrix = positive_matrix.log()
    pseudo_labels = teacher_logits.argmax(dim=1)
    log_columns = log_matrix.index_select(1, pseudo_labels).T  # (N, K)

    # Summing in logarithms keeps loss and gradient finite where probabilities underflow, and
    # leaves autocast no matrix product to round.
    log_products = log_probabilities + log_columns
    log_likelihoods = torch.logsumexp(log_products, dim=1)
    return -log_likelihoods.mean()


def noisy_kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    noise_matrix: Tensor,
    temperature: float,
    pseudo_label_weight: float,
) -> dict[str, Tensor]:
    """Return `kd_loss` + pseudo_label_weight * `pseudo_label_loss`, and its terms.

    Args:
        student_logits: (N, K) any float dtype; N > 0.
        teacher_logits: (N, K) any float dtype; no gradient flows to it.
        noise_matrix: Q, (K, K), from a `NoiseMatrix`; only the second term trains it.
        temperature: T > 0 of the first term; 4 in the released code.
        pseudo_label_weight: >= 0; 1 in the released code.

    Returns:
        "loss", () differentiable, and detached "kd_loss", "pseudo_label_loss" and "diagonal", the
        mean of Q_kk.

    Raises:
        ValueError: the shapes do not fit, temperature is not positive or pseudo_label_weight is
            negative.
    """
    if not pseudo_label_weight >= 0.0:
        raise ValueError(f"pseudo_label_weight must be at least 0, got {pseudo_label_weight!r}")
    distillation_term = kd_loss(student_logits, teacher_logits, temperature)
    pseudo_label_term = pseudo_label_loss(student_logits, teacher_logits, noise_matrix)
    return {
        "loss": distillation_term + pseudo_label_weight * pseudo_label_term,
        "kd_loss": distillation_term.detach(),
        "pseudo_label_loss": pseudo_label_term.detach(),
        "diagonal": noise_matrix.detach().diagonal().mean(),
    }
