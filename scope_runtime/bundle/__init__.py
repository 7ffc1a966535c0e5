"""Bundles: policies with every file that they name, as one signed tar."""
