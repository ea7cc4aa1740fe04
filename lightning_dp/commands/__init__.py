"""Subcommands of `lightning-dp` that are not fits: each module has `main(argv) -> int`."""
