"""Tables of FedDP and its baselines."""

import functools
from collections.abc import Sequence

from .clients import by_clients, line_name
from .fine_tuned import fine_tuned
from .personal import by_client_and_class, swapped_gates
from .table import Block, Line, Table, of_runs

_WORDS = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fednova": "FedNova",
    "scaffold": "SCAFFOLD",
}

PUBLISHED = {"FedDP": "83.5% (VGG-11)", "SCAFFOLD": "84.2% (VGG-11)"}
"""The best accuracy on CIFAR-10 with ten clients in the paper."""

SMALL = (
    "Differences from the paper: a CNN of two convolutions with batch norm in place of "
    "VGG-11 and ResNet-32, two local epochs in batches of 16 (paper: 10 and 64), "
    "nothing augmented, 60 to 500 rounds"
)
"""How configs/feddp_cpu.py differs from the paper."""


def _config(data: str, method: str, clients: str) -> str:
    return f"feddp_cpu:{data},{method},{clients}"


def _plain(data: str, clients: str, methods: tuple[str, ...]) -> Block:
    lines = tuple(Line(_WORDS[m], _config(data, m, clients)) for m in methods)
    return Block(f"{clients}_without_gates", f"{clients} clients, without gates", lines)


def _gated(data: str, clients: str, method: str) -> Block:
    """A method, its gates and the two controls that show what these are worth."""
    words = _WORDS[method]
    gated = "FedDP" if method == "scaffold" else f"{words} with gates"
    lines = (
        Line(words, _config(data, method, clients)),
        Line(gated, _config(data, f"{method}_dp", clients)),
        Line(f"{gated}, never learning", _config(data, f"{method}_nograd", clients)),
        Line(f"{words}, narrow", _config(data, f"{method}_narrow", clients)),
    )
    if (data, clients) == ("cifar10", "10"):
        lines = tuple(
            line._replace(published=PUBLISHED.get(line.name, "")) for line in lines
        )
    return Block(f"{clients}_{method}", f"{clients} clients, {words}", lines)


def with_controls(
    data: str, clients: str, methods: Sequence[str] = tuple(_WORDS)
) -> tuple[Line, ...]:
    """Methods, each without and with gates, and what shows what these are worth."""
    return tuple(
        line for method in methods for line in _gated(data, clients, method).lines
    )


def _figure_5(
    data: str, numbers: tuple[str, ...], methods: tuple[str, ...]
) -> tuple[Block, ...]:
    all_lines = tuple(
        line._replace(name=line_name(line.name, clients))
        for clients in numbers
        for line in with_controls(data, clients, methods)
    )
    plain = {}
    for method in methods:
        first, *others = _gated(data, numbers[0], method).lines
        plain |= {line.name: first.name for line in others}
    make = functools.partial(by_clients, plain=plain)
    return (
        Block("all", "Every method", all_lines, make),
        *(
            block
            for clients in numbers
            for block in (
                _plain(data, clients, methods),
                *(_gated(data, clients, method) for method in methods),
            )
        ),
        *(_personal(data, clients) for clients in (numbers[0], numbers[-1])),
        _averaged(data, numbers[0]),
    )


def _personal(data: str, clients: str) -> Block:
    """What FedAvg and SCAFFOLD are worth to each client, once it has fine-tuned."""
    return Block(
        f"{clients}_fine_tuned",
        f"{clients} clients, fine-tuned",
        with_controls(data, clients, ("fedavg", "scaffold")),
        of_runs(fine_tuned),
        of_checkpoints=True,
    )


def _averaged(data: str, clients: str) -> Block:
    """SCAFFOLD, FedDP and FedDP with averaged gates; all clients in every round."""
    scaffold, feddp, *_ = _gated(data, clients, "scaffold").lines
    averaged = feddp._replace(
        name="FedDP, gates averaged", launcher="averaged_gates", published=""
    )
    title = f"{clients} clients, gates averaged like the rest"
    return Block(f"{clients}_averaged_gates", title, (scaffold, feddp, averaged))


def _changed(name: str, title: str, change: str, method: str = "scaffold") -> Block:
    """A method on digits, without and with gates and controls, with another field."""
    lines = _gated("digits", "10", method).lines
    changed = tuple(line._replace(changes=(change,)) for line in lines)
    return Block(name, title, changed)


_OWN_GATES = "model.gate_init=per_client"

_PARTS = {
    "gates fixed, their gradient still trains the rest": "client.personal_lr_factor=0",
    "gates with a tenth of the step size": "client.personal_lr_factor=0.1",
    "no gradient into the gates' inputs": "model.gate_input_grad=false",
    "gradient also from channels not kept": "model.gate_mode=hard_dense_ste",
    "channels multiplied by their scores": "model.gate_mode=scale",
    "no lasso": "model.lasso_weight=0",
    "lasso 1e-5": "model.lasso_weight=1e-5",
    "lasso 1e-3": "model.lasso_weight=1e-3",
    "first gates of each client's own": _OWN_GATES,
}
"""What differs from FedDP -> the field that says so."""


def _same_or_own() -> Block:
    """Gates that are the same on all clients or not, learning and never learning."""
    scaffold, feddp, fixed, _ = _gated("digits", "10", "scaffold").lines
    *_, averaged = _averaged("digits", "10").lines
    own = [
        line._replace(
            name=f"{line.name}, first gates of each client's own", changes=(_OWN_GATES,)
        )
        for line in (fixed, feddp)
    ]
    title = "Gates that are the same on all clients, or each client's own"
    return Block("same_or_own", title, (scaffold, fixed, averaged, feddp, *own))


_STEP_SIZES = ("0.03", "0.3")
"""Of the clients, beside 0.1 of all other lines."""


def _by_step_size() -> Block:
    """FedAvg and SCAFFOLD on digits, without gates, with every step size."""
    lines = []
    for method in ("fedavg", "scaffold"):
        plain = _gated("digits", "10", method).lines[0]
        lines += [plain._replace(name=f"{plain.name}, step size 0.1")]
        lines += [
            plain._replace(
                name=f"{plain.name}, step size {lr}", changes=(f"client.lr={lr}",)
            )
            for lr in _STEP_SIZES
        ]
    return Block("step_sizes", "FedAvg and SCAFFOLD by step size", tuple(lines))


DIGITS_GATES = Table(
    "What do learned gates learn? Digits, ten clients.",
    (
        _gated("digits", "10", "scaffold"),
        _gated("digits", "10", "fedavg"),
        Block(
            "parts",
            "Parts of FedDP",
            (
                Line("FedDP", _config("digits", "scaffold_dp", "10")),
                *(
                    Line(words, _config("digits", "scaffold_dp", "10"), (change,))
                    for words, change in _PARTS.items()
                ),
            ),
        ),
        _averaged("digits", "10"),
        _same_or_own(),
        Block(
            "whose_gates",
            "Whose gates",
            _gated("digits", "10", "scaffold").lines,
            of_runs(swapped_gates),
            of_checkpoints=True,
        ),
        Block(
            "by_client",
            "By client and by class",
            _gated("digits", "10", "scaffold").lines,
            of_runs(by_client_and_class),
            of_checkpoints=True,
        ),
        _personal("digits", "10"),
        *(
            _changed(f"step_size_{lr}", f"Step size {lr}", f"client.lr={lr}")
            for lr in _STEP_SIZES
        ),
        _changed(
            "fedavg_step_size_0.3",
            "FedAvg, step size 0.3",
            "client.lr=0.3",
            "fedavg",
        ),
        _by_step_size(),
    ),
    seeds=tuple(range(5)),
    differs=f"{SMALL}; digits of 8 by 8 pixels in place of CIFAR-10.",
)

MNIST = Table(
    "What do gates cost and buy at each number of clients? MNIST (FedDP, figure 5).",
    _figure_5("mnist", ("10", "30", "50", "100"), tuple(_WORDS)),
    seeds=tuple(range(5)),
    differs=f"{SMALL}; 10,000 images of MNIST of 14 by 14 pixels.",
)

CIFAR10 = Table(
    "What do gates cost and buy? CIFAR-10 with 10 and 100 clients (FedDP, figure 5).",
    _figure_5("cifar10", ("10", "100"), ("fedavg", "scaffold")),
    seeds=tuple(range(3)),
    differs=(
        f"{SMALL}; 5,000 images of 24 by 24 pixels for training; the step size is 0.03 "
        "(paper: 0.1)."
    ),
)


def _faults(clients: str) -> Block:
    """SCAFFOLD, and the faults of widely copied code."""
    scaffold = _config("mnist", "scaffold", clients)
    divisor, init = (
        "algorithm.control_divisor=m_legacy",
        "algorithm.control_init=random_legacy",
    )
    lines = (
        Line("FedAvg", _config("mnist", "fedavg", clients)),
        Line("SCAFFOLD", scaffold),
        Line("controls divided by the cohort's size", scaffold, (divisor,)),
        Line("controls that begin as a random network", scaffold, (init,)),
        Line("both", scaffold, (divisor, init)),
    )
    return Block(f"{clients}_clients", f"{clients} clients", lines)


FAULTS = Table(
    "Does SCAFFOLD diverge above ten clients? MNIST.",
    tuple(_faults(clients) for clients in ("10", "30", "100")),
    seeds=tuple(range(5)),
    differs=f"{SMALL}; 10,000 images of MNIST of 14 by 14 pixels.",
)

_NARROW = {"0.25": "0.46", "0.35": "0.57", "0.5": "0.7", "0.65": "0.8", "0.75": "0.85"}
"""Share of the MACs that gates keep -> width of a plain network with about as many.

Networks of these widths have up to 6% fewer MACs, or 1% more (0.65), than gates keep.
"""

_USUAL = "0.5"
"""The share of all other tables."""


def _shares() -> Block:
    """What gates and narrow networks are worth at several shares of the MACs."""
    dense, *others = _gated("digits", "10", "scaffold").lines
    lines = [dense]
    for share, width in _NARROW.items():
        kept, narrow = (f"model.flops_target={share}",), (f"model.width={width}",)
        if share == _USUAL:
            kept = narrow = ()
        lines += [
            line._replace(name=f"{line.name}, {share} of the MACs", changes=changes)
            for line, changes in zip(others, (kept, kept, narrow), strict=True)
        ]
    return Block("macs", "Share of the MACs", tuple(lines))


def _norm(norm: str, words: str, changes: tuple[str, ...]) -> Block:
    """FedDP with a norm and each rescaling, and its controls with the same norm."""
    lines = _gated("digits", "10", "scaffold").lines
    _, *gated, _ = lines
    rescaled = [
        line._replace(
            name=f"{line.name}, rescaling {rescale}",
            changes=(*changes, f"model.gate_rescale={rescale}"),
        )
        for rescale in ("sqrt", "inverse")
        for line in gated
    ]
    plain = [line._replace(changes=changes) for line in lines]
    return Block(f"norm_{norm}", words, (*plain, *rescaled))


ABLATIONS = Table(
    "Which settings of gates matter? Digits, ten clients.",
    (
        _shares(),
        _norm("bn", "Batch norm", ()),
        _norm("gn", "Group norm", ("model.norm=gn",)),
        # With the step size of the others most runs of SCAFFOLD diverge, and with this
        # one they need more rounds.
        _norm(
            "none",
            "No norm, step size 0.03, 300 rounds",
            ("model.norm=none", "client.lr=0.03", "rounds=300"),
        ),
        *(
            _changed(f"epochs_{n}", f"Local epochs: {n}", f"client.epochs={n}")
            for n in (1, 5, 10)
        ),
    ),
    seeds=tuple(range(5)),
    differs=DIGITS_GATES.differs,
)
