"""The page and its pictures: what they show, and that they load nothing."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from fedjax_prune.runs import live, record
from fedjax_prune.runs.page.html import Facts, make_page
from fedjax_prune.runs.page.panel import Panel
from fedjax_prune.runs.page.read import as_lines, read_runs
from fedjax_prune.runs.page.selection import picture_of
from fedjax_prune.runs.page.write import parts_of, write_report
from tests.made_up_runs import LAYERS, config_of, with_masks, write_run

EVERYTHING = {
    "accuracy",
    "target",
    "accuracies",
    "loss",
    "clients",
    "partition",
    "troubled",
    "by_client",
    "by_class",
    "evenness",
    "never",
    "density",
    "churn",
    "channels_left",
    "savings",
    "time",
    "lanes",
}


class Loads(HTMLParser):
    """Collects what a page would load or run from elsewhere."""

    def __init__(self):
        super().__init__()
        self.found, self.policy = [], ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.found += [v for k, v in attrs if k in ("src", "srcset", "data", "action")]
        self.found += [values["href"]] if tag == "link" else []
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two seeds of a gated run under masks, in which a client attacks, and FedAvg."""
    root = tmp_path_factory.mktemp("runs")
    found = []
    for seed in (0, 1):
        config = config_of("autoflip", seed=seed, **{"model.gated": True})
        fields = with_masks(config) | {"clients/hostile": lambda n: "0 1 2 3 4"}
        found.append(write_run(root / f"masks <{seed}>", config, **fields))
    found.append(write_run(root / "fedavg", config_of("fedavg"), records=False))
    return found


@pytest.fixture(scope="module")
def written(folders, tmp_path_factory):
    return write_report(folders, tmp_path_factory.mktemp("page") / "report")


def test_everything_that_was_recorded_is_drawn_as_png_and_svg(written):
    assert written.name == "index.html"
    for ending in ("png", "svg"):
        names = {file.stem for file in written.parent.glob(f"*.{ending}")}
        assert names == EVERYTHING
    for file in written.parent.glob("*.png"):
        with Image.open(file) as image:
            colours = image.convert("RGB").getcolors(maxcolors=2**24)
        assert colours is not None and len(colours) > 20, file.name
    svg = (written.parent / "accuracy.svg").read_text()
    assert "autoflip" in svg and "fedavg" in svg and "MB sent" in svg


def test_the_page_loads_nothing(written):
    text = written.read_text()
    loads = Loads()
    loads.feed(text)
    assert loads.found == ["data:,"]
    assert loads.policy.startswith("default-src 'none'")
    assert "http" not in loads.policy
    assert not re.search(r"@import|url\(\s*['\"]?https?:", text)
    assert written.stat().st_size < 1_100_000


def test_the_page_holds_the_pictures_and_tables_of_its_runs(written, folders):
    text = written.read_text()
    specs = text.split("const specs = ")[1].split(";\nfor (const")[0]
    specs = json.loads(specs)
    assert set(specs) == EVERYTHING
    assert all("$schema" not in spec for spec in specs.values())
    assert all(f'id="{name}"' in text for name in EVERYTHING)
    # A name with brackets is text, not an element.
    assert "masks &lt;0&gt;" in text and "masks <0>" not in text
    for words in ("The worst clients", "In which fields", "Versions", "made up"):
        assert words in text


def test_a_panel_without_data_is_left_out(folders):
    parts = parts_of(as_lines(read_runs(folders[-1:])))
    names = {part.name for part in parts if isinstance(part, Panel)}
    assert names == {"accuracy", "target", "accuracies", "loss", "time", "lanes"}


def test_a_script_cannot_end_its_element():
    table = Facts("t", "w", ["a"], [["</script><b>"]])
    page = make_page("<i>", "", [table], "x = '</Script>'; y.replace(/</g, '')")
    assert page.lower().count("</script>") == 2
    assert "<i>" not in page and "<b>" not in page
    # Code that is no string stays as it is.
    assert "y.replace(/</g, '')" in page


def test_channels_are_drawn_by_share_and_never_apart_from_seldom():
    shares = np.array([[0.0, 1e-3, 1.0, np.nan]], np.float16)
    data = picture_of(shares).removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.width >= 4 * 2 and image.height == 6
        pixels = np.asarray(image.convert("RGB"))[0, :: image.width // 4]
    never, seldom, always, unknown = pixels.tolist()
    assert never == [240, 190, 165] and always == [8, 48, 107]
    assert min(seldom) > 230 and unknown == [255, 255, 255]


def test_records_come_back_and_damaged_ones_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", config_of(rounds=15, **{"model.gated": True}))
    first, second, third = record.read_records(folder, 15)
    assert (first.round, second.round, third.round) == (5, 10, 15)
    assert set(first.selected) == set(first.classes) == set(LAYERS)
    assert first.selected["conv1"].shape == (8, 16)
    assert first.accuracies["client_local"].dtype == np.float32
    # Those of rounds that a killed run has lost are not read.
    assert [r.round for r in record.read_records(folder, 12)] == [5, 10]
    (folder / "report" / "round-10.npz").write_bytes(b"PK\3\4 damaged")
    with pytest.warns(UserWarning, match=r"round-10\.npz cannot be read"):
        assert [r.round for r in record.read_records(folder, 15)] == [5, 15]


def test_a_run_is_followed_line_by_line_to_its_last_round(tmp_path, capsys):
    folder = write_run(tmp_path / "run", config_of(rounds=5))
    live.follow(folder, pause=0.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith("round 1/5  loss 2.03")
    assert "test accuracy 5" in lines[4]


def test_the_live_table_tells_how_far_a_run_is(tmp_path):
    folder = write_run(tmp_path / "run", config_of(rounds=20))
    (run,) = read_runs([folder])
    facts = live.facts(run.config, run.rows[:10])
    assert facts["rounds"] == "10 of 20" and facts["traffic"] == "30.0 MB"
    assert "█" in facts["training loss"] and "10" in facts["rounds"]
    assert live.facts({}, []) == {"rounds": "waiting for a run to start"}
    waiting = live.facts(run.config, [])
    assert waiting == {"rounds": "waiting for the first of 20"}
