"""Tables of FedDP and its baselines."""

from .personal import swapped_gates
from .table import Block, Line, Table

_WORDS = {
    "fedavg": "FedAvg",
    "fedprox": "FedProx",
    "fednova": "FedNova",
    "scaffold": "SCAFFOLD",
}


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
    return Block(f"{clients}_{method}", f"{clients} clients, {words}", lines)


def _figure_5(
    data: str, numbers: tuple[str, ...], methods: tuple[str, ...]
) -> tuple[Block, ...]:
    return tuple(
        block
        for clients in numbers
        for block in (
            _plain(data, clients, methods),
            *(_gated(data, clients, method) for method in methods),
        )
    )


_PARTS = {
    "gates fixed, their gradient still trains the rest": "client.personal_lr=0",
    "gates with a tenth of the step size": "client.personal_lr=0.1",
    "no gradient into the gates' inputs": "model.gate_input_grad=false",
    "gradient also from channels not kept": "model.gate_mode=hard_dense_ste",
    "channels multiplied by their scores": "model.gate_mode=scale",
    "no lasso": "model.lasso_weight=0",
    "a strong lasso, 1e-3": "model.lasso_weight=1e-3",
    "first gates of each client's own": "model.gate_init=per_client",
}
"""What differs from FedDP -> the field that says so."""

_STEP_SIZES = ("0.03", "0.3")
"""Of the clients, beside 0.1 of all other lines."""

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
        Block(
            "whose_gates",
            "Whose gates",
            _gated("digits", "10", "scaffold").lines,
            swapped_gates,
            drawn=False,
        ),
        *(
            Block(
                f"step_size_{lr}",
                f"Step size {lr}",
                tuple(
                    line._replace(changes=(f"client.lr={lr}",))
                    for line in _gated("digits", "10", "scaffold").lines
                ),
            )
            for lr in _STEP_SIZES
        ),
    ),
    seeds=tuple(range(10)),
)

_ALL = tuple(_WORDS)

MNIST = Table(
    "What do gates cost and buy at each number of clients? MNIST (FedDP, figure 5).",
    _figure_5("mnist", ("10", "30", "50", "100"), _ALL),
    seeds=tuple(range(5)),
)

CIFAR10 = Table(
    "What do gates cost and buy? CIFAR-10 with 10 and 100 clients (FedDP, figure 5).",
    _figure_5("cifar10", ("10", "100"), ("fedavg", "scaffold")),
    seeds=tuple(range(3)),
)
