"""Indicators calibrated on uniform noise, and their sum 1C-Sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pu_kd_pipeline.learning.relatedness.indicators import INDICATORS
from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe

N_NOISE_IMAGES = 10_000
DEFAULT_CLIP = 10.0


@dataclass(frozen=True)
class NoiseCalibration:
    """Mean and standard deviation of each indicator over images of uniform noise."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], values: Tensor) -> NoiseCalibration:
        """Return the calibration from what a probe says of noise.

        Args:
            names: of the indicators.
            values: (n, len(names)) finite, n > 0.

        Raises:
            ValueError: values of another shape or that are not finite.
        """
        values = _checked_values(values, names)
        if len(values) == 0:
            raise ValueError(
                "the calibration needs the indicators of at least one noise image, got none"
            )
        means, stds = values.mean(dim=0), values.std(dim=0, correction=0)
        return cls(names, tuple(means.tolist()), tuple(stds.tolist()))

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return {name: {"mean": ..., "std": ...}}, plain floats in the order of the names."""
        rows = zip(self.names, self.means, self.stds, strict=True)
        return {name: {"mean": mean, "std": std} for name, mean, std in rows}

    @classmethod
    def from_dict(cls, content: Mapping[str, Mapping[str, float]]) -> NoiseCalibration:
        """Return the calibration that `to_dict` wrote, whatever order its names have come back in.

        Raises:
            ValueError: a name that is no indicator.
        """
        if unknown := sorted(set(content) - set(INDICATORS)):
            raise ValueError(
                f"the calibration holds {', '.join(unknown)}; the indicators are {', '.join(INDICATORS)}"
            )
        names = tuple(name for name in INDICATORS if name in content)
        return cls(
            names, *(tuple(float(content[name][key]) for name in names) for key in ("mean", "std"))
        )


def uniform_noise(n: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return (n, C, H, W) uint8 images of independent, uniform pixels, on the generator's device."""
    shape = (n, *image_shape)
    return torch.randint(
        256, shape, dtype=torch.uint8, generator=generator, device=generator.device
    )


def calibrate_on_noise(
    probe: RelatednessProbe,
    normalize: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    n_images: int = N_NOISE_IMAGES,
    batch_size: int = 256,
) -> NoiseCalibration:
    """Return the calibration of a probe on uniform noise, which is made batch by batch.

    Args:
        probe: what is calibrated.
        normalize: maps (n, C, H, W) uint8 images on the generator's device to the network's float32 input.
        generator: fixes the noise.
        n_images: how many, at least 1; 10,000 in the paper.
        batch_size: at least 1.

    Raises:
        ValueError: a number below 1, or an indicator that is not finite.
    """
    if n_images < 1 or batch_size < 1:
        raise ValueError(
            f"n_images and batch_size must be at least 1, got {n_images!r} and {batch_size!r}"
        )
    sizes = [min(batch_size, n_images - start) for start in range(0, n_images, batch_size)]
    values = [probe(normalize(uniform_noise(size, probe.image_shape, generator))) for size in sizes]
    return NoiseCalibration.of(probe.names, torch.cat(values))


def one_class_sum(
    values: Tensor, calibration: NoiseCalibration, *, clip: float = DEFAULT_CLIP
) -> Tensor:
    """Return 1C-Sum, the sum of the indicators in standard deviations of noise from its mean, each clipped to +-clip.

    Noise sums to about 0. Relatedness is in the order within a pool, not in the sign: a network may be sure of noise
    and less so of its own images. Where noise has no spread (a saturated dss_ext), an indicator counts 0 at the noise's
    value and, by the limit, +-clip elsewhere: the spread is never less than float32 can resolve at the mean. The
    released code does not clip, which is `clip=math.inf`: one that hardly varies over noise then decides alone.

    Args:
        values: (N, n) finite indicators, columns as in `calibration.names`.
        calibration: of the same probe.
        clip: > 0; what is at the clip is not told apart.

    Returns:
        (N,) float64 on the CPU, in [-n clip, n clip], higher is less related.

    Raises:
        ValueError: values of another shape or that are not finite, or clip is not positive.
    """
    if not clip > 0.0:
        raise ValueError(f"clip must be positive, got {clip!r}")
    values = _checked_values(values, calibration.names)
    means, stds = (
        torch.tensor(part, dtype=torch.float64) for part in (calibration.means, calibration.stds)
    )
    resolution = torch.finfo(torch.float32).eps * means.abs()
    spread = torch.maximum(stds, resolution.clamp(min=torch.finfo(torch.float32).tiny))
    return ((values - means) / spread).clamp(-clip, clip).sum(dim=1)


def _checked_values(values: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return the values as float64 on the CPU."""
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(
            f"values must be (N, {len(names)}), one column for each indicator, got {tuple(values.shape)}"
        )
    values = values.detach().cpu().double()
    is_bad = ~values.isfinite()
    if is_bad.any():
        columns = ", ".join(
            name for name, bad in zip(names, is_bad.any(dim=0).tolist(), strict=True) if bad
        )
        raise ValueError(
            f"{columns} of {int(is_bad.any(dim=1).sum())} of {len(values)} images are not finite: "
            "the network diverged, or these images are corrupt"
        )
    return values
