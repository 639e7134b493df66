"""Trains pfl-research on the data and the cohorts of a run, in its own environment.

python -m launch.reproduce.pfl_run --data=FILE.npz --output=FILE.jsonl --seed=0
    --threads=2

Every 50 rounds it evaluates, saves beside the output, and writes a line for each
evaluation into it; started again, it goes on from there.
"""
# pyright: reportMissingImports=false

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..benchmark import pfl_sim, worker

EVERY = 50
"""Rounds between evaluations."""
_BATCH = 1000


def accuracy(network: nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that the network, left in training mode, is right on.

    Args:
      network: takes uint8 images.
      images: [n, height, width, channels] uint8.
      labels: [n] integers.
    """
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


def train(
    data: worker.Data, test: tuple[np.ndarray, np.ndarray], seed: int, output: Path
) -> None:
    """Trains one round for each cohort of the data.

    Args:
      data: of the work w1.
      test: images and labels.
      seed: of the first weights and of dropout.
      output: file of the rows.
    """
    torch.manual_seed(seed)
    network, run_round, _ = pfl_sim.make("w1", data)
    file = output.with_suffix(".pt")
    saved: dict[str, Any] = {"rows": []}
    if file.exists():
        saved = torch.load(file, weights_only=True)
        network.load_state_dict(saved["network"])
    rows = saved["rows"]
    last = rows[-1] if rows else {"round": 0, "seconds": 0.0}
    seconds = last["seconds"]
    for number in range(last["round"], len(data.cohorts)):
        # Of the round, so that a run that was stopped ends like one that was not.
        torch.manual_seed((seed << 32) + number)
        began = time.perf_counter()
        run_round(data.cohorts[number])
        seconds += time.perf_counter() - began
        if (number + 1) % EVERY == 0:
            row = {"round": number + 1, "seconds": seconds}
            rows.append({**row, "accuracy": accuracy(network, *test)})
            print(json.dumps(rows[-1]), flush=True)
            new = file.with_suffix(".new")
            torch.save({"rows": rows, "network": network.state_dict()}, new)
            new.replace(file)
            new.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            new.replace(output)


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with np.load(options.data) as file:
        test = file["test_images"], file["test_labels"]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    train(worker.load(options.data), test, options.seed, options.output)


if __name__ == "__main__":
    main()
