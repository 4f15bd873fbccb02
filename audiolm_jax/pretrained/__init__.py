"""Foreign weights in: one file per source, safetensors to variables; nothing is ever unpickled, torch never imported."""
