"""
Scripts to train, tune, evaluate and measure the algorithms of ``sb3_happo``, in the form of RL Zoo.

Each script is a module with a ``main`` function. In a clone of the repository it is started by
``python zoo/train.py``, where the package is installed by ``sb3-happo train`` or ``python -m
sb3_happo_zoo.train``.
"""
