#!/bin/sh
# Make .peers, an environment of its own for what the benchmarks compare with; Odonata itself never imports any of it.
#
#     sh benchmarks/peers.sh [PYTHON]
#
# About 1.3 GB with the CPU build of torch. Remove the folder to be rid of it.
set -eu
cd "$(dirname "$0")/.."
python=${1:-python3}
peers=.peers/bin/python

[ -x "$peers" ] || "$python" -m venv .peers
torch=$(sed -n 's/^ *"\(torch[<>=][^"]*\)".*/\1/p' pyproject.toml)
"$peers" -m pip install --quiet "$torch" "numpy>=1.26" "pillow>=11"

# torchvision 0.(N + 15) belongs to torch 2.N; without its dependencies, lest pip replace torch by another build.
vision=$("$peers" -c 'import torch; print(f"0.{int(torch.__version__.split(chr(46))[1]) + 15}.0")')
"$peers" -m pip install --quiet --no-deps "torchvision==$vision"
held=$(mktemp)
"$peers" -c 'import torch; print("torch==" + torch.__version__)' > "$held"
"$peers" -m pip install --quiet --constraint "$held" \
    open_clip_torch==3.3.0 timm==1.0.31 "transformers>=5.20,<6" safetensors
"$peers" -m pip install --quiet --no-deps lightly==1.6.0  # its losses and heads need none of its dependencies
"$peers" -m pip install --quiet requests tqdm  # what facenet-pytorch imports; it asks for an older torch than it needs
"$peers" -m pip install --quiet --no-deps facenet-pytorch==2.6.0
"$peers" -m pip install --quiet --constraint "$held" gymnasium==1.4.0 pandas  # what stable_baselines3 imports
"$peers" -m pip install --quiet --no-deps stable_baselines3==2.9.2
rm -f "$held"

"$peers" benchmarks/torchvision_on_cpu.py
"$peers" -m pip list 2>/dev/null | grep -Ei '^(torch|torchvision|open_clip_torch|timm|lightly|transformers|facenet-pytorch|stable_baselines3) '
