"""The Helm chart: linted and rendered by Helm's own engine, held against Kubernetes' own schemas and our configuration.

That a ConfigMap's ``..data`` swap is taken up is behaviour 13, in tests/lifecycle/test_reload.py.
"""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from scope_runtime.lifecycle.address import Address
from scope_runtime.serve.keys import digest, load_keys
from tests.conftest import ROOT, Scope
from tests.deploy.conftest import DEPLOY, POLICY, install
from tests.deploy.test_container import paths

CHART = DEPLOY / "helm" / "scope-runtime"
RULES = ROOT / "examples" / "observability" / "scope-rules.yml"
OLDEST, NEWEST = "1.25", "1.37"
Values = dict[str, Any]
LEAST: Values = {
    "model": {"existingClaim": "models"},
    "policies": {"english-only.yaml": POLICY.replace("packs/", "../packs/")},
    "keys": {"entries": [{"name": "acme", "sha256": digest("k"), "labels": {"tenant": "acme"}}]},
}
MOST: Values = {
    "image": {"digest": f"sha256:{'0' * 64}", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "model": {"hostPath": "/data/models", "path": "qwen3/model.gguf", "ctx": 512, "packs": ""},
    "existingPolicies": "team-policies",
    "fail": "open",
    "keys": {"existingSecret": "scope-keys"},
    "audit": {"signingSecret": "scope-signing", "retentionDays": "forever"},
    "persistence": {"storageClass": "fast", "size": "1.5Ti"},
    "serve": {
        "alias": "assistant",
        "labels": ["team"],
        "drainSeconds": 90,
        "extra": {"max_queue": 9},
    },
    "extraSpec": {"alerts": {"receivers": []}},
    "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a/b": "c"}},
    "monitoring": {
        "annotations": False,
        "serviceMonitor": True,
        "prometheusRule": True,
        "labels": {"release": "prometheus"},
    },
    "serviceAccount": {"annotations": {"a/b": "c"}},
    "podAnnotations": {"a/b": "c"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
}
BOTH = pytest.mark.parametrize("values", [LEAST, MOST], ids=["least", "most"])


def objects(values: Values) -> dict[tuple[str, str], dict[str, Any]]:
    """What the chart makes, by kind and name."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="prod", namespace="llm")
    for name, text in rendered.items():
        for each in yaml.safe_load_all(text) if name.endswith(".yaml") else ():
            if each is not None:
                key = (each["kind"], each["metadata"]["name"])
                assert key not in found
                found[key] = each
    return found


def kind(values: Values, name: str) -> list[dict[str, Any]]:
    return [each for (found, _), each in objects(values).items() if found == name]


def pod(values: Values) -> dict[str, Any]:
    (found,) = kind(values, "StatefulSet")
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def config(values: Values) -> str:
    return str(objects(values)["ConfigMap", "prod-scope-runtime-config"]["data"]["scope.yaml"])


@BOTH
def test_helm_finds_nothing(values: Values) -> None:
    report = helm_python.lint(CHART, values, strict=True)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]


@BOTH
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_accepts_all_of_it(values: Values, version: str) -> None:
    made = objects(values)
    for (kind_, _), each in made.items():
        if each["apiVersion"].startswith("monitoring.coreos.com/"):
            assert kind_ in ("ServiceMonitor", "PrometheusRule")
        else:
            kubernetes_validate.validate(each, version, strict=True)
    wrong = copy.deepcopy(made["StatefulSet", "prod-scope-runtime"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


@BOTH
def test_the_pod_is_as_restricted_as_pod_security_has_it(values: Values) -> None:
    spec = pod(values)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    dockerfile = (DEPLOY / "container" / "Dockerfile").read_text(encoding="utf-8")
    assert f"USER {spec['securityContext']['runAsUser']}:" in dockerfile
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False


@BOTH
def test_probes_and_ports_are_those_of_the_server(values: Values) -> None:
    spec, said = pod(values), yaml.safe_load(config(values))["spec"]
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["http"] == Address.parse(said["serve"]["listen"]).port
    assert ports["metrics"] == Address.parse(said["metrics"]["listen"]).port
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] == "http"
        assert asked["path"] in paths()
    # A policy that is wrong must never restart a pod (behaviour 24).
    assert container["livenessProbe"]["httpGet"]["path"] == "/health"
    for service in kind(values, "Service"):
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= set(ports)
    assert said["serve"]["drain_s"] + 10 < spec["terminationGracePeriodSeconds"]


@BOTH
def test_every_place_is_mounted_and_only_what_is_written_is_writable(values: Values) -> None:
    spec, said = pod(values), yaml.safe_load(config(values))["spec"]
    (container,) = spec["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    volumes = {volume["name"] for volume in spec["volumes"]} | {"state"}
    assert {mount["name"] for mount in mounts.values()} == volumes
    assert "subPath" not in mounts[said["policy"]["path"]]
    written = [said["policy"]["state"], said["audit"]["path"], said["control"]["socket"], "/tmp"]
    read = [said["model"]["path"], said["policy"]["path"], said["serve"]["keys"]]
    read += [said["audit"]["key"]] if "key" in said["audit"] else []
    for path, wanted in [(path, False) for path in written] + [(path, True) for path in read]:
        (at,) = [place for place in mounts if Path(path).is_relative_to(place)]
        assert mounts[at].get("readOnly", False) is wanted, path


def test_a_changed_policy_restarts_nothing_and_a_changed_configuration_does() -> None:
    (before,) = kind(LEAST, "StatefulSet")
    (same,) = kind({**LEAST, "policies": {"other.yaml": POLICY}}, "StatefulSet")
    assert same == before
    (other,) = kind({**LEAST, "serve": {"alias": "assistant"}}, "StatefulSet")
    note = ["checksum/config"]
    seen = [each["spec"]["template"]["metadata"]["annotations"] for each in (before, other)]
    assert [seen[0][key] for key in note] != [seen[1][key] for key in note]


def test_scope_check_accepts_what_it_writes(tmp_path: Path, scope: Scope) -> None:
    file = install(tmp_path, config(LEAST), {})
    policies = objects(LEAST)["ConfigMap", "prod-scope-runtime-policies"]["data"]
    for name, text in policies.items():
        (tmp_path / "srv" / "scope" / "policies" / name).write_text(text, encoding="utf-8")
    done = scope("check", file)
    assert done.returncode == 0, done.stdout + done.stderr
    keys = tmp_path / "keys.yaml"
    keys.write_text(objects(LEAST)["Secret", "prod-scope-runtime-keys"]["stringData"]["keys.yaml"])
    assert [holder.name for holder in load_keys(keys)] == ["acme"]


def test_what_a_value_sets_is_what_the_configuration_says() -> None:
    said = yaml.safe_load(config(MOST))["spec"]
    assert said["model"] == {"path": "/models/qwen3/model.gguf", "ctx": 512}
    assert said["policy"]["fail"] == "open"
    assert said["serve"]["alias"] == "assistant"
    assert said["serve"]["max_queue"] == 9
    assert said["audit"]["retention_days"] == "forever"
    assert said["audit"]["key"] == "/etc/scope/signing/audit.key"
    assert said["alerts"] == {"receivers": []}


def test_the_rules_are_those_that_ship(tmp_path: Path) -> None:
    (rule,) = kind(MOST, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text(encoding="utf-8"))
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
    done = subprocess.run(
        ["promtool", "check", "rules", str(tmp_path / "rules.yml")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (monitor,) = kind(MOST, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    (service,) = [s for s in kind(MOST, "Service") if wanted <= s["metadata"]["labels"].items()]
    names = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {}}, "give existingClaim or hostPath"),
        ({"model": {"existingClaim": "a", "hostPath": "/b"}}, "not both"),
        ({"keys": {}}, "keys: give existingSecret"),
        ({"policies": {}}, "would not start without"),
        ({"existingPolicies": "other"}, "not both"),
        ({"policies": {"a.txt": "x"}}, "a.txt"),
        ({"polices": {}}, "polices"),
        ({"replicas": "two"}, "replicas"),
        ({"extraSpec": {"audit": {}}}, "invalid propertyName 'audit'"),
        ({"keys": {"entries": [{"name": "acme", "key": "secret"}]}}, "key"),
    ],
)
def test_values_that_cannot_be_are_refused(change: Values, says: str) -> None:
    with pytest.raises(helm_python.HelmError, match=says):
        objects({**LEAST, **change})


def test_every_value_has_a_schema() -> None:
    with helm_python.Chart.load(CHART) as chart:
        schema, values = chart.schema, chart.values
    assert schema is not None

    def agree(part: dict[str, Any], given: Any, at: str) -> None:
        if "$ref" in part:
            part = schema["definitions"][part["$ref"].rsplit("/", 1)[1]]
        if isinstance(given, dict) and part.get("additionalProperties") is False:
            for key, value in given.items():
                assert key in part["properties"], f"{at}.{key}"
                agree(part["properties"][key], value, f"{at}.{key}")

    agree(schema, values, "values")
    assert set(schema["properties"]) - {"global"} == set(values)
