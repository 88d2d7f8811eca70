#!/bin/sh
# The API by hand: list, load, chat and stream, one after the other; unload when asked.
#
#     examples/curl.sh                   list load chat stream
#     examples/curl.sh unload list       any of them, in any order
#
# CORTEX_URL    the gateway        default http://127.0.0.1:31313
# CORTEX_NODE   the node           default http://127.0.0.1:13131; loads and unloads
# CORTEX_MODEL  the model          default smollm2-135m-instruct
# CORTEX_TOKEN  the node's token, if it wants one
set -eu

gateway=${CORTEX_URL:-http://127.0.0.1:31313}
node=${CORTEX_NODE:-http://127.0.0.1:13131}
model=${CORTEX_MODEL:-smollm2-135m-instruct}
question="What is the capital of France?"

# ask URL [JSON] [more of curl's]: a refusal shows its body and ends with 22
ask() {
    url=$1 body=${2:-}
    shift $(($# > 1 ? 2 : 1))
    curl --silent --show-error --fail-with-body "$url" \
        ${body:+--header "content-type: application/json" --data "$body"} "$@"
    echo
}

list() { ask "$gateway/v1/models"; }

chat() {
    ask "$gateway/v1/chat/completions" "{\"model\": \"$model\",
        \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"
}

stream() {
    ask "$gateway/v1/chat/completions" "{\"model\": \"$model\", \"stream\": true,
        \"stream_options\": {\"include_usage\": true},
        \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}" --no-buffer
}

load() { order load; }
unload() { order unload; }

# Waits until it is done; `?wait=0` would answer at once.
order() {
    ask "$node/models/$1" "{\"model_id\": \"$model\"}" \
        ${CORTEX_TOKEN:+--header "authorization: Bearer $CORTEX_TOKEN"}
}

for step in "${@:-}"; do
    case $step in
    "") for each in list load chat stream; do "$each"; done ;;
    list | load | chat | stream | unload) "$step" ;;
    *)
        echo "curl.sh: $step is none of list load chat stream unload" >&2
        exit 2
        ;;
    esac
done
