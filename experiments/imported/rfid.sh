#!/usr/bin/env bash
# Imports a tokenizer and measures it on all images of a folder.
#
#     bash experiments/imported/rfid.sh WORKDIR FILE_OR_FOLDER IMAGES [INCEPTION] [PROTOCOL] [FORMAT]
set -euo pipefail

workdir=$1 input=$2 images=$3
inception=${4:-download} protocol=${5:-adm} format=${6:+--format=$6}

# shellcheck disable=SC2086  # an empty format must add no argument
python -m vq_jax.main --mode=import --input="$input" --workdir="$workdir" $format
python -m vq_jax.main --mode=evaluate --workdir="$workdir" --config="$workdir/config.py" \
  --config.data.folder="$images" --config.data.val_fraction=1 \
  --config.data.batch_size=64 --inception="$inception" --protocol="$protocol"
