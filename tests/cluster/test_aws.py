"""cluster.yaml against a simulated AWS: Ray's own provider makes what it needs, starts and ends each kind of machine."""

import copy
from pathlib import Path

import pytest
import yaml

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def aws(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # the key pair that Ray makes
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        yield


@pytest.fixture
def config(aws):
    text = (ROOT / "cluster.yaml").read_text()
    (image, *_) = boto3.client("ec2", "us-west-2").describe_images()["Images"]
    return yaml.safe_load(text.replace("ami-REPLACE-ME", image["ImageId"]))


def bootstrap(config):
    """What `ray up` does before it starts anything."""
    from ray.autoscaler._private.commands import _bootstrap_config

    return _bootstrap_config(copy.deepcopy(config), no_config_cache=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_kind_of_machine_is_started_as_described_and_ended(config):
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

    ready = bootstrap(config)
    types = ready["available_node_types"]
    assert types["cpu_spot"]["resources"]["CPU"] == 16  # from the instance type
    assert types["gpu_spot"]["resources"].get("GPU") == 1
    assert types["head"]["resources"]["CPU"] == 0
    provider = _get_node_provider(ready["provider"], ready["cluster_name"], use_cache=False)
    client = boto3.client("ec2", "us-west-2")
    try:
        for name, kind in types.items():
            tags = {TAG_RAY_CLUSTER_NAME: "shiftlab", TAG_RAY_USER_NODE_TYPE: name}
            tags[TAG_RAY_NODE_KIND] = "head" if name == "head" else "worker"
            provider.create_node(kind["node_config"], tags, 1)
        found = {}
        for reservation in client.describe_instances()["Reservations"]:
            for instance in reservation["Instances"]:
                tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
                found[tags[TAG_RAY_USER_NODE_TYPE]] = instance
        assert {name: i["InstanceType"] for name, i in found.items()} == {
            name: kind["node_config"]["InstanceType"] for name, kind in config["available_node_types"].items()
        }
        spot = {name for name, instance in found.items() if instance.get("InstanceLifecycle") == "spot"}
        assert spot == {"cpu_spot", "gpu_spot"}
        assert len({instance["KeyName"] for instance in found.values()}) == 1
        groups = {group["GroupId"] for instance in found.values() for group in instance["SecurityGroups"]}
        rules = [
            rule
            for group in client.describe_security_groups(GroupIds=sorted(groups))["SecurityGroups"]
            for rule in group["IpPermissions"]
        ]
        world = [
            rule for rule in rules if {"CidrIp": "0.0.0.0/0"} in [{"CidrIp": r["CidrIp"]} for r in rule["IpRanges"]]
        ]
        assert {(rule["FromPort"], rule["ToPort"]) for rule in world} <= {(22, 22)}  # SSH is all that others reach
    finally:
        provider.terminate_nodes(list(provider.non_terminated_nodes({})))
    states = {
        instance["State"]["Name"]
        for reservation in client.describe_instances()["Reservations"]
        for instance in reservation["Instances"]
    }
    assert states <= {"terminated", "shutting-down"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_typo_in_a_machines_description_is_an_error(config):
    import botocore.exceptions
    from ray.autoscaler._private.providers import _get_node_provider

    config["available_node_types"] = {
        name: kind for name, kind in config["available_node_types"].items() if name in ("head", "cpu_spot")
    }
    ready = bootstrap(config)
    provider = _get_node_provider(ready["provider"], ready["cluster_name"], use_cache=False)
    broken = ready["available_node_types"]["cpu_spot"]["node_config"] | {"InstanceTyp": "c7i.4xlarge"}
    with pytest.raises(botocore.exceptions.ParamValidationError, match="InstanceTyp"):
        provider.create_node(broken, {}, 1)
