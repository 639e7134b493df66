"""Federated averaging with pfl-research, after its CIFAR-10 benchmark.

python -m launch.benchmark.pfl_sim --work=w1 --data=FILE.npz --threads=2

As there, the order of a client's batches is fixed, because pfl splits a data set once.
"""
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional

from . import torch_models, worker


class _Model(nn.Module):
    """The model with the two methods that pfl calls."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(self.network(images), labels)

    def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict:
        del images, labels
        return {}


class _Sampler:
    """Gives pfl the clients of the cohort, one at a time."""

    def __init__(self):
        self._clients: Iterator[int] = iter(())

    def start(self, cohort: np.ndarray) -> None:
        self._clients = iter(cohort.tolist())

    def __call__(self) -> int:
        return next(self._clients)


def make(
    work: str, data: worker.Data
) -> tuple[nn.Module, Callable[[np.ndarray], None], Callable[[], float]]:
    """Returns the model, a function that runs a round and one for the checksum."""
    device = torch_models.device()
    network = torch_models.build(work, data)
    model = PyTorchModel(
        model=_Model(network),
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), data.server_lr),
    )
    clients = {}
    for client in range(len(data.sizes)):
        examples = data.examples(client)
        clients[client] = (
            torch.from_numpy(data.images[examples]).to(device),
            torch.from_numpy(data.labels[examples]).long().to(device),
        )
    sampler = _Sampler()
    dataset = FederatedDataset.from_slices(clients, sampler)
    backend = SimulatedBackend(
        training_data=dataset, val_data=dataset, postprocessors=[WeightByDatapoints()]
    )
    algorithm = FederatedAveraging()
    train_params = NNTrainHyperParams(
        local_num_epochs=data.epochs,
        local_learning_rate=data.client_lr,
        local_batch_size=data.batch_size,
    )
    # Iteration 0, the warm-up, is the only one that is a multiple of the frequency.
    params = NNAlgorithmParams(
        central_num_iterations=0,
        evaluation_frequency=2**62,
        train_cohort_size=data.cohorts.shape[1],
        val_cohort_size=0,
    )

    def run_round(cohort: np.ndarray) -> None:
        nonlocal params
        sampler.start(cohort)
        # `run` continues where it ended last, so one more iteration is one round.
        params = dataclasses.replace(
            params, central_num_iterations=params.central_num_iterations + 1
        )
        algorithm.run(
            params, backend, model, train_params, send_metrics_to_platform=False
        )
        if device.type == "cuda":
            torch.cuda.synchronize()

    weights = [param.data for param in network.parameters()]
    return network, run_round, lambda: torch_models.mean(weights)


def main() -> None:
    """Serves the orchestrator."""
    options, channel, data = worker.start()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    _, run_round, checksum = make(options.work, data)
    worker.serve(
        channel,
        data,
        peer="pfl",
        package="pfl",
        run_round=run_round,
        checksum=checksum,
    )


if __name__ == "__main__":
    main()
