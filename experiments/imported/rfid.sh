#!/usr/bin/env bash
# Imports a tokenizer and measures it on a folder of images, all of them held out.
#
#     bash experiments/imported/rfid.sh FILE_OR_FOLDER IMAGES [WORKDIR] [INCEPTION] [PROTOCOL]
set -euo pipefail

input=$1 images=$2
workdir=${3:-runs/imported_$(basename "${input%.*}")}
inception=${4:-download} protocol=${5:-adm}

test -e "$workdir/config.json" || python -m vq_jax.main --mode=import --input="$input" --workdir="$workdir"
python -m vq_jax.main --mode=evaluate --workdir="$workdir" --config="$workdir/config.py" \
  --config.data.source=folder --config.data.folder="$images" --config.data.val_fraction=1 \
  --config.data.batch_size=64 --inception="$inception" --protocol="$protocol"
