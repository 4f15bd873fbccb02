"""Foreign weights in: one file per source, safetensors to variables. Nothing is unpickled, torch
never imported.
"""
