"""Your own server as the expert: probe it, relay to it, and see an answer survive its death.

Starts a `llama_cpp.server` with SmolLM2 on this machine; put your model's URL, name and chat
template in its place. Expect the probe's verdict, an answer with hosted words in brackets, and
the same question answered by the local model alone once the server is dead.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time

import httpx
import openai

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.delegates import OpenAIDelegate
from langchain_relay.local.models import resolve

os.environ.setdefault("LANGCHAIN_RELAY_CACHE", tempfile.mkdtemp())  # verdicts of this run only
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named "
    "SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"  # Jinja drops a line break at a template's end
)
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
options = {"model": resolve("smollm2-135m"), "port": port, "n_ctx": 1024, "n_threads": 1}
options |= {"n_threads_batch": 1, "interrupt_requests": False, "flash_attn": True, "type_k": 30}
flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
server = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *flags], **quiet)
url = f"http://127.0.0.1:{port}/v1"
try:
    while server.poll() is None:
        try:
            httpx.get(f"{url}/models")
            break
        except httpx.TransportError:
            time.sleep(0.1)

    client = openai.OpenAI(base_url=url, api_key="none")
    hosted = OpenAIDelegate(client, model="own", api="completions", prompt=TEMPLATE)
    print(f"probe: {hosted.probe().verdict} in {hosted.mode} mode")

    local = {"model": "smollm2-135m", "temperature": 0, "max_tokens": 32, "n_ctx": 1024}
    relay = RelayChatModel(delegate=hosted, prices={"own": (0, 0)}, n_threads=1, **local)
    print("alive:", str(relay_report(relay.invoke("What is 23*17?"))).splitlines()[0])
finally:
    server.kill()
    server.wait()
report = relay_report(relay.invoke("What is 23*17?"))
print("dead:", str(report).splitlines()[0])
print(f"hand-overs: {report.calls}, failed: {report.failed}")
