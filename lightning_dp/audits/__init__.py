"""Attacks on the training path of this project, run by its own trainer, callback, engine, sampler and noise.

`canary_module` and `canary_data` put canaries into a fit of any of its modules, on made-up units; `releases`
looks at what each step releases; `white_box` turns that into scores of four adversaries, `judged` into
bounds and `written` into files. `membership` sees losses and samples only.
"""

from lightning_dp.extras import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
