"""Hostile run folders, configurations, checkpoints and reports."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from place import SECRET, Kind, Place, refused

CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": "lightning_dp.TimeSeriesDiffusion", "init_args": {}},
    "data": {"class_path": "lightning_dp.timeseries.HouseholdLoad", "init_args": {}},
    "run": {"method": "a"},
}
RECIPE = Path(__file__).parents[2] / "conf" / "experiment" / "demo_simulator.yaml"
RESULTS = {
    "dataset": "d",
    "method": "m",
    "seed": 0,
    "epsilon": "inf",
    "metrics": {"test/mse": 0.5},
    "facts": {},
}
REPORT = {"status": "finished", "epsilon": "inf", "epsilon_spent": "inf", "noise_multiplier": 0.0}


def write_run(folder: Path, *, config: Any = None, settings: dict | None = None) -> Path:
    """A run without privacy whose checkpoint is whole, as far as it is read before a model is made."""
    (folder / "checkpoints").mkdir(parents=True)
    written = CONFIG if config is None else config
    text = written if isinstance(written, bytes) else yaml.safe_dump(written).encode()
    (folder / "config.yaml").write_bytes(text)
    (folder / "privacy.json").write_text(json.dumps(REPORT))
    (folder / "results.json").write_text(json.dumps(RESULTS))
    (folder / "metrics.csv").write_text("step,a\n1,2\n2,3\n")
    content = {"state_dict": {}, "global_step": 3, "callbacks": {}, "hyper_parameters": settings or {}}
    content["pytorch-lightning_version"] = "2.6.0"
    torch.save(content, folder / "checkpoints" / "last.ckpt")
    return folder


def changed(*path: str, to: Any) -> dict:
    """The configuration with one value in it."""
    config = json.loads(json.dumps(CONFIG))
    inside = config
    for name in path[:-1]:
        inside = inside.setdefault(name, {})
    inside[path[-1]] = to
    return config


def commanded(place: Place, command: str, run: Path) -> str:
    if command in ("test", "predict", "validate"):
        return place.command(
            command, f"--config={run / 'config.yaml'}", f"--run.dir={place.out}", "--ckpt_path=last"
        )
    output = [str(run), f"--output={place.out}"] if command == "export" else [str(run)]
    if command == "sample":
        output = [
            str(run),
            "--num=1",
            "--start=2024-01-01",
            "--frequency=h",
            f"--output={place.out / 'x.csv'}",
        ]
    return place.command(command, *output)


def received(command: str, config: Any = None, **options) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        return commanded(place, command, write_run(place.folder / "run", config=config, **options))

    return attack


def included(place: Place) -> str:
    """Classes brought in by a file that the configuration names."""
    run = write_run(place.folder / "run", config=changed("data", to="more.yaml"))
    (run / "more.yaml").write_text("class_path: os.system\n")
    return commanded(place, "sample", run)


def included_name(place: Place) -> str:
    run = write_run(place.folder / "run", config=changed("model", "init_args", "net", to="more.txt"))
    (run / "more.txt").write_text("os.system\n")
    return commanded(place, "test", run)


def renamed(place: Place) -> str:
    """A run folder's configuration by another name."""
    run = write_run(place.folder / "run", config=changed("model", "class_path", to="os.system"))
    (run / "config.yaml").rename(run / "recipe.yml")
    return place.command("fit", f"--config={run / 'recipe.yml'}", f"--run.dir={place.out}")


def evolved(place: Place) -> str:
    run = write_run(place.folder / "run", config=changed("api", "class_path", to="subprocess.Popen"))
    return place.command("evolve", f"--config={run / 'config.yaml'}", f"--run.dir={place.out}")


EVIL = {
    "system call as the model": changed("model", "class_path", to="os.system"),
    "process as the model": changed("model", "class_path", to="subprocess.Popen"),
    "eval as the model": changed("model", "class_path", to="builtins.eval"),
    "way through this package": changed("model", "class_path", to="lightning_dp.cli.os.system"),
    "way through torch": changed("data", "class_path", to="torch.optim.adam.torch.load"),
    "this package's own entry": changed("data", "class_path", to="lightning_dp.__main__.main"),
    "system call as the data": changed("data", "class_path", to="os.system"),
    "browser as the data": changed("data", "class_path", to="antigravity.fly"),
    "system call deep inside": changed("model", "init_args", "net", "class_path", to="os.system"),
    "function for an optimizer": changed("model", "init_args", "optimizer", to="os.system"),
    "logger that sends": changed(
        "trainer", "logger", "class_path", to="lightning.pytorch.loggers.MLFlowLogger"
    ),
    "callback of any function": changed(
        "trainer", "callbacks", to=[{"init_args": {"on_fit_start": "os.abort"}}]
    ),
    "name out of the environment": changed("model", "class_path", to="${oc.env:HOME}"),
    "secret out of the environment": changed("run", "method", to="x ${oc.env:WANDB_API_KEY}"),
    "class in a list": changed("trainer", "plugins", to=["shutil.rmtree"]),
}
DAMAGED = {
    "python tag": (b"a: !!python/object/apply:os.system ['touch canary']\n", "is no YAML"),
    "half a configuration": (b"run: [\n", "is no YAML"),
    "no text": (b"a: \xff\n", "is damaged"),
    "a list": (b"- 1\n", "no settings but a list"),
    "nothing": (b"", "no settings but a NoneType"),
    "100,000 deep": (b"[" * 100_000, "nested more than 100 deep"),
    "billion laughs": (
        b"a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(9)
        ),
        "repeats itself by aliases",
    ),
    "9 MB": (b"a: 1\n#" + b"x" * 9 * 2**20, "no configuration is so large"),
    "model that is a word": (b"model: nothing\ndata: 1\n", "names neither a model"),
    "model that is nowhere": (b"model: {class_path: lightning_dp.Nothing}\n", "lightning_dp.Nothing"),
}


def checkpoint(command: str, write: Callable[[Place, Path], None]) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        run = write_run(place.folder / "run")
        write(place, run / "checkpoints" / "last.ckpt")
        if command == "test":  # of a recipe that is whole, so that the checkpoint comes to be read
            path = run / "checkpoints" / "last.ckpt"
            return place.command(
                "test", f"--config={RECIPE}", f"--run.dir={place.out}", f"--ckpt_path={path}"
            )
        return commanded(place, command, run)

    return attack


def evil(place: Place, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({**content, "callbacks": {"x": place.pickle_bomb()}}, path)


def with_code_on(place: Place) -> str:
    run = write_run(place.folder / "run", config=changed("weights_only", to=False))
    evil(place, run / "checkpoints" / "last.ckpt")
    return commanded(place, "test", run)


def with_code_by_option(place: Place) -> str:
    run = write_run(place.folder / "run")
    evil(place, run / "checkpoints" / "last.ckpt")
    options = [f"--config={RECIPE}", f"--run.dir={place.out}", "--weights_only=false"]
    return place.command("test", *options, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")


def settings(**values: Any) -> Callable[[Place], str]:
    """What a checkpoint keeps of its model, from which it is made again."""

    def attack(place: Place) -> str:
        run = write_run(place.folder / "run", settings=values)
        return commanded(place, "sample", run)

    return attack


def without_a_model(place: Place) -> str:
    """The model is then made of what the checkpoint keeps."""
    run = write_run(place.folder / "run", settings={"_class_path": "os.system", "_instantiator": "x"})
    path = run / "checkpoints" / "last.ckpt"
    return place.command("test", f"--ckpt_path={path}", f"--run.dir={place.out}")


CHECKPOINTS: dict[str, tuple[Callable[[Place, Path], None], str]] = {
    "pickle that runs code": (evil, "would run code|more than weights"),
    "bare pickle": (lambda place, path: path.write_bytes(pickle.dumps(place.pickle_bomb())), "code|damaged"),
    "cut off": (lambda _, path: path.write_bytes(path.read_bytes()[:-200]), "damaged or no checkpoint"),
    "empty": (lambda _, path: path.write_bytes(b""), "damaged or no checkpoint"),
    "words": (lambda _, path: path.write_text("last"), "damaged|more than weights"),
    "weights alone": (
        lambda _, path: torch.save({"state_dict": {}, "callbacks": {}}, path),
        "checkpoint|last.ckpt",
    ),
    "a list": (lambda _, path: torch.save([1], path), "a list"),
    "missing": (lambda _, path: path.unlink(), "last.ckpt"),
}


def report(content: bytes) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        run = write_run(place.folder / "run")
        (run / "privacy.json").write_bytes(content)
        return commanded(place, "sample", run)

    return attack


REPORTS: dict[str, bytes] = {
    "half": b'{"eps',
    "null": b"null",
    "list": b"[]",
    "no text": b"\xff\xfe{",
    "100,000 deep": b"[" * 100_000,
    "ε below 0": b'{"epsilon_spent": -1, "delta": 1e-5}',
    "ε of words": b'{"epsilon_spent": "small", "delta": 1e-5}',
    "ε that is a list": b'{"epsilon_spent": [1], "delta": 1e-5}',
    "another run's": b'{"epsilon_spent": 1.0, "delta": 1e-5, "run": "other", "ledger_seq": 3}',
}


def beside_a_good_one(name: str, content: bytes) -> Callable[[Place], str]:
    """One damaged file: the run is named, the other one is shown."""

    def attack(place: Place) -> str:
        write_run(place.folder / "runs" / "good")
        (write_run(place.folder / "runs" / "bad") / name).write_bytes(content)
        return shown(place)

    return attack


def shown(place: Place) -> str:
    """What the dashboard says of `bad`, having shown `good`."""
    site = place.folder / "site"
    answer = place.command("dashboard", str(place.folder / "runs"), f"--out={site}")
    data = json.loads(
        (site / "data.js").read_text().removeprefix("LightningDP.receive(").removesuffix(");\n")
    )
    by_name = {run["name"]: run for run in data["runs"]}
    assert by_name["good"]["scores"] == {"mse": 0.5}
    assert by_name["good"]["status"] == "finished"
    assert "damaged" in by_name["bad"]["status"]
    assert "root:x:" not in "".join(path.read_text(errors="replace") for path in site.rglob("*.txt"))
    return answer


def a_link(name: str, target: str = "/etc/passwd") -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        write_run(place.folder / "runs" / "good")
        bad = write_run(place.folder / "runs" / "bad")
        (bad / name).parent.mkdir(exist_ok=True)
        (bad / name).unlink(missing_ok=True)
        os.symlink(target, bad / name)
        site = place.folder / "site"
        answer = place.command("dashboard", str(place.folder / "runs"), f"--out={site}")
        assert not [path for path in site.rglob("*") if path.is_file() and b"root:x:" in path.read_bytes()]
        return answer

    return attack


def reported(name: str, content: bytes) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        write_run(place.folder / "runs" / "good")
        (write_run(place.folder / "runs" / "bad") / name).write_bytes(content)
        return place.command("report", str(place.folder / "runs"))

    return attack


RESULT_FILES: dict[str, bytes] = {
    "half": b'{"method": "x", "data',
    "empty": b"",
    "no text": b"\xff\xfe{",
    "list": b"[1]",
    "metrics null": b'{"dataset":"d","method":"m","metrics":null}',
    "metrics list": b'{"dataset":"d","method":"m","metrics":[1]}',
    "facts list": b'{"dataset":"d","method":"m","metrics":{},"facts":[1]}',
    "facts in facts": b'{"dataset":"d","method":"m","metrics":{},"facts":{"a":{"b":1}}}',
    "seed of words": b'{"dataset":"d","method":"m","metrics":{},"seed":"x"}',
    "method that is a list": b'{"dataset":"d","method":["m"],"metrics":{}}',
    "100,000 deep": b"[" * 100_000,
}
OTHER_FILES: dict[str, tuple[str, bytes]] = {
    "diagnostics cut off": ("diagnostics.json", b'{"a'),
    "diagnostics that are a list": ("diagnostics.json", b"[]"),
    "binary metrics": ("metrics.csv", b"step,a\n1,\xff\xfe\n2,3\n"),
    "200 kB in a cell of metrics": ("metrics.csv", b"step,a\n1," + b"9" * 200_000 + b"\n"),
    "half a configuration": ("config.yaml", b"run: [\n"),
    "configuration that is no text": ("config.yaml", b"a: \xff\n"),
    "report that is a list": ("privacy.json", b"[]"),
}


def sweep(content: str) -> Callable[[Place], str]:
    def attack(place: Place) -> str:
        (place.folder / "sweep.yaml").write_text(content)
        return place.command("sweep", "run", str(place.folder / "sweep.yaml"), f"--out={place.out}")

    return attack


def half_results(place: Place) -> str:
    """Of a trial that was killed while it wrote: a failed trial, and the sweep goes on."""
    from lightning_dp.sweeps.trial import TrialProcess

    trial = TrialProcess.__new__(TrialProcess)
    trial.folder = place.folder
    (place.folder / "results.json").write_text('{"metrics": {"test/mse')
    return refused(lambda: trial.value("test/mse"))


KINDS = [
    *(
        Kind("run folder", f"{name}, sample", received("sample", config), "may run no code")
        for name, config in EVIL.items()
    ),
    *(
        Kind("run folder", f"{name}, {command}", received(command, EVIL[name]), "may run no code")
        for command, name in (
            ("test", "system call as the model"),
            ("test", "name out of the environment"),
            ("test", "class in a list"),
            ("validate", "way through this package"),
            ("predict", "function for an optimizer"),
            ("export", "system call as the model"),
            ("evaluate", "system call as the data"),
        )
    ),
    Kind("run folder", "classes in another file", included, "may run no code"),
    Kind("run folder", "function in another file", included_name, "may run no code"),
    Kind("run folder", "configuration renamed, fit", renamed, "may run no code"),
    Kind("run folder", "process as the API, evolve", evolved, "may run no code"),
    Kind("run folder", "checkpoints with their code", with_code_on, "weights_only"),
    Kind("run folder", "checkpoints with their code, by option", with_code_by_option, "weights"),
    Kind(
        "run folder",
        "no run at all",
        lambda place: place.command("sample", str(place.folder), "--output=x.csv"),
        "no.* run folder",
    ),
    *(
        Kind("configuration", name, received("sample", content), answer)
        for name, (content, answer) in DAMAGED.items()
    ),
    *(
        Kind("checkpoint", f"{name}, {command}", checkpoint(command, write), answer)
        for name, (write, answer) in CHECKPOINTS.items()
        for command in ("sample", "test")
    ),
    Kind("checkpoint", "maker of its own", settings(_instantiator="os.system"), "may run no code"),
    Kind("checkpoint", "class of its own", settings(net={"class_path": "os.system"}), "may run no code"),
    Kind(
        "checkpoint", "model of its own", without_a_model, "may run no code|are required|configuration lacks"
    ),
    *(Kind("report", name, report(content), "privacy.json") for name, content in REPORTS.items()),
    *(
        Kind(
            "results",
            f"{name}, dashboard",
            beside_a_good_one("results.json", content),
            "bad: damaged: results.json",
        )
        for name, content in RESULT_FILES.items()
    ),
    *(
        Kind(
            "results",
            f"{name}, report",
            reported("results.json", RESULT_FILES[name]),
            "not the result of a run",
        )
        for name in ("half", "metrics list", "facts in facts")
    ),
    *(
        Kind("run of many", name, beside_a_good_one(file, content), "bad: ")
        for name, (file, content) in OTHER_FILES.items()
    ),
    Kind("run of many", "link for a figure", a_link("plots/x.png"), "plots/x.png is a link that leads out"),
    Kind("run of many", "link for all figures", a_link("plots", "/etc"), "plots is a link that leads out"),
    Kind(
        "run of many",
        "link for the configuration",
        a_link("config.yaml"),
        "config.yaml is a link that leads out",
    ),
    Kind(
        "run of many",
        "link for the environment",
        a_link("environment.json"),
        "environment.json is a link that leads",
    ),
    Kind("sweep", "python tag", sweep("a: !!python/object/apply:os.system ['true']\n"), "sweep.yaml"),
    Kind("sweep", "list", sweep("- 1\n"), "sweep.yaml"),
    Kind("sweep", "no text", sweep("program: [\n"), "sweep.yaml"),
    Kind("sweep", "results of a trial half written", half_results, "is not JSON"),
]
assert SECRET
