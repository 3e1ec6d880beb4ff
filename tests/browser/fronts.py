"""Runs nginx and Caddy as reverse proxies of the pages, with the configurations that docs/operating.md shows."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 30.0
PREFIX = "/smith/"
DOCUMENTED_ADDRESS = "127.0.0.1:9642"
#: nginx's configuration around the documented part. With it, nginx writes only into the folder of the test.
NGINX = """daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
{documented}
  }}
}}
"""
CADDY = """{{
  admin off
  auto_https off
  storage file_system {folder}
}}
{documented}
"""


def example_of_docs(language: str, contained: str) -> str:
    """Return the example of docs/operating.md in this language that contains this text."""
    text = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
    blocks = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    (found,) = [block for block in blocks if contained in block]
    return str(found)


@contextmanager
def running_nginx(folder: Path, target: str) -> Iterator[str]:
    """Run nginx in front of `target`, a host with its port, and yield the URL of the pages."""
    folder.mkdir()
    port = _free_port()
    example = example_of_docs("nginx", "proxy_buffering off").replace(DOCUMENTED_ADDRESS, target)
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, port=port, documented=example), encoding="utf-8")
    with _running([_path_of("nginx"), "-e", folder / "error.log", "-p", folder, "-c", file], folder, port):
        yield f"http://127.0.0.1:{port}{PREFIX}"


@contextmanager
def running_caddy(folder: Path, target: str) -> Iterator[str]:
    """Run Caddy in front of `target`, a host with its port, and yield the URL of the pages."""
    folder.mkdir()
    port = _free_port()
    example = example_of_docs("caddy", "reverse_proxy").replace(DOCUMENTED_ADDRESS, target)
    example = example.replace("smith.example.net", f"http://127.0.0.1:{port}")
    file = folder / "Caddyfile"
    file.write_text(CADDY.format(folder=folder, documented=example), encoding="utf-8")
    with _running([_path_of("caddy"), "run", "--adapter", "caddyfile", "--config", file], folder, port):
        yield f"http://127.0.0.1:{port}{PREFIX}"


def _path_of(program: str) -> str:
    found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/bin")
    if found is None:
        raise SystemExit(f"{program} is not installed: apt-get install {program}")
    return found


@contextmanager
def _running(command: list[str | Path], folder: Path, port: int) -> Iterator[None]:
    environment = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        _wait_until_the_port_is_open(process, port, folder / "log")
        yield
    finally:
        process.terminate()
        process.wait(START_TIMEOUT_S)


def _wait_until_the_port_is_open(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    limit = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(log.read_text(errors="replace")) from None
            time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
