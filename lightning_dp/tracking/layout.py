"""Where things lie in a run folder, for readers that should not wait for torch."""

from pathlib import Path

CHECKPOINT = Path("checkpoints") / "last.ckpt"
SAMPLES = Path("samples") / "train.npz"
RESULTS_NAME = "results.json"
