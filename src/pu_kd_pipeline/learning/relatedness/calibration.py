"""Calibration of the indicators on uniform noise, and their sum 1C-Sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pu_kd_pipeline.learning.relatedness.probe import RelatednessProbe

N_NOISE_IMAGES = 10_000
DEFAULT_CLIP = 10.0  # standard deviations of noise


@dataclass(frozen=True)
class NoiseCalibration:
    """Mean and standard deviation of each indicator over images of uniform noise."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    stds: tuple[float, ...]

    @classmethod
    def of(cls, names: tuple[str, ...], values: Tensor) -> NoiseCalibration:
        """Return the calibration from the indicators of noise images.

        Args:
            names: names of the indicators.
            values: (n, len(names)) finite, n > 0.

        Raises:
            ValueError: values have another shape or are not finite.
        """
        values = _checked_values(values, names)
        if len(values) == 0:
            raise ValueError(
                "the calibration needs the indicators of at least one noise image, got none"
            )
        means = values.mean(dim=0)
        # The noise images are the whole reference, and one image is allowed: hence no n - 1.
        stds = values.std(dim=0, correction=0)
        return cls(names, tuple(means.tolist()), tuple(stds.tolist()))

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return {name: {"mean": ..., "std": ...}}, plain floats in the order of the names."""
        content = {}
        rows = zip(self.names, self.means, self.stds, strict=True)
        for name, mean, std in rows:
            content[name] = {"mean": mean, "std": std}
        return content


def uniform_noise(n: int, image_shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Return (n, C, H, W) uint8 images of independent, uniform pixels, on the generator's device.

    Args:
        n: number of images.
        image_shape: (C, H, W).
        generator: source of the pixels.
    """
    return torch.randint(
        256,
        (n, *image_shape),
        dtype=torch.uint8,
        generator=generator,
        device=generator.device,
    )


def calibrate_on_noise(
    probe: RelatednessProbe,
    normalize: Callable[[Tensor], Tensor],
    *,
    generator: torch.Generator,
    n_images: int = N_NOISE_IMAGES,
    batch_size: int = 256,
) -> NoiseCalibration:
    """Return the calibration of a probe on uniform noise, which is generated batch by batch.

    Args:
        probe: the probe to calibrate.
        normalize: maps (n, C, H, W) uint8 images on the generator's device to the network's float32
            input.
        generator: fixes the noise.
        n_images: number of noise images, at least 1; 10,000 in the paper.
        batch_size: at least 1.

    Raises:
        ValueError: a number is below 1, or an indicator is not finite.
    """
    if n_images < 1 or batch_size < 1:
        raise ValueError(
            f"n_images and batch_size must be at least 1, got {n_images!r} and {batch_size!r}"
        )
    # Batch by batch, so that the noise never needs more memory than one batch.
    values = []
    for start in range(0, n_images, batch_size):
        n_in_batch = min(batch_size, n_images - start)
        images = uniform_noise(n_in_batch, probe.image_shape, generator)
        inputs = normalize(images)
        values.append(probe(inputs))
    all_values = torch.cat(values)
    return NoiseCalibration.of(probe.names, all_values)


def one_class_sum(
    values: Tensor, calibration: NoiseCalibration, *, clip: float = DEFAULT_CLIP
) -> Tensor:
    """Return 1C-Sum, the sum of the indicators' z-scores relative to noise, each clipped to +-clip.

    Noise sums to about 0. Only the order within a pool measures relatedness, not the sign: a
    network can be surer of noise than of its own images. The released code does not clip, which is
    `clip=math.inf`: an indicator that hardly varies over noise then decides alone.

    Args:
        values: (N, n) finite indicators, columns as in `calibration.names`.
        calibration: calibration of the same probe.
        clip: > 0; values beyond the clip are not distinguished.

    Returns:
        (N,) float64 on the CPU, in [-n clip, n clip], higher is less related.

    Raises:
        ValueError: values have another shape or are not finite, or clip is not positive.
    """
    if not clip > 0.0:
        raise ValueError(f"clip must be positive, got {clip!r}")
    values = _checked_values(values, calibration.names)
    means = torch.tensor(calibration.means, dtype=torch.float64)
    stds = torch.tensor(calibration.stds, dtype=torch.float64)

    # Where noise has no spread (a saturated dss_ext), an indicator counts 0 at the noise's value
    # and, by the limit, +-clip elsewhere: the spread is at least what float32 resolves at the mean.
    float32 = torch.finfo(torch.float32)
    resolution = float32.eps * means.abs()
    smallest_spread = resolution.clamp(min=float32.tiny)
    spread = torch.maximum(stds, smallest_spread)

    z = (values - means) / spread
    clipped = z.clamp(-clip, clip)
    return clipped.sum(dim=1)


def _checked_values(values: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return the values as float64 on the CPU."""
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(
            f"values must be (N, {len(names)}), one column for each indicator, "
            f"got {tuple(values.shape)}"
        )
    # On the CPU, because not every device has float64.
    values = values.detach().cpu().double()
    is_bad = ~values.isfinite()
    if is_bad.any():
        is_bad_column = is_bad.any(dim=0).tolist()
        n_bad_images = int(is_bad.any(dim=1).sum())
        bad_names = []
        for name, is_bad_name in zip(names, is_bad_column, strict=True):
            if is_bad_name:
                bad_names.append(name)
        raise ValueError(
            f"{', '.join(bad_names)} of {n_bad_images} of {len(values)} images are not finite: "
            "the network diverged, or these images are corrupt"
        )
    return values
