"""Trained networks for other programs: safetensors, StableHLO and ONNX.

`export_model` writes a folder and `load_model` reads one in the format safetensors.
"""

# With `__all__`, the API reference would leave out the modules of this folder.
from fedjax_prune.runs.export.arrays import Exported as Exported
from fedjax_prune.runs.export.arrays import load_model as load_model
from fedjax_prune.runs.export.write import export_model as export_model
