"""The manifests for Kubernetes are hardened and consistent, for one replica on SQLite and for several on PostgreSQL."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from support.deploy_files import DEPLOY, drain_s

from executor.settings.settings import FIELDS, SECRET_SETTING_NAMES, Settings
from executor.settings.sources import gather_values

Manifests = dict[str, dict[str, Any]]


def _manifests(name: str) -> Manifests:
    """Read the documents of a manifest, by kind. The key `Workload` also has the pods' Deployment or StatefulSet."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text())
    documents_by_kind = {document["kind"]: document for document in documents}
    return documents_by_kind | {"Workload": documents_by_kind.get("Deployment") or documents_by_kind["StatefulSet"]}


@pytest.fixture(params=["agent-smith.yaml", "many-machines.yaml"])
def manifests(request: pytest.FixtureRequest) -> Manifests:
    return _manifests(request.param)


def test_the_manifest_is_hardened(manifests: Manifests) -> None:
    labels = manifests["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    pod = manifests["Workload"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001}.items()
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert mounts["/run/secrets"]["readOnly"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert "Secret" not in manifests, "a secret must not be in a file of the repository"
    assert "env" not in container


def test_the_network_policy_selects_the_pod_and_allows_only_the_systems_that_the_pod_uses(
    manifests: Manifests,
) -> None:
    policy = manifests["NetworkPolicy"]["spec"]
    labels = manifests["Workload"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert (policy["policyTypes"], policy["ingress"]) == (["Ingress", "Egress"], [])
    ports = [{port["port"] for port in rule["ports"]} for rule in policy["egress"]]
    assert ports == [{53}, {443}, {8006}, {5432}]
    assert all(rule["to"] for rule in policy["egress"]), "a rule without `to` allows every address"


def test_the_manifest_waits_for_the_drain(manifests: Manifests) -> None:
    assert manifests["Workload"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drain_s()


def test_on_sqlite_one_replica_runs_and_its_pod_may_not_be_evicted() -> None:
    manifests = _manifests("agent-smith.yaml")
    deployment = manifests["Deployment"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 0


def test_of_several_replicas_one_may_be_evicted_and_each_has_a_machine_and_data_of_its_own() -> None:
    manifests = _manifests("many-machines.yaml")
    replicas = manifests["StatefulSet"]["spec"]
    assert replicas["replicas"] >= 3
    assert manifests["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    (spread,) = replicas["template"]["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["maxSkew"]) == ("kubernetes.io/hostname", 1)
    labels = replicas["template"]["metadata"]["labels"]
    assert spread["labelSelector"]["matchLabels"] == manifests["Service"]["spec"]["selector"] == labels
    assert replicas["serviceName"] == manifests["Service"]["metadata"]["name"]
    assert manifests["Service"]["spec"]["clusterIP"] == "None"
    assert [claim["metadata"]["name"] for claim in replicas["volumeClaimTemplates"]] == ["data"]
    assert "PersistentVolumeClaim" not in manifests, "the replicas must not share a data folder"


def test_the_pods_of_both_manifests_differ_only_in_volumes_and_topology_spread() -> None:
    one, several = _manifests("agent-smith.yaml"), _manifests("many-machines.yaml")
    for kind in ("Namespace", "ConfigMap", "NetworkPolicy"):
        assert one[kind] == several[kind]
    pods = [manifests["Workload"]["spec"]["template"]["spec"] for manifests in (one, several)]
    assert pods[0]["containers"] == pods[1]["containers"]
    differing_keys = {key for key in pods[1] if pods[0].get(key) != pods[1][key]}
    assert differing_keys == {"volumes", "topologySpreadConstraints"}


def test_the_url_of_postgresql_comes_from_a_secret_only() -> None:
    text = (DEPLOY / "kubernetes" / "many-machines.yaml").read_text()
    manifests = _manifests("many-machines.yaml")
    assert "SMITH_DATABASE_URL" not in manifests["ConfigMap"]["data"]
    assert "--from-file=smith_database_url=" in text
    volumes_by_name = {
        volume["name"]: volume for volume in manifests["Workload"]["spec"]["template"]["spec"]["volumes"]
    }
    assert volumes_by_name["secrets"]["secret"]["secretName"] == "agent-smith"


def test_the_liveness_probe_checks_the_agent_only(manifests: Manifests) -> None:
    (container,) = manifests["Workload"]["spec"]["template"]["spec"]["containers"]
    assert container["livenessProbe"]["exec"]["command"][-1] == "--live"
    assert container["startupProbe"]["exec"]["command"][-1] == "--live"
    assert container["readinessProbe"]["exec"]["command"][-1] != "--live"


def test_the_manifest_is_consistent(manifests: Manifests) -> None:
    name = manifests["Workload"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Workload", "PodDisruptionBudget"):
        assert manifests[kind]["spec"]["selector"]["matchLabels"] == name
    pod = manifests["Workload"]["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in manifests["Workload"]["spec"].get("volumeClaimTemplates", [])}
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == volumes
    settings = manifests["ConfigMap"]["data"]
    assert set(settings) <= set(FIELDS) - set(SECRET_SETTING_NAMES)
    assert not gather_values(names=FIELDS, secret_names=SECRET_SETTING_NAMES, environ=settings, env_file=None).problems
    Settings(**{key.lower(): value for key, value in settings.items()})
