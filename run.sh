#!/usr/bin/env bash
# All of the paper's experiments: bash run.sh [--list] [DATA] [OUT]   (./rafce and ./runs by default)
# DATA is RAF-CE, or a folder with a labels.csv.
#
# 1. Searches rho and rho_am on validation, with the first seed. Where the best is the largest or
#    the smallest tried, a warning says so: widen RHOS or RHOS_AM.
#    The rows that need no search are trained meanwhile.
# 2. Trains MTL and AM with what was found: now every row of Table 3, and MAL2, has all seeds.
# 3. Writes the tables, the curves of Fig. 5 and Grad-CAM (Fig. 4), in OUT.
#
# Finished runs are skipped and a stopped run is continued: start it again at any time. Ctrl-C stops
# all runs, as TERM, HUP and USR1 do; each saves where it is. A failed run is named; the others of
# its stage are finished first.
# --list prints the commands of the next stage that are not done, one per line, for a cluster's queue.
#
# Settings from the environment, with their defaults:
#   SEEDS="0 1 2"   EPOCHS=60   SIZE=112   EXTRA="": more options of `mmlfer train`
#   ROWS="stl mtl mal mal2 am-lab am-wild mml-lab mml-wild": rows of the results' Table 3; with a
#     labels.csv "stl mtl mal mal2 am-train mml-train", whose statistics are those of its training rows
#   RHOS="0.03 0.1 0.3 1"   RHOS_AM="0.1 0.3 1": values to search
#   FOLDS="": with 10, cross-validation: every row and seed is trained ten times, each with another
#     tenth as test set, and the tables are of all of them; the searches are of fold 1 alone
#   JOBS=1: runs at once. With more, OMP_NUM_THREADS is set to each run's share of the cores, unless
#     it is set already, and every line of a run begins with its folder. On 2 cores, 48x48: 67 s with
#     JOBS=2, one thread each, and 80 s with JOBS=1 and two threads (the same twice).
#   DEVICES="auto": taken in turn, e.g. JOBS=4 DEVICES="cuda:0 cuda:1" for four runs on two GPUs
set -euo pipefail

LIST=
if [ "${1:-}" = --list ]; then
  LIST=yes
  shift
fi
DATA=${1:-./rafce} OUT=${2:-./runs}
SEEDS=${SEEDS:-0 1 2} EPOCHS=${EPOCHS:-60} SIZE=${SIZE:-112} EXTRA=${EXTRA:-}
RHOS=${RHOS:-0.03 0.1 0.3 1} RHOS_AM=${RHOS_AM:-0.1 0.3 1}
JOBS=${JOBS:-1} DEVICES=${DEVICES:-auto} FOLDS=${FOLDS:-}
FIRST=${SEEDS%% *} RUNS=$OUT/final PROGRAM=$(dirname "$0")/mmlfer.py
mmlfer() { python "$PROGRAM" "$@"; }

if [ -f "$DATA/labels.csv" ]; then
  ROWS=${ROWS:-stl mtl mal mal2 am-train mml-train}
elif [ -f "$DATA/RAFCE_emolabel.txt" ]; then
  ROWS=${ROWS:-stl mtl mal mal2 am-lab am-wild mml-lab mml-wild}
else
  echo "run.sh: neither RAF-CE nor a labels.csv in $DATA. Ask for RAF-CE at" >&2
  echo "http://www.whdeng.cn/RAF/model4.html, or make stand-in faces: python mmlfer.py synth $DATA" >&2
  exit 1
fi
case $FOLDS in "" | [3-9] | [1-9][0-9] | [1-9][0-9][0-9]) ;; *)
  echo "run.sh: FOLDS=$FOLDS: expected a number of folds, 3 or more" >&2
  exit 1
  ;;
esac
if [ "$JOBS" -gt 1 ]; then
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > JOBS ? cores / JOBS : 1))}
fi
export JOBS

# A stage: `train` lists its runs, `finish` does them.
stage=() # two words for each run: its folder, its command
turn=0   # runs that were given a device

train() { # FOLDER ROW SEED [options]; a row is METHOD or METHOD-STATISTICS
  local out=$1 row=$2 seed=$3
  shift 3
  case $row in *-*) set -- --stats "${row#*-}" "$@" ;; esac
  if [ -n "$LIST" ] && [ -f "$out/test.json" ]; then return; fi
  # shellcheck disable=SC2206  # several words
  local devices=($DEVICES)
  # shellcheck disable=SC2206
  local words=(python "$PROGRAM" train --data "$DATA" --out "$out" --method "${row%%-*}"
    --seed "$seed" --epochs "$EPOCHS" --size "$SIZE" --device "${devices[turn % ${#devices[@]}]}"
    --resume $EXTRA "$@")
  stage+=("$out" "$(printf '%q ' "${words[@]}")")
  turn=$((turn + 1))
}

search() { # FOLDER ROW [options]
  local out=$OUT/search/$1 row=$2
  shift 2
  train "$out" "$row" "$FIRST" ${FOLDS:+--folds "$FOLDS" --fold 1} "$@"
}

final() { # ROW SEED [options]: a run, or one of each fold
  local row=$1 seed=$2 fold
  shift 2
  if [ -z "$FOLDS" ]; then train "$RUNS/$row-$seed" "$row" "$seed" "$@"; fi
  for fold in $(seq ${FOLDS:-0}); do
    train "$RUNS/$row-$seed-f$fold" "$row" "$seed" --folds "$FOLDS" --fold "$fold" "$@"
  done
}

# A script for `bash -c`, which does one run: $1 is the run's folder, $2 its command. With several
# runs at once it puts the folder before each line that the command prints. A failed run is named.
# shellcheck disable=SC2016
WORK='if [ "$JOBS" = 1 ]; then eval "$2"; else
  eval "$2" 2>&1 | while IFS= read -r line; do printf "%s: %s\n" "$1" "$line"; done
fi || { echo "run.sh: failed: $2" >&2; exit 1; }'

# Tells a group of runs to stop, and waits until they have saved: where this script is all that a
# container or a job runs, its end is theirs. A second signal ends it at once.
stop() {
  trap - INT TERM HUP USR1
  kill -TERM -- "-$1" || true
  while kill -0 -- "-$1" 2>/dev/null; do sleep 0.1; done
  exit 130
}

finish() {
  if [ ${#stage[@]} = 0 ]; then return; fi
  if [ -n "$LIST" ]; then
    printf '%.0s%s\n' "${stage[@]}" # every second word: the commands
    exit
  fi
  set -m # the runs are a group of their own, to be stopped together: they save where they are
  xargs -0 -n 2 -P "$JOBS" bash -o pipefail -c "$WORK" run.sh < <(printf '%s\0' "${stage[@]}") &
  trap "stop $!" INT TERM HUP USR1
  if ! wait $!; then
    echo "run.sh: some runs of this stage failed, see above; mend that and start again to go on" >&2
    exit 1
  fi
  trap - INT TERM HUP USR1
  set +m
  stage=()
}

say() { if [ -z "$LIST" ]; then echo "$@"; fi; }

say "== 1/3  searches on validation with the first seed, and all that needs none"
for row in $ROWS; do
  for rho in $RHOS; do
    case $row in
      mtl) search "$row/$rho" "$row" --rho "$rho" ;;
      am*)
        for rho_am in $RHOS_AM; do
          search "$row/$rho-$rho_am" "$row" --rho "$rho" --rho-am "$rho_am"
        done
        ;;
    esac
  done
done
for seed in $SEEDS; do
  for row in $ROWS; do
    case $row in mtl | am*) ;; *) final "$row" "$seed" ;; esac
  done
done
finish

say "== 2/3  MTL and AM with what was found"
for row in $ROWS; do
  case $row in
    mtl) found=$(mmlfer search "$OUT/search/$row" rho) ;;
    am*) found=$(mmlfer search "$OUT/search/$row" rho rho-am) ;;
    *) continue ;;
  esac
  say "$row: $found"
  # shellcheck disable=SC2086
  for seed in $SEEDS; do final "$row" "$seed" $found; done
done
finish

say "== 3/3  tables and figures"
if [ -n "$LIST" ]; then
  echo "run.sh: all runs are done; start it without --list for the tables and figures" >&2
  exit
fi
mmlfer table "$RUNS" --out "$OUT/results.md"
mmlfer plot "$RUNS"
checkpoints=()
for row in mtl mml-wild mml-train; do
  run=$RUNS/$row-$FIRST${FOLDS:+-f1}
  if [ -f "$run/test.json" ]; then
    tested=$run/test.json
    mmlfer plot "$run"
    checkpoints+=(--ckpt "$run/best.pt")
  fi
done
find_face() { # the first file of this name; places may have any letter
  { find -L "$DATA" -name "$1" -print0 2>/dev/null || true; } | sort -z |
    { IFS= read -r -d '' first && printf '%s' "$first"; cat >/dev/null; }
}
faces=() # the first four of the test set that are there
names='import json, sys; print(*json.load(open(sys.argv[1]))["names"], sep="\0", end="\0")'
while IFS= read -r -d '' name && [ ${#faces[@]} -lt 4 ]; do
  face=$DATA/$name # as labels.csv has it; RAF-CE's lists have names alone
  if [ ! -f "$DATA/labels.csv" ]; then
    face=$(find_face "${name%.*}_aligned.*")
    face=${face:-$(find_face "$name")}
  fi
  if [ -f "$face" ]; then faces+=("$face"); fi
done < <(if [ -n "${tested:-}" ]; then python -c "$names" "$tested"; fi)
if [ ${#checkpoints[@]} -gt 0 ] && [ ${#faces[@]} -gt 0 ]; then
  mmlfer gradcam "${checkpoints[@]}" --out "$OUT/gradcam.png" "${faces[@]}"
fi
echo "done: tables in $OUT/results.md, curves in $RUNS, Grad-CAM in $OUT"
