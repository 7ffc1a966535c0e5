from __future__ import annotations

import dataclasses
import json
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from scope_runtime.errors import Location, PolicyErrors, ScopeError
from scope_runtime.policy import Policy, parse_policy
from scope_runtime.policy.model import GroupFeature, PackFeature, VectorFeature
from tests.policy.strategies import policies, spoilt_policies, texts

# Without shrinking: it takes minutes on trees like these, and a failing policy is readable as it is.
relaxed = settings(
    max_examples=40,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


class _Plain(yaml.SafeDumper):
    """PyYAML knows YAML 1.1 only, so it would leave 1e3 without the quotes that it needs."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Plain.add_representer(
    str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
)


def load(text: str) -> Policy:
    return parse_policy(text, file="policy.yaml", files=False)


def without_places(value: Any) -> Any:
    """A policy without locations, to compare what two texts say."""
    if isinstance(value, Location):
        return None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {name: without_places(item) for name, item in fields.items()}
    if isinstance(value, tuple):
        return tuple(without_places(item) for item in value)
    return value


@relaxed
@given(policies(), st.booleans())
def test_a_policy_says_the_same_however_it_is_laid_out(tree: dict[str, Any], flow: bool) -> None:
    as_json = load(json.dumps(tree, ensure_ascii=False))
    block = yaml.dump(
        tree, Dumper=_Plain, default_flow_style=flow, allow_unicode=True, sort_keys=False, width=60
    )
    commented = "# a comment\n" + block + "# the end\n"
    assert without_places(load(commented)) == without_places(as_json)


@relaxed
@given(policies())
def test_nothing_that_is_written_gets_lost(tree: dict[str, Any]) -> None:
    policy = load(json.dumps(tree))
    assert json.loads(policy.canonical) == tree
    assert load(policy.canonical).canonical == policy.canonical
    spec, metadata = tree["spec"], tree["metadata"]
    assert (policy.name, policy.owner, policy.generation, policy.description) == (
        metadata["name"],
        *(metadata.get(key) for key in ("owner", "generation", "description")),
    )
    assert str(policy.mode) == spec.get("mode", "enforce")
    assert str(policy.apply) == spec.get("apply", "next-token")
    for name, raw in spec["features"].items():
        feature = policy.feature(name)
        if isinstance(feature, PackFeature):
            layer = -1 if raw["layer"] == "embedding" else raw["layer"]
            assert (feature.pack, feature.layer, feature.id) == (raw["pack"], layer, raw["id"])
            assert (feature.gate is None) == ("gate" not in raw)
        elif isinstance(feature, VectorFeature):
            assert feature.layers == (tuple(raw["layers"]) if "layers" in raw else None)
        else:
            assert isinstance(feature, GroupFeature)
            assert list(feature.members) == raw["group"]
    assert [rule.name for rule in policy.rules] == [raw["name"] for raw in spec["rules"]]
    for rule, raw in zip(policy.rules, spec["rules"], strict=True):
        targets = raw[str(rule.op)]
        assert list(rule.targets) == ([targets] if isinstance(targets, str) else targets)
        for key in ("alpha", "factor", "min", "max"):
            assert getattr(rule, key) == raw.get(key)
        assert (rule.alert is not None) == ("alert" in raw)
        if rule.alert:
            assert (rule.alert.above, rule.alert.below) == (raw.get("above"), raw.get("below"))
            assert rule.alert.for_tokens == int(raw.get("for", "1 token").split()[0])
            assert rule.alert.keep_firing_for_tokens == int(
                raw.get("keep_firing_for", "0 ").split()[0]
            )


@relaxed
@given(policies(), st.randoms(use_true_random=False))
def test_order_of_keys_does_not_change_the_canonical_form(
    tree: dict[str, Any], random: Any
) -> None:
    def shuffled(node: Any) -> Any:
        if isinstance(node, dict):
            items = list(node.items())
            random.shuffle(items)
            return {key: shuffled(item) for key, item in items}
        return [shuffled(item) for item in node] if isinstance(node, list) else node

    assert load(json.dumps(shuffled(tree))).canonical == load(json.dumps(tree)).canonical


@relaxed
@given(spoilt_policies())
def test_a_spoilt_policy_loads_or_is_refused_in_words(tree: dict[str, Any]) -> None:
    refused_or_loaded(json.dumps(tree))


@relaxed
@given(policies(), st.data())
def test_a_mangled_text_loads_or_is_refused_in_words(
    tree: dict[str, Any], data: st.DataObject
) -> None:
    text = yaml.dump(tree, Dumper=_Plain, default_flow_style=None, allow_unicode=True)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        gone = data.draw(st.integers(0, 12))
        new = data.draw(st.one_of(st.sampled_from(list("\t\n:-[]{}&*!|>'\"%@`#,? ~")), texts))
        text = text[:at] + new + text[at + gone :]
    refused_or_loaded(text)


@relaxed
@given(st.text(st.characters(exclude_categories=["Cs"])))
@example('"\\UFFFFFFFF"')
@example("\ufeff")
@example("? [a]\n: b")
@example("? {a: b}\n: c")
@example("!!str : a")
@example("&a a: b")
@example("- !<tag:yaml.org,2002:int> 1")
@example("%TAG ! tag:x,2000:\n---\n!a b")
@example("a: 0x" + "f" * 100)
@example("a: " + "9" * 5000)
@example("a: 0." + "9" * 5000)
@example("--- \n...\n--- a")
@example("...\na")
def test_any_text_loads_or_is_refused_in_words(text: str) -> None:
    refused_or_loaded(text)


def refused_or_loaded(text: str) -> None:
    errors: tuple[ScopeError, ...] = ()
    try:
        json.loads(load(text).canonical)
    except PolicyErrors as refused:
        errors = refused.errors
    for error in errors:
        assert error.location is not None
        assert error.location.line <= len(text.splitlines()) + 1
        assert "\n" not in str(error)
        json.dumps(error.fields())
