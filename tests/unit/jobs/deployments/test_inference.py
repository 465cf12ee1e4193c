"""KubeDL's Inference as a deployment, and what is wrong with one."""

from __future__ import annotations

import json
import random

import pytest
import yaml

from millpond.api.deployment import AutoscaleSpec
from millpond.api.job import SpecError
from millpond.jobs.deployments.document import document_of
from millpond.jobs.deployments.inference import mount_model
from millpond.jobs.deployments.spec import load_deployments
from tests.unit.jobs.test_spec_fuzz import spoiled

TEXT = """
apiVersion: serving.kubedl.io/v1alpha1
kind: Inference
metadata: {name: hello, namespace: team, labels: {app: hello}}
spec:
  framework: TFServing
  predictors:
  - name: one
    modelVersion: mv-1
    replicas: 3
    trafficWeight: 80
    batching: {batchSize: 32}
    template:
      metadata: {labels: {a: b}}
      spec:
        nodeSelector: {zone: z}
        tolerations: [{operator: Exists}]
        containers:
        - name: tensorflow
          image: tf:1
          command: [tensorflow_model_server, --port=9000]
          args: [--rest_api_port=8501]
          env: [{name: A, value: "1"}]
          ports: [{name: http, containerPort: 8501}, {name: grpc, containerPort: 9000}]
          resources: {limits: {cpu: 2, nvidia.com/gpu: 1}, requests: {cpu: 1, memory: 1Gi}}
        - {name: side, image: side:1}
  - name: two
    modelPath: /models/two
    autoScale: {minReplicas: 2, maxReplicas: 5}
    template: {spec: {containers: [{name: x, image: tf:2, args: [--a]}]}}
"""


def test_predictors_become_versions() -> None:
    (spec,) = load_deployments(TEXT)
    assert (spec.name, spec.namespace, spec.kind, spec.gateway.port) == ("hello", "team", "tensorflow", 8080)
    assert spec.notes == ("spec.predictors[0].batching is the server's own to do.",)
    one, two = spec.versions
    assert (one.name, one.replicas, one.weight, two.weight) == ("one", 3, 80, 20)
    role = one.template.role
    assert role.command == ("tensorflow_model_server", "--port=9000", "--rest_api_port=8501")
    assert (role.image, role.port, one.template.ports) == ("tf:1", 8501, {"grpc": 9000})
    assert role.env == {
        "KUBEDL_MODEL_PATH": "/kubedl-model/mv-1", "MODEL_BASE_PATH": "/kubedl-model/mv-1", "MODEL_NAME": "mv-1",
        "A": "1",
    }  # fmt: skip
    assert (role.resources.devices, role.resources.cpus, role.node_selector) == (1, 1.0, {"zone": "z"})
    assert one.template.pod["spec"]["tolerations"] == [{"operator": "Exists"}]
    assert one.template.pod["spec"]["containers"][-1] == {"name": "side", "image": "side:1"}
    assert two.template.role.command == ()
    assert two.template.pod["spec"]["containers"] == [{"args": ["--a"]}]
    assert two.template.role.env["KUBEDL_MODEL_PATH"] == "/models/two"
    assert two.autoscale == AutoscaleSpec(2, 5, {"queue": 4.0})
    (again,) = load_deployments(json.dumps(document_of(spec)))
    assert again.versions == spec.versions


def test_a_models_image_is_unpacked_before_its_server_starts() -> None:
    version = {"spec": {"modelName": "m"}, "status": {"image": "models/m:1"}}
    pod = mount_model({"spec": {"containers": [{"args": ["-x"]}]}}, version, "/kubedl-model/mv")
    assert pod["spec"]["initContainers"][0]["image"] == "models/m:1"
    assert pod["spec"]["volumes"] == [{"name": "kubedl-model", "emptyDir": {}}]
    (container,) = pod["spec"]["containers"]
    assert container["args"] == ["-x"]
    assert container["volumeMounts"] == [{"name": "kubedl-model", "mountPath": "/kubedl-model/mv"}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("TFServing", "TFServe"), "spec.framework .*'TFServe' is not one of TFServing, Triton"),
        (("trafficWeight: 80", "trafficWeight: 101"), r"predictors\[0\].trafficWeight .*from 0 to 100"),
        (("name: two", "name: one"), r"predictors\[1\].name .*two predictors are called 'one'"),
        (("maxReplicas: 5", "maxReplicas: 1"), r"predictors\[1\].autoScale.maxReplicas .*from 2 to 1000"),
        (("serving.kubedl.io/v1alpha1", "serving.kubedl.io/v1"), "apiVersion .*is not known for Inference"),
        (("batchSize", "batchsize"), r"batching.batchsize.*Did you mean 'batchSize'"),
        (("tolerations", "toleration"), r"template.spec.toleration: .*Did you mean 'tolerations'"),
        (("{name: side, image: side:1}", "side"), r"containers\[1\].*must be a mapping"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_deployments(TEXT.replace(*change))


def test_a_spoiled_inference_loads_or_is_one_error() -> None:
    chance, document = random.Random(1), yaml.safe_load(TEXT)
    loaded, refused = 0, 0
    for _ in range(80):
        try:
            load_deployments(yaml.safe_dump(spoiled(document, chance), allow_unicode=True))
            loaded += 1
        except SpecError:
            refused += 1
    assert loaded > 5
    assert refused > 40
