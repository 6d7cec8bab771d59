"""The Kubernetes manifests: what they promise, and KubeRay's own schema where its files are at hand.

SHIFTLAB_KUBERAY_CRDS names the folder helm-chart/kuberay-operator/crds of KubeRay, or one of its files.
"""

import copy
import os
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = {"RayJob": ROOT / "kubernetes/rayjob.yaml", "RayCluster": ROOT / "kubernetes/raycluster.yaml"}
CRDS = os.environ.get("SHIFTLAB_KUBERAY_CRDS")


def read(kind):
    return yaml.safe_load(MANIFESTS[kind].read_text())


def cluster_of(manifest):
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


@pytest.fixture(params=list(MANIFESTS))
def cluster(request):
    return cluster_of(read(request.param))


def test_both_describe_the_same_cluster():
    assert cluster_of(read("RayJob")) == cluster_of(read("RayCluster"))


def test_ray_is_the_version_that_ci_runs_with(cluster):
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert cluster["rayVersion"] == pinned


def test_it_wants_a_token_and_costs_nothing_when_idle(cluster):
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        assert group["idleTimeoutSeconds"] <= 300


def test_every_container_says_what_it_needs_and_has_shared_memory_and_time_to_drain(cluster):
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] >= 60
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"]  # as Ray counts them
        assert container["volumeMounts"][0] == {"name": "shm", "mountPath": "/dev/shm"}
        assert pod["volumes"][0]["emptyDir"]["medium"] == "Memory"


def test_the_job_resumes_ends_and_takes_its_cluster_along():
    spec = read("RayJob")["spec"]
    words = spec["entrypoint"].split()
    assert words[:3] == ["python", "-m", "jobs.sweep"]
    assert words[words.index("--run") + 1].startswith("s3://")  # what a pod writes to its own disk goes with it
    hours = float(words[words.index("--max_hours") + 1])
    assert 3600 * hours < spec["activeDeadlineSeconds"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True


# KubeRay's schema


def schemas():
    path = Path(CRDS)
    found = {}
    for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        for document in yaml.safe_load_all(file.read_text()):
            if document and document.get("kind") == "CustomResourceDefinition":
                (version,) = (v for v in document["spec"]["versions"] if v["name"] == "v1")
                found[document["spec"]["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema):
    """The API server drops unknown fields without a word: make them errors."""
    schema = copy.deepcopy(schema)
    stack = [schema]
    while stack:
        part = stack.pop()
        if not isinstance(part, dict):
            continue
        if "properties" in part and not part.get("x-kubernetes-preserve-unknown-fields"):
            part.setdefault("additionalProperties", False)
            part["properties"] |= {"apiVersion": {}, "kind": {}} if part is schema else {}
        if part.get("x-kubernetes-int-or-string"):
            part.pop("type", None)
        stack += [child for child in part.values() if isinstance(child, dict)]
        stack += [child for value in part.values() if isinstance(value, list) for child in value]
    return schema


@pytest.mark.skipif(not CRDS, reason="SHIFTLAB_KUBERAY_CRDS is not set")
@pytest.mark.parametrize("kind", MANIFESTS)
def test_kuberays_own_schema_accepts_it_and_refuses_a_planted_error(kind):
    manifest, schema = read(kind), schemas()[kind]
    manifest["metadata"] = {}  # which the API server checks by itself
    schema["properties"]["metadata"] = {}
    jsonschema.validate(manifest, schema)
    for path, value in (
        (("workerGroupSpecs", 0, "maxReplica"), 3),
        (("workerGroupSpecs", 0, "maxReplicas"), "3"),
        (("autoscalerOptions", "idleTimeout"), 3),
        (("headGroupSpec", "template", "spec", "terminationGraceSeconds"), 3),
    ):
        broken = copy.deepcopy(manifest)
        part = cluster_of(broken)
        for key in path[:-1]:
            part = part[key]
        part[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)
