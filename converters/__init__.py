"""Published SAEs and steering vectors in, files that the runtime loads out."""

from converters.features import FeatureRequest, ReadOptions, SaeLayer, SaeRows, SaeSet, Vectors
from converters.load import load, open_source
from converters.pack import convert_pack
from converters.vector import combined_vector, replay, vector_of_features
from scope_runtime.packs import write_pack
from scope_runtime.vectors import write_control_vector

__all__ = [
    "FeatureRequest",
    "ReadOptions",
    "SaeLayer",
    "SaeRows",
    "SaeSet",
    "Vectors",
    "combined_vector",
    "convert_pack",
    "load",
    "open_source",
    "replay",
    "vector_of_features",
    "write_control_vector",
    "write_pack",
]
