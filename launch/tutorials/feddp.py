# %% [markdown]
# # FedDP, from data to picture to exported model
#
# FedDP ([arXiv 2106.06921](https://arxiv.org/abs/2106.06921)) prunes a network anew for
# every image: small gates choose the channels of each layer that this image needs.
# Gates stay on their client. The shared parameters are trained by SCAFFOLD.
#
# This tutorial trains it on handwritten digits, which are embedded in scikit-learn,
# beside the same network without gates. It takes about a minute on two CPU cores. It
# needs `pip install -e '.[docs,report]'`, and runs as a script,
#
#     python launch/tutorials/feddp.py
#
# or, cell by cell, as the notebook that `jupytext --to notebook
# launch/tutorials/feddp.py` makes of it.

# %%
import tempfile
from pathlib import Path

import jax.export
import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

import fedjax_prune as fp
from fedjax_prune.runs import settings, train
from fedjax_prune.runs.export import export_model
from fedjax_prune.runs.metrics_log import read_metrics
from fedjax_prune.runs.page.write import write_report
from fedjax_prune.runs.record import read_records

folder = Path(tempfile.mkdtemp(prefix="feddp_"))
print(f"All files of this tutorial are in {folder}")

# %% [markdown]
# ## 1. The data, and who holds them
#
# A partition says which client holds which examples. Here each client draws its shares
# of the ten digits from a Dirichlet distribution with a small alpha, so that clients
# differ a lot. A row is a client, a column a digit.

# %%
NUM_CLIENTS = 10
examples, test = fp.load("digits")
population = fp.partition(
    "dirichlet", examples.labels, NUM_CLIENTS, seed=2020, alpha=0.1
)
for client in range(NUM_CLIENTS):
    labels = examples.labels[population.of(client)]
    print(client, "".join(f"{n:5}" for n in np.bincount(labels, minlength=10)))

# %% [markdown]
# ## 2. The network and its gates
#
# A gate in front of a convolution takes the mean of each input channel, computes a
# logit for each output channel, and keeps the K channels with the largest logits; K is
# the keep ratio times the number of channels. Multiply-accumulates (MACs) fall faster
# than channels, because the next layer also reads fewer of them. `keep_ratio_for` finds
# the ratio that leaves half of the MACs.

# %%
image_shape = examples.images.shape[1:]
dense = fp.MODELS["cnn"](num_classes=10, width=0.5, norm="bn", dropout=0.0)
keep_ratio = fp.keep_ratio_for(dense, image_shape, flops_target=0.5)
gated = dense.clone(gates=fp.GateSettings(keep_ratio))
macs = fp.macs(gated, image_shape)
print(f"Each gate keeps {keep_ratio:.1%} of the channels.")
print(f"MACs of an image: {macs.dense:,} without gates, {macs.kept:,} with them.")

# %% [markdown]
# ## 3. Training
#
# A run is described by a configuration. `settings.default_config` gives every field
# with its default; `python -m fedjax_prune train --help` explains them. `check`
# finds every mistake before anything is loaded or compiled. `train.run` is what
# `python -m fedjax_prune train` calls: if it is stopped, the same call goes on from the
# newest checkpoint.


# %%
def configure(gated: bool) -> ConfigDict:
    """FedDP, or the same without gates."""
    config = settings.default_config("scaffold")
    config |= {"rounds": 20, "cohort_size": NUM_CLIENTS, "lanes": 1}
    config["eval"] |= {"every": 4}
    config["data"] |= {"name": "digits", "augment": "none"}
    config["data"] |= {"num_clients": NUM_CLIENTS, "alpha": 0.1, "seed": 2020}
    config["model"] |= {"name": "cnn", "width": 0.5, "norm": "bn", "dropout": 0.0}
    config["model"] |= {"gated": gated, "flops_target": 0.5}
    config["client"] |= {"epochs": 2, "batch_size": 16, "lr": 0.1}
    settings.check(config)
    return ConfigDict(config)


runs = {"dense": folder / "dense", "feddp": folder / "feddp"}
for name, workdir in runs.items():
    train.run(configure(gated=name == "feddp"), workdir)

# %% [markdown]
# ## 4. The picture
#
# Each run has written a page of its own, `report/index.html` in its workdir, which
# opens without a network. `write_report` makes one of several runs, and each picture as
# PNG and SVG. The last of the three pictures below shows the point of FedDP: accuracy
# against the arithmetic of the channels that gates keep.

# %%
page = write_report(list(runs.values()), folder / "report")
print(f"Open {page} in a browser.")
Image.open(folder / "report" / "accuracy.png")

# %%
for name, workdir in runs.items():
    last = read_metrics(workdir)[-1]
    # Gates add a field: what the channels that they keep need.
    flops = last.get("flops/kept", last["flops/dense"])
    print(
        f"{name}: {last['eval/headline']:.1%} of the test images after round "
        f"{last['round']}, {flops / 1e9:.2f} GFLOP in a round"
    )

# %% [markdown]
# ## 5. Which channels the digits choose
#
# Every `report.every` rounds a run records which channels the test images of each class
# keep, with the gates of the first clients. Channels that all images keep or drop do
# not depend on the image; the others are FedDP's dynamic part.

# %%
record = read_records(runs["feddp"], last["round"])[-1]
for layer, shares in record.classes.items():
    kept, dropped = (shares == 1).all(0).sum(), (shares == 0).all(0).sum()
    print(
        f"{layer}: {shares.shape[1]} channels, {kept} kept by all images, {dropped} by "
        f"none, {shares.shape[1] - kept - dropped} by some"
    )
Image.open(folder / "report" / "by_class.png")

# %% [markdown]
# ## 6. Exporting the model
#
# `export_model` writes a network of the newest checkpoint into a folder with its model
# card, as `python -m fedjax_prune export` does. Gates are personal, so a gated network
# is that of one client, here of client 0; without `client` it would be the shared
# network, without gates. The folder holds the arrays and a program that takes them.
# The lines that load it are those of the card: they use JAX, but nothing of this
# library. The network must be as accurate as client 0 was at the end of the run, whose
# record has the accuracy of each client on the test images.

# %%
print(export_model(runs["feddp"], folder / "model", client=0).words)
arrays = load_file(folder / "model" / "model.safetensors")
stored = bytearray((folder / "model" / "model.stablehlo").read_bytes())
logits = jax.export.deserialize(stored).call(arrays, test.images)
exported = float((np.argmax(logits, -1) == test.labels).mean())
place = list(record.evaluated).index(0)
trained = float(record.accuracies["client_gated"][place])
print(
    f"Client 0 in the run: {trained:.2%} of the test images; exported: {exported:.2%}."
)

# %% [markdown]
# ## 7. What to try next
#
# - `alpha` in `configure`: 100 makes the clients alike, and the gates agree more.
# - `flops_target`: how much accuracy does a quarter of the MACs cost?
# - `gate_mode="scale"` multiplies kept channels by their salience.
# - `settings.default_config("fedavg")` trains the shared parameters by another
#   algorithm; `own_algorithm.py`, beside this file, writes one.
