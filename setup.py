"""
Packaging of ``sb3_happo`` and of its zoo. Tool settings are in ``pyproject.toml``, the versions
that were tested in ``constraints.txt``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

version = re.search(r'__version__ = "(.+)"', (ROOT / "sb3_happo" / "version.py").read_text())
assert version is not None, "sb3_happo/version.py holds no version"
readme = ROOT / "README.md"
# The zoo's package with its data, which in the repository lie beside it
ZOO = {
    "sb3_happo_zoo": "zoo/sb3_happo_zoo",
    "sb3_happo_zoo.hyperparams": "zoo/hyperparams",
    "sb3_happo_zoo.agents": "zoo/agents",
}

setup(
    name="sb3_happo",
    version=version.group(1),
    description=(
        "Heterogeneous-agent trust-region learning (HAPPO and its siblings) for Stable-Baselines3"
    ),
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    keywords=(
        "multi-agent reinforcement-learning HAPPO stable-baselines3 pettingzoo gymnasium pytorch"
    ),
    packages=[*find_packages(include=["sb3_happo", "sb3_happo.*"]), *ZOO],
    package_dir=ZOO,
    package_data={
        "sb3_happo": ["py.typed"],
        "sb3_happo_zoo.hyperparams": ["*.yml"],
        "sb3_happo_zoo.agents": ["**/*"],
    },
    entry_points={"console_scripts": ["sb3-happo = sb3_happo_zoo.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[
        "cloudpickle",
        "gymnasium>=1.0,<2",
        "numpy>=1.24,<3",
        "pettingzoo>=1.24.3",
        "safetensors>=0.4.3",
        "sb3-contrib>=2.9,<3",
        "scipy>=1.11,<2",
        "stable-baselines3>=2.9,<3",
        "torch>=2.8,<3",
    ],
    extras_require={
        # Environment families that install from wheels; docs/environments.md describes the others
        "envs": [
            "gymnasium-robotics>=1.3",
            "lbforaging>=2.0",
            "mpe2>=1.0",
            "mujoco>=3.0",
            "pettingzoo[butterfly,sisl]",
            "rlcard>=1.0.5",
            "rware>=2.0",
            "supersuit>=3.9",
        ],
        # Multi-agent MuJoCo stepped by EnvPool's threads, `sb3_happo/vec_env/envpool_vec_env.py`
        "envpool": [
            'envpool>=1.2.5,<2; python_version >= "3.11"',  # it has no wheels for older ones
            "gymnasium-robotics>=1.3",
            "mujoco>=3.0",
        ],
        # Export of agents to ONNX. Newer versions of onnxruntime have no wheels for Python 3.10
        "export": [
            "onnx>=1.20,<2",
            "onnxruntime>=1.23,<2",
            "onnxscript>=0.7,<1",
        ],
        # The documentation as a site, `make docs`, which is built with Python 3.11 or newer
        "docs": [
            'furo>=2024.8; python_version >= "3.11"',
            'myst-parser>=4,<6; python_version >= "3.11"',
            'sphinx>=8.1,<10; python_version >= "3.11"',
            'sphinx-copybutton>=0.5.2; python_version >= "3.11"',
        ],
        # Not part of "envs", because it depends on the unmaintained `gym`
        "vmas": ["vmas>=1.5,<2"],
        # Scripts of the zoo: training, plots, films, tuning
        "zoo": [
            "imageio[ffmpeg]",
            "matplotlib",
            "optuna>=5.0",
            "pillow",
            "psutil",
            "pyyaml",
            "rich",
            "rl-zoo3[plots]>=2.9,<3",
            "tensorboard",
            "tqdm",
        ],
        "tests": [
            "mypy>=1.9",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "setuptools>=64",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
