"""The program: `python -m vq_jax.main --help`."""

from vq_jax.cli import run

if __name__ == "__main__":
    run()
