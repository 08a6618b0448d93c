"""
What a request becomes in a pod, against files, and what becomes of it under the user's own arguments.

``UPDATE_GOLDEN=1`` writes the files anew; look at the difference before it is kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.core.gpu_products import PRODUCTS
from airflow_ml_provider.core.pod_arguments import check_command, check_environment, check_image
from airflow_ml_provider.core.pod_merge import from_pod, merge, quantity
from airflow_ml_provider.core.podspec import SPOT_LABELS, memory, render
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import VENDORS, GpuRequest, PodPlacement, StepResources

GOLDEN = Path(__file__).parent / "podspec"
H100 = "NVIDIA-H100-80GB-HBM3"
CASES: dict[str, StepResources] = {
    "nothing": StepResources(),
    "cpu_alone": StepResources(cpu=2, memory_gib=4),
    "parts_of_cores": StepResources(cpu=0.25, memory_gib=0.3, run_as_non_root=True),
    "one_gpu": StepResources(gpu=1),
    "issue": StepResources(gpu=GpuRequest(count=2, product=H100, shared_memory_gib=16), cpu=8, memory_gib=64),
    "mig": StepResources(gpu=GpuRequest(mig="1g.10gb", product="NVIDIA-A100-SXM4-80GB"), cpu=4, memory_gib=16),
    "mig_single_strategy": StepResources(gpu=GpuRequest(product="NVIDIA-A100-SXM4-80GB-MIG-1g.10gb")),
    "shared": StepResources(gpu=GpuRequest(shared=True, product="Tesla-T4")),
    "shared_without_rename": StepResources(gpu=GpuRequest(product="Tesla-T4-SHARED")),
    "gpu_memory": StepResources(gpu=GpuRequest(memory_gib=80)),
    "amd": StepResources(gpu=GpuRequest(count=8, vendor="amd", product="AMD_Instinct_MI300X_OAM"), cpu=96, memory_gib=1024),
    "intel": StepResources(gpu=GpuRequest(vendor="intel", product="Max_1550", resource="gpu.intel.com/xe")),
    "spot": StepResources(cpu=2, options=PodPlacement(spot=True)),
    "spot_only_with_gpu_memory": StepResources(gpu=GpuRequest(memory_gib=24), options=PodPlacement(spot="only")),
    "options": StepResources(
        gpu=GpuRequest(product=H100),
        options=PodPlacement(
            kueue_queue="night",
            priority_class="low",
            runtime_class="nvidia",
            node_selector={"pool": "train"},
            ephemeral_storage_gib=200,
        ),
    ),
}
PARTS = render(CASES["issue"])


def arguments(**given: Any) -> dict[str, Any]:
    return merge(PARTS, given)


def refused(**given: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        merge(PARTS, given)
    return str(caught.value)


@pytest.mark.parametrize("case", CASES)
def test_a_request_is_written_as_its_file_says(case):
    file = GOLDEN / f"{case}.json"
    rendered = render(CASES[case]).arguments()
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(json.dumps(rendered, indent=2, sort_keys=True) + "\n")
    assert json.loads(file.read_text()) == rendered


def test_there_is_no_file_without_a_case():
    assert {file.stem for file in GOLDEN.glob("*.json")} == CASES.keys()


def gpus() -> st.SearchStrategy[GpuRequest]:
    whole = st.builds(
        GpuRequest,
        count=st.integers(1, 64),
        product=st.none() | st.sampled_from(sorted(PRODUCTS["nvidia"])),
        memory_gib=st.none() | st.floats(1, 1024),
        shared_memory_gib=st.none() | st.floats(0.01, 512),
    )
    others = st.sampled_from([(vendor, each) for vendor in ("amd", "intel") for each in sorted(PRODUCTS[vendor])])
    return whole | others.map(lambda pair: GpuRequest(vendor=pair[0], product=pair[1]))


RESOURCES = st.builds(
    StepResources,
    gpu=st.none() | gpus(),
    cpu=st.none() | st.floats(0.001, 1024),
    memory_gib=st.none() | st.floats(512, 32768),
    run_as_non_root=st.booleans(),
    options=st.builds(
        PodPlacement,
        spot=st.sampled_from([True, False, "only"]),
        kueue_queue=st.none() | st.from_regex(r"[a-z]{1,20}", fullmatch=True),
        ephemeral_storage_gib=st.none() | st.floats(0.01, 32768),
    ),
)
QUANTITY = re.compile(r"[0-9]+(m|Mi|Gi)?")
LABEL = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@given(RESOURCES)
def test_every_request_is_json_that_kubernetes_can_read(resources):
    parts = render(resources).arguments()
    assert json.loads(json.dumps(parts)) == parts
    for amounts in parts.get("container_resources", {}).values():
        assert all(QUANTITY.fullmatch(each) for each in amounts.values())
        assert all(quantity(each) > 0 for each in amounts.values())
    labels = {**parts.get("node_selector", {}), **parts.get("labels", {})}
    assert all(LABEL.fullmatch(key) and LABEL.fullmatch(value) for key, value in labels.items())


@given(RESOURCES)
def test_what_is_requested_of_all_but_cpu_is_limited_alike(resources):
    amounts = render(resources).container_resources
    requests = {name: value for name, value in amounts.get("requests", {}).items() if name != "cpu"}
    assert amounts.get("limits", {}) == requests


@given(RESOURCES)
def test_merging_twice_is_merging_once(resources):
    parts = render(resources)
    mine = {"tolerations": [{"key": "x", "operator": "Exists"}], "affinity": ZONE, "volumes": [{"name": "v", "emptyDir": {}}]}
    once = merge(parts, mine)
    assert merge(parts, once) == once
    assert merge(parts, parts.arguments()) == merge(parts, {}) == parts.arguments()


@given(st.floats(1 / 64, 32768))
def test_no_less_memory_is_asked_for_than_was_wanted(gib):
    read = quantity(memory(gib))
    assert Decimal(gib) * 2**30 <= read < Decimal(gib) * 2**30 + 2**20


@pytest.mark.parametrize(
    ("text", "number"),
    [("500m", "0.5"), ("64Gi", 64 * 2**30), ("1e3", 1000), ("1E", 10**18), ("2Ki", 2048), (4, 4), ("0.5", "0.5"), ("3k", 3000)],
)
def test_an_amount_is_read_as_kubernetes_does(text, number):
    assert quantity(text) == Decimal(number)


@pytest.mark.parametrize("text", ["{{ params.memory }}", "many", "", "1GiB", "Gi", "nan", "inf", "1Mk"])
def test_what_is_no_amount_is_none(text):
    assert quantity(text) is None


@pytest.mark.parametrize(("gib", "reported"), [(80, 81559), (80, 81920), (24, 23034), (24, 22731), (16, 15109), (141, 143771)])
def test_a_card_has_the_memory_that_it_is_sold_with(gib, reported):
    expression = render(StepResources(gpu=GpuRequest(memory_gib=gib))).affinity["nodeAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]["nodeSelectorTerms"][0]["matchExpressions"][0]
    assert int(expression["values"][0]) < reported
    assert int(expression["values"][0]) > {80: 65536, 24: 20475, 16: 12288, 141: 97887}[gib]  # the next smaller card


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (GpuRequest(product="H100"), [f"'{H100}'", "node_selector={'nvidia.com/gpu.product': 'H100'}"]),
        (GpuRequest(product="NVIDIA-H100-80GB-HBM"), [f"Did you mean '{H100}'"]),
        (GpuRequest(product="nvidia-a10g"), ["Did you mean 'NVIDIA-A10G'"]),
        (GpuRequest(product="Voodoo2"), ["product='Voodoo2'", "newer than"]),
        (GpuRequest(product="AMD_Instinct_MI300X"), ["not of vendor 'nvidia'", "vendor='amd'"]),
        (GpuRequest(product="MI300X", vendor="amd"), ["amd.com/gpu.product-name", "AMD_Instinct_MI300X_OAM"]),
        (GpuRequest(product="Max_1550-SHARED", vendor="intel"), ["Max_1550"]),
        (GpuRequest(product="Voodoo2-SHARED"), ["Voodoo2-SHARED"]),
    ],
)
def test_an_unknown_product_is_refused_with_the_nearest_and_a_way_out(gpu, said):
    with pytest.raises(ConfigError) as caught:
        render(StepResources(gpu=gpu))
    assert [each for each in said if each not in str(caught.value)] == []


@pytest.mark.parametrize("vendor", VENDORS)
def test_every_known_product_is_a_label_and_may_be_asked_for(vendor):
    for product in PRODUCTS[vendor]:
        assert render(StepResources(gpu=GpuRequest(vendor=vendor, product=product))).node_selector == {
            VENDORS[vendor].product: product
        }


def test_a_label_is_not_written_over_by_the_options():
    options = PodPlacement(node_selector={"nvidia.com/gpu.product": "NVIDIA-L4"})
    with pytest.raises(ConfigError, match=r"NVIDIA-H100-80GB-HBM3.*NVIDIA-L4"):
        render(StepResources(gpu=GpuRequest(product=H100), options=options))


ZONE = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [each]}]} for each in "ab"]
        },
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {"matchExpressions": []}}],
    },
    "podAffinity": {"x": []},
}


def test_without_arguments_the_parts_are_all():
    assert merge(PARTS, {}) == PARTS.arguments()
    assert merge(PARTS, {"node_selector": None, "volumes": [], "image": "x"}) == PARTS.arguments()


def test_amounts_of_the_user_are_added():
    theirs = {"limits": {"cpu": "16", "hugepages-2Mi": "1Gi"}, "requests": {"memory": "65536Mi"}, "claims": [{"name": "c"}]}
    merged = arguments(container_resources=theirs)["container_resources"]
    assert merged["limits"] == {"cpu": "16", "hugepages-2Mi": "1Gi", "memory": "64Gi", "nvidia.com/gpu": "2"}
    assert quantity(merged["requests"]["memory"]) == 64 * 2**30
    assert merged["claims"] == [{"name": "c"}]


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            {"limits": {"nvidia.com/gpu": 4}},
            ["gpu (nvidia.com/gpu) says '2'", "container_resources.limits['nvidia.com/gpu'] says 4"],
        ),
        ({"requests": {"nvidia.com/gpu": "1"}}, ["container_resources.requests"]),
        ({"limits": {"memory": "32Gi"}}, ["memory_gib says '64Gi'", "'32Gi'", "Leave out one"]),
        ({"requests": {"cpu": "4"}}, ["cpu says '8'", "'4'"]),
        ({"limits": {"cpu": "4"}}, ["cpu is limited to 4 and requested with 8", "Raise"]),
        ({"limits": {"memory": "much"}}, ["'much'"]),
    ],
)
def test_amounts_that_differ_are_refused_with_both(resources, said):
    text = refused(container_resources=resources)
    assert [each for each in said if each not in text] == []


def test_a_template_is_left_to_the_run():
    merged = arguments(
        container_resources={"limits": {"nvidia.com/gpu": "{{ params.gpus }}"}},
        node_selector={"nvidia.com/gpu.product": "{{ params.product }}"},
    )
    assert merged["container_resources"]["limits"]["nvidia.com/gpu"] == "{{ params.gpus }}"
    assert merged["node_selector"] == {"nvidia.com/gpu.product": "{{ params.product }}"}


def test_labels_are_joined_and_those_that_differ_refused():
    assert arguments(node_selector={"pool": "a"})["node_selector"] == {"nvidia.com/gpu.product": H100, "pool": "a"}
    text = refused(node_selector={"nvidia.com/gpu.product": "NVIDIA-L4"})
    assert H100 in text
    assert "NVIDIA-L4" in text


@pytest.mark.parametrize(
    ("argument", "mine", "theirs"),
    [
        ("priority_class_name", "priority_class of PodOptions says 'low'", "high"),
        ("runtime_class_name", "runtime_class of PodOptions says 'nvidia'", "kata"),
        ("labels", "kueue_queue of PodOptions says", {"kueue.x-k8s.io/queue-name": "day"}),
        ("node_selector", "node_selector of PodOptions, says 'pool: train'", {"pool": "serve"}),
    ],
)
def test_options_that_an_argument_contradicts_are_refused(argument, mine, theirs):
    parts = render(CASES["options"])
    with pytest.raises(ConfigError) as caught:
        merge(parts, {argument: theirs})
    assert mine in str(caught.value)
    assert merge(parts, {argument: getattr(parts, argument)}) == parts.arguments()


def test_names_that_only_the_user_says_are_taken():
    merged = arguments(priority_class_name="high", runtime_class_name="nvidia", labels={"team": "a"})
    assert (merged["priority_class_name"], merged["runtime_class_name"], merged["labels"]) == ("high", "nvidia", {"team": "a"})


def test_tolerations_are_added_once():
    mine = [{"key": "team", "operator": "Exists"}, PARTS.tolerations[0]]
    assert arguments(tolerations=mine)["tolerations"] == [*mine, *PARTS.tolerations[1:]]


def test_both_affinities_hold():
    parts = render(CASES["gpu_memory"])
    merged = merge(parts, {"affinity": ZONE})["affinity"]
    terms = merged["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [[each["key"] for each in term["matchExpressions"]] for term in terms] == [["zone", "nvidia.com/gpu.memory"]] * 2
    assert merged["podAffinity"] == {"x": []}
    assert len(merged["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]) == 1


def test_every_alternative_of_the_user_is_held_to_spot_nodes():
    merged = merge(render(StepResources(options=PodPlacement(spot="only"))), {"affinity": ZONE})["affinity"]["nodeAffinity"]
    terms = merged["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert len(terms) == 8
    assert {term["matchExpressions"][0]["key"] for term in terms} == {"zone"}
    assert {term["matchExpressions"][1]["key"] for term in terms} == {key for key, _ in SPOT_LABELS}


def test_an_affinity_of_the_user_alone_is_left_as_it_is():
    assert arguments(affinity=ZONE)["affinity"] == ZONE


def test_security_of_the_user_wins_where_it_speaks():
    merged = arguments(
        security_context={"fsGroup": 100, "seccompProfile": {"type": "Unconfined"}},
        container_security_context={"capabilities": {"add": ["IPC_LOCK"]}},
        automount_service_account_token=True,
    )
    assert merged["security_context"] == {"fsGroup": 100, "seccompProfile": {"type": "Unconfined"}}
    assert merged["container_security_context"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    assert merged["automount_service_account_token"] is True


@pytest.mark.parametrize("theirs", [{"privileged": True}, {"capabilities": {"add": ["CAP_SYS_ADMIN"]}}])
def test_a_privileged_container_may_gain_privileges_as_the_api_server_wants(theirs):
    assert "allowPrivilegeEscalation" not in arguments(container_security_context=theirs)["container_security_context"]
    said = {**theirs, "allowPrivilegeEscalation": False}
    assert arguments(container_security_context=said)["container_security_context"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("argument", ["security_context", "container_security_context"])
@pytest.mark.parametrize("root", [{"runAsNonRoot": False}, {"runAsUser": 0}])
def test_root_is_refused_where_it_was_ruled_out(argument, root):
    parts = render(StepResources(run_as_non_root=True))
    with pytest.raises(ConfigError, match="run_as_non_root says True"):
        merge(parts, {argument: root})
    assert merge(parts, {argument: {"runAsUser": 1000}})[argument]["runAsUser"] == 1000
    assert merge(render(StepResources()), {argument: root})


def test_volumes_of_the_user_stand_beside_ours():
    merged = arguments(volumes=[{"name": "data"}], volume_mounts=[{"name": "data", "mountPath": "/data"}])
    assert [each["name"] for each in merged["volumes"]] == ["data", "airflow-ml-shm"]
    assert [each["mountPath"] for each in merged["volume_mounts"]] == ["/data", "/dev/shm"]


@pytest.mark.parametrize("path", ["/dev/shm", "/dev/shm/"])
def test_another_volume_at_dev_shm_is_refused(path):
    assert "gpu.shared_memory_gib" in refused(volume_mounts=[{"name": "mine", "mountPath": path}])
    assert "gpu.shared_memory_gib" in refused(volumes=[{"name": "airflow-ml-shm", "emptyDir": {}}])
    mount = [{"name": "mine", "mountPath": path}]
    assert merge(render(StepResources(gpu=1)), {"volume_mounts": mount})["volume_mounts"] == mount


def pod(container: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"metadata": {"labels": {"team": "a"}}, "spec": {"containers": [{"name": "base", **container}], **spec}}


def test_a_whole_pod_counts_like_arguments():
    template = pod(
        {"resources": {"limits": {"cpu": "16"}}, "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}}},
        nodeSelector={"pool": "a"},
        tolerations=[{"key": "t"}],
        automountServiceAccountToken=True,
    )
    merged = merge(PARTS, {"node_selector": {"zone": "b"}}, template)
    assert merged["container_resources"]["limits"]["cpu"] == "16"
    assert merged["container_security_context"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert merged["node_selector"] == {"nvidia.com/gpu.product": H100, "zone": "b"}
    assert merged["tolerations"][0] == {"key": "t"}
    assert merged["automount_service_account_token"] is True
    assert from_pod({}) == {}


@pytest.mark.parametrize(
    "template",
    [
        pod({"resources": {"limits": {"nvidia.com/gpu": 4}}}),
        pod({}, nodeSelector={"nvidia.com/gpu.product": "NVIDIA-L4"}),
        pod({"volumeMounts": [{"name": "mine", "mountPath": "/dev/shm"}]}),
        pod({}, volumes=[{"name": "airflow-ml-shm"}]),
    ],
)
def test_a_whole_pod_that_contradicts_is_refused(template):
    with pytest.raises(ConfigError):
        merge(PARTS, {}, template)


def test_volumes_of_a_whole_pod_are_not_given_twice():
    template = pod({"volumeMounts": [{"name": "d", "mountPath": "/d"}]}, volumes=[{"name": "d"}])
    assert merge(PARTS, {}, template)["volumes"] == PARTS.volumes


@pytest.mark.parametrize(
    "image",
    # These, and those below, were shown to a real kubelet, which said InvalidImageName to the same ones.
    [
        "python",
        "python:3.11",
        "localhost/base:1",
        "registry/ml/trainer:1.4",
        "registry.example.com:5000/team/train_set/a__b/c--d:1.4_x",
        f"registry.example.com/a/b@sha256:{'0' * 64}",
        f"registry.example.com/a/b:1@sha256:{'0' * 64}",
        "[::1]:5000/x",
        "Registry.Example.com/x",
        "{{ params.image }}",
        "registry/{{ params.Name }}:",
        "x:" + "a" * 128,
        "x/" + "a" * 253,
        "localhost/" + "a" * 255,
        "a" * 247,
    ],
)
def test_an_image_may_be_named_so(image):
    check_image(image)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (None, "names no image"),
        ("", "names no image"),
        ("trainer :1", "blank"),
        ("trainer:1\n", "blank"),
        ("Trainer:1", "lower case: 'trainer'"),
        ("registry.example.com/Team/x:1", "'team/x'"),
        ("x:", "tag is empty"),
        (f"x:@sha256:{'0' * 64}", "tag is empty"),
        ("x:-1", "'-1' is no tag"),
        ("x:" + "a" * 129, "1 to 128"),
        ("https://registry.example.com/x", "starts with https://"),
        ("x@sha256:abc", "64 hexadecimal"),
        (f"x@sha256:{'A' * 64}", "lower case"),
        ("x@", "is no digest"),
        ("registry.example.com/", "repository is missing"),
        (":1", "repository is missing"),
        ("a//b", "is no repository"),
        ("-a/b", "is no repository"),
        ("registry.example.com/a_-b", "is no repository"),
        ("registry.example.com/caf\u00e9", "is no repository"),
        ("f" * 64, "an image's id"),
        ("x/" + "a" * 254, "its repository has 256 characters, and may have 255"),
        ("a" * 248, "256 characters"),
        ("localhost/" + "a" * 256, "256 characters"),
        ("x/" + "a." * 50_000, "is no repository"),
    ],
)
def test_another_name_of_an_image_is_refused_with_what_is_wrong(image, said):
    with pytest.raises(ConfigError) as caught:
        check_image(image)
    assert str(caught.value).startswith("image=")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 700


@given(st.text(alphabet="aA1-_.:/@ \n\u00e9[]") | st.text())
def test_a_name_of_an_image_is_taken_or_refused_in_words(image):
    with contextlib.suppress(ConfigError):
        check_image(image)
        assert "{{" in image or "{%" in image or re.fullmatch(r"[A-Za-z0-9._/:@\[\]-]+", image, re.ASCII)


def test_the_longest_variable_fits_and_the_next_is_refused():
    check_environment({"A": "x" * 131_069, "SECRET": None})
    with pytest.raises(ConfigError, match=r"environment variable 'A' takes 131072 bytes with its name.*131071"):
        check_environment({"A": "x" * 131_070})
    with pytest.raises(ConfigError, match="131072"):
        check_environment({"A": "\u00e9" * 65_535})


def test_an_environment_is_measured_as_a_whole():
    many = {f"V{number}": "x" * 100_000 for number in range(10)}
    check_environment(many)
    with pytest.raises(ConfigError, match=r"takes \d+ bytes; a pod holds 1048576.*V\d, V\d"):
        check_environment(many | {"V10": "x" * 100_000})


@pytest.mark.parametrize("name", ["", "A=B", "\u00e9", "A\n"])
def test_a_variable_that_kubernetes_does_not_take_is_refused(name):
    with pytest.raises(ConfigError, match="environment variable"):
        check_environment({name: "x"})


def test_no_message_tells_the_value_of_a_variable():
    for value in ("hidden\0", "hidden" * 50_000):
        with pytest.raises(ConfigError) as caught:
            check_environment({"TOKEN": value})
        assert "hidden" not in str(caught.value)
        assert "TOKEN" in str(caught.value)


def test_a_word_of_the_command_has_its_limit():
    check_command("cmds", None)
    check_command("arguments", ["x" * 131_071])
    with pytest.raises(ConfigError, match=r"arguments\[1\] takes 131072 bytes"):
        check_command("arguments", ["a", "x" * 131_072])
    with pytest.raises(ConfigError, match=r"cmds\[0\] has a zero byte"):
        check_command("cmds", ["a\0"])
