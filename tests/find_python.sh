#!/usr/bin/env bash
# Prints the path of an interpreter: tests/find_python.sh 3.13 UV, or a path instead of the version.
# Looks on the PATH and among pyenv's; otherwise UV, the uv program, finds or downloads one.
set -uo pipefail
wanted=$1 uv=$2
from_pyenv=$(version=$(pyenv latest "$wanted" 2>/dev/null) && pyenv prefix "$version")/bin/python
for candidate in "$wanted" "python$wanted" "$from_pyenv"; do  # pyenv's on the PATH may not start
  if "$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null; then exit; fi
done
"$uv" python install --quiet "$wanted" && "$uv" python find --managed-python "$wanted" && exit
echo "NO PYTHON $wanted: none on the PATH or in pyenv, and uv could not download it. Install it, and run" >&2
echo "  make test-colab COLAB_PYTHON=/path/to/python$wanted" >&2
exit 1
