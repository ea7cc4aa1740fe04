"""`lightning-dp workspace`: the dashboard's views in W&B."""

import argparse
import contextlib
import json
from collections.abc import Iterator

_METRICS = ("mse", "mae", "crps", "fd_lite0", "accuracy")


def main(argv: list[str]) -> int:
    """Save a workspace and a report, or print what would be saved."""
    parser = argparse.ArgumentParser(
        prog="lightning-dp workspace",
        description="Build the dashboard's views in W&B: a workspace and a report.",
        epilog="example: lightning-dp workspace --project lightning_dp --metric mse --metric crps",
        allow_abbrev=False,
    )
    parser.add_argument("--project", default="lightning_dp", help="W&B project (default lightning_dp)")
    parser.add_argument("--entity", help="W&B user or team (default: your own)")
    parser.add_argument("--name", help="of the workspace and the report")
    parser.add_argument(
        "--metric", action="append", help=f"may be repeated (default {', '.join(_METRICS)}); the first leads"
    )
    parser.add_argument("--dry-run", action="store_true", help="print both as JSON; no server is asked")
    arguments = parser.parse_args(argv)
    # Late: --help should not wait for wandb.
    from lightning_dp.dashboard.wandb_views import TITLE, make_report, make_workspace

    name, metrics = arguments.name or TITLE, arguments.metric or list(_METRICS)
    entity = arguments.entity or ("" if arguments.dry_run else _own_entity())
    workspace = make_workspace(metrics, entity=entity, project=arguments.project, name=name)
    report = make_report(metrics, entity=entity, project=arguments.project, title=name)
    if arguments.dry_run:
        models = {"workspace": workspace._to_model(), "report": report._to_model()}
        ready = {what: json.loads(model.model_dump_json(by_alias=True)) for what, model in models.items()}
        print(json.dumps(ready, indent=2, ensure_ascii=False))
        return 0
    with _plain_errors():
        # The report first: it makes the project where there is none yet.
        print(f"report    {report.save().url}")
        print(f"workspace {workspace.save().url}")
    return 0


def _own_entity() -> str:
    import wandb

    with _plain_errors():
        entity = wandb.Api().default_entity
    if not entity:
        raise ValueError("W&B names no user for this key: give --entity")
    return str(entity)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """W&B's own errors, which have no common base, as one sentence."""
    import wandb
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (wandb.Error, WandbApiFailedError) as error:
        raise ValueError(
            f"W&B does not answer as it should ({str(error).strip()}): check 'wandb login', or use --dry-run"
        ) from error
