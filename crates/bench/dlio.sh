#!/bin/bash
# DLIO 2.0.0 (PyPI) with the MLPerf Storage v2.0 workload shapes, scaled to one machine: not an MLPerf result.
#
#   dlio.sh setup                            packages and a virtual environment; once
#   dlio.sh gen FOLDER [SHAPE...]            unet3d (a tenth of its record size; 2.4 GB), resnet50, cosmoflow; all: 6 GB
#   dlio.sh unet FOLDER RANKS SECONDS NAME   prints the mean accelerator utilisation of the epochs
#   dlio.sh resnet|cosmo FOLDER NAME
#   dlio.sh epochs NAME                      of each epoch of that run: its utilisation, and the seconds it took
set -eu
work=${DLIO_DIR:-$HOME/.cache/larder/dlio}
venv=$work/venv
export PATH=$venv/bin:$PATH OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
  OMPI_MCA_hwloc_base_binding_policy=none OMPI_MCA_btl=self,vader OMP_NUM_THREADS=1 DFTRACER_ENABLE=0 TF_CPP_MIN_LOG_LEVEL=3 \
  CUDA_VISIBLE_DEVICES=

unet="workload=unet3d_h100 ++workload.dataset.num_files_train=168 ++workload.dataset.record_length=14660062
  ++workload.dataset.record_length_stdev=6834180 ++workload.dataset.record_length_resize=209715 ++workload.workflow.checkpoint=False"
resnet="workload=resnet50_h100 ++workload.dataset.num_files_train=16 ++workload.workflow.checkpoint=False"
cosmo="workload=cosmoflow_h100 ++workload.dataset.num_files_train=512 ++workload.workflow.checkpoint=False"

dlio() { # ranks, name, arguments
  local ranks=$1 name=$2
  shift 2
  if ! mpirun -np "$ranks" "$venv/bin/dlio_benchmark" "$@" ++hydra.run.dir="$work/out/$name" > "$work/$name.log" 2>&1; then
    tail -n 20 "$work/$name.log" >&2
    return 1
  fi
}

utilisation() {
  python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["metric"]["train_au_mean_percentage"])' "$work/out/$1/summary.json"
}

case $1 in
setup)
  [ -e "$work/ready" ] && exit
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -y -q --no-install-recommends openmpi-bin python3-venv python3-torch python3-mpi4py python3-h5py \
    python3-numpy python3-pandas python3-psutil python3-omegaconf python3-pil python3-yaml
  mkdir -p "$work/out"
  # Debian's Python, which sees Debian's torch; DLIO's own requirements are many GB that nothing here uses.
  /usr/bin/python3 -m venv --system-site-packages "$venv"
  "$venv/bin/pip" install -q --no-deps dlio-benchmark==2.0.0 pydftracer==1.0.2 hydra-core==1.3.2 \
    antlr4-python3-runtime==4.9.3 packaging==24.2
  # The last that goes with Debian's numpy; only resnet50 and cosmoflow use it.
  "$venv/bin/pip" install -q tensorflow-cpu==2.15.1
  # Of DALI, called when TFRecords are made, unused by tf.data.
  printf '#!/bin/sh\n: > "$2"\n' > "$venv/bin/tfrecord2idx"
  chmod +x "$venv/bin/tfrecord2idx"
  touch "$work/ready"
  ;;
gen)
  folder=$2
  shift 2
  [ $# -gt 0 ] || set -- unet3d resnet50 cosmoflow
  for shape; do
    case $shape in unet3d) arguments=$unet ;; resnet50) arguments=$resnet ;; cosmoflow) arguments=$cosmo ;; esac
    # shellcheck disable=SC2086 # words on purpose
    dlio 2 "gen-$shape" $arguments ++workload.workflow.generate_data=True ++workload.workflow.train=False \
      ++workload.dataset.data_folder="$folder/$shape"
  done
  ;;
epochs)
  python3 - "$work/out/$2" << 'END'
import json, sys
utilisation = json.load(open(sys.argv[1] + "/summary.json"))["metric"]["train_au_percentage"]
epochs = json.load(open(sys.argv[1] + "/per_epoch_stats.json"))
for n, percent in enumerate(utilisation, 1):
    print(percent, epochs[str(n)]["duration"])
END
  ;;
unet)
  # shellcheck disable=SC2086
  dlio "$3" "$5" $unet ++workload.dataset.data_folder="$2/unet3d" ++workload.train.epochs=2 ++workload.reader.read_threads=2 \
    ++workload.train.computation_time="$4"
  utilisation "$5"
  ;;
resnet)
  # shellcheck disable=SC2086
  dlio 1 "$3" $resnet ++workload.dataset.data_folder="$2/resnet50" ++workload.train.epochs=2 ++workload.reader.read_threads=2 \
    ++workload.reader.computation_threads=1
  utilisation "$3"
  ;;
cosmo)
  # shellcheck disable=SC2086
  dlio 1 "$3" $cosmo ++workload.dataset.data_folder="$2/cosmoflow" ++workload.train.epochs=2 ++workload.reader.read_threads=2 \
    ++workload.reader.batch_size=10 ++workload.train.computation_time=0.14
  utilisation "$3"
  ;;
esac
