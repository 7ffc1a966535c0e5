"""Random policies as trees: valid ones, and ones that are wrong somewhere."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from scope_runtime.policy.schema import schema

Tree = dict[str, Any]

names = st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True)
labels = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,6}[A-Za-z0-9])?", fullmatch=True)
numbers = st.one_of(
    st.integers(-1000, 1000),
    st.floats(-1e30, 1e30, allow_nan=False),
    st.sampled_from([0.1, 1e-7, -0.0, 1e22]),
)
# Words that YAML 1.1 or a hasty resolver would turn into something else, and what needs quoting.
texts = st.one_of(
    st.sampled_from(
        ["off", "yes", "null", "1e3", "017", "20:45", "2027-01-31", "<<", "~", "a: b", "#", "- x"]
    ),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=20),
)
counts = st.integers(1, 999).map(lambda n: "1 token" if n == 1 else f"{n} tokens")
modes = st.sampled_from(["enforce", "audit", "off"])


def some(**optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Tree]:
    """Any subset of the keys."""
    return st.fixed_dictionaries({}, optional=optional)


selectors = st.dictionaries(
    labels,
    st.one_of(texts, st.lists(texts, min_size=1, max_size=3, unique=True)),
    min_size=1,
    max_size=3,
)
gates = st.one_of(
    st.sampled_from(["none", "relu", "threshold", "topk"]),
    st.builds(lambda extra: {"kind": "threshold", **extra}, some(threshold=numbers)),
    st.builds(lambda extra: {"kind": "topk", **extra}, some(k=st.integers(1, 100))),
)


@st.composite
def policies(draw: st.DrawFn) -> Tree:
    """Valid policies."""
    packs = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    features: Tree = {}
    for name in packs:
        layer = draw(st.one_of(st.just("embedding"), st.integers(0, 40)))
        features[name] = {"pack": "packs/a.gguf", "layer": layer, "id": draw(st.integers(0, 9999))}
        if draw(st.booleans()):
            features[name]["gate"] = draw(gates)
    vectors = draw(st.lists(names.filter(lambda n: n not in packs), max_size=2, unique=True))
    for name in vectors:
        layers = st.lists(st.integers(1, 40), min_size=1, max_size=3, unique=True)
        features[name] = {"vector": "vectors/v.gguf", **draw(some(layers=layers))}
    groups = draw(st.lists(names.filter(lambda n: n not in features), max_size=2, unique=True))
    for name in groups:
        members = st.lists(st.sampled_from(packs), min_size=1, max_size=3, unique=True)
        features[name] = {"group": draw(members)}

    rule_names = draw(st.lists(names, max_size=4, unique=True))
    rules = [draw(_rules(name, packs + groups, vectors)) for name in rule_names]
    alerts = [rule for rule in rules if "alert" in rule]
    others = [rule["name"] for rule in rules if "alert" not in rule]
    if alerts and others and draw(st.booleans()):
        alerts[0]["actions"] = ["log", {"switch_on": draw(st.sampled_from(others))}]
    spec: Tree = {"features": features, "rules": rules}
    spec |= draw(
        some(
            model=some(architecture=texts, layers=st.integers(1, 99), width=st.integers(1, 9999)),
            mode=modes,
            apply=st.sampled_from(["next-token", "next-request"]),
            selector=selectors,
            limits=some(dose=_doses),
        )
    )
    if rule_names and draw(st.booleans()):
        spec["exceptions"] = [draw(_exceptions(rule_names))]
    metadata = {"name": draw(names)}
    metadata |= draw(some(owner=texts, description=texts, generation=st.integers(0, 1 << 40)))
    return {
        "apiVersion": "scope/v1",
        "kind": "SteeringPolicy",
        "metadata": metadata,
        "spec": spec,
    }


_doses = st.builds(
    lambda most, extra: {"max": most, **extra},
    st.floats(0.001, 100),
    some(on_excess=st.sampled_from(["clamp", "warn", "abort"])),
)


def _exceptions(rule_names: list[str]) -> st.SearchStrategy[Tree]:
    return st.fixed_dictionaries(
        {
            "selector": selectors,
            "rules": st.lists(st.sampled_from(rule_names), min_size=1, unique=True),
            "owner": texts,
            "until": st.dates().map(str),
        }
    )


@st.composite
def _rules(draw: st.DrawFn, name: str, measured: list[str], vectors: list[str]) -> Tree:
    op = draw(st.sampled_from(["amplify", "mute", "scale", "clamp", "ablate", "alert"]))
    usable = measured + (vectors if op in ("amplify", "ablate") else [])
    one = st.sampled_from(usable)
    rule: Tree = {"name": name, op: draw(st.one_of(one, st.lists(one, min_size=1, unique=True)))}
    if op == "amplify":
        targets = rule[op] if isinstance(rule[op], list) else [rule[op]]
        units = ["absolute", "residual"] + (["max"] if not {*targets} & {*vectors} else [])
        rule |= {"alpha": draw(numbers), **draw(some(unit=st.sampled_from(units)))}
    elif op == "scale":
        rule["factor"] = draw(numbers)
    elif op == "clamp":
        low, high = sorted([draw(numbers), draw(numbers)])
        rule |= draw(st.sampled_from([{"min": low}, {"max": high}, {"min": low, "max": high}]))
    elif op == "alert":
        rule[draw(st.sampled_from(["above", "below"]))] = draw(numbers)
        actions = st.lists(st.sampled_from(["log", "metric", "webhook", "abort"]), unique=True)
        rule |= draw(
            some(
                **{"for": counts, "keep_firing_for": counts, "actions": actions},
                watch=st.sampled_from(["max", "sum"]),
                severity=st.sampled_from(["info", "warning", "critical"]),
            )
        )
    percents = st.one_of(st.integers(0, 100), st.floats(0, 100))
    rollouts = st.fixed_dictionaries({"percent": percents, "by": labels})
    return rule | draw(some(mode=modes, when=_whens(), rollout=rollouts))


def _whens() -> st.SearchStrategy[Tree]:
    """Without conditions on features: which layers they may name is tested by itself."""
    first, length = st.integers(0, 99), st.integers(0, 99)
    positions = st.one_of(
        st.builds(lambda a: {"from": a}, first),
        st.builds(lambda a, n: {"from": a, "to": a + n, "of": "answer"}, first, length),
    )
    phases = st.sampled_from(["prompt", "generation"])
    return some(phase=phases, positions=positions).filter(bool)


def _schema_keys(node: Any) -> set[str]:
    """Every key that a policy can have somewhere."""
    if isinstance(node, list):
        return {key for item in node for key in _schema_keys(item)}
    if not isinstance(node, dict):
        return set()
    here = node.get("properties", {})
    keys = set(here) if isinstance(here, dict) else set()
    return keys.union(*(_schema_keys(item) for item in node.values()))


_keys = st.sampled_from(sorted(_schema_keys(schema())))
_leaves = st.one_of(st.none(), st.booleans(), numbers, texts, _keys, counts)
anything: st.SearchStrategy[Any] = st.recursive(
    _leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(_keys, inner, max_size=5)),
    max_leaves=20,
)


@st.composite
def spoilt_policies(draw: st.DrawFn) -> Tree:
    """Valid policies with one to three places replaced by anything."""
    tree = draw(policies())
    for _ in range(draw(st.integers(1, 3))):
        node: Any = tree
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(node[key], (dict, list)) or draw(st.integers(0, 3)) == 0:
                node[key] = draw(anything)
                break
            node = node[key]
    return tree
