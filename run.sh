#!/usr/bin/env bash
# All of the paper's experiments: bash run.sh [DATA] [OUT]   (./rafce and ./runs by default)
# Settings from the environment:
#   SEEDS="0 1 2"   EPOCHS=60   SIZE=112   DEVICE=auto   EXTRA="more options of mmlfer.py train"
#   RHOS="0.03 0.1 0.3 1"   RHOS_AM="0.1 0.3 1": what is searched, on validation, with the first seed
# Finished runs are skipped and a stopped one goes on: start it again at any time.
set -euo pipefail

DATA=${1:-./rafce} OUT=${2:-./runs}
SEEDS=${SEEDS:-0 1 2} EPOCHS=${EPOCHS:-60} SIZE=${SIZE:-112} DEVICE=${DEVICE:-auto} EXTRA=${EXTRA:-}
RHOS=${RHOS:-0.03 0.1 0.3 1} RHOS_AM=${RHOS_AM:-0.1 0.3 1}
FIRST=${SEEDS%% *} RUNS=$OUT/final
mmlfer() { python "$(dirname "$0")/mmlfer.py" "$@"; }

if [ ! -f "$DATA/RAFCE_emolabel.txt" ]; then
  echo "run.sh: no RAF-CE in $DATA. Ask for it at http://www.whdeng.cn/RAF/model2.html, or make" >&2
  echo "stand-in faces: python mmlfer.py synth $DATA" >&2
  exit 1
fi

train() { # FOLDER METHOD SEED [options]
  local out=$1 method=$2 seed=$3
  shift 3
  # shellcheck disable=SC2086  # EXTRA is several words
  mmlfer train --data "$DATA" --out "$out" --method "$method" --seed "$seed" --epochs "$EPOCHS" \
    --size "$SIZE" --device "$DEVICE" --resume $EXTRA "$@"
}

best() { # the options of the search's run that has the highest validation accuracy (log.csv, column 7)
  for run in "$@"; do
    awk -F, -v options="${run##*/}" 'NR > 1 && $7 > best { best = $7 } END { print best + 0, options }' \
      "$run/log.csv"
  done | sort -rn | sed -n 1p | cut -d ' ' -f 2 | tr '_' ' '
}

echo "== 1/6  STL"
for seed in $SEEDS; do train "$RUNS/stl-$seed" stl "$seed"; done

echo "== 2/6  MTL, rho searched on validation"
for rho in $RHOS; do train "$OUT/search/mtl/--rho_$rho" mtl "$FIRST" --rho "$rho"; done
mtl=$(best "$OUT"/search/mtl/*)
echo "MTL: $mtl"
# shellcheck disable=SC2086
for seed in $SEEDS; do train "$RUNS/mtl-$seed" mtl "$seed" $mtl; done

echo "== 3/6  MAL, with one and with two weights"
for seed in $SEEDS; do
  train "$RUNS/mal-$seed" mal "$seed"
  train "$RUNS/mal2-$seed" mal2 "$seed"
done

echo "== 4/6  AM, lab and wild, rhos searched on validation"
for stats in lab wild; do
  for rho in $RHOS; do
    for rho_am in $RHOS_AM; do
      train "$OUT/search/am-$stats/--rho_${rho}_--rho-am_$rho_am" am "$FIRST" --stats "$stats" \
        --rho "$rho" --rho-am "$rho_am"
    done
  done
  am=$(best "$OUT/search/am-$stats"/*)
  echo "AM $stats: $am"
  # shellcheck disable=SC2086
  for seed in $SEEDS; do train "$RUNS/am-$stats-$seed" am "$seed" --stats "$stats" $am; done
done

echo "== 5/6  MML, lab and wild"
for stats in lab wild; do
  for seed in $SEEDS; do train "$RUNS/mml-$stats-$seed" mml "$seed" --stats "$stats"; done
done

echo "== 6/6  tables and figures"
mmlfer table "$RUNS" --out "$OUT/results.md"
mmlfer plot "$RUNS/mml-wild-$FIRST"
names=$(awk '$2 + 0 == 1 && n++ < 4 { print $1 }' "$DATA/RAFCE_partition.txt")
faces=()
for name in $names; do
  while read -r face; do faces+=("$face"); done \
    < <(find -L "$DATA" -name "${name%.*}_aligned.*" -o -name "$name" | sort | sed -n 1p)
done
mmlfer gradcam --ckpt "$RUNS/mtl-$FIRST/best.pt" --ckpt "$RUNS/mml-wild-$FIRST/best.pt" \
  --out "$OUT/gradcam.png" "${faces[@]}"
echo "done: $OUT/results.md, $RUNS/mml-wild-$FIRST/curves.png, $OUT/gradcam.png"
