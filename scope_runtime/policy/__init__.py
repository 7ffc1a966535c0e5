"""Policies: what a person writes, read and checked into frozen data."""

from scope_runtime.policy.files import check_files, file_path, named_files
from scope_runtime.policy.load import load_policies, load_policy, parse_policy, policy_files
from scope_runtime.policy.model import Policy
from scope_runtime.policy.revision import policy_revision, set_revision

__all__ = [
    "Policy",
    "check_files",
    "file_path",
    "load_policies",
    "load_policy",
    "named_files",
    "parse_policy",
    "policy_files",
    "policy_revision",
    "set_revision",
]
