"""Federated averaging as a plain PyTorch loop over the clients.

python -m launch.benchmark.torch_loop --work=w1 --data=FILE.npz --threads=2
"""
# pyright: reportMissingImports=false

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from . import torch_models, worker


def train_client(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    examples: torch.Tensor,
    data: worker.Data,
) -> None:
    """Trains the model on the examples of one client, in place.

    Args:
      model: the model, holding the anchor.
      optimizer: optimiser of its parameters, without state.
      images: [num_images, height, width, channels] uint8, of all clients.
      labels: [num_images] int64.
      examples: [size] int64, the client's indices into images.
      data: the settings.
    """
    for _ in range(data.epochs):
        order = torch.randperm(len(examples), device=examples.device)
        for batch in examples[order].split(data.batch_size):
            optimizer.zero_grad()
            logits = model(images[batch])
            functional.cross_entropy(logits, labels[batch]).backward()
            optimizer.step()


def make(
    work: str, data: worker.Data
) -> tuple[nn.Module, Callable[[np.ndarray], None], Callable[[], float]]:
    """Returns the model, a function that runs a round and one for the checksum.

    Between rounds the model holds the global parameters.
    """
    device = torch_models.device()
    model = torch_models.build(work, data)
    images = torch.from_numpy(data.images).to(device)
    labels = torch.from_numpy(data.labels).long().to(device)
    clients = [
        torch.from_numpy(data.examples(client)).long().to(device)
        for client in range(len(data.sizes))
    ]
    params = [param.data for param in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), data.client_lr)
    anchor = [param.clone() for param in params]
    mean_delta = [torch.zeros_like(param) for param in params]

    def run_round(cohort: np.ndarray) -> None:
        num_examples = data.sizes[cohort].sum()
        torch._foreach_copy_(anchor, params)
        torch._foreach_zero_(mean_delta)
        for client in cohort:
            torch._foreach_copy_(params, anchor)
            train_client(
                model=model,
                optimizer=optimizer,
                images=images,
                labels=labels,
                examples=clients[client],
                data=data,
            )
            weight = float(data.sizes[client] / num_examples)
            torch._foreach_add_(mean_delta, anchor, alpha=weight)
            torch._foreach_add_(mean_delta, params, alpha=-weight)
        torch._foreach_copy_(params, anchor)
        torch._foreach_add_(params, mean_delta, alpha=-data.server_lr)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return model, run_round, lambda: torch_models.mean(params)


def main() -> None:
    """Serves the orchestrator."""
    options, channel, data = worker.start()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    _, run_round, checksum = make(options.work, data)
    worker.serve(
        channel,
        data,
        peer="torch_loop",
        package="torch",
        run_round=run_round,
        checksum=checksum,
    )


if __name__ == "__main__":
    main()
