"""One file per trainable thing; each reads like its paper. The contract they share is in
`base.py`.
"""
