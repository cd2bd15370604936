#!/bin/bash
# Makes the whole fixture, from inside its folder, with frevl as of commit 6a8fb0f in SOURCE (a checkout's src).
# SOURCE=/path/to/checkout/src PYTHON=python ./make.sh
set -e
export PYTHONPATH=$SOURCE OMP_NUM_THREADS=1
frevl() { "$PYTHON" -m frevl "$@" --quiet; }
small() { "$PYTHON" small.py "$@" --quiet; }
rm -rf images vectors stores runs scores pairs.jsonl captions.jsonl soft.jsonl manifest.json runs-of-seeds
"$PYTHON" make_inputs.py
files="--images images --pairs pairs.jsonl --pairs captions.jsonl"
frevl extract $files --encoder toy --store stores/pooled
frevl extract $files --encoder toy --store stores/tokens --tokens --grid 4x4
frevl import vectors/images.npy --of images --ids vectors/images.txt --encoder made-up --common-space --store stores/common
frevl import vectors/texts.npy --of texts --ids vectors/texts.txt --encoder made-up --common-space --store stores/common

c="--pairs pairs.jsonl --task classification"
for model in majority linear kernel; do
  frevl train --store stores/pooled $c --model $model --run runs/classification/$model
done
# So few pairs: small batches and the whole schedule, so that something is learnt.
long="--batch-size 16 --epochs 30 --patience 30 --keep-last"
for model in text image mlp; do
  frevl train --store stores/pooled $c --model $model $long --run runs/classification/$model
done
frevl train --store stores/pooled $c --model tiny --layers 0 $long --run runs/classification/tiny
small train --store stores/pooled $c --model tiny $long --run runs/classification/tiny-small
small train --store stores/pooled $c --model tiny --no-cross-attention --no-difference $long --run runs/classification/tiny-ablated
small train --store stores/pooled $c --model tiny --standardise --input-dropout 0.3 $long --run runs/classification/tiny-standardised
small train --store stores/pooled $c --model auto --time-limit 60 --run runs/classification/auto
small train --store stores/tokens $c --model tiny $long --run runs/classification/tiny-tokens
frevl train --store stores/tokens $c --model linear --run runs/classification/linear-tokens
frevl train --store stores/tokens $c --model kernel --run runs/classification/kernel-tokens
frevl train --store stores/common $c --model linear --run runs/classification/linear-common
frevl train --store stores/pooled $c --model linear --seeds 2 --run runs-of-seeds/linear
frevl train --store stores/pooled --pairs soft.jsonl --task classification --model linear --run runs/classification/linear-soft
small train --store stores/pooled --pairs soft.jsonl --task classification --model tiny --layers 1 $long --run runs/classification/tiny-soft
"$PYTHON" make_average.py

m="--pairs captions.jsonl --task matching"
frevl train --store stores/common $m --model cosine --run runs/matching/cosine-common
frevl train --store stores/common $m --model linear --run runs/matching/linear-common
small train --store stores/common $m --model tiny --first-stage cosine --run runs/matching/reranked-common
frevl train --store stores/pooled $m --model linear --run runs/matching/linear
small train --store stores/pooled $m --model dual --run runs/matching/dual
small train --store stores/pooled $m --model tiny $long --run runs/matching/tiny
small train --store stores/pooled $m --model tiny --first-stage dual --run runs/matching/reranked
small train --store stores/pooled $m --model auto --time-limit 90 --run runs/matching/auto
"$PYTHON" make_reranked.py
"$PYTHON" score.py
