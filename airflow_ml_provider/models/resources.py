"""
What a step in a pod asks for: GPUs, CPU, memory, and where it may run.

Values that check themselves when they are made, which is when the DAG is parsed. They know Kubernetes' names and limits, and
nothing of how a pod is written: that is ``core/podspec.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from airflow_ml_provider.exceptions import ConfigError

SHOWN = 100
MAX_SHARED_MEMORY_GIB = 512
"""More than this for ``/dev/shm`` is a slip of the unit: it is memory, and the largest nodes have 2 to 4 TiB of it."""

Vendor = Literal["nvidia", "amd", "intel"]
Spot = Literal["only"] | bool

_PART = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_SUBDOMAIN = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?)*"
_LABEL_KEY = re.compile(rf"(?:{_SUBDOMAIN}/)?{_PART}")
_LABEL_VALUE = re.compile(rf"(?:{_PART})?")
_RESOURCE = re.compile(rf"{_SUBDOMAIN}/{_PART}")
_MIG = r"^[1-9][0-9]?g\.[1-9][0-9]{0,3}gb(?:[+.-][a-z]+(?:\.[a-z]+)?)?$"
_MIG_OR_SHARED = re.compile(r"-SHARED$|-MIG-")

Name = Annotated[str, Field(pattern=rf"^{_SUBDOMAIN}$", max_length=253)]
"""Name of an object in Kubernetes."""


class VendorNames(NamedTuple):
    """
    What a vendor's device plugin and node labeller call things.

    :param resource: Extended resource of whole GPUs.
    :param product: Node label with the name of the product.
    :param labeller: Who writes that label.
    """

    resource: str
    product: str
    labeller: str


VENDORS: dict[Vendor, VendorNames] = {
    "nvidia": VendorNames("nvidia.com/gpu", "nvidia.com/gpu.product", "NVIDIA GPU feature discovery"),
    "amd": VendorNames("amd.com/gpu", "amd.com/gpu.product-name", "AMD's node labeller"),
    "intel": VendorNames("gpu.intel.com/i915", "gpu.intel.com/product", "Intel's node feature rules"),
}
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"
"""Node label with the memory of one GPU in MiB; the other vendors write none that can be compared."""


class _Request(BaseModel):
    """What the values of this module have in common: they are refused in words."""

    # Built when first used, not when a DAG file is parsed.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    remedies: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(self._text_of(error)) from error

    @classmethod
    def _text_of(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # ours already: of a validator, or of a value inside this one
            return str(cause)
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            return f"{cls.__name__} has no field {field!r}. There are: {', '.join(cls.model_fields)}."
        remedy = cls.remedies.get(str(first["loc"][0]) if first["loc"] else "", "")
        # The pattern itself helps nobody; what it stands for is in the remedy.
        problem = "that is not its form" if first["type"] == "string_pattern_mismatch" else first["msg"]
        return f"{cls.__name__}: {field}={shown(first['input'])}: {problem}. {remedy}".rstrip()

    def _refuse(self, text: str) -> NoReturn:
        raise ConfigError(f"{type(self).__name__}: {text}")


class GpuRequest(_Request):
    """
    GPUs of one container.

    GPUs are never overcommitted: what is asked for is held until the pod has ended. A product newer than this release is
    chosen by its label: ``node_selector={"nvidia.com/gpu.product": "..."}`` of the operator.

    :param count: Whole GPUs, 1 to 64; all on one node. With ``mig`` or ``shared`` only 1.
    :param vendor: Whose device plugin serves them: ``nvidia``, ``amd`` or ``intel``.
    :param product: Label of the product as the vendor's discovery writes it, ``NVIDIA-H100-80GB-HBM3``; None for any.
        ``Tesla-T4-SHARED`` and ``NVIDIA-A100-SXM4-40GB-MIG-1g.5gb`` are the nodes whose ``nvidia.com/gpu`` are time slices
        or MIG devices.
    :param mig: MIG profile, ``1g.10gb``, on nodes that offer each profile as a resource of its own (strategy ``mixed``); None
        for whole GPUs.
    :param shared: A time slice of a GPU, where the plugin offers slices as ``nvidia.com/gpu.shared``. Slices do not shield
        each other's memory.
    :param memory_gib: Memory of each GPU in GiB, at least, as it is sold: drivers keep up to 8 % of it back, so 80 takes an
        H100 that reports 79.6, and 96 takes one of 94. Up to 1024; None for any. NVIDIA alone.
    :param shared_memory_gib: Size of ``/dev/shm`` in GiB, up to 512; what is in it counts as the container's memory. None
        leaves the 64 MiB of the container runtime, too little for PyTorch's data loaders with several workers.
    :param resource: Name of the extended resource where it is not the vendor's usual one, ``gpu.intel.com/xe``.
    """

    remedies: ClassVar[Mapping[str, str]] = {
        "count": "Ask for 1 to 64 GPUs; leave out gpu for a step without one.",
        "vendor": "Name another vendor's GPUs by resource=.",
        "product": "Give the value of the node label, for example 'NVIDIA-H100-80GB-HBM3'.",
        "mig": "Give a profile as nvidia-smi names it, for example '1g.10gb' or '3g.40gb'.",
        "memory_gib": "Give the GiB of one GPU, for example 80; leave it out for any.",
        "shared_memory_gib": f"Give GiB up to {MAX_SHARED_MEMORY_GIB}: it is memory of the node, and counts as the container's.",
        "shared": "Give True or False; a part of a GPU is one slice.",
    }

    count: int = Field(default=1, ge=1, le=64, strict=True)
    vendor: Vendor = "nvidia"
    product: str | None = Field(default=None, pattern=rf"^{_PART}$")
    mig: str | None = Field(default=None, pattern=_MIG)
    shared: bool = Field(default=False, strict=True)
    memory_gib: float | None = Field(default=None, gt=0, le=1024, strict=True, allow_inf_nan=False)
    shared_memory_gib: float | None = Field(default=None, gt=0, le=MAX_SHARED_MEMORY_GIB, strict=True, allow_inf_nan=False)
    resource: str | None = None

    @field_validator("resource")
    @classmethod
    def _resource_can_be_one(cls, name: str | None) -> str | None:
        domain = (name or "").partition("/")[0]
        # Kubernetes keeps its own domain for itself, and "requests." for quotas.
        if name is not None and (
            not _RESOURCE.fullmatch(name) or domain.endswith("kubernetes.io") or domain.startswith("requests.")
        ):
            raise ConfigError(
                f"GpuRequest: resource={shown(name)} is no name of an extended resource. Give it as the node lists it, "
                "with the vendor's domain: 'amd.com/gpu'."
            )
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        self._one_kind()
        self._one_part()
        if self.memory_gib is not None and (self.vendor != "nvidia" or self.mig):
            why = f"the profile {self.mig!r} says it already" if self.mig else f"nodes of {self.vendor} have no label to compare"
            self._refuse(f"memory_gib={self.memory_gib:g} cannot be asked for: {why}. Leave it out, or name the product.")
        return self

    def _one_kind(self) -> None:
        kinds = [f"{each}={getattr(self, each)!r}" for each in ("mig", "shared", "resource") if getattr(self, each)]
        if len(kinds) > 1:
            self._refuse(f"{' and '.join(kinds)} each name a resource. Give one of them; resource= takes any name.")
        if (self.mig or self.shared) and self.vendor != "nvidia":
            self._refuse(f"{kinds[0]} is for vendor 'nvidia', not {self.vendor!r}. Name the resource by resource=.")
        if (self.mig or self.shared) and _MIG_OR_SHARED.search(self.product or ""):
            self._refuse(
                f"product={self.product!r} names nodes whose nvidia.com/gpu are parts of GPUs, {kinds[0]} another resource. "
                "Give one of the two."
            )
        for vendor, names in VENDORS.items():
            if vendor != self.vendor and (self.resource or "").split("/")[0] == names.resource.split("/")[0]:
                self._refuse(f"resource={self.resource!r} is not of vendor {self.vendor!r}. Say vendor={vendor!r}.")

    def _one_part(self) -> None:
        if self.mig and self.count != 1:
            self._refuse(
                f"mig={self.mig!r} with count={self.count}: a program sees one MIG device, however many its pod holds. "
                "Take a larger profile, or leave out mig for whole GPUs."
            )
        if self.shared and self.count != 1:
            self._refuse(
                f"shared=True with count={self.count}: more slices may be of the same GPU, and give no more of it. "
                "Leave out count, or leave out shared for whole GPUs."
            )

    @property
    def resource_name(self) -> str:
        """Extended resource that is asked for."""
        if self.mig:
            return f"nvidia.com/mig-{self.mig.replace('+', '.')}"
        return "nvidia.com/gpu.shared" if self.shared else self.resource or VENDORS[self.vendor].resource

    @property
    def product_label(self) -> str:
        """Node label that ``product`` is looked for in."""
        return VENDORS[self.vendor].product


class PodPlacement(_Request):
    """
    Where and with what rank pods run; made once, and given to many steps.

    What the operator takes by itself (``priority_class_name``, ``runtime_class_name``, ``node_selector``) may be said in
    either place, but not differently in both.

    :param spot: True for a step that may run on spot nodes and would rather: it tolerates the taints of GKE, AKS, EKS and
        Karpenter, and prefers such nodes. ``"only"`` for no other nodes.
    :param kueue_queue: Local queue of Kueue, in the pod's namespace, that admits the pod; it waits, gated, until then.
    :param priority_class: Name of a PriorityClass; a higher one may preempt pods.
    :param runtime_class: Name of a RuntimeClass, ``nvidia`` where the container runtime does not use it by default.
    :param node_selector: Labels that a node must have.
    :param ephemeral_storage_gib: Local disk in GiB, up to 32768, requested and limited: a pod that writes more is evicted.
        Inputs and outputs lie there, so it is the sum of both and of what the program writes. None for no limit.
    """

    remedies: ClassVar[Mapping[str, str]] = {
        "spot": "Give True, False or 'only'.",
        "kueue_queue": "Give the name of a LocalQueue, at most 63 lower case letters, digits and dashes.",
        "priority_class": "Give the name of a PriorityClass of the cluster, in lower case.",
        "runtime_class": "Give the name of a RuntimeClass of the cluster, in lower case.",
        "node_selector": "Give a dictionary of label and value, both texts: {'pool': 'train'}.",
        "ephemeral_storage_gib": "Give GiB of local disk, up to 32768.",
    }

    spot: Spot = False
    kueue_queue: str | None = Field(default=None, pattern=r"^[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?$")
    priority_class: Name | None = None
    runtime_class: Name | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    ephemeral_storage_gib: float | None = Field(default=None, gt=0, le=32768, strict=True, allow_inf_nan=False)

    @field_validator("spot", mode="before")
    @classmethod
    def _is_a_word_or_a_flag(cls, value: object) -> object:
        if not isinstance(value, bool) and value != "only":  # pydantic would read "yes" and 1 as True
            raise ConfigError(f"{cls.__name__}: spot={shown(value)} is none of True, False, 'only'. {cls.remedies['spot']}")
        return value

    @field_validator("node_selector")
    @classmethod
    def _labels_can_be_some(cls, labels: dict[str, str]) -> dict[str, str]:
        for key, value in labels.items():
            good = _LABEL_KEY.fullmatch(key) and ("{{" in value or _LABEL_VALUE.fullmatch(value))
            if not good:
                raise ConfigError(
                    f"{cls.__name__}: node_selector has {shown(key)}: {shown(value)}, which no node can have: a label is "
                    "letters, digits, '-', '_' and '.', at most 63, its key perhaps below a domain. Look at the node's labels."
                )
        return labels


class StepResources(_Request):
    """
    Everything that one step asks for.

    Memory is requested and limited alike, so the step is killed for what it took itself and never for what others took. CPU
    is requested and not limited: a limit slows data loaders down while cores stand idle. A namespace whose quota wants a
    limit gets it by ``container_resources``.

    :param gpu: GPUs, or how many of NVIDIA's; None for a step without.
    :param cpu: Cores, 0.001 to 1024; None requests none.
    :param memory_gib: Memory in GiB, 1/64 to 32768; None for no limit.
    :param run_as_non_root: The image's user must not be root, and must be a number; Kubernetes refuses to start it else.
    :param options: Where it runs.
    """

    remedies: ClassVar[Mapping[str, str]] = {
        "gpu": "Give a number of GPUs, or GpuRequest(...); leave it out for a step without one.",
        "cpu": "Give cores, for example 0.5 or 8; leave it out to request none.",
        "memory_gib": "Give GiB, for example 0.5 or 64; leave it out for no limit.",
        "run_as_non_root": "Give True or False; a user's number goes into security_context={'runAsUser': 1000}.",
        "options": "Give PodOptions(...).",
    }

    gpu: GpuRequest | None = None
    cpu: float | None = Field(default=None, ge=0.001, le=1024, strict=True, allow_inf_nan=False)
    memory_gib: float | None = Field(default=None, ge=1 / 64, le=32768, strict=True, allow_inf_nan=False)
    run_as_non_root: bool = Field(default=False, strict=True)
    options: PodPlacement = Field(default_factory=PodPlacement)

    @field_validator("gpu", mode="before")
    @classmethod
    def _a_number_is_a_request(cls, value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            return GpuRequest(count=value)
        if value is None or isinstance(value, GpuRequest | Mapping):
            return value
        raise ConfigError(f"gpu={shown(value)} is neither a number of GPUs nor a GpuRequest. {cls.remedies['gpu']}")

    @field_validator("options", mode="before")
    @classmethod
    def _none_is_the_default(cls, value: object) -> object:
        return PodPlacement() if value is None else value

    @model_validator(mode="after")
    def _shared_memory_fits(self) -> Self:
        wanted = self.gpu.shared_memory_gib if self.gpu else None
        if wanted is not None and self.memory_gib is not None and wanted > self.memory_gib:
            raise ConfigError(
                f"shared_memory_gib={wanted:g} is more than memory_gib={self.memory_gib:g}, and counts as part of it: the step "
                "would be killed before it was full. Ask for less of it, or for more memory."
            )
        return self


def shown(value: object) -> str:
    """
    Write a value into a message.

    :param value: What was given.
    :return: Its ``repr``, cut after 100 characters.
    """
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
