#!/usr/bin/env bash
# Checks and measures a GPU with nothing but a prebuilt bench binary:
#
#   benches/gpu.sh BINARY GOLDEN_DIR [OUT]
#
# BINARY      gatekit-bench, built with --features cuda and/or vulkan, stripped
# GOLDEN_DIR  golden cases, DIR/<system>/*.safetensors
# OUT         folder for the results, default ./gpu-results
#
# The golden cases run on every GPU device of the binary; those that pass are measured against
# flash-linear-attention's Triton kernels (Python with torch, triton and flash-linear-attention, named
# by GATEKIT_PYTHON; without it our figures stand alone), alternating, at that library's benchmark
# shapes. Everything together takes less than eight minutes.
#
# Overrides, by environment: GPU_DEVICES, GPU_OPS, GPU_SHAPES, GPU_PASSES, GPU_DTYPE, GPU_CASES (part
# of the names of the golden cases), GPU_MATMUL (largest matrix product), GPU_SECONDS (for everything).
set -uo pipefail

if [ $# -lt 2 ] || [ ! -x "$1" ] || [ ! -d "$2" ]; then
  sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
binary=$(realpath "$1")
golden=$(realpath "$2")
out=${3:-gpu-results}
here=$(cd "$(dirname "$0")" && pwd)
export GATEKIT_PEERS="${GATEKIT_PEERS:-$here/peers}"
seconds=${GPU_SECONDS:-450}

devices=${GPU_DEVICES:-$("$binary" devices | grep -x -e cuda -e vulkan | paste -sd,)}
if [ -z "$devices" ]; then
  echo "gpu.sh: the binary has neither cuda nor vulkan: build it with --features cuda,vulkan" >&2
  exit 2
fi
mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null | tee "$out/gpu.txt"

# Golden cases first; they may take a third of the time.
status=0
measured=()
for device in ${devices//,/ }; do
  echo "== golden cases on $device"
  if timeout $((seconds / 3)) "$binary" check --device "$device" --golden "$golden" --filter "${GPU_CASES:-}" \
    >"$out/golden-$device.txt" 2>&1; then
    measured+=("$device")
  else
    echo "gpu.sh: $device fails the golden cases and is not measured" >&2
    grep -v '^ok ' "$out/golden-$device.txt" >&2
    status=1
  fi
  tail -n 1 "$out/golden-$device.txt"
done
if [ ${#measured[@]} -eq 0 ]; then
  exit 1
fi

echo "== measuring ($SECONDS s)"
"$binary" report \
  --devices "$(IFS=,; echo "${measured[*]}")" \
  --ops "${GPU_OPS:-gla,gated-delta-rule,kda}" \
  --shapes "${GPU_SHAPES:-1x8192x96x128,2x16384x16x128,4x2048x16x128,4x4096x64x128,8x1024x8x64}" \
  --forms fused \
  --passes "${GPU_PASSES:-forward,forward+backward}" \
  --dtype "${GPU_DTYPE:-bf16}" \
  --largest-matmul "${GPU_MATMUL:-8192}" \
  --peer fla \
  --max-time 4 \
  --budget $((seconds - SECONDS)) \
  --out "$out" --overwrite 2>&1 | tee "$out/report.txt" || status=1
echo "== done ($SECONDS s), results in $out"
exit $status
