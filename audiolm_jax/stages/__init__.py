"""Trainable stages, one file each; `base.py` defines their common contract."""
