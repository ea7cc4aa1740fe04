"""`python -m lightning_dp` is `lightning-dp`."""

import sys

from lightning_dp.cli import main

sys.exit(main())
