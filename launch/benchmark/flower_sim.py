"""Federated averaging with Flower's simulation on Ray.

python -m launch.benchmark.flower_sim --work=w1 --data=FILE.npz --threads=2

Every thread is a Ray actor that trains one client at a time.
"""
# pyright: reportMissingImports=false

import functools
import os
import sys
import time
from collections.abc import Iterable
from typing import NamedTuple

# Nothing is sent of the use and the machine. Flower reads them when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Ray would give its actors a lower priority than the other peers have.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112, the name that Ray reads

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvgM
from flwr.simulation import run_simulation
from torch import nn

from . import torch_loop, torch_models, worker

client_app = ClientApp()


class _Actor(NamedTuple):
    """What an actor keeps from one client to the next."""

    data: worker.Data
    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: torch.Tensor
    labels: torch.Tensor


@functools.cache
def _actor(work: str, path: str) -> _Actor:
    torch.set_num_threads(1)
    data = worker.load(path)
    device = torch_models.device()
    model = torch_models.build(work, data)
    return _Actor(
        data=data,
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), data.client_lr),
        images=torch.from_numpy(data.images).to(device),
        labels=torch.from_numpy(data.labels).long().to(device),
    )


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """Trains the client that the message names."""
    del context
    config, arrays = message.content.config_records, message.content.array_records
    named = {name: str(value) for name, value in config["config"].items()}
    actor = _actor(named["work"], named["data"])
    examples = torch.from_numpy(actor.data.examples(int(named["client"]))).long()
    actor.model.load_state_dict(arrays["arrays"].to_torch_state_dict())
    torch_loop.train_client(
        model=actor.model,
        optimizer=actor.optimizer,
        images=actor.images,
        labels=actor.labels,
        examples=examples.to(actor.images.device),
        data=actor.data,
    )
    reply = RecordDict(
        {
            "arrays": ArrayRecord(actor.model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(examples)}),
        }
    )
    return Message(reply, reply_to=message)


class _QuitError(Exception):
    """Ends the simulation."""


class Strategy(FedAvgM):
    """Flower's averaging of given cohorts; the orchestrator starts each round.

    Client i lives at the i-th node. FedAvgM without momentum is FedAvg with a step
    size of the server.
    """

    def __init__(
        self, options: worker.Options, channel: worker.Channel, data: worker.Data
    ):
        super().__init__(fraction_evaluate=0.0, server_learning_rate=data.server_lr)
        self._options = options
        self._channel = channel
        self._data = data
        self._nodes: list[int] = []
        self._start = 0.0

    def _next_cohort(self, server_round: int, arrays: ArrayRecord) -> np.ndarray:
        """Reports the finished round and waits for the command to begin the next."""
        seconds = time.perf_counter() - self._start
        if server_round == 1:
            return self._data.cohort(0)
        if server_round == 2:
            self._channel.ready("flower", "flwr", {})
        else:
            finished = self._data.cohort(server_round - 3)
            params = list(arrays.to_torch_state_dict().values())
            self._channel.report(
                seconds, self._data.num_images(finished), torch_models.mean(params)
            )
        if not self._channel.wait():
            raise _QuitError
        self._start = time.perf_counter()
        return self._data.cohort(server_round - 2)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Returns a message for every client of the cohort."""
        if self.current_arrays is None:
            self.current_arrays = arrays
        # The nodes register while the strategy starts.
        while len(self._nodes) < len(self._data.sizes):
            time.sleep(0.1)
            self._nodes = sorted(grid.get_node_ids())
        messages = []
        for client in self._next_cohort(server_round, arrays).tolist():
            config = ConfigRecord(
                {
                    "work": self._options.work,
                    "data": self._options.data,
                    "client": client,
                }
            )
            messages.append(
                Message(
                    content=RecordDict({"arrays": arrays, "config": config}),
                    message_type=MessageType.TRAIN,
                    dst_node_id=self._nodes[client],
                )
            )
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Averages the replies; Flower alone would leave failed clients out.

        Raises:
          RuntimeError: if a client failed.
        """
        replies = list(replies)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        if failed:
            raise RuntimeError(f"{len(failed)} clients failed: {failed[0]}")
        return super().aggregate_train(server_round, replies)


def main() -> None:
    """Serves the orchestrator."""
    options, channel, data = worker.start()
    torch.manual_seed(0)
    model = torch_models.build(options.work, data)
    strategy = Strategy(options, channel, data)
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        arrays = ArrayRecord(model.cpu().state_dict())
        strategy.start(grid, arrays, num_rounds=sys.maxsize)

    gpus = 1 / options.threads if torch.cuda.is_available() else 0.0
    try:
        run_simulation(
            server_app=server_app,
            client_app=client_app,
            num_supernodes=len(data.sizes),
            backend_config={
                "init_args": {"num_cpus": options.threads},
                "client_resources": {"num_cpus": 1, "num_gpus": gpus},
            },
        )
    except _QuitError:
        return


if __name__ == "__main__":
    # Ray pickles definitions in __main__ by value, so every client would start with an
    # empty cache.
    from . import flower_sim

    flower_sim.main()
