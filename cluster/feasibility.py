"""Whether a cluster could ever run what is asked for: Ray itself would let it wait for ever."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

_HEAD = "node:__internal_head__"  # a resource that every head has


def check_feasible(ray: ModuleType, demand: Mapping[str, float], what: str = "a worker") -> None:
    """Refuse a demand that neither a node of the cluster nor any node type of its autoscaler can hold.

    Where there is no autoscaler nodes may still join by hand, so that a demand which no node can hold is only warned of.

    Args:
        ray: the connected `ray` module.
        demand: amount by resource, of one worker, e.g. {"CPU": 1, "GPU": 0.5}.
        what: names it in messages.

    Raises:
        InputError: naming the option, the largest node type and the mend.
    """
    needed = {name: amount for name, amount in demand.items() if amount > 0}
    present = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    if any(_holds(resources, needed) for resources in present):
        return
    types = node_types(ray)
    if any(_holds(resources, needed) for resources in types.values()):
        return
    wanted = " and ".join(f"{amount:g} {name}" for name, amount in needed.items())
    if not types:
        print(f"{what} needs {wanted} on one node, which no node has now; waiting for one to join", file=sys.stderr)
        return
    most = {name: max(resources.get(name, 0) for resources in types.values()) for name in needed}
    lacking = next((name for name in needed if most[name] < needed[name]), next(iter(needed)))
    option = {"GPU": "gpus_per_worker", "CPU": "cpus_per_worker"}.get(lacking, "workers")
    offers = "; ".join(f"{name}: {_words(resources)}" for name, resources in sorted(types.items()))
    raise InputError(
        f"{option}: {what} needs {wanted} on one node, and no node type can ever hold that ({offers}); "
        "ask for less, or add such a type to cluster.yaml"
    )


def node_types(ray: ModuleType) -> dict[str, dict[str, float]]:
    """Resources by node type that the cluster's autoscaler may start; none where there is no autoscaler."""
    config: Any = ray._private.state.state.get_cluster_config()
    if config is not None:  # on Kubernetes the operator tells Ray
        return {group.name: dict(group.resources) for group in config.node_group_configs if group.max_count != 0}
    # Elsewhere only the autoscaler itself knows, a process of the head, which reads it from a file there.
    ask = ray.remote(num_cpus=0, resources={_HEAD: 0.001}, max_retries=0)(_autoscalers_types)
    found: dict[str, dict[str, float]] = ray.get(ask.remote(ray.get_runtime_context().gcs_address))
    return found


def _autoscalers_types(gcs_address: str) -> dict[str, dict[str, float]]:
    """Read the node types from the file of this machine's autoscaler."""
    import psutil
    import yaml

    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        options = dict(word.lstrip("-").split("=", 1) for word in words if word.startswith("--") and "=" in word)
        path = options.get("autoscaling-config")
        if path is None or options.get("gcs-address") != gcs_address:
            continue
        with open(path) as file:
            config = yaml.safe_load(file)
        head = config.get("head_node_type")
        kinds = config.get("available_node_types", {})
        most = config.get("max_workers", 2)
        return {
            name: {key: float(amount) for key, amount in kind.get("resources", {}).items()}
            for name, kind in kinds.items()
            if name != head and kind.get("max_workers", most) > 0
        }
    return {}


def _holds(resources: Mapping[str, float], needed: Mapping[str, float]) -> bool:
    return all(resources.get(name, 0) >= amount for name, amount in needed.items())


def _words(resources: Mapping[str, float]) -> str:
    kinds = {name: amount for name, amount in resources.items() if name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in kinds.items()) or "neither CPU nor GPU"
