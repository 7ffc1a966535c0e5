"""One file per format that is read; each gives SAE layers as `converters.features` has them."""
