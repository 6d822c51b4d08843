#!/usr/bin/env bash
# Prepares ImageNet for training, from the two archives that image-net.org gives to registered users,
# ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, with TFDS's own builder. Needs no network. Checks
# the archives and the free disk space first, does nothing if all is prepared, and may be interrupted and
# started again at any time.
#
#   launch/prepare_imagenet.sh [--manual_dir DIR] [--data_dir DIR] [--dry_run]
#
#   --manual_dir DIR   where the archives are: $FTBNN_IMAGENET_MANUAL_DIR, or DATA_DIR/downloads/manual
#   --data_dir DIR     where data sets are prepared: $TFDS_DATA_DIR, or ~/tensorflow_datasets
#   --dry_run          checks, says what would be done, and ends
set -euo pipefail
# shellcheck source=launch/options.sh
source "$(dirname "$0")/options.sh"
parse "manual_dir data_dir" "dry_run" "$@"
extra=("${words[@]}" "${rest[@]}")
((${#extra[@]} == 0)) || die "${extra[0]}: unexpected; --help lists the options"

data_dir=${option[data_dir]:-${TFDS_DATA_DIR:-$HOME/tensorflow_datasets}}
manual_dir=${option[manual_dir]:-${FTBNN_IMAGENET_MANUAL_DIR:-$data_dir/downloads/manual}}
for directory in "$manual_dir" "$data_dir"; do
  [[ $directory != *://* ]] || die "$directory: must be a directory of this machine"
done
# shellcheck source=launch/environment.sh
source "$(dirname "$0")/environment.sh"
exec python -m ftbnn_jax.data.prepare imagenet2012 ${option[dry_run]:+--dry_run} --manual_dir="$manual_dir" --data_dir="$data_dir"
