"""Tables over seeds, from rows written by hand."""

import math

import pytest

from fedjax_prune.runs import tables
from fedjax_prune.runs.savings import break_even, in_words, totals
from fedjax_prune.runs.tables import changes_at_the_end, with_interval
from tests.made_up_runs import config_of, write_run


def test_intervals_are_those_of_a_table_of_students_t():
    """Three values: t = 4.303 with 2 degrees of freedom; ten: 2.262 with 9."""
    assert with_interval([0.1, 0.2, 0.3]) == f"20.0% ± {4.303 * 0.1 / 3**0.5:.1%}"
    # Five of each: s^2 = 10 * 0.1^2 / 9.
    half = 2.262 * (0.1 / 9) ** 0.5 / 10**0.5
    assert with_interval([0.4, 0.6] * 5) == f"50.0% ± {half:.1%}"


def test_one_seed_has_no_interval():
    assert with_interval([0.125]) == "12.5%"
    assert with_interval([0.125], "+") == "+12.5%"


def write_seeds(folder, accuracies, **fields):
    """Ten rounds, all evaluated; a seed's accuracy of round n is its list's n-th."""
    written = []
    for seed, values in accuracies.items():
        config = config_of(rounds=10, seed=seed, **{"eval.every": 1})
        own = {
            "eval/headline": lambda n, v=values: v[n - 1],
            "eval/client_local/mean": lambda n, v=values: v[n - 1] / 2,
            "eval/client_local/min": lambda n: 0.25,
            "eval/after_local/mean": lambda n: 0.125,
            "eval/global_dense/accuracy": lambda n, v=values: v[n - 1],
        }
        folder_of_seed = folder / f"seed={seed}"
        written.append(
            write_run(folder_of_seed, config, records=False, **own, **fields)
        )
    return written


def cells(table):
    """Run -> column -> cell; of columns with the same name, a list."""
    header, _, *lines = [line.strip("|").split("|") for line in table.splitlines()]
    found = {}
    for line in lines:
        row = found.setdefault(line[0].strip(), {})
        for name, cell in zip(header, line, strict=True):
            row.setdefault(name.strip(), []).append(cell.strip())
    return found


def test_settings_are_compared_seed_by_seed_with_the_first(tmp_path):
    """Means of rounds 9 and 10. FedDP: 0.6, 0.8; SCAFFOLD: 0.5, 0.8, and a third."""
    base = write_seeds(
        tmp_path / "base",
        {0: [0.3] * 8 + [0.4, 0.6], 1: [0.7] * 8 + [0.8] * 2, 2: [0.9] * 10},
    )
    other = write_seeds(tmp_path / "other", {0: [0.6] * 10, 1: [0.8] * 10})
    table = tables.comparison(
        {"SCAFFOLD": base, "FedDP": other}, published={"FedDP": "83.5 %"}
    )
    found = cells(table)
    first, second = found["SCAFFOLD"], found["FedDP"]
    assert first["accuracy"][0].startswith("73.3% ± ")
    # The differences 0.1 and 0 have the mean 0.05 and the deviation 0.0707.
    assert (first["difference"], first["difference, own validation"]) == ([""], [""])
    assert second["difference"] == [f"+5.0% ± {12.706 * 0.05:.1%} (2 seeds)"]
    assert second["difference, own validation"] == [
        f"+2.5% ± {12.706 * 0.025:.1%} (2 seeds)"
    ]
    assert second["worst client"] == ["25.0% ± 0.0%"]
    assert second["before averaging"] == ["12.5% ± 0.0%"]
    assert (first["published"], second["published"]) == ([""], ["83.5 %"])
    # Seed 0 of SCAFFOLD has 0.6 at most, which the others reach at once; 3 MB a round.
    assert (first["rounds to 60%"], first["MB to 60%"]) == (["4"], ["12.0"])
    assert (second["rounds to 60%"], second["MB to 60%"]) == (["1"], ["3.0"])
    assert second["traffic, MB"] == ["30"] and second["seeds"] == ["2"]


def test_a_target_that_a_seed_misses_says_so(tmp_path):
    base = write_seeds(tmp_path / "base", {0: [0.85] * 10})
    some = write_seeds(tmp_path / "some", {0: [0.8] * 10, 1: [0.1] * 4 + [0.9] * 6})
    none = write_seeds(tmp_path / "none", {0: [0.2] * 10})
    found = cells(tables.comparison({"base": base, "some": some, "none": none}))
    assert found["some"]["rounds to 85%"] == ["5 (1 of 2)"]
    assert found["none"]["rounds to 85%"] == ["not reached"]
    assert "published" not in found["base"]


def test_nothing_is_a_target_if_the_first_never_leaves_the_ground(tmp_path):
    base = write_seeds(tmp_path / "base", {0: [0.04] * 10})
    assert "rounds to" not in tables.comparison({"base": base})


def test_an_accuracy_that_float32_rounds_down_is_reached(tmp_path):
    base = write_seeds(tmp_path, {0: [0.949999988079071] * 10})
    found = cells(tables.comparison({"base": base}))
    assert found["base"]["rounds to 95%"] == ["1"]


def test_rounds_after_the_last_that_is_asked_for_are_left_out(tmp_path):
    base = write_seeds(tmp_path, {0: [0.3] * 5 + [0.9] * 5})
    row = cells(tables.comparison({"base": base}, most_rounds=5))["base"]
    assert (row["rounds"], row["accuracy"]) == (["5"], ["30.0%"])
    assert (row["rounds to 30%"], row["traffic, MB"]) == (["1"], ["15"])


def test_seeds_are_told_by_their_configuration(tmp_path):
    """Folders that are not named by their seed, as in a sweep without one."""
    (base,) = write_seeds(tmp_path / "fedavg", {3: [0.5] * 10})
    (other,) = write_seeds(tmp_path / "scaffold", {3: [0.75] * 10})
    base, other = (folder.rename(folder.parent / "run") for folder in (base, other))
    other = other.rename(other.parent / "another")
    found = cells(tables.comparison({"FedAvg": [base], "SCAFFOLD": [other]}))
    assert found["SCAFFOLD"]["difference"] == ["+25.0%"]


def test_a_difference_of_some_seeds_says_of_how_many(tmp_path):
    base = write_seeds(tmp_path / "base", dict.fromkeys((0, 1, 2), [0.5] * 10))
    other = write_seeds(tmp_path / "other", dict.fromkeys((0, 2, 5), [0.75] * 10))
    found = cells(tables.comparison({"base": base, "other": other, "one": other[:1]}))
    assert found["other"]["difference"] == ["+25.0% ± 0.0% (2 seeds)"]
    assert found["one"]["difference"] == ["+25.0% (1 seed)"]


def test_the_change_at_the_end_is_that_of_the_last_fifth(tmp_path):
    """Rounds 9 and 10 less rounds 7 and 8: 0.55 - 0.45 and 0.3 - 0.3."""
    seeds = {0: [0.1] * 6 + [0.4, 0.5, 0.5, 0.6], 1: [0.3] * 10}
    folders = write_seeds(tmp_path, seeds)
    assert changes_at_the_end(folders) == pytest.approx([0.1, 0.0])
    config = config_of(rounds=10, **{"eval.every": 10})
    seldom = write_run(tmp_path / "seldom", config, records=False)
    assert changes_at_the_end([seldom]) == []


def test_a_method_has_its_last_ten_evaluations_and_its_best_one(tmp_path):
    values = [0.0, 0.9] + [0.5] * 9 + [0.6]
    own = {"eval/headline": lambda n: values[n - 1]}
    config = config_of(rounds=12, **{"eval.every": 1})
    folder = write_run(tmp_path / "run", config, records=False, **own)
    row = cells(tables.pruning_table({"one": [folder]}))["one"]
    assert (row["accuracy"], row["best"]) == (["51.0%"], ["90.0%"])


def test_methods_with_gates_are_compared_with_them(tmp_path):
    own = {"eval/headline": lambda n: 0.75}
    folder = write_run(tmp_path / "run", config_of(), records=False, **own)
    row = cells(tables.pruning_table({"one": [folder]}))["one"]
    assert (row["accuracy"], row["best"]) == (["75.0%"], ["75.0%"])


@pytest.mark.parametrize(("last", "shown"), [(8, "20.0%"), (7, "")])
def test_evaluations_to_which_nobody_came_do_not_count(tmp_path, last, shown):
    """Of the last two rounds, 9 and 10, round 9 alone has a number, or none has."""
    values = {9: 0.2 if last == 8 else math.nan, 10: math.nan}
    own = {"eval/after_local/mean": lambda n: values.get(n, 0.1)}
    config = config_of(rounds=10, **{"eval.every": 1})
    folder = write_run(tmp_path / "run", config, records=False, **own)
    row = cells(tables.comparison({"one": [folder]}))["one"]
    assert row["before averaging"] == [shown]


def test_an_exploration_pays_when_rounds_have_saved_what_it_took(tmp_path):
    """It takes 5 MB and half a round's FLOPs; a round saves 1 MB and a fifth of them,
    two fifths in theory.

    So traffic is even after round 5 and saved from round 6 on, compute from round 3, in
    theory from round 2.
    """
    saving = {
        "flops/realisable": lambda n: 1.6e12,
        "flops/theoretical": lambda n: 1.2e12,
    }
    (folder,) = write_seeds(tmp_path / "masked", {0: [0.5] * 10}, **saving)
    metrics = folder / "metrics.jsonl"
    before = '{"round": 0, "bytes/down": 2e6, "bytes/up": 3e6, "flops/dense": 1e12}\n'
    metrics.write_text(before + metrics.read_text())
    base = write_seeds(
        tmp_path / "base", {0: [0.25] * 10}, **{"bytes/down": lambda n: 3e6}
    )
    found = cells(tables.pruning_table({"FedAvg": base, "AutoFLIP": [folder]}))
    assert found["AutoFLIP"]["pays from round: traffic"] == ["6"]
    assert found["AutoFLIP"]["pays from round: MACs, realisable"] == ["3"]
    assert found["AutoFLIP"]["pays from round: MACs, theoretical"] == ["2"]
    assert found["AutoFLIP"]["difference"] == ["+25.0%"]
    assert found["FedAvg"]["pays from round: traffic"] == [""]


def test_savings_are_of_what_unpruned_rounds_would_take():
    """4 FLOPs and 3 bytes a round; an exploration before takes 2 FLOPs and 1 byte."""
    sent = {"bytes/dense": 3.0, "bytes/down": 0.5, "bytes/up": 1.0}
    dense = sent | {"flops/dense": 4.0, "flops/theoretical": 1.0}
    rows = [
        {"round": 0, "flops/dense": 2.0, "bytes/down": 0.5, "bytes/up": 0.5},
        dense | {"round": 1, "flops/realisable": 3.0, "sparsity/all": 0.5},
        dense | {"round": 2, "flops/realisable": 2.0, "sparsity/all": 0.75},
    ]
    found = totals(rows)
    assert found[:4] == (0.625, 1 - 2 / 8, 1 - 5 / 8, 1 - 3 / 6)
    assert found[4:] == (1 - 4 / 8, 1 - 7 / 8, 1 - 4 / 6, 4 / 1e6)
    hardware, sparse = "of the FLOPs on dense hardware", "with sparse kernels"
    words = {
        "pruned": "75.0% of the parameters in the last round, 62.5% on average",
        "compute saved": f"37.5% {hardware}, 75.0% {sparse}",
        "traffic saved": "50.0% of the bytes",
    }
    assert in_words(rows[1:]) == words
    before = f"12.5% {hardware}, 50.0% {sparse}, 33.3% of the bytes: "
    before += "what came before round 1 included"
    assert in_words(rows) == words | {"with round 0": before}


def test_what_came_before_the_first_round_is_divided_by_what_a_round_saves():
    """Two seeds that spend 4 and 8, and save 1 or 1.5 FLOPs and 1 byte a round."""
    dense = {"flops/dense": 2.0, "bytes/dense": 3.0, "bytes/down": 1.0, "bytes/up": 1.0}
    saving = {"flops/realisable": 1.0, "flops/theoretical": 0.5}
    rounds = [dense | saving | {"round": n} for n in (1, 2)]
    runs = [
        [{"round": 0, "flops/dense": n, "bytes/down": n, "bytes/up": 0.0}, *rounds]
        for n in (4.0, 8.0)
    ]
    assert break_even(runs) == (6.0, 4.0, 6.0)
    assert break_even([rounds]) == (0.0, 0.0, 0.0)
    nothing = [dense | {"round": 1, "bytes/up": 2.0}]
    assert all(map(math.isnan, break_even([nothing])))
    spent = [{"round": 0, "flops/dense": 1.0, "bytes/down": 1.0, "bytes/up": 0.0}]
    assert break_even([spent + nothing]) == (math.inf,) * 3
