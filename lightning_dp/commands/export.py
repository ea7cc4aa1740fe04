"""`lightning-dp export`: the LoRA weights of a run on Stable Diffusion, for programs that use diffusers."""

import argparse
from pathlib import Path

from lightning_dp.commands.run_account import check_account, read_run


def main(argv: list[str]) -> int:
    """Write the weights and the privacy report beside them."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Write the LoRA weights of a run on a Stable Diffusion checkpoint in diffusers' format:\n"
            "  FOLDER/pytorch_lora_weights.safetensors   the low-rank matrices, their rank and scale\n"
            "  FOLDER/privacy.json                       what may be claimed of them\n\n"
            "Weights are what the run's ε speaks of, so writing and using them costs no further ε. Use them\n"
            "with the checkpoint folder that the run was trained on:\n"
            "  pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT)\n"
            "  pipeline.load_lora_weights(FOLDER)\n"
            '  pipeline("a photo of a cat").images[0]'
        ),
        epilog="example: lightning-dp export runs/stable_diffusion --output lora",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="does not exist yet, or is empty"
    )
    arguments = parser.parse_args(argv)
    report = read_run(arguments.run)
    check_account(arguments.run, report=report)

    # Late: --help, and a folder that can't be right, should not wait for torch.
    from lightning_dp.images.lora_export import export_run

    number = export_run(arguments.run, out=arguments.output)
    print(
        f"weights  {arguments.output / 'pytorch_lora_weights.safetensors'} ({number} layers)\n"
        f"privacy  {arguments.output / 'privacy.json'}"
    )
    return 0
