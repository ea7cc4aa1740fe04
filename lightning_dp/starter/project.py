"""What a starter project is made of, and how it is written."""

import math
from dataclasses import dataclass, field
from pathlib import Path

EPSILON = 8.0


@dataclass(kw_only=True)
class Starter:
    """A project before it is written.

    Attributes:
        config: text of config.yaml, every guess with a comment.
        readme: text of README.md: commands, plan, what to decide.
        guesses: from the data, a sentence each.
        questions: that only the owner of the data can answer, a sentence each.
    """

    config: str
    readme: str = ""
    guesses: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A first plan.

    Attributes:
        unit: what is protected.
        num_units: N.
        batch: B, units of an average batch.
        steps: of the optimizer.
        delta: δ < 1 / N.
    """

    unit: str
    num_units: int
    batch: int
    steps: int
    delta: float

    @classmethod
    def usual(cls, unit: str, num_units: int) -> "Budget":
        """Half of few units in a batch and few steps, for the least noise; a thirtieth of many."""
        few = num_units < 1_000
        return cls(
            unit=unit,
            num_units=num_units,
            batch=max(1, num_units // 2) if few else min(512, max(256, num_units // 32)),
            steps=100 if few else 400,
            delta=min(1e-4, 10.0 ** -(math.ceil(math.log10(max(num_units, 2))) + 1)),
        )

    def sentences(self) -> list[str]:
        """ε, σ and what to expect, a line each; nothing is read."""
        from lightning_dp.privacy.plan import PrivacyPlan
        from lightning_dp.privacy.units import PrivacyUnit

        plan = PrivacyPlan.make(
            PrivacyUnit(name=self.unit, num_units=self.num_units, description=f"one {self.unit}"),  # type: ignore[arg-type]
            expected_batch_size=self.batch,
            num_steps=self.steps,
            target_epsilon=EPSILON,
            noise_multiplier=None,
            max_grad_norm=1.0,
            delta=self.delta,
        )
        lines = [
            f"ε = {plan.epsilon:.3g} at δ = {self.delta:g} per {self.unit}, of {self.num_units}: noise σ = "
            f"{plan.noise_multiplier:.4g} times the clipping norm, {self.steps} steps of {self.batch} "
            f"{self.unit}s on average"
        ]
        # Noise in each coordinate of a mean of B clipped gradients, which has to stand out from it.
        ratio = plan.noise_multiplier / self.batch
        if ratio > 0.02:
            lines.append(
                f"that is noise of {ratio:.2g} clipping norms in every coordinate of an average "
                "gradient, much "
                f"for {self.num_units} {self.unit}s: expect little beyond the baselines that cost no ε, "
                "which "
                "the test puts beside"
            )
        return lines

    @property
    def section(self) -> str:
        """The configuration's."""
        return (
            "privacy:\n"
            f"  target_epsilon: {EPSILON:g}   # QUESTION: what whoever is in the data may be promised\n"
            f"  delta: {self.delta:.1e}   # below 1 / {self.num_units}, the number of {self.unit}s\n"
            f"  expected_batch_size: {self.batch}   # guess from the data: of {self.num_units} {self.unit}s\n"
            "  max_grad_norm: 1.0\n"
        )


def write(starter: Starter, folder: Path) -> list[Path]:
    """Write into a folder that is new or empty.

    Raises:
        ValueError: something is there.
    """
    check_empty(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in (("config.yaml", starter.config), ("README.md", starter.readme)):
        with (folder / name).open("x") as file:
            file.write(text)
        written.append(folder / name)
    return written


def check_empty(folder: Path) -> None:
    """Raise ValueError unless a project can be written there without touching anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--out {folder} is there already, and nothing is overwritten: name another folder.")
