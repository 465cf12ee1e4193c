from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.deployment import AutoscaleSpec, ProbeSpec, RolloutSpec
from millpond.api.job import SpecError
from millpond.jobs.deployments.document import document_of
from millpond.jobs.deployments.spec import load_deployments


def test_a_model_needs_a_name_and_nothing_else() -> None:
    (spec,) = load_deployments("{name: chat, model: smollm2-135m}")
    (version,) = spec.versions
    assert (version.name, version.replicas, version.weight) == ("v1", 1, 100)
    assert version.template.role.command[-1] == 'exec millpond serve "$MODEL" --port "$PORT"'
    assert version.template.role.env == {"MODEL": "smollm2-135m"}
    assert version.template.ready == ProbeSpec(path="/ready")


def test_versions_share_what_stands_beside_them() -> None:
    text = """
    name: web
    run: serve $PORT
    env: {A: 1, B: 1}
    devices: 1
    rollout: {max_surge: 50%, max_unavailable: 1, drain: 2m}
    versions:
      old: {weight: 90}
      new: {weight: 10, env: {B: 2}, run: [serve, --new], replicas: 3, devices: 2}
    """
    (spec,) = load_deployments(text)
    old, new = spec.versions
    assert (old.template.role.env, new.template.role.env) == ({"A": "1", "B": "1"}, {"A": "1", "B": "2"})
    assert (old.template.role.resources.devices, new.template.role.resources.devices) == (1, 2)
    assert new.template.role.command == ("serve", "--new")
    assert old.rollout == new.rollout == RolloutSpec("50%", 1, 120.0)
    assert [version.weight for version in spec.versions] == [90, 10]


def test_an_autoscaler_follows_named_targets() -> None:
    rule = "{min: 2, max: 5, queue: 4, kv: 0.8, metrics: {my_gauge: 3}, up: 10s, down: 1m}"
    (spec,) = load_deployments(f"{{name: web, run: x, autoscale: {rule}}}")
    assert spec.versions[0].autoscale == AutoscaleSpec(2, 5, {"queue": 4.0, "kv": 0.8, "my_gauge": 3.0}, 10.0, 60.0)
    assert spec.versions[0].replicas == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: web}", r"run: is missing"),
        ("{name: web, image: i, ports: {http: 1}}", "ports.http.*not a name for another port"),
        ("{name: web, image: i, ports: {grpc: 0}}", "ports.grpc.*from 1 to 65535"),
        ("{name: web, image: i, template: {spek: {}}}", "template.spek .*no such field"),
        ("{name: web, image: i, template: {spec: {containers: [x]}}}", r"containers\[0\].*must be a mapping"),
        ("{run: x}", "name.*is missing"),
        ("{name: web, run: x, replica: 2}", "replica .*no such field. Did you mean 'replicas'"),
        ("{name: Web, run: x}", "'Web' is not a name"),
        (f"{{name: {'a' * 41}, run: x}}", "longer than 40"),
        ("{name: web, run: x, ready: ready}", "'ready' is not a path"),
        ("{name: web, run: x, ready: {path: /r, intervall: 1s}}", "Did you mean 'interval'"),
        ("{name: web, run: x, ready: {interval: 0}}", "at least 0.05 s"),
        ("{name: web, run: x, rollout: {max_surge: 101%}}", "not a number of replicas"),
        ("{name: web, run: x, autoscale: {max: 2}}", "nothing to follow"),
        ("{name: web, run: x, autoscale: {min: 3, max: 2, queue: 1}}", "less than the minimum"),
        ("{name: web, run: x, autoscale: {max: 2, kv: 80}}", "from 0 to 1"),
        ("{name: web, run: x, versions: {}}", "1 to 20 versions"),
        ("{name: web, run: x, versions: {v1: {weight: 0}}}", "no version would get requests"),
        ("{name: web, run: x, versions: {v1: {port: 1}}}", r"versions\.v1\.port.*no such field"),
        ("{name: web, run: x, port: 70000}", "from 0 to 65535"),
        ("{name: web, run: x}\n---\n{name: web, run: x}", "two documents"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_deployments(text)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["name", "run", "replicas", "ready", "rollout", "autoscale", "versions", "env", "gateway"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["min", "max", "queue", "path", "v1", "weight", "x"]), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_any_document_loads_or_is_one_error(document: dict[str, object]) -> None:
    try:
        load_deployments(yaml.safe_dump(document))
    except SpecError as error:
        assert error.message  # noqa: PT017


@pytest.mark.parametrize(
    "text",
    [
        "{name: a, model: m, priority: 3, labels: {x: y}, node_selector: {zone: b}, port: 80, tenant: t}",
        "{name: a, run: x, autoscale: {max: 3, kv: 0.5, metrics: {g: 2}}, rollout: {max_surge: 30%}, host: 0.0.0.0}",
        "{name: a, versions: {x: {run: [a, b], env: {A: ''}, ready: /r}, y: {model: m, memory: 1Gi, image: i}}}",
        "{name: a, image: i, ports: {grpc: 1}, container_port: 9, template: {spec: {containers: [{tty: true}]}}}",
    ],
)
def test_a_deployment_written_down_loads_as_the_same(text: str) -> None:
    (spec,) = load_deployments(text)
    assert load_deployments(json.dumps(document_of(spec))) == [spec]
