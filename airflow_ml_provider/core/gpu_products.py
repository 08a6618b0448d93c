"""Which GPUs there are, by the node labels that the vendors' discovery gives them: a misspelt one would wait without end."""

from __future__ import annotations

import re

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import VENDORS, GpuRequest, Vendor

# The driver's name of the product with dashes for blanks. Drivers before 470 wrote no "NVIDIA-" in front.
_NVIDIA = """
    NVIDIA-A2 NVIDIA-A10 NVIDIA-A10G NVIDIA-A10M NVIDIA-A16 NVIDIA-A30 NVIDIA-A40
    NVIDIA-A100-PCIE-40GB NVIDIA-A100-80GB-PCIe NVIDIA-A100-SXM4-40GB NVIDIA-A100-SXM4-80GB NVIDIA-A100-SXM-64GB
    A100-PCIE-40GB A100-SXM4-40GB A100-SXM4-80GB NVIDIA-A800-80GB-PCIe NVIDIA-A800-SXM4-80GB
    NVIDIA-H20 NVIDIA-H20-3e NVIDIA-H100-80GB-HBM3 NVIDIA-H100-64GB-HBM2 NVIDIA-H100-PCIe NVIDIA-H100-NVL
    NVIDIA-H800 NVIDIA-H800-PCIe NVIDIA-H200 NVIDIA-H200-NVL NVIDIA-GH200-120GB NVIDIA-GH200-480GB NVIDIA-GH200-144G-HBM3e
    NVIDIA-B200 NVIDIA-GB200 NVIDIA-B300-SXM6-AC NVIDIA-GB300 NVIDIA-GB10
    NVIDIA-L2 NVIDIA-L4 NVIDIA-L20 NVIDIA-L40 NVIDIA-L40G NVIDIA-L40S
    Tesla-K80 Tesla-M4 Tesla-M10 Tesla-M40 Tesla-M60 Tesla-P4 Tesla-P6 Tesla-P40
    Tesla-P100-PCIE-12GB Tesla-P100-PCIE-16GB Tesla-P100-SXM2-16GB Tesla-T4 Tesla-T10
    Tesla-V100-PCIE-16GB Tesla-V100-PCIE-32GB Tesla-V100-SXM2-16GB Tesla-V100-SXM2-32GB Tesla-V100-SXM3-32GB
    Tesla-V100-DGXS-16GB Tesla-V100-DGXS-32GB Tesla-V100S-PCIE-32GB
    Quadro-RTX-4000 Quadro-RTX-5000 Quadro-RTX-6000 Quadro-RTX-8000
    NVIDIA-RTX-A2000 NVIDIA-RTX-A2000-12GB NVIDIA-RTX-A4000 NVIDIA-RTX-A4500 NVIDIA-RTX-A5000 NVIDIA-RTX-A5500 NVIDIA-RTX-A6000
    RTX-A4000 RTX-A5000 RTX-A6000
    NVIDIA-RTX-2000-Ada-Generation NVIDIA-RTX-4000-Ada-Generation NVIDIA-RTX-4000-SFF-Ada-Generation
    NVIDIA-RTX-4500-Ada-Generation NVIDIA-RTX-5000-Ada-Generation NVIDIA-RTX-5880-Ada-Generation NVIDIA-RTX-6000-Ada-Generation
    NVIDIA-RTX-PRO-4000-Blackwell NVIDIA-RTX-PRO-4500-Blackwell NVIDIA-RTX-PRO-4500-Blackwell-Server-Edition
    NVIDIA-RTX-PRO-5000-Blackwell NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition
    NVIDIA-RTX-PRO-6000-Blackwell-Workstation-Edition NVIDIA-RTX-PRO-6000-Blackwell-Max-Q-Workstation-Edition
    NVIDIA-TITAN-RTX NVIDIA-TITAN-V NVIDIA-TITAN-Xp TITAN-RTX TITAN-V TITAN-Xp
    GeForce-GTX-1080-Ti NVIDIA-GeForce-GTX-1080-Ti GeForce-RTX-2080-Ti NVIDIA-GeForce-RTX-2080-Ti
    GeForce-RTX-3080 GeForce-RTX-3090
    NVIDIA-GeForce-RTX-3060 NVIDIA-GeForce-RTX-3070 NVIDIA-GeForce-RTX-3080 NVIDIA-GeForce-RTX-3080-Ti
    NVIDIA-GeForce-RTX-3090 NVIDIA-GeForce-RTX-3090-Ti NVIDIA-GeForce-RTX-4060-Ti NVIDIA-GeForce-RTX-4070
    NVIDIA-GeForce-RTX-4070-Ti NVIDIA-GeForce-RTX-4080 NVIDIA-GeForce-RTX-4080-SUPER NVIDIA-GeForce-RTX-4090
    NVIDIA-GeForce-RTX-4090-D NVIDIA-GeForce-RTX-5070 NVIDIA-GeForce-RTX-5070-Ti NVIDIA-GeForce-RTX-5080
    NVIDIA-GeForce-RTX-5090 NVIDIA-GeForce-RTX-5090-D
"""

# What the board says of itself, else what libdrm calls it, with underscores for blanks and without brackets.
_AMD = """
    AMD_Instinct_MI100 AMD_Instinct_MI210 AMD_Instinct_MI250 AMD_Instinct_MI250X AMD_INSTINCT_MI250_MCM_OAM_AC_MBA
    AMD_Instinct_MI300A AMD_Instinct_MI300X AMD_Instinct_MI300X_OAM AMD_Instinct_MI300X_HF AMD_Instinct_MI300X_VF
    AMD_Instinct_MI308X AMD_Instinct_MI308X_OAM AMD_Instinct_MI308X_HF AMD_Instinct_MI308X_HF_VF
    AMD_Instinct_MI325X AMD_Instinct_MI325_OAM AMD_Instinct_MI325X_OAM AMD_Instinct_MI325X_VF
    AMD_Instinct_MI350X AMD_Instinct_MI350_OAM AMD_Instinct_MI350X_OAM AMD_Instinct_MI350X_VF
    AMD_Instinct_MI355X AMD_Instinct_MI355_OAM AMD_Instinct_MI355X_OAM AMD_Instinct_MI355X_VF
    AMD_Radeon_Instinct_MI25 AMD_Radeon_Pro_V620 AMD_Radeon_Pro_V710 AMD_Radeon_Pro_W7800 AMD_Radeon_Pro_W7800_48GB
    AMD_Radeon_Pro_W7900 AMD_Radeon_Pro_W7900_Dual_Slot
"""
_INTEL = "Flex_140 Flex_170 Max_1100 Max_1550"

PRODUCTS: dict[Vendor, frozenset[str]] = {
    "nvidia": frozenset(_NVIDIA.split()),
    "amd": frozenset(_AMD.split()),
    "intel": frozenset(_INTEL.split()),
}
_PART_OF = re.compile(r"(?:-MIG-[0-9]+g\.[0-9]+gb[\w.]*)?(?:-SHARED)?$")


def check_product(gpu: GpuRequest) -> None:
    """
    Refuse a product that no node is labelled with; its pod would wait until ``capacity_timeout``.

    :param gpu: What is asked for; without a product there is nothing to check.
    :raises ConfigError: the product is none that this release knows; names the nearest, and the way to ask for one that is
        newer than this release; a retry never helps.
    """
    product = gpu.product
    if product is None or product in PRODUCTS[gpu.vendor] or _whole(gpu) in PRODUCTS[gpu.vendor]:
        return
    owner = next((vendor for vendor, names in PRODUCTS.items() if product in names), None)
    if owner:
        raise ConfigError(f"GpuRequest: product={product!r} is not of vendor {gpu.vendor!r}. Say vendor={owner!r}.")
    raise ConfigError(
        f"GpuRequest: product={product!r} is no value of the node label {gpu.product_label} that "
        f"{VENDORS[gpu.vendor].labeller} is known to write.{_nearest(product, PRODUCTS[gpu.vendor])} For one that is newer than "
        f"this release leave out product, and pass node_selector={{{gpu.product_label!r}: {product!r}}} to the operator."
    )


def _whole(gpu: GpuRequest) -> str:
    """Name the product that a part was cut from; only NVIDIA's labels tell of parts."""
    product = gpu.product or ""
    return _PART_OF.sub("", product) if gpu.vendor == "nvidia" else product


def _nearest(product: str, known: frozenset[str]) -> str:
    import difflib  # 2 ms at parse time, for a message that few DAG files ever need

    folded = {_folded(each): each for each in sorted(known)}
    near = [each for key, each in folded.items() if _folded(product) in key][:5]
    near = near or [folded[key] for key in difflib.get_close_matches(_folded(product), folded, n=3, cutoff=0.5)]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def _folded(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())
