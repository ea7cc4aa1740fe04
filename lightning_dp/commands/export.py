"""`lightning-dp export`: the weights of an image run, for programs that use diffusers."""

import argparse
from pathlib import Path

from lightning_dp.tracking.run_config import add_trust


def main(argv: list[str]) -> int:
    """Write the weights and the privacy report beside them."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Write the weights of an image run in diffusers' format. Of a run with LoRA:\n"
            "  FOLDER/pytorch_lora_weights.safetensors   the low-rank matrices, their rank and scale\n"
            "of one that trained a UNet's own weights:\n"
            "  FOLDER/unet/                              all of the UNet\n"
            "  FOLDER/text_encoder/, or                  what embeds captions or classes, where that is\n"
            "  FOLDER/embedder.safetensors               no part of the UNet\n"
            "and of both:\n"
            "  FOLDER/privacy.json                       what may be claimed of them; to be read as\n"
            "  FOLDER/privacy_report.html, .md           a page\n"
            "  FOLDER/README.md                          a model card, for you to complete\n\n"
            "Weights are what the run's ε speaks of, so writing and using them costs no further ε. Those of\n"
            "a Stable Diffusion checkpoint are used with the folder that the run was trained on:\n"
            "  pipeline = StableDiffusionPipeline.from_pretrained(CHECKPOINT)\n"
            "  pipeline.load_lora_weights(FOLDER), or before, as from_pretrained(CHECKPOINT, unet=unet):\n"
            "  unet = UNet2DConditionModel.from_pretrained(FOLDER, subfolder='unet')\n"
            '  pipeline("a photo of a cat").images[0]'
        ),
        epilog="example: lightning-dp export runs/stable_diffusion --output lora",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="does not exist yet, or is empty"
    )
    parser.add_argument(
        "--rank", type=int, help="of a run by DyLoRA, which of its ranks (default the largest)"
    )
    add_trust(parser)
    arguments = parser.parse_args(argv)

    # Late: --help, and a folder that can't be right, should not wait for torch.
    from lightning_dp.images.export import check_empty
    from lightning_dp.privacy.report import write_privacy_report
    from lightning_dp.runs.abilities import WeightExporter
    from lightning_dp.runs.load import load_run
    from lightning_dp.tracking.cards import CARD, write_model_card
    from lightning_dp.tracking.results import results_of
    from lightning_dp.tracking.sealed import seal_folder

    run = load_run(arguments.run)
    check_empty(arguments.output)
    module = run.module
    if not isinstance(module, WeightExporter):
        raise ValueError(
            f"{arguments.run} holds a {type(module).__name__}, whose weights no other program reads: give it "
            "the method export_weights of lightning_dp.runs.WeightExporter, or draw from it by "
            "'lightning-dp sample'."
        )
    run.set_sampling(rank=arguments.rank)
    write_privacy_report(arguments.output, run.to_dict())  # before what it speaks of
    for line in module.export_weights(arguments.output):
        print(f"weights  {line}")
    report = {**run.to_dict(), "kind": "export"}
    write_model_card(arguments.output / CARD, report, results=results_of(arguments.run), library="diffusers")
    seal_folder(arguments.output, sign=run.account.signed, kind="export")
    print(f"privacy  {arguments.output / 'privacy.json'}\n{run.account.sentence}")
    return 0
