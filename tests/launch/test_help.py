"""What `--help` prints: every flag, every field, three examples that are accepted."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags

from fedjax_prune.__main__ import VERBS
from fedjax_prune.algorithms import ALGORITHMS
from fedjax_prune.runs import settings
from fedjax_prune.runs.settings import SettingsError
from launch import config_file, grid, usage
from launch.flags import load_config, parse

ROOT = Path(__file__).parents[2]
COMMANDS = {verb: f"fedjax_prune {verb}" for verb in VERBS}
COMMANDS |= {f"{name}.__main__": f"launch.{name}" for name in ("benchmark", "docs")}
"""Module in launch -> what follows `python -m`."""


@pytest.fixture(params=COMMANDS)
def command(request):
    """A launcher, as if it alone had defined flags, and what starts it."""
    before = set(flags.FLAGS)
    name = f"launch.{request.param}"
    yield importlib.import_module(name), f"python -m {COMMANDS[request.param]}"
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    del sys.modules[name]


def examples(module):
    """The words of the commands below `For example:`."""
    text = module.__doc__.partition("For example:")[2].replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def fields_in(help_text):
    """Section of the help -> its fields, with their defaults as they are written."""
    fields = {}
    for line in help_text.splitlines():
        if title := re.fullmatch(r"(\w+): .*; --config\.(\w+\.)?NAME=VALUE", line):
            inside = title[2] or ""
        elif found := re.match(r"  (\w+)=(\S*)", line):
            fields[inside + found[1]] = found[2]
    return fields


def test_help_names_every_flag_and_every_field(command):
    module, _ = command
    config = config_file.load("base") if "config" in flags.FLAGS else None
    text = usage.text(module, config, "")
    assert text.startswith(module.__doc__.strip())
    named = re.findall(r"^  --(?:\[no\])?(\w+) +\S", text, re.MULTILINE)
    own = flags.FLAGS.get_key_flags_for_module(module)
    assert named and sorted(named) == sorted(flag.name for flag in own)
    described = settings.describe(config) if config else []
    assert fields_in(text) == {
        field.name: usage.written(field.default) for field in described
    }
    joined = " ".join(text.split())
    for field in described:
        allowed = field.allowed[0].upper() + field.allowed[1:]
        assert f"{field.words} {allowed}." in joined


def test_help_has_three_examples_that_are_accepted(command):
    module, starts = command
    found = examples(module)
    assert len(found) == 3
    for example in found:
        assert f"{starts} --" in example or example == starts
        words = shlex.split(example.partition(starts)[2])
        rest = parse(["prog", *words])[1:]
        values = flags.FLAGS.flag_values_dict()
        if "axis" in values:
            made = grid.make_grid(
                values["config"], values["settings"].split(), values["axis"], rest
            )
            assert len(made) > 1
        elif "config" in values:
            assert load_config(values["config"], rest).rounds >= 1
        else:
            assert rest == []
        flags.FLAGS.unparse_flags()
        for flag in flags.FLAGS.get_key_flags_for_module(module):
            flag.unparse()


def test_each_section_fits_a_screen(command):
    module, _ = command
    configs = [None]
    if "config" in flags.FLAGS:
        configs = [settings.default_config(name) for name in ALGORITHMS]
    for config in configs:
        for name, text in usage.sections(module, config).items():
            lines = text.splitlines()
            assert len(lines) <= usage.LINES, name
            assert max(map(len, lines)) <= usage.WIDTH, name


def test_a_section_or_an_algorithm_is_printed_alone():
    base, module = config_file.load("base"), ModuleType("launcher", "Does nothing.")
    text = usage.text(module, base, "client")
    assert text.startswith("client: local training; --config.client.NAME=VALUE\n  ")
    assert set(fields_in(text)) == {f"client.{name}" for name in base.client}
    for name in ALGORITHMS:
        own = settings.default_config(name)["algorithm"]
        found = fields_in(usage.text(module, base, name))
        assert set(found) == {f"algorithm.{field}" for field in own}
        assert found["algorithm.name"] == name
    pruned = config_file.load("autoflip:mnist")
    whole = usage.text(module, pruned, "algorithm")
    assert "exempt_layers=" in whole and "mask_schedule=" in whole
    with pytest.raises(SettingsError, match=r"one of usage, general, .*, got 'clint'"):
        usage.text(module, base, "clint")
    with pytest.raises(SettingsError, match=r"one of usage, got 'client'"):
        usage.text(module, None, "client")


@pytest.mark.parametrize(
    ("argument", "section"),
    [
        ("--help", ""),
        ("-h", ""),
        ("--helpfull", ""),
        ("--help=client", "client"),
        ("-help=", ""),
        ("--helpless", None),
        ("--hostile", None),
        ("help", None),
    ],
)
def test_which_arguments_ask_for_help(argument, section):
    assert usage.asked(argument) == section


def run(*command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_help_shows_the_config_as_the_command_line_sets_it():
    code, out, err = run(
        *("launch.train", "--config=quickstart", "--config.client.lr=0.5"),
        *("--config.algorithm.name=fedprox", "--help"),
    )
    assert (code, err) == (0, "")
    assert out.startswith("Trains from a config file") and "--verbosity" not in out
    fields = fields_in(out)
    assert (fields["rounds"], fields["client.lr"]) == ("60", "0.5")
    assert (fields["algorithm.name"], fields["algorithm.mu"]) == ("fedprox", "0.01")


def test_a_mistake_beside_help_is_one_line():
    code, out, err = run("fedjax_prune", "train", "--help=clint", "--config.rouns=3")
    assert (code, out) == (1, "")
    assert err == "error: rouns is not a field; did you mean rounds?\n"


def test_the_verbs_are_listed_with_a_line_each():
    listed = run("fedjax_prune")
    assert listed == run("fedjax_prune", "--help")
    code, out, err = listed
    assert (code, err) == (0, "")
    lines = dict(re.findall(r"^  (\w+) +([A-Z].*\.)$", out, re.MULTILINE))
    assert tuple(lines) == VERBS
    for verb, line in lines.items():
        assert (ROOT / "launch" / f"{verb}.py").read_text().startswith(f'"""{line}\n')
