"""Trained networks for other programs: safetensors, StableHLO and ONNX.

`export_model` writes a folder and `load_model` reads one in the format safetensors.
"""

from fedjax_prune.runs.export.arrays import Exported, load_model
from fedjax_prune.runs.export.write import export_model

__all__ = ["Exported", "export_model", "load_model"]
