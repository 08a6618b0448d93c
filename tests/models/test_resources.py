"""What a step may ask for, and that everything else is refused when it is written, with the field, the value and the way out."""

from __future__ import annotations

import contextlib
import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import VENDORS, GpuRequest, PodPlacement, StepResources, shown


def test_one_whole_gpu_of_nvidia_is_the_default():
    assert GpuRequest().resource_name == "nvidia.com/gpu"
    assert GpuRequest().count == 1


@pytest.mark.parametrize(
    ("fields", "resource"),
    [
        ({"vendor": "amd"}, "amd.com/gpu"),
        ({"vendor": "intel"}, "gpu.intel.com/i915"),
        ({"vendor": "intel", "resource": "gpu.intel.com/xe"}, "gpu.intel.com/xe"),
        ({"mig": "1g.10gb"}, "nvidia.com/mig-1g.10gb"),
        ({"mig": "1g.10gb+me"}, "nvidia.com/mig-1g.10gb.me"),
        ({"mig": "1g.24gb+me.all"}, "nvidia.com/mig-1g.24gb.me.all"),
        ({"mig": "1g.23gb-me"}, "nvidia.com/mig-1g.23gb-me"),
        ({"shared": True}, "nvidia.com/gpu.shared"),
        ({"resource": "habana.ai/gaudi", "count": 8}, "habana.ai/gaudi"),
    ],
)
def test_each_kind_of_gpu_has_its_resource(fields, resource):
    assert GpuRequest(**fields).resource_name == resource


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"count": -1}, ["count=-1", "greater than or equal to 1", "leave out gpu"]),
        ({"count": 0}, ["count=0", "1 to 64"]),
        ({"count": 65}, ["count=65", "less than or equal to 64"]),
        ({"count": True}, ["count=True"]),
        ({"count": "2"}, ["count='2'", "valid integer"]),
        ({"count": 0.5}, ["count=0.5"]),
        ({"vendor": "nvida"}, ["vendor='nvida'", "'nvidia', 'amd' or 'intel'"]),
        ({"mig": "1g.10gb", "count": 2}, ["mig='1g.10gb'", "count=2", "larger profile"]),
        ({"mig": "big"}, ["mig='big'", "3g.40gb"]),
        ({"mig": "1g.10gb\n"}, ["mig='1g.10gb\\n'"]),
        ({"mig": "1g.10gb", "vendor": "amd"}, ["mig='1g.10gb'", "'nvidia'", "resource="]),
        ({"mig": "1g.10gb", "shared": True}, ["mig='1g.10gb'", "shared=True", "one of them"]),
        ({"mig": "1g.10gb", "resource": "a.b/c"}, ["mig='1g.10gb'", "resource='a.b/c'"]),
        ({"mig": "1g.10gb", "memory_gib": 10}, ["memory_gib=10", "'1g.10gb'", "Leave it out"]),
        ({"shared": True, "count": 2}, ["shared=True", "count=2", "whole GPUs"]),
        ({"shared": True, "product": "Tesla-T4-SHARED"}, ["Tesla-T4-SHARED", "shared=True"]),
        ({"shared": "yes"}, ["shared='yes'"]),
        ({"memory_gib": 80, "vendor": "amd"}, ["memory_gib=80", "amd", "name the product"]),
        ({"memory_gib": 0}, ["memory_gib=0", "greater than 0"]),
        ({"memory_gib": 2000}, ["memory_gib=2000", "1024"]),
        ({"shared_memory_gib": 1024}, ["shared_memory_gib=1024", "512", "memory of the node"]),
        ({"shared_memory_gib": -1}, ["shared_memory_gib=-1"]),
        ({"shared_memory_gib": math.nan}, ["shared_memory_gib=nan", "finite"]),
        ({"resource": "gpu"}, ["resource='gpu'", "amd.com/gpu"]),
        ({"resource": "x.kubernetes.io/gpu"}, ["x.kubernetes.io/gpu"]),
        ({"resource": "requests.amd.com/gpu"}, ["requests.amd.com/gpu"]),
        ({"resource": "amd.com/gpu"}, ["amd.com/gpu", "vendor='amd'"]),
        ({"product": "NVIDIA L4"}, ["product='NVIDIA L4'", "node label"]),
        ({"producct": "x"}, ["'producct'", "product, mig"]),
    ],
)
def test_a_gpu_that_cannot_be_is_refused_with_its_field(fields, said):
    with pytest.raises(ConfigError) as caught:
        GpuRequest(**fields)
    assert str(caught.value).startswith("GpuRequest")
    assert [each for each in said if each not in str(caught.value)] == []
    assert "Value error" not in str(caught.value)  # ours alone, not wrapped by pydantic


def test_a_number_of_gpus_is_a_request():
    assert StepResources(gpu=2).gpu == GpuRequest(count=2)
    assert StepResources(gpu=None).gpu is None
    assert StepResources(gpu={"count": 2, "vendor": "amd"}).gpu == GpuRequest(count=2, vendor="amd")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"gpu": 0}, ["count=0", "leave out gpu"]),
        ({"gpu": -1}, ["count=-1"]),
        ({"gpu": True}, ["gpu=True", "GpuRequest"]),
        ({"gpu": "{{ params.gpus }}"}, ["gpu='{{ params.gpus }}'", "GpuRequest"]),
        ({"gpu": {"count": -1}}, ["GpuRequest: count=-1"]),
        ({"cpu": 0}, ["cpu=0", "0.001"]),
        ({"cpu": "4"}, ["cpu='4'"]),
        ({"cpu": 4000}, ["cpu=4000", "1024"]),
        ({"memory_gib": -1}, ["memory_gib=-1", "Give GiB"]),
        ({"memory_gib": 100_000}, ["memory_gib=100000", "32768"]),
        ({"memory_gib": math.inf}, ["memory_gib=inf", "finite"]),
        ({"memory_gib": 8, "gpu": GpuRequest(shared_memory_gib=16)}, ["shared_memory_gib=16", "memory_gib=8", "more memory"]),
        ({"run_as_non_root": 1000}, ["run_as_non_root=1000", "runAsUser"]),
        ({"options": "spot"}, ["options='spot'", "PodOptions(...)"]),
        ({"options": {"spot": "no"}}, ["PodPlacement: spot='no'"]),
        ({"gpus": 1}, ["'gpus'", "gpu, cpu"]),
    ],
)
def test_resources_that_cannot_be_are_refused_with_their_field(fields, said):
    with pytest.raises(ConfigError) as caught:
        StepResources(**fields)
    assert [each for each in said if each not in str(caught.value)] == []
    assert "Value error" not in str(caught.value)  # ours alone, not wrapped by pydantic


def test_shared_memory_may_be_all_of_the_memory_or_stand_without_a_limit():
    assert StepResources(gpu=GpuRequest(shared_memory_gib=8), memory_gib=8)
    assert StepResources(gpu=GpuRequest(shared_memory_gib=8))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"spot": "yes"}, ["spot='yes'", "'only'"]),
        ({"spot": 1}, ["spot=1"]),
        ({"kueue_queue": "Night Shift"}, ["kueue_queue='Night Shift'", "LocalQueue"]),
        ({"kueue_queue": "q" * 64}, ["kueue_queue=", "63"]),
        ({"priority_class": "High"}, ["priority_class='High'", "lower case"]),
        ({"runtime_class": ""}, ["runtime_class=''"]),
        ({"node_selector": {"a b": "c"}}, ["'a b': 'c'", "63"]),
        ({"node_selector": {"a": "c d"}}, ["'a': 'c d'"]),
        ({"node_selector": {"pool": 1}}, ["node_selector.pool=1", "valid string"]),
        ({"ephemeral_storage_gib": 0}, ["ephemeral_storage_gib=0"]),
        ({"queue": "x"}, ["'queue'", "kueue_queue"]),
    ],
)
def test_options_that_cannot_be_are_refused_with_their_field(fields, said):
    with pytest.raises(ConfigError) as caught:
        PodPlacement(**fields)
    assert str(caught.value).startswith("PodPlacement")
    assert [each for each in said if each not in str(caught.value)] == []
    assert "Value error" not in str(caught.value)  # ours alone, not wrapped by pydantic


def test_options_may_hold_what_is_rendered_later():
    assert (
        PodPlacement(node_selector={"pool": "{{ params.pool }}", "example.com/team": ""}).node_selector["example.com/team"] == ""
    )


def test_no_options_are_the_default_ones():
    assert StepResources(options=None).options == PodPlacement()


def test_a_request_survives_what_airflow_does_to_arguments():
    request = StepResources(gpu=GpuRequest(count=2, product="NVIDIA-L4"), cpu=8, options=PodPlacement(spot="only"))
    assert copy.deepcopy(request) == request
    assert pickle.loads(pickle.dumps(request)) == request  # noqa: S301  (our own bytes)
    assert StepResources(**request.model_dump()) == request


def test_a_value_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        GpuRequest().count = 2


WRITTEN = st.none() | st.booleans() | st.integers() | st.text() | st.floats()


@given(st.dictionaries(st.sampled_from([*GpuRequest.model_fields, "x"]), WRITTEN))
def test_whatever_is_written_is_a_request_or_refused_in_our_words(fields):
    with contextlib.suppress(ConfigError):
        request = GpuRequest(**fields)
        assert "/" in request.resource_name
        assert 1 <= request.count <= 64
        assert (request.shared_memory_gib or 1) <= 512


def test_every_vendor_has_its_own_names():
    assert len({names.resource for names in VENDORS.values()}) == len(VENDORS)


def test_what_is_shown_of_a_value_is_short():
    assert shown("x") == "'x'"
    assert len(shown("x" * 10_000)) < 120
