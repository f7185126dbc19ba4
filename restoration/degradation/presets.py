"""Recipes of low-quality copies: what is drawn, how often and from which range; `pipeline.py` does it.

The options of `realesrgan` are those of Wang et al. 2021 (Real-ESRGAN, arXiv 2107.10833, section 4.1 and the released
`options/train_realesrgan_x4plus.yml`).
"""

from dataclasses import dataclass

Range = tuple[float, float]

KERNELS = ("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso")
KERNEL_PROBS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@dataclass(frozen=True, kw_only=True)
class DegradationStage:
    """One round of blur, resize, noise and JPEG; each number is drawn anew for each image, uniformly from its range."""

    blur_prob: float = 1.0
    sinc_prob: float = 0.1
    """Share of sinc kernels (ringing) among the blurs; the others are drawn by `KERNEL_PROBS`."""
    kernel_probs: tuple[float, ...] = KERNEL_PROBS
    """In the order of `KERNELS`."""
    sigma_px: Range
    """Of the kernels, in pixels at that stage."""
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    resize_probs: tuple[float, float, float]
    """Up, down, keep."""
    resize_range: Range
    """Smallest and largest factor; in the last stage it multiplies the side of the final image."""
    gaussian_prob: float = 0.5
    """Else Poisson noise."""
    noise_range: Range
    """Standard deviation of Gaussian noise, of 255."""
    poisson_range: Range
    gray_noise_prob: float = 0.4
    jpeg_range: Range
    """Quality, 1 to 100."""

    def __post_init__(self) -> None:
        for name in ("blur_prob", "sinc_prob", "gaussian_prob", "gray_noise_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be a probability, 0 to 1")
        for name in ("sigma_px", "generalized_beta", "plateau_beta", "resize_range", "noise_range", "poisson_range",
                     "jpeg_range"):  # fmt: skip
            low, high = getattr(self, name)
            if not 0 < low < high:
                raise ValueError(f"{name}={(low, high)}: must be two numbers above 0, the lower first")
        low, high = self.resize_range
        if not 0.15 <= low < 1 <= high <= 2:
            raise ValueError(
                f"resize_range={self.resize_range}: the first must be 0.15 or more and below 1, the second 1 to 2"
            )
        if self.jpeg_range[1] > 100:
            raise ValueError(f"jpeg_range={self.jpeg_range}: JPEG's quality is at most 100")
        if len(self.kernel_probs) != len(KERNELS):
            raise ValueError(f"kernel_probs: {len(self.kernel_probs)} numbers for {len(KERNELS)} kernels")


@dataclass(frozen=True, kw_only=True)
class Degradation:
    """A low-quality copy's recipe: stages in order; none of them means antialiased bicubic and nothing else."""

    stages: tuple[DegradationStage, ...] = ()
    final_sinc_prob: float = 0.0
    """Share of copies that end with a sinc filter, before or after the last JPEG (evenly)."""

    def __post_init__(self) -> None:
        if len(self.stages) > 2:
            raise ValueError(f"{len(self.stages)} stages: at most 2, or nothing is left of the image")
        if not 0 <= self.final_sinc_prob <= 1:
            raise ValueError(f"final_sinc_prob={self.final_sinc_prob}: must be a probability, 0 to 1")

    @property
    def is_clean(self) -> bool:
        """Whether the copy has neither noise nor compression, so that LR-consistency needs no blur."""
        return not self.stages


PRESETS: dict[str, Degradation] = {
    "bicubic": Degradation(),
    "realesrgan": Degradation(
        stages=(
            DegradationStage(
                sigma_px=(0.2, 3.0),
                resize_probs=(0.2, 0.7, 0.1),
                resize_range=(0.15, 1.5),
                noise_range=(1, 30),
                poisson_range=(0.05, 3.0),
                jpeg_range=(30, 95),
            ),
            DegradationStage(
                blur_prob=0.8,
                sigma_px=(0.2, 1.5),
                resize_probs=(0.3, 0.4, 0.3),
                resize_range=(0.3, 1.2),
                noise_range=(1, 25),
                poisson_range=(0.05, 2.5),
                jpeg_range=(30, 95),
            ),
        ),
        final_sinc_prob=0.8,
    ),
    # Ours: both stages at about a third of that strength, as a modern phone's image that was shared once.
    "moderate": Degradation(
        stages=(
            DegradationStage(
                sigma_px=(0.2, 1.5),
                resize_probs=(0.1, 0.4, 0.5),
                resize_range=(0.5, 1.2),
                noise_range=(1, 10),
                poisson_range=(0.05, 1.0),
                jpeg_range=(60, 95),
            ),
            DegradationStage(
                blur_prob=0.4,
                sigma_px=(0.2, 0.8),
                resize_probs=(0.2, 0.3, 0.5),
                resize_range=(0.6, 1.1),
                noise_range=(1, 8),
                poisson_range=(0.05, 0.8),
                jpeg_range=(60, 95),
            ),
        ),
        final_sinc_prob=0.4,
    ),
    # Ours: one round, slight.
    "mild": Degradation(
        stages=(
            DegradationStage(
                sinc_prob=0.0,
                sigma_px=(0.2, 1.2),
                resize_probs=(0.0, 0.0, 1.0),
                resize_range=(0.9, 1.1),
                noise_range=(0.5, 5),
                poisson_range=(0.02, 0.4),
                jpeg_range=(75, 95),
            ),
        ),
    ),
}


def find_preset(preset: str | Degradation) -> Degradation:
    """Return the recipe of that name, or the recipe itself. Raises ValueError that lists the names."""
    if isinstance(preset, Degradation):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"degradation {preset!r}: must be one of {', '.join(PRESETS)}, or a Degradation")
    return PRESETS[preset]
