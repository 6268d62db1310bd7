r"""A trained model in forms that need neither torch nor this package."""

from pyg_c2f.export.bundle import write_bundle
from pyg_c2f.export.onnx import write_onnx

__all__ = ['write_bundle', 'write_onnx']
