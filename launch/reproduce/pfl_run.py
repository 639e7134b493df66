"""Trains pfl-research on the data and the cohorts of a run, in its own environment.

python -m launch.reproduce.pfl_run --data=FILE.npz --output=FILE.jsonl --seed=0
    --threads=2

Every 50 rounds and after the last one it evaluates and saves, and the output gets a
line; started again, it goes on from there.
"""
# pyright: reportMissingImports=false

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..benchmark import pfl_sim, torch_models, worker
from . import pfl_files

_EVERY = 50
"""Rounds between evaluations."""
_BATCH = 1000


def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that the network, left in training mode, is right on.

    It is NaN if a weight is not finite: such a network names the first class always.

    Args:
      network: takes uint8 images.
      images: [n, height, width, channels] uint8.
      labels: [n] integers.
    """
    if not all(bool(torch.isfinite(x).all()) for x in network.parameters()):
        return math.nan
    device = next(network.parameters()).device
    network.eval()
    correct = 0
    with torch.inference_mode():
        for first in range(0, len(labels), _BATCH):
            batch = torch.from_numpy(images[first : first + _BATCH]).to(device)
            found = network(batch).argmax(-1).cpu().numpy()
            correct += int((found == labels[first : first + _BATCH]).sum())
    network.train()
    return correct / len(labels)


class _Normalised(nn.Module):
    """Subtracts a mean from each channel of images and divides by a deviation."""

    def __init__(self, mean: np.ndarray, std: np.ndarray):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Takes and returns [batch_size, channels, height, width] float32."""
        return (images - self.mean) / self.std


def train(data: worker.Data, more: pfl_files.More, seed: int, output: Path) -> None:
    """Trains one round for each cohort of the data.

    Args:
      data: of the work w1.
      more: the test set, and how images are normalised.
      seed: of the first weights and of dropout.
      output: file of the rows: rounds, accuracy, and seconds of a round, the median of
        those since the row before, without evaluations and warm-up.
    """
    torch.manual_seed(pfl_files.mixed(seed))
    network, run_round, _ = pfl_sim.make("w1", data)
    scaled = network[0]
    network[0] = nn.Sequential(scaled, _Normalised(more.mean, more.std))
    network.to(torch_models.device())
    rows: list[dict[str, Any]] = []
    file, seconds, first = output.with_suffix(".pt"), [], 0
    if file.exists():
        found = torch.load(file, weights_only=True)
        rows = found["rows"]
        first = rows[-1]["round"]
        if found["trained_on"] != pfl_files.digest(data, more, seed, first):
            sys.exit(f"error: {file} was trained on other data or settings; delete it")
        network.load_state_dict(found["network"])
        pfl_files.write_rows(rows, output)
    for number in range(first, len(data.cohorts)):
        # Of the round, so that a run that was stopped ends like one that was not.
        torch.manual_seed(pfl_files.mixed(seed, number))
        began = time.perf_counter()
        run_round(data.cohorts[number])
        # The first round of a process warms up.
        if number > first:
            seconds.append(time.perf_counter() - began)
        done = number + 1
        if done % _EVERY == 0 or done == len(data.cohorts):
            row = {"round": done, "seconds": float(np.median(seconds or [np.nan]))}
            row["accuracy"] = accuracy(network, more.test_images, more.test_labels)
            rows.append(row)
            seconds = []
            print(json.dumps(rows[-1]), flush=True)
            new = file.with_suffix(".new")
            saved = {"rows": rows, "network": network.state_dict()}
            saved["trained_on"] = pfl_files.digest(data, more, seed, done)
            torch.save(saved, new)
            new.replace(file)
            pfl_files.write_rows(rows, output)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    more = pfl_files.read(options.data)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    train(worker.load(options.data), more, options.seed, options.output)


if __name__ == "__main__":
    main()
