"""What docker/ names is there: files, extras, commands, pins. No engine builds anything here.

The commands of the services are run as this installation runs them.
"""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile import Instruction, read_dockerfile
from lock import EXTRAS, LOCK, requirements
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_dp
from lightning_dp.commands.dashboard import main as dashboard
from lightning_dp.commands.sweep import main as sweep
from lightning_dp.lightning_cli import instantiate
from lightning_dp.privacy.ledger import Ledger
from lightning_dp.sweeps import runner

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def image() -> list[Instruction]:
    return read_dockerfile(DOCKER / "Dockerfile")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def named(image: list[Instruction], name: str) -> list[Instruction]:
    return [each for each in image if each.name == name]


def last_stage(image: list[Instruction]) -> list[Instruction]:
    return image[max(i for i, each in enumerate(image) if each.name == "FROM") :]


def test_the_base_is_pinned_by_digest_to_the_python_that_is_tested(image):
    (argument,) = named(image, "ARG")
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}", argument.rest)
    assert {each.rest.split()[0] for each in named(image, "FROM")} == {"python:${PYTHON}"}


def test_everything_that_is_copied_is_there_and_reaches_the_builder(image):
    sent = {
        line[1:]
        for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for each in named(image, "COPY")
        if "from" not in each.flags
        for source in each.rest.split()[:-1]
    }
    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []
    # Runs, data and ledgers stay where they are: all else is left out.
    assert "*" in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()


def test_extras_and_pins_are_the_project_s(image):
    (install,) = [each.rest for each in named(image, "RUN") if "requirements.txt" in each.rest]
    assert "--require-hashes" in install
    locked = re.findall(
        r"^([\w.-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", LOCK.read_text(), re.MULTILINE
    )
    assert len(locked) == LOCK.read_text().count("==")  # nothing without a hash
    versions = {canonicalize_name(name): version for name, version in locked}
    pins = (ROOT / "constraints.txt").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", pins, re.MULTILINE))
    assert {name: version for name, version in pinned.items() if canonicalize_name(name) in versions} == {
        name: versions[canonicalize_name(name)] for name in pinned if canonicalize_name(name) in versions
    }
    wanted = {canonicalize_name(Requirement(text).name) for text in requirements(EXTRAS)}
    assert wanted <= set(versions)
    assert set(EXTRAS) == set(PROJECT["optional-dependencies"]) - {
        "dev",
        "figures",
        "diffusion",
        "adapters",
        "sweeps",  # which the others bring
    }
    # What the file's head says of CUDA: torch comes with its libraries, for CUDA 13.
    assert re.search(r"^torch==", pins, re.MULTILINE)
    assert re.search(r"^nvidia-cudnn-cu13==", pins, re.MULTILINE)
    assert "CUDA 13" in (DOCKER / "Dockerfile").read_text()


def test_it_runs_as_somebody_without_rights_and_says_whether_it_is_well(image):
    stage = last_stage(image)
    names = [each.name for each in stage]
    (user,) = named(stage, "USER")
    assert user.rest == "1000"
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in ("COPY", "RUN"))
    assert "HEALTHCHECK" in names
    assert json.loads(named(stage, "ENTRYPOINT")[0].rest) == ["lightning-dp"]
    assert set(PROJECT["scripts"]) == {"lightning-dp"}
    volumes = json.loads(named(stage, "VOLUME")[0].rest)
    (environment,) = named(stage, "ENV")
    ledger = re.search(r"LIGHTNING_DP_LEDGER=(\S+)", environment.rest)
    assert ledger is not None
    assert str(Path(ledger[1]).parent) in volumes


def test_the_variables_are_ones_that_the_package_reads(image):
    code = "\n".join(path.read_text() for path in (ROOT / "lightning_dp").rglob("*.py"))
    variables = re.findall(r"(LIGHTNING_DP_\w+)=", " ".join(each.rest for each in named(image, "ENV")))
    assert variables
    assert [name for name in variables if f'"{name}"' not in code] == []


@pytest.mark.parametrize("missing", [None, "ledger", "runs", "lightning-dp"])
def test_the_image_s_health_check(image, tmp_path, missing):
    (check,) = named(image, "HEALTHCHECK")
    command = json.loads(check.rest.removeprefix("CMD "))
    for name in {"ledger", "runs"} - {missing}:
        (tmp_path / name).mkdir()
    here = [
        part.replace("/ledger", f"{tmp_path}/ledger").replace("/app/runs", f"{tmp_path}/runs")
        for part in command
    ]
    path = "/usr/bin:/bin" if missing == "lightning-dp" else f"{BIN}:/usr/bin:/bin"
    done = subprocess.run(here, env={"PATH": path}, capture_output=True, check=False)
    assert (done.returncode == 0) == (missing is None)


def test_services_are_made_of_what_is_there(image, compose):
    app = compose["x-app"]
    assert app["image"] == f"lightning-dp:{lightning_dp.__version__}"
    context = (DOCKER / app["build"]["context"]).resolve()
    assert context == ROOT
    assert (context / app["build"]["dockerfile"]).is_file()
    volumes = json.loads(named(image, "VOLUME")[0].rest)
    mounts = [
        re.fullmatch(r"(.+):(/[\w/]+)(:ro)?", volume)
        for service in compose["services"].values()
        for volume in service["volumes"]
    ]
    assert None not in mounts
    mounted = {mount[2]: mount[1] for mount in mounts if mount}
    assert set(volumes) <= set(mounted)
    assert {source for source in mounted.values() if source.isidentifier()} == set(compose["volumes"])
    for name, service in compose["services"].items():
        assert "latest" not in service["image"], name
        assert ":" in service["image"], name
    gpus = [name for name, service in compose["services"].items() if "deploy" in service]
    assert gpus == ["trainer", "sweep", "agent"]


def test_what_stops_has_as_long_as_a_sweep_gives_its_trials(compose):
    assert compose["x-app"]["stop_grace_period"] == f"{runner._GRACE_SECONDS / 60:g}m"
    assert compose["x-app"]["init"] is True  # as process 1 Python would not hear the signal


def command_of(compose: dict[str, Any], service: str) -> list[str]:
    """With every variable left at its default."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", part) for part in compose["services"][service]["command"]]


def test_the_trainer_s_and_the_sweep_s_commands_are_understood(compose, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    trainer = command_of(compose, "trainer")
    assert instantiate(trainer).model is not None
    command = command_of(compose, "sweep")
    assert command[0] == "sweep"
    # Understood up to the first thing that is wrong here on purpose.
    with pytest.raises(ValueError, match="--limit is 0"):
        sweep([*command[1:-1], str(tmp_path), "--limit=0"])
    agent = compose["services"]["agent"]["entrypoint"]
    done = subprocess.run([BIN / agent[0], *agent[1:], "--help"], capture_output=True, check=False)
    assert done.returncode == 0


def test_the_dashboard_is_written_and_reaches_no_network(compose, tmp_path, ledger_path, monkeypatch):
    (tmp_path / "runs" / "one").mkdir(parents=True)
    (tmp_path / "runs" / "one" / "privacy.json").write_text(
        '{"status": "running", "epsilon": "inf", "epsilon_spent": "inf"}'
    )
    Ledger().register("ETTh1", unit="window", delta=1e-5)
    monkeypatch.chdir(tmp_path)
    assert dashboard(command_of(compose, "dashboard")[1:]) == 0
    assert (tmp_path / "runs" / "site" / "index.html").is_file()
    assert compose["services"]["dashboard"]["network_mode"] == "none"


def test_the_key_goes_only_where_something_may_be_sent(compose):
    keyed = [
        name
        for name, service in compose["services"].items()
        if "WANDB_API_KEY" in (service.get("environment") or {})
    ]
    assert keyed == ["trainer", "agent"]
    assert [name for name, one in compose["services"].items() if one.get("network_mode") == "host"] == []


def test_the_commands_of_the_comments_name_files_that_are_there():
    for path in (DOCKER / "Dockerfile", DOCKER / "compose.yaml"):
        comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
        files = re.findall(r"\b(?:conf|sweeps|docker|tests)/[\w./]+", "\n".join(comments[1:]))
        assert files, path
        assert [name for name in files if not (ROOT / name.rstrip(".")).exists()] == [], path
