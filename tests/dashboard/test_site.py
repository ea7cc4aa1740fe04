"""Writing and serving the site; what it looks like is `test_dashboard.py`'s."""

import http.client
import json
import threading

import pytest
from synthetic import write_run

from lightning_dp.cli import main
from lightning_dp.dashboard.curves import read_curves
from lightning_dp.dashboard.server import make_server
from lightning_dp.dashboard.site import write_site
from lightning_dp.tracking.results import read_results


def data_of(site) -> dict:
    return json.loads(
        (site / "data.js").read_text().removeprefix("LightningDP.receive(").removesuffix(");\n")
    )


@pytest.fixture
def site(tmp_path):
    write_run(tmp_path / "runs" / "one", picture="forecast_fan", diagnostics=True)
    write_site([tmp_path / "runs"], out=tmp_path / "runs" / "site")
    return tmp_path / "runs" / "site"


def test_it_is_written_over_an_older_one_and_takes_no_copy_for_a_run(site, tmp_path):
    before = data_of(site)
    write_run(tmp_path / "runs" / "two", seed=1)
    # Inside the folder of runs, where a second look would find the copies of the first.
    assert write_site([tmp_path / "runs"], out=site) == 2
    assert [run["name"] for run in before["runs"]] == ["one"]
    assert [run["name"] for run in data_of(site)["runs"]] == ["one", "two"]
    assert len(read_results([tmp_path / "runs"])) == 2


def test_it_is_never_written_over_anything_else(tmp_path):
    write_run(tmp_path / "runs" / "one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="no dashboard"):
        write_site([tmp_path / "runs"], out=tmp_path / "mine")
    with pytest.raises(ValueError, match="no dashboard"):
        write_site([tmp_path / "runs"], out=tmp_path / "runs" / "one")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_mistakes_are_one_sentence_before_anything_is_written(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for arguments, words in (
        ([str(tmp_path / "nowhere")], "not a folder"),
        ([str(tmp_path / "empty")], "no run below"),
    ):
        assert main(["dashboard", *arguments, f"--out={out}"]) == 2
        assert words in capsys.readouterr().err
    write_run(tmp_path / "runs" / "one")
    command = ["dashboard", str(tmp_path / "runs"), f"--out={out}", f"--ledger={tmp_path / 'none.sqlite'}"]
    assert main(command) == 2
    assert "none.sqlite" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_in_it_names_another_host_or_this_machine(site, tmp_path):
    for path in site.rglob("*"):
        if path.is_file() and path.suffix in (".html", ".js", ".css") and path.name != "plotly.min.js":
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in text
            assert "https://" not in text
            assert str(tmp_path) not in text


def test_long_curves_are_thinned_to_points_of_the_file(tmp_path):
    lines = ["a,b,epoch,step", *(f"{i / 7},{'' if i % 2 else i},{i // 9},{i}" for i in range(1001)), ",,,"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    curves = read_curves(tmp_path / "metrics.csv", max_points=100)
    assert set(curves) == {"a", "b"}
    assert curves["a"]["logged"] == 1001
    assert 50 <= len(curves["a"]["step"]) <= 101
    assert curves["a"]["step"][-1] == 1000
    assert curves["a"]["value"] == [step / 7 for step in curves["a"]["step"]]
    assert all(step % 2 == 0 for step in curves["b"]["step"])
    assert read_curves(tmp_path / "no.csv") == {}


def test_it_is_served_to_this_machine_only(site):
    with make_server(site, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert server.server_address[0] == "127.0.0.1"

        def status(path: str, host: str | None = None, token: str = server.token) -> int:
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request(
                "GET", f"/{token}{path}" if token else path, headers={} if host is None else {"Host": host}
            )
            found = connection.getresponse()
            found.read()
            connection.close()
            return found.status

        assert status("/") == 200
        assert status("/data.js") == 200
        # Another user of this machine, who knows the port and not the token.
        assert status("/", token="") == 403
        assert status("/data.js", token="") == 403
        assert status("/data.js", token=server.token[:-1]) == 403
        assert status("/data.js", token=server.token + "%C3%A9") == 403
        assert status("/%00") == 404
        # A name of somebody else's that resolves to this machine; a listing; a way out of the folder.
        assert status("/data.js", host="evil.example:80") == 403
        assert status("/runs/") == 404
        assert status("/../one/config.yaml") == 404
        with pytest.raises(ValueError, match=f"--port {server.server_port}"):
            make_server(site, port=server.server_port)
        server.shutdown()
        thread.join()
