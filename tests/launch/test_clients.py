"""Accuracies of methods against numbers of clients."""

from fedjax_prune.runs.metrics import HEADLINE
from launch.reproduce.clients import by_clients, line_name
from tests.made_up_runs import config_of, write_run


def test_methods_stand_in_rows_and_numbers_of_clients_in_columns(tmp_path):
    def workdirs(name, *accuracies):
        for seed, accuracy in enumerate(accuracies):
            config = config_of(seed=seed, **{"eval.every": 1})
            fields = {HEADLINE: accuracy, "eval/client_local/mean": lambda n: n / 100}
            folder = tmp_path / f"{name}{seed}"
            yield write_run(folder, config, records=False, **fields)

    runs = {
        line_name("FedAvg", "10"): workdirs(
            "a", lambda n: 0.5 if n > 8 else 0.0, lambda n: 0.7
        ),
        line_name("SCAFFOLD", "10"): workdirs("f", lambda n: 0.5),
        line_name("FedDP, never learning", "10"): workdirs(
            "b", lambda n: 0.4, lambda n: 0.5
        ),
        line_name("FedAvg", "30"): workdirs("c", lambda n: 0.2),
        line_name("FedDP, never learning", "30"): workdirs(
            "d", lambda n: 0.4, lambda n: 0.6
        ),
        line_name("FedDP, never learning", "100"): workdirs("e", lambda n: 1.0),
    }
    plain = {"FedDP, never learning": "SCAFFOLD"}
    # Two seeds that differ by d have an interval of 12.706 d / 2.
    assert (
        by_clients({name: list(w) for name, w in runs.items()}, {}, 10, plain=plain)
        == """\
| accuracy | 10 clients | 30 clients | 100 clients |
| --- | --- | --- | --- |
| FedAvg | 60.0% ± 127.1% | 20.0% (of 1) |  |
| SCAFFOLD | 50.0% (of 1) |  |  |
| FedDP, never learning | 45.0% ± 63.5% | 50.0% ± 127.1% | 100.0% (of 1) |

| own validation | 10 clients | 30 clients | 100 clients |
| --- | --- | --- | --- |
| FedAvg | 9.5% ± 0.0% | 9.5% (of 1) |  |
| SCAFFOLD | 9.5% (of 1) |  |  |
| FedDP, never learning | 9.5% ± 0.0% | 9.5% ± 0.0% | 9.5% (of 1) |

| less FedAvg | 10 clients | 30 clients | 100 clients |
| --- | --- | --- | --- |
| SCAFFOLD | +0.0% (of 1) |  |  |
| FedDP, never learning | -15.0% ± 63.5% | +20.0% (of 1) |  |

| accuracy less that without gates | 10 clients | 30 clients | 100 clients |
| --- | --- | --- | --- |
| FedDP, never learning | -10.0% (of 1) |  |  |

| own validation less that without gates | 10 clients | 30 clients | 100 clients |
| --- | --- | --- | --- |
| FedDP, never learning | +0.0% (of 1) |  |  |
"""
    )
