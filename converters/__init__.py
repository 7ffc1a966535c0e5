"""Published SAEs and steering vectors in, files that the runtime loads out."""

from converters.features import FeatureRequest, SaeLayer, SaeRows, SaeSet
from converters.pack import convert_pack
from scope_runtime.packs import write_pack
from scope_runtime.vectors import write_control_vector

__all__ = [
    "FeatureRequest",
    "SaeLayer",
    "SaeRows",
    "SaeSet",
    "convert_pack",
    "write_control_vector",
    "write_pack",
]
