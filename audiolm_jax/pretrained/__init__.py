"""Imports pretrained models, one file per source: safetensors to variables, without unpickling."""
