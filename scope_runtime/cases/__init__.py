"""Tests of policies: cases in YAML beside the policy, run on recordings and on models."""
