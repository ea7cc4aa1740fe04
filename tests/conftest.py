"""Shared by all tests: a ledger of their own, one thread, quiet third parties."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, and for the processes that tests start

import warnings
from pathlib import Path

import pytest

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")


_LONG = ("test_smoke.py", "test_wandb_online.py", "test_configs.py", "test_cli.py", "test_image_configs.py")
SLOW = {
    "": "test_configs test_controls",
    "adapters": "test_adapters test_dylora test_every_net test_fragments test_pass_memory test_saliency "
    "test_saliency_replay test_saliency_variants",
    "audits": "test_white_box",
    "callbacks": "test_audit_canaries test_gradient_diagnostics test_known_content test_logical_steps "
    "test_preflight_of_fits test_randomness test_report_of_fit test_spot_check test_weights_origin "
    "test_weights_seen",
    "cli": "test_account test_artefact_kills test_check test_choices test_cli test_config_errors test_ends "
    "test_interpolation "
    "test_killed_in_test test_rehearsal test_sample test_verify",
    "conformance": "test_conformance test_sensitivity",
    "dashboard": "test_dashboard",
    "dependencies": "test_extras",
    "devices": "test_fake_device test_gpu_script test_papers_on_a_device test_recipes_on_a_device",
    "hostile": "test_hostile",
    "images": "test_autoencoder_training test_caption_transformer test_class_gaussians "
    "test_evolution_options test_image_configs test_image_metrics test_image_nets test_image_runs "
    "test_judges test_latent_diffusion test_model_export test_private_evolution test_stable_diffusion",
    "papers": "test_dpldm test_dpsapf test_recipes",
    "privacy": "test_accounting test_audit_estimators test_fp32_precision test_gaussian_loss test_grid "
    "test_ledger_crash test_plan test_private_selection test_release test_secure_noise",
    "privacy/clipping": "test_layers test_whole_models",
    "replay": "test_planted test_published_seed test_replay",
    "starter": "test_init test_pages",
    "strategies": "test_private_ddp",
    "sweeps": "test_launch test_metric test_runner test_smoke test_sweeps_of_the_project",
    "timeseries": "test_baselines test_data_table test_forecast",
    "tracking": "test_outgoing test_run_folder test_wandb_online",
}
"""By folder, most files that take 4 s or more: marked `slow`, they are left out by `make test-fast`."""
_TESTS = Path(__file__).parent
_SLOW = {_TESTS / folder / f"{name}.py" for folder, names in SLOW.items() for name in names.split()}


def pytest_collection_modifyitems(items):
    """Files of few tests that take minutes come first, so that no worker is alone with one at the end."""
    items.sort(key=lambda item: item.path.name not in _LONG)
    for item in items:
        if item.path in _SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: of a file that takes 4 s or more")
    missing = sorted(str(path) for path in _SLOW if not path.is_file())
    assert not missing, f"tests/conftest.py calls files slow that are not there: {missing}"


@pytest.fixture(autouse=True)
def ledger_path(tmp_path_factory, monkeypatch):
    """No test writes into the user's own ledger."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    monkeypatch.setenv("LIGHTNING_DP_LEDGER", str(path))
    return path


@pytest.fixture(autouse=True)
def quiet_lightning():
    """Lightning advises on workers and loggers, which is noise here; our own warnings stay errors."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        yield
