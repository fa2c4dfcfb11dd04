"""Serves a page in the browser."""

import importlib.util
import os
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
    # Gradio reads these when it is imported.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vq_jax.page.build import THEME, build
    from vq_jax.page.models import served
    from vq_jax.page.parts import UPLOAD
    from vq_jax.training.parallel import keep_compiled

    keep_compiled()
    models = served(workdir)
    print(f"opening {', '.join(m.name for m in models)}", flush=True)
    page = build(models)
    try:
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
    except OSError as e:
        raise UserError(f"port {port} of {host} cannot be used: it is taken; name another") from e
    print(f"the page is at http://{host}:{port} (Ctrl-C stops it)", flush=True)
    page.block_thread()
