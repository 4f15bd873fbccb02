"""The programs: `python -m experiments.<program>`."""
