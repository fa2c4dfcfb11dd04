"""Serves a page in the browser."""

import importlib.util
import os
import socket
from pathlib import Path

from vq_jax.errors import UserError


def serve(workdir: Path, *, port: int = 7860, host: str = "127.0.0.1") -> None:
    """`--mode=serve`: serves a page for the models in a folder, until it is stopped.

    Args:
      workdir: a run, or a folder of runs.
      port: of the server.
      host: address that the server listens at; "0.0.0.0" is all.

    Raises:
      UserError: Gradio is not installed, there is no model, or the port is taken.
    """
    if not importlib.util.find_spec("gradio"):
        raise UserError("the page needs Gradio: pip install 'vq_jax[serve]'")
    if not 1 <= port <= 65535:
        raise UserError(f"port is {port}: use 1 to 65535")
    _check_address(host, port)
    # Gradio reads these when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gradio import blocks
    from PIL import Image

    from vq_jax.page.build import THEME, build
    from vq_jax.page.models import served
    from vq_jax.page.parts import PIXELS, UPLOAD
    from vq_jax.training.parallel import keep_compiled

    keep_compiled()
    # Gradio fetches addresses that a client gives in place of a file, without a limit of size.
    blocks.processing_utils.async_ssrf_protected_download = _refuse  # type: ignore[assignment]
    Image.MAX_IMAGE_PIXELS = PIXELS // 2  # Pillow refuses twice as many to Gradio.
    models = served(workdir)
    page = build(models)
    print(f"opening {', '.join(m.name for m in models)}", flush=True)
    page.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        ssr_mode=False,
        max_file_size=UPLOAD,
        footer_links=[],
        theme=THEME,
        prevent_thread_lock=True,
    )
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    print(f"the page is at http://{shown}:{port} (Ctrl-C stops it)", flush=True)
    page.block_thread()


def _check_address(host: str, port: int) -> None:
    """Raises UserError unless a server can listen at an address."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as e:
        raise UserError(
            f"port {port} of {host} cannot be used: {e.strerror or e}; name another"
        ) from e


async def _refuse(url: str, cache_dir: str) -> str:
    import gradio as gr

    raise gr.Error("files are uploaded, not fetched from addresses", print_exception=False)
