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
from fedjax_prune.runs.files import WorkdirError
from fedjax_prune.runs.page import selection
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


@pytest.mark.parametrize(
    "cell", ["-0.1", "1,234.5", "55.0% ± 63.5%", "2e-05", "5-20", "", "nan", 7]
)
def test_numbers_are_put_to_the_right(cell):
    page = make_page("", "", [Facts("t", "w", ["a"], [[cell], ["12"]])], "")
    assert page.count("class=number") == 3


@pytest.mark.parametrize("cell", ["5: 9, 2: 4", "3 in", "0.10.2", "-", "1,2,3", "4 11"])
def test_words_that_begin_with_a_digit_are_put_to_the_left(cell):
    page = make_page("", "", [Facts("t", "w", ["a"], [[cell], ["12"]])], "")
    assert "class=number" not in page


def test_lines_have_the_names_that_are_given(folders, tmp_path):
    given = dict(zip(folders, ("AutoFLIP", "AutoFLIP", "no masks"), strict=True))
    page = write_report(folders, tmp_path / "page", pictures=False, names=given)
    cells = re.findall("<td>(AutoFLIP|no masks|autoflip|fedavg)</td>", page.read_text())
    assert cells[:2] == ["AutoFLIP", "no masks"]


def test_the_intro_says_what_all_runs_have_in_common(folders, tmp_path):
    other = config_of(cohort_size=4, rounds=5, **{"data.name": "mnist"})
    write_run(tmp_path / "other", other)
    of_all = [*folders, tmp_path / "other"]
    for given, words in (
        (folders, "cnn, digits, 20 clients, 8 clients a round. Move"),
        (of_all, "cnn, 20 clients. Move"),
    ):
        page = write_report(given, tmp_path / "page", pictures=False).read_text()
        assert f'<p class="words">{words}' in page


def test_rows_of_channels_are_labelled_by_client_and_class(tmp_path):
    config = config_of(rounds=5, **{"model.gated": True, "data.num_clients": 200})
    (line,) = as_lines(read_runs([write_run(tmp_path / "run", config)]))
    record = line.runs[0].records[-1]
    record.clients[:] = [3, 15, 16, 41, 99, 100, 101, 180]
    record.examples[1] = 0
    clients, classes = selection.of_clients([line]), selection.of_classes([line])
    assert clients is not None and classes is not None
    assert '["3", "16", "41", "99", "100", "101", "180"]' in labels_of(clients)
    assert f"{json.dumps([str(n) for n in range(10)])}" in labels_of(classes)
    assert "its first 8 test examples" in classes.words
    assert "the first 2 clients" in classes.words
    assert "grey" in json.dumps(classes.spec()["title"])
    # The user's own classes have names.
    line.runs[0].config["data.classes"] = tuple("abcdefghij")
    classes = selection.of_classes([line])
    assert classes is not None and '["a", "b", "c"' in labels_of(classes)


def labels_of(panel):
    """The expression that labels the rows of the first picture."""
    picture = panel.spec()["vconcat"][0]["concat"][0]
    return picture["encoding"]["y"]["axis"]["labelExpr"]


@pytest.mark.long
def test_a_page_of_many_runs_stays_small(tmp_path):
    folders = []
    for n in range(12):
        changes = {"rounds": 200, "model.gated": True, "client.lr": 0.01 * (n + 1)}
        config = config_of("autoflip", **changes)
        fields = with_masks(config) | {"clients/hostile": lambda n: "0 1 2 3 4"}
        folders.append(write_run(tmp_path / f"run{n}", config, **fields))
    page = write_report(folders, tmp_path / "report", pictures=False)
    assert page.stat().st_size <= 2_000_000


def test_channels_are_drawn_by_share_and_never_apart_from_seldom():
    shares = np.array([[0.0, 1e-3, 1.0, np.nan]], np.float16)
    data = picture_of(shares).removeprefix("data:image/png;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert image.width >= 4 * 2 and image.height == 6
        pixels = np.asarray(image.convert("RGB"))[0, :: image.width // 4]
    never, seldom, always, unknown = pixels.tolist()
    assert never == [240, 190, 165] and always == [8, 48, 107]
    assert min(seldom) > 230 and unknown == [190, 190, 190]


def test_records_come_back_and_damaged_ones_are_left_out(tmp_path):
    folder = write_run(tmp_path / "run", config_of(rounds=15, **{"model.gated": True}))
    first, second, third = record.read_records(folder, 15)
    assert (first.round, second.round, third.round) == (5, 10, 15)
    assert set(first.selected) == set(first.classes) == set(LAYERS)
    assert first.selected["conv1"].shape == (8, 16)
    assert first.accuracies["client_local"].dtype == np.float32
    # Those of rounds that a killed run has lost are not read.
    assert [r.round for r in record.read_records(folder, 12)] == [5, 10]
    file = folder / "report" / "round-10.npz"
    whole = file.read_bytes()
    middle = len(whole) // 2
    zeroed = whole[:middle] + bytes(512) + whole[middle + 512 :]
    for damaged in (b"PK\3\4 damaged", whole[:-40], zeroed):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match=r"round-10\.npz cannot be read"):
            assert [r.round for r in record.read_records(folder, 15)] == [5, 15]


def test_a_run_is_followed_line_by_line_to_its_last_round(tmp_path, capsys):
    folder = write_run(tmp_path / "run", config_of(rounds=5))
    live.follow(folder, pause=0.0)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith("round 1/5  loss 2.03")
    assert "test accuracy 5" in lines[4]


def test_a_run_that_has_not_started_is_waited_for_aloud(tmp_path, capsys, monkeypatch):
    made = write_run(tmp_path / "elsewhere" / "run", config_of(rounds=2))

    def begin(seconds):
        if made.exists():
            made.rename(tmp_path / "run")

    monkeypatch.setattr(live.time, "sleep", begin)
    live.follow(tmp_path / "run", pause=0.01)
    first, *rounds = capsys.readouterr().out.splitlines()
    assert first == f"waiting for a run to start in {tmp_path / 'run'}"
    assert len(rounds) == 2


def test_a_folder_of_several_runs_is_not_followed(tmp_path):
    for name in ("b", "a"):
        write_run(tmp_path / name, config_of(rounds=1))
    with pytest.raises(WorkdirError, match=rf"has 2 below it, such as {tmp_path}/a:"):
        live.follow(tmp_path, pause=0.0)


def test_the_live_table_tells_how_far_a_run_is(tmp_path):
    folder = write_run(tmp_path / "run", config_of(rounds=20))
    (run,) = read_runs([folder])
    facts = live.facts(run.config, run.rows[:10])
    assert facts["rounds"] == "10 of 20" and facts["traffic"] == "30.0 MB"
    assert "█" in facts["training loss"] and "10" in facts["rounds"]
    assert live.facts({}, []) == {"rounds": "waiting for a run to start"}
    waiting = live.facts(run.config, [])
    assert waiting == {"rounds": "waiting for the first of 20"}
